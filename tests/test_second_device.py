"""Networks on a device that is not the processor: the same numbers, no tensor on the wrong one.

Without a GPU a stand-in that refuses to mix devices shows what such a machine refuses.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

second_device = pytest.importorskip(
    "second_device",
    reason="torch is too old to register a device from Python",
    exc_type=ImportError,
)


DEVICES = [
    second_device.NAME,
    pytest.param(
        "cuda",
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine"),
    ),
]


def compared(device, *names):
    done = subprocess.run(
        [sys.executable, Path(second_device.__file__).name, device, *names],
        cwd=Path(second_device.__file__).parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("device", DEVICES)
def test_both_devices_give_the_same_numbers(device):
    found = compared(device)
    assert "at least two devices" in found.pop("mixing")
    assert set(found) == set(second_device.checks()) - set(second_device.SLOW)
    assert {name: value for name, value in found.items() if not _same(value)} == {}


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", second_device.SLOW)
def test_searches_and_one_sided_kernels_as_well(name, device):
    assert _same(compared(device, name)[name])


def _same(difference):
    return isinstance(difference, float) and difference < 1e-8  # eigenvalues to their residuals
