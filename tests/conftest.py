import os
from pathlib import Path

import pytest
from hypothesis import settings

# The machines that run the suite are shared: no deadlines, and the same examples every time.
settings.register_profile("suite", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("suite")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The reference data folder (samples, reference tensors), named by SPIKEDIM_DATA."""
    root = os.environ.get("SPIKEDIM_DATA")
    if not root:
        pytest.skip("reference data absent: set SPIKEDIM_DATA to its folder")
    path = Path(root)
    if not path.is_dir():
        pytest.skip(f"reference data absent: SPIKEDIM_DATA={root} is not a folder")
    return path
