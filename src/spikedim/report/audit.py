"""The audit of claims as one HTML page that requests nothing."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from spikedim.results import number

if TYPE_CHECKING:
    import jinja2

    from spikedim.claims import Audit

_HERE = Path(__file__).parent
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
    page = _template().render(
        css=(_HERE / "style.css").read_text(encoding="utf-8"),
        headline=audit.headline,
        cards=cards,
        source=f"spikedim audit --{audit.effort}, seed {audit.seed}, {number(audit.seconds, 3)} s; "
        f"{versions}",
    )
    return page.lstrip()


@cache
def _template() -> jinja2.Template:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("audit.html")
