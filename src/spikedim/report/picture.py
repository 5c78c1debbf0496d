"""The plot of a result as the bytes of an image file."""

from __future__ import annotations

import io
from typing import Any


def picture(result: Any, kind: str = "png", dpi: int = 150) -> bytes:
    """Draw ``result.plot()``, or a finished figure, without a display.

    Args:
        result: a matplotlib figure, or anything whose ``plot()`` returns axes.
        kind: ``"png"``, ``"pdf"`` or ``"svg"``.
        dpi: dots per inch.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure = result if hasattr(result, "savefig") else result.plot().get_figure()
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=dpi, bbox_inches="tight")
    pyplot.close(figure)
    return buffer.getvalue()
