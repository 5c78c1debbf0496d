"""Readers of data on disk, one file per format, and the detection of the format."""

from spikedim.data.formats.detect import LAYOUTS, Layout, load_path

__all__ = ["LAYOUTS", "Layout", "load_path"]
