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


@pytest.fixture(scope="session", autouse=True)
def calibration_store(tmp_path_factory):
    """Verified designs of the suite must not enter the calibration store of whoever runs it."""
    place = tmp_path_factory.mktemp("calibration") / "calibration.jsonl"
    before = os.environ.get("SPIKEDIM_CALIBRATION")
    os.environ["SPIKEDIM_CALIBRATION"] = str(place)
    yield place
    if before is None:
        del os.environ["SPIKEDIM_CALIBRATION"]
    else:
        os.environ["SPIKEDIM_CALIBRATION"] = before
