"""A profile as one HTML page that requests nothing."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spikedim.report.html import style, template
from spikedim.report.picture import picture
from spikedim.storage import write_text

if TYPE_CHECKING:
    from spikedim.profiling import Profile
    from spikedim.profiling.activity import Activity


def render_profile(
    profile: Profile, activity: Activity | None = None, *, data: str = "", network: str = ""
) -> str:
    """Render a profile: findings first, then energies, pictures and every table.

    Args:
        profile: what was counted.
        activity: potentials and a raster, for their pictures.
        data, network: names for the heading.
    """
    from spikedim.profiling import figures

    first = profile.energy[0].convention if profile.energy else None
    drawings: list[tuple[str, str, Callable[[], Any]]] = [
        (
            "Firing rates by layer and timestep",
            "Spikes per neuron; the numbers are in the table of firing rates.",
            lambda: figures.heat_map(profile),
        ),
        (
            "Energy by convention",
            "One network, one count: only the rules differ. Grey: conventional networks.",
            lambda: figures.energies(profile),
        ),
        (
            "Spikes over samples",
            "How evenly the cost is spread over inputs.",
            lambda: figures.distribution(profile),
        ),
    ]
    if first:
        text = (
            f"Energy per sample under {first}; what ran once for all timesteps has its own column."
        )
        drawings.insert(
            1,
            ("Energy by layer and timestep", text, lambda: figures.heat_map(profile, None, first)),
        )
    if activity:
        seen = activity
        drawings += [
            (
                "Raster",
                "A mark is a spike: one sample, evenly chosen neurons of every layer.",
                lambda: figures.raster(seen),
            ),
            (
                "Membrane potentials",
                f"Before reset, over {seen.samples} samples. Mass at the line is what a small "
                "change of the input turns into spikes or silence.",
                lambda: figures.potentials(seen),
            ),
        ]
    shown = [
        {"title": title, "caption": caption, "image": _image(draw())}
        for title, caption, draw in drawings
    ]
    energy, *tables = [*profile.tables(), *(activity.tables() if activity else [])]
    severe = [gate for gate in profile.gates if gate.severity == "error"]
    page = template("profile.html").render(
        css=style(),
        title=f"{network or profile.model} at T = {profile.T}",
        data=data,
        profile=profile,
        energy=energy,
        tables=tables,
        figures=shown,
        severe=severe,
    )
    return page.lstrip()


def write_profile(
    profile: Profile,
    activity: Activity | None,
    path: str | Path,
    *,
    data: str = "",
    network: str = "",
) -> Path:
    """Write :func:`render_profile` to ``path`` atomically and return the path."""
    return write_text(path, render_profile(profile, activity, data=data, network=network))


def _image(axes: Any) -> str:
    return base64.b64encode(picture(axes.get_figure(), dpi=130)).decode()
