"""Rank diagnostics, or a comparison of gates, as one HTML page that requests nothing."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

from spikedim.provenance import versions
from spikedim.report.html import style, template
from spikedim.report.picture import picture

if TYPE_CHECKING:
    from spikedim.rank import GateComparison, RankDiagnosis


def render_rank(result: RankDiagnosis | GateComparison) -> str:
    """Render the verdict, the picture and every table."""
    from spikedim.rank import GateComparison

    if isinstance(result, GateComparison):
        title, headline = f"Position gate on {result.model}", result.verdict
    else:
        title = f"Rank of {result.network} on {result.dataset}"
        headline = result.profile.headline
    page = template("rank.html").render(
        css=style(),
        title=title,
        headline=headline,
        picture=base64.b64encode(picture(result, dpi=130)).decode(),
        tables=result.tables(),
        source=", ".join(f"{name} {text}" for name, text in versions().items()),
    )
    return page.lstrip()
