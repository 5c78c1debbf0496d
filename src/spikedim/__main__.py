"""``python -m spikedim`` is the ``spikedim`` command."""

from spikedim.cli import main

main()
