"""Self-contained HTML reports and their figures."""

from spikedim.report.html import from_run, render, render_dict, write_report

__all__ = ["from_run", "render", "render_dict", "write_report"]
