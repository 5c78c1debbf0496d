"""Pieces of a kernel kept in a folder or computed on Ray: resumed, refused, added up."""

import os
import signal
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ntk_networks import last_token, network, small_network
from spikedim.errors import BudgetError, ConfigError, StorageError
from spikedim.neurons import Surrogate
from spikedim.ntk import Setup, gram, sketched_gram
from spikedim.ntk.identity import identity


@pytest.fixture(scope="module")
def small():
    return small_network()


@pytest.fixture(scope="module")
def kernel(small):
    model, x, more = small
    return gram(model, x, **more)


def test_a_killed_run_resumes(small, kernel, tmp_path, monkeypatch):
    from spikedim.ntk import kernel as module

    model, x, more = small
    compute, calls = module._compute, []

    def failing(*args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return compute(*args)

    monkeypatch.setattr(module, "_compute", failing)
    with pytest.raises(KeyboardInterrupt):
        gram(model, x, directory=tmp_path / "run", memory=0.001, **more)
    before = len(calls)
    found = gram(model, x, directory=tmp_path / "run", memory=0.001, **more)
    total = len(list((tmp_path / "run" / "tiles").iterdir()))
    assert len(calls) - before == total - 2
    np.testing.assert_allclose(found.values, kernel.values, rtol=1e-10)
    with pytest.raises(StorageError, match="other settings"):
        gram(model, x + 1, directory=tmp_path / "run", memory=0.001, **more)


def changed_neurons(model, **changes):
    model.set_neurons(**changes)


def frozen_stem(model):
    for parameter in model.patch_embed.parameters():
        parameter.requires_grad_(False)


def other_heads(model):
    for module in model.modules():
        if hasattr(module, "heads"):
            module.heads *= 2


def other_scale(model):
    model.block[0].attn.product.scale *= 2


def scaled(factor):
    return lambda model, x, T: factor * model(x, T)


CHANGES = {
    "v_reset": partial(changed_neurons, v_reset=-1.0),
    "decay_input": partial(changed_neurons, decay_input=False),
    "detach_reset": partial(changed_neurons, detach_reset=False),
    "width": partial(changed_neurons, surrogate=Surrogate("sigmoid", 4 + 1e-9)),
    "frozen": frozen_stem,
    "heads": other_heads,
    "scale": other_scale,
    "weights": lambda model: model.head.weight.data.mul_(1 + 1e-12),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("stored", [gram, partial(sketched_gram, probes=3, size=61)])
def test_pieces_of_another_network_are_refused(change, stored, tmp_path):
    options = {"input_shape": (1, 4, 4), "embed_dim": 16, "num_classes": 3}
    model, x, more = network("spikformer_nano", 3, **options)
    before = {"detach_reset": True, "reset": "hard"}
    model.set_neurons(**before)
    stored(model, x, directory=tmp_path, **more)
    stored(model, x, directory=tmp_path, **more)
    CHANGES[change](model)
    with pytest.raises(StorageError, match="other settings"):
        stored(model, x, directory=tmp_path, **more)


def test_pieces_of_another_readout_or_split_are_refused(small, tmp_path):
    model, x, more = small
    for name, pair in {
        "closure": (scaled(1.0), scaled(3.0)),
        "partial": (partial(last_token), partial(last_token, T=2)),
        "lambda": (lambda m, x, T: m(x, T), lambda m, x, T: 3 * m(x, T)),
    }.items():
        first, second = (identity(Setup(model, 3, readout, False)) for readout in pair)
        assert first["readout"] != second["readout"], name
        assert first == identity(Setup(model, 3, pair[0], False))
    gram(model, x, directory=tmp_path / "whole", **more)
    with pytest.raises(StorageError, match=r"samples: \w+ → \w+, second samples: "):
        gram(model, x[:2], x[2:], directory=tmp_path / "whole", **more)

    class Readout:
        def __call__(self, model, x, T):
            return model(x, T)

    with pytest.raises(ConfigError, match=r"holds a .*Readout"):
        gram(model, x, directory=tmp_path / "object", readout=Readout(), **more)
    assert gram(model, x, readout=Readout(), **more).samples == 5


def test_a_failure_for_lack_of_memory_is_not_kept(small, kernel, tmp_path, monkeypatch):
    model, x, more = small
    monkeypatch.setattr("spikedim.ntk.plan.available_memory", lambda: 1e-9 * 2**30)
    with pytest.raises(BudgetError):
        gram(model, x, directory=tmp_path, **more)
    monkeypatch.undo()
    found = gram(model, x, directory=tmp_path, **more)
    np.testing.assert_allclose(found.values, kernel.values, rtol=1e-10)


def test_a_run_resumes_with_other_free_memory(small, kernel, tmp_path, monkeypatch):
    from spikedim.ntk import kernel as module

    model, x, more = small
    compute, calls = module._compute, []

    def counting(*args):
        calls.append(args[-1])
        return compute(*args)

    monkeypatch.setattr(module, "_compute", counting)
    free = {"GiB": 0.004}
    monkeypatch.setattr("spikedim.ntk.plan.available_memory", lambda: free["GiB"] * 2**30)
    gram(model, x, directory=tmp_path, **more)
    began = list(calls)
    for free["GiB"] in (0.003, 1.0):
        found = gram(model, x, directory=tmp_path, **more)
        assert calls == began
        np.testing.assert_allclose(found.values, kernel.values, rtol=1e-10)
    free["GiB"] = 0.0016  # less than the first call took
    found = gram(model, x, directory=tmp_path, **more)
    np.testing.assert_allclose(found.values, kernel.values, rtol=1e-10)
    assert len(calls) > len(began)
    assert calls[-1] != began[-1]
    calls.clear()
    gram(model, x, directory=tmp_path, memory=0.5, **more)  # a budget that is given is heeded
    assert calls[-1] != began[-1]


def test_a_kernel_larger_than_memory_is_kept_on_disk(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double().eval()
    x = torch.randn(70, 3, dtype=torch.float64)
    readout = lambda model, x, T: model(x)  # noqa: E731
    whole = gram(model, x, readout=readout)
    with pytest.raises(BudgetError, match="give a directory"):
        gram(model, x, readout=readout, memory=2e-4)
    for other, columns in ((None, slice(None)), (x[:50], slice(50))):
        where = tmp_path / str(columns.stop)
        found = gram(model, x, other, readout=readout, memory=2e-4, directory=where)
        assert isinstance(found.layers["0.weight"], np.memmap)
        assert len(list((where / "tiles").iterdir())) > 3
        np.testing.assert_allclose(found.values, whole.values[:, columns], rtol=1e-10)


class Fatal(nn.Module):
    """Kills the process that runs it, once, unless it is the one that made it."""

    def __init__(self, inner, marker):
        super().__init__()
        self.inner, self.marker, self.maker = inner, str(marker), os.getpid()

    def forward(self, x, T=None):
        if os.getpid() != self.maker and not os.path.exists(self.marker):
            Path(self.marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.inner(x, T)


@pytest.fixture(scope="module")
def ray():
    """A Ray of two workers on this machine; ``gram`` joins it as a user's running cluster."""
    module = pytest.importorskip("ray", reason="Ray is not installed (spikedim[ray])")
    module.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers have no tests
    module.init(address="local", num_cpus=2, include_dashboard=False, logging_level=40)
    yield module
    module.shutdown()


@pytest.mark.slow
def test_ray_gives_the_same_and_survives_a_killed_worker(ray, small, kernel, tmp_path):
    """Acceptance: pieces on a cluster, one worker killed by SIGKILL in the middle of its work."""
    model, x, more = small
    pieces = {"engine": "ray", "workers": 2, "memory": 0.001, "directory": tmp_path / "run"}
    found = gram(model, x, **pieces, **more)
    np.testing.assert_allclose(found.values, kernel.values, rtol=1e-10)
    assert len(list((tmp_path / "run" / "tiles").iterdir())) > 2
    fatal = Fatal(model, tmp_path / "killed").eval()
    survived = gram(fatal, x, **(pieces | {"directory": tmp_path / "again"}), **more)
    assert (tmp_path / "killed").exists()
    np.testing.assert_allclose(survived.values, kernel.values, rtol=1e-10)
