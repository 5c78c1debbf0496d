"""Networks on a device that is not the processor: the same numbers, no tensor on the wrong one.

There is no GPU in CI; a stand-in that refuses to mix devices shows what such a machine refuses.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

second_device = pytest.importorskip(
    "second_device",
    reason="torch is too old to register a device from Python",
    exc_type=ImportError,
)


def compared(*names):
    done = subprocess.run(
        [sys.executable, Path(second_device.__file__).name, *names],
        cwd=Path(second_device.__file__).parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_both_devices_give_the_same_numbers():
    found = compared()
    assert "at least two devices" in found.pop("mixing")
    assert set(found) == set(second_device.checks()) - set(second_device.SLOW)
    assert {name: value for name, value in found.items() if not _same(value)} == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", second_device.SLOW)
def test_searches_and_one_sided_kernels_as_well(name):
    assert _same(compared(name)[name])


def _same(difference):
    return isinstance(difference, float) and difference < 1e-8  # eigenvalues to their residuals
