"""The audit of claims as one HTML page that requests nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spikedim.report.html import style, template
from spikedim.results import number

if TYPE_CHECKING:
    from spikedim.claims import Audit

_TONES = {"holds": "good", "holds after correction": "mended", "fails": "bad"}


def render_audit(audit: Audit) -> str:
    """Render an audit: one card per claim, verdict first, every measurement beneath it."""
    from spikedim.claims.audit import decisive

    cards = [
        {
            "result": result,
            "tone": _TONES.get(result.verdict, "open"),
            "decisive": decisive(result),
            "table": result.tables()[0],
        }
        for result in audit.results
    ]
    versions = ", ".join(f"{name} {text}" for name, text in audit.provenance.versions.items())
    page = template("audit.html").render(
        css=style(),
        headline=audit.headline,
        cards=cards,
        source=f"spikedim audit --{audit.effort}, seed {audit.seed}, {number(audit.seconds, 3)} s; "
        f"{versions}",
    )
    return page.lstrip()
