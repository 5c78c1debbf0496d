"""Computing the kernel: which method, in which pieces, where."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spikedim.cluster import ENGINES, connected, fetch
from spikedim.dimension.arrays import spans
from spikedim.errors import BudgetError, ConfigError, DataError, ModelError, SpikedimError
from spikedim.models.base import SpikingModel, check_finite
from spikedim.neurons import Surrogate, surrogate
from spikedim.ntk.capture import (
    Readout,
    check_evaluating,
    logits,
    neurons_of,
    parameters_of,
    samples_first,
)
from spikedim.ntk.directions import fewest_sums
from spikedim.ntk.gram import (
    METHODS,
    Blocks,
    Plan,
    Setup,
    block,
    jacobian_rows,
    products,
    surrogates_of,
)
from spikedim.ntk.gram import with_surrogate as replaced
from spikedim.ntk.identity import identity
from spikedim.ntk.plan import budget_of, plans, probe, verify, without_rule
from spikedim.ntk.result import Float, Kernel
from spikedim.progress import note, task
from spikedim.storage import Run, read_arrays, write_arrays

__all__ = ["Kernel", "gram"]


@dataclass(frozen=True)
class Unit:
    """One piece of the work: a block of samples, a group of layers, some sums of outputs."""

    rows: tuple[int, int]
    columns: tuple[int, int]
    plan: Plan
    cotangents: tuple[int, int]

    @property
    def key(self) -> str:
        """Name of its file, whatever the group is called."""
        group = hashlib.sha256(repr(self.plan).encode()).hexdigest()[:10]
        places = (*self.rows, *self.columns, *self.cotangents)
        return "-".join([*map(str, places), group])


def gram(
    model: nn.Module,
    x: Tensor,
    x2: Tensor | None = None,
    *,
    T: int | None = None,
    outputs: str | int = "trace",
    method: str = "auto",
    surrogate: str | Surrogate | None = None,
    width: float | None = None,
    readout: Readout | None = None,
    fallback: bool = False,
    memory: float | None = None,
    directory: str | Path | None = None,
    engine: str = "local",
    address: str | None = None,
    workers: int | None = None,
) -> Kernel:
    """The exact empirical neural tangent kernel of a network (claim SNTK).

    ``structured`` reads every sample's gradients off each layer's input and output gradient: one
    backward pass per output for a whole batch, or per feature of the linear head where it has fewer
    features than outputs (:mod:`spikedim.ntk.directions`). ``jacobian`` is ``torch.func``'s vmap of
    jacrev and ``loop`` autograd, one sample and output at a time; both hold the whole Jacobian.
    They agree to rounding. ``auto`` is ``structured``, which needs the least time and memory of the
    three wherever it applies.

    Args:
        model: a network in eval mode; parameters that do not require gradients are left out.
        x, x2: samples, as the network takes them; with ``x2`` the kernel between the two sets.
        T: timesteps of a static input.
        outputs: ``"trace"`` sums the kernels of all outputs, ``"full"`` keeps every pair of them,
            a whole number takes one output.
        method: ``"auto"``, ``"structured"``, ``"jacobian"`` or ``"loop"``.
        surrogate, width: surrogate of every neuron in place of the network's own; a width alone
            changes their widths.
        readout: what is differentiated, a function of (model, x, T) that returns [B, outputs]; the
            network's output by default.
        fallback: differentiate parameters without a rule by autograd, sample by sample.
        memory: GiB the computation may take beside network and samples; half of the free memory
            by default.
        directory: folder for finished pieces; the same call resumes there, and a kernel whose
            parts by layer do not fit the memory is kept there.
        engine: ``"local"`` or ``"ray"``, pieces on a Ray cluster.
        address: Ray cluster to join; one on this machine by default.
        workers: pieces worked on at once with Ray; the processors of the cluster by default.

    Raises:
        ModelError: the network is in training mode, a parameter has no rule, or the readout does
            not give one row per sample.
        ConfigError: an unknown option.
        BudgetError: it does not fit ``memory``.

    Example:
        >>> import torch
        >>> from spikedim.models import create_model
        >>> net = create_model("spikformer_micro", seed=0).eval()
        >>> kernel = gram(net, torch.randn(8, *net.input_shape))
        >>> kernel.values.shape
        (8, 8)
    """
    started = time.monotonic()
    if method not in ("auto", *METHODS):
        raise ConfigError(f"method={method!r}; expected one of auto, {', '.join(METHODS)}")
    if engine not in ENGINES:
        raise ConfigError(f"engine={engine!r}; expected one of {', '.join(ENGINES)}")
    setup = prepared(model, x, T, readout, surrogate, width)
    if x2 is not None:
        check_finite(x2, int(setup.events))
    method = "structured" if method == "auto" else method
    n, m = setup.count(x), setup.count(x if x2 is None else x2)
    cotangents = output_sums(setup, x, outputs)
    full = outputs == "full"
    budget = budget_of(memory)
    blocks: dict[str, Any]
    if method == "structured":
        without = without_rule(setup, x) if fallback else ()
        sums = trace_sums(setup, x, without) if outputs == "trace" else cotangents
        work = _Work(setup, x, x2, sums, full, budget, memory is None, without)
        blocks, used = work.run(directory, engine, address, workers)
    else:
        blocks, used = _by_jacobian(setup, x, x2, cotangents, full, method, budget)
    values = np.zeros((n * (len(cotangents) if full else 1), m * (len(cotangents) if full else 1)))
    for name in blocks:
        values += blocks[name]
    if not np.isfinite(values.sum()):
        raise ModelError(
            f"the kernel holds {values.sum()}: a gradient of the network is NaN or infinite, as of "
            "a square root or a norm at 0; add a small constant there"
        )
    return Kernel(
        values,
        blocks,
        outputs,
        cotangents.shape[1],
        x2 is None,
        T,
        surrogates_of(setup.model),
        method,
        str(cotangents.dtype).removeprefix("torch."),
        parameters_of(model),
        time.monotonic() - started,
        int(used),
    )


def prepared(
    model: nn.Module,
    x: Tensor,
    T: int | None,
    readout: Readout | None,
    surrogate: str | Surrogate | None,
    width: float | None,
) -> Setup:
    """What is differentiated, with another surrogate where one is given.

    Raises:
        DataError: ``x`` is not a tensor, or holds NaN or infinity.
        ModelError: the network is in training mode, or all its parameters are frozen.
        ConfigError: an unknown surrogate.
    """
    if not isinstance(x, Tensor):
        raise DataError(f"x is a {type(x).__name__}; give a tensor, e.g. torch.as_tensor(x)")
    check_evaluating(model)
    if not any(p.requires_grad for p in model.parameters()):
        raise ModelError("no parameter requires a gradient; unfreeze some: requires_grad_(True)")
    check_finite(x, int(has_events(model, x)))
    network = with_named_surrogate(model, surrogate, width)
    return setup_of(network, x, T, readout or logits)


def setup_of(model: nn.Module, x: Tensor, T: int | None, readout: Readout) -> Setup:
    """What is differentiated, with the layout of its layers' inputs."""
    made = Setup(model, T, readout, has_events(model, x))
    first = samples_first(model, made.batch(x, 0, 1), T, readout)
    return replace(made, samples_first=first)


def has_events(model: nn.Module, x: Tensor) -> bool:
    """Whether ``x`` is a recording [T, B, ...] for this network, rather than samples [B, ...]."""
    if not isinstance(model, SpikingModel):
        return False
    return x.is_floating_point() and x.ndim == len(model.input_shape) + 2


def with_named_surrogate(
    model: nn.Module, kind: str | Surrogate | None, width: float | None
) -> nn.Module:
    """The network with another surrogate, given by name, by width alone, or as one.

    Raises:
        ConfigError: an unknown kind, or a width beside a complete surrogate.
    """
    if isinstance(kind, Surrogate):
        if width is not None:
            raise ConfigError(f"width={width} and a Surrogate, which has a width; give one")
        return replaced(model, kind)
    if kind is not None:
        return replaced(model, surrogate(kind, width))
    if width is None:
        return model
    twin = replaced(model, Surrogate("sigmoid", width))
    for old, new in zip(neurons_of(model), neurons_of(twin), strict=True):
        new.params = replace(old.params, surrogate=replace(old.params.surrogate, width=width))
    return twin


def output_like(setup: Setup, x: Tensor) -> Tensor:
    """The outputs of the first sample, [1, O].

    Raises:
        ModelError: it is of another shape.
    """
    with torch.no_grad():
        out = setup.readout(setup.model, setup.batch(x, 0, 1), setup.T)
    if out.ndim != 2 or len(out) != 1:
        own = setup.readout is logits
        call = f"model(x{', T' if isinstance(setup.model, SpikingModel) else ''})"
        steps = out.ndim == 3 and len(out) != 1
        what = "the mean over timesteps" if steps else "the last token"
        mend = f"{what}: lambda model, x, T: {call}{'.mean(0)' if steps else '[:, -1]'}"
        raise ModelError(
            f"the {'network' if own else 'readout'} gives shape {tuple(out.shape)} for one sample, "
            f"expected [samples, outputs]; give {'a' if own else 'another'} readout, e.g. {mend}"
        )
    return out


def output_sums(setup: Setup, x: Tensor, outputs: str | int) -> Tensor:
    """The outputs one by one, as sums of outputs to differentiate, [F, O]."""
    out = output_like(setup, x)
    if outputs in ("trace", "full"):
        return torch.eye(out.shape[1], dtype=out.dtype, device=out.device)
    if isinstance(outputs, bool) or not isinstance(outputs, int):
        raise ConfigError(f"outputs={outputs!r}; expected 'trace', 'full' or the index of one")
    if not 0 <= outputs < out.shape[1]:
        raise ConfigError(f"outputs={outputs}; the network has outputs 0 to {out.shape[1] - 1}")
    found = torch.zeros_like(out)
    found[:, outputs] = 1
    return found


def trace_sums(setup: Setup, x: Tensor, without: tuple[str, ...] = ()) -> Tensor:
    """As few sums of outputs as have kernels that add up to the trace kernel, [F, O]."""
    fewer = fewest_sums(setup, x, without)
    return output_sums(setup, x, "trace") if fewer is None else fewer


def _by_jacobian(
    setup: Setup,
    x: Tensor,
    x2: Tensor | None,
    cotangents: Tensor,
    full: bool,
    method: str,
    budget: float,
) -> tuple[dict[str, Float], float]:
    sides = [s for s in (x, x2) if s is not None]
    samples = sum(setup.count(s) for s in sides)
    columns = parameters_of(setup.model)
    need = 2.0 * samples * len(cotangents) * columns * cotangents.element_size()
    _announce(method, samples, columns, need, budget)
    if need > budget:
        raise BudgetError(
            f"the Jacobian of method={method!r} takes {need / 2**30:.3g} GiB, over the "
            f"{budget / 2**30:.3g} GiB allowed; use method='structured' or fewer samples"
        )
    rows = [dict(jacobian_rows(setup, side, cotangents, method)) for side in sides]
    found = {name: products(rows[0][name], rows[-1][name], full) for name in rows[0]}
    return _arrays(found, x2 is None), need


def _announce(method: str, samples: int, columns: int, need: float, budget: float) -> None:
    note(
        f"NTK of {samples:,} samples and {columns:,} parameters ({method}): about "
        f"{need / 2**30:.2g} GiB of {budget / 2**30:.2g} GiB allowed",
        "memory of a kernel",
        need,
    )


def _arrays(blocks: Blocks, symmetric: bool) -> dict[str, Float]:
    """Blocks as arrays; square ones made symmetric to the last bit."""
    found = {name: value.cpu().numpy() for name, value in blocks.items()}
    return {k: (v + v.T) / 2 for k, v in found.items()} if symmetric else found


class _Work:
    """The structured method: units of work, and what they add up to."""

    def __init__(
        self,
        setup: Setup,
        x: Tensor,
        x2: Tensor | None,
        cotangents: Tensor,
        full: bool,
        budget: float,
        flexible: bool,
        without: tuple[str, ...],
    ) -> None:
        self._setup, self._x, self._x2 = setup, x, x2
        self._cotangents, self._full, self._without = cotangents, full, without
        self._budget, self._flexible = budget, flexible
        verify(setup, x, without)
        self._probe = probe(setup, x, without)

    def run(
        self,
        directory: str | Path | None,
        engine: str,
        address: str | None,
        workers: int | None,
    ) -> tuple[dict[str, Any], float]:
        """Blocks by parameter, and the bytes the work was planned to take."""
        with nullcontext() if directory is None else Run(directory, self._about()) as folder:
            units, stored, need = self._units(folder, engine)
            side = len(self._cotangents) if self._full else 1
            n, m = (self._setup.count(x) for x in (self._x, self._other))
            target = _Sum(folder if stored else None, (n * side, m * side), self._x2 is None, side)
            done = (
                self._finished(units, folder)
                if engine == "local"
                else self._on_ray(units, folder, address, workers)
            )
            with task("kernel", len(units)) as bar:
                for unit, blocks in done:
                    target.add(unit, blocks)
                    bar.advance()
        return target.blocks, need

    def _about(self) -> dict[str, Any]:
        """Everything the finished pieces depend on."""
        values = {"samples": self._x, "second samples": self._x2, "outputs": self._cotangents}
        found = identity(self._setup, **values)
        return found | {"full": self._full, "fallback": list(self._without)}

    @property
    def _other(self) -> Tensor:
        return self._x if self._x2 is None else self._x2

    def _units(self, folder: Run | None, engine: str) -> tuple[list[Unit], bool, float]:
        """The pieces, whether their sums are kept in ``folder``, and the bytes they take."""
        budget = self._budget if folder is None else self._first_budget(folder)
        sketch = "" if self._full else ", or sketch the kernel instead"
        functions = len(self._cotangents)
        n, m = (self._setup.count(x) for x in (self._x, self._other))
        side = functions if self._full else 1
        parts = sum(len(layer.sizes) or 1 for layer in self._probe.layers.values()) + 1
        whole = 8.0 * n * m * side**2 * (parts + len(self._without))
        stored = whole > budget / 2
        if stored and folder is None:
            raise BudgetError(
                f"the kernel and its parts by layer take {whole / 2**30:.3g} GiB, over half of the "
                f"{budget / 2**30:.3g} GiB allowed; give a directory (-o) to keep them in{sketch}"
            )
        tile = max(n, m)
        if stored:
            tile = max(1, int((budget / (4 * 8 * side**2 * parts)) ** 0.5))
        sides = min(n, tile) + (0 if self._x2 is None and tile >= n else min(m, tile))
        room = budget - (budget / 4 if stored else whole)
        made, need = plans(self._probe, sides, functions, self._full, room, self._without)
        if folder is not None:
            folder.step("budget", lambda: budget)
        need += 0 if stored else whole
        samples = n + (0 if self._x2 is None else m)
        moving = parameters_of(self._setup.model)
        _announce("structured", samples, moving, need, budget)
        pieces = 1 if self._full or (folder is None and engine == "local") else min(functions, 8)
        units = [
            Unit(a, b, plan, c)
            for a in spans(n, tile)
            for b in spans(m, tile)
            if self._x2 is not None or b >= a
            for plan in made
            for c in spans(functions, -(-functions // pieces))
        ]
        return units, stored, need

    def _first_budget(self, folder: Run) -> float:
        """That of the call whose pieces are in the folder, as they are cut to it.

        Free memory is never the same twice. A budget that is given, or the present one where the
        first is more than all that is free, is heeded at the price of pieces that no longer fit.
        """
        if not self._flexible or not folder.stored("budget"):
            return self._budget
        first = float(folder.step("budget", lambda: self._budget))
        return first if first <= 2 * self._budget else self._budget

    def _finished(
        self, units: list[Unit], folder: Run | None
    ) -> Iterator[tuple[Unit, dict[str, Float]]]:
        for unit in units:
            blocks = _stored(folder, unit)
            if blocks is None:
                blocks = _compute(
                    self._setup, *self._samples(unit), self._part(unit), self._full, unit.plan
                )
                _store(folder, unit, blocks)
            yield unit, blocks

    def _samples(self, unit: Unit) -> tuple[Tensor, Tensor | None]:
        right = self._setup.batch(self._other, *unit.columns)
        same = self._x2 is None and unit.rows == unit.columns
        return self._setup.batch(self._x, *unit.rows), None if same else right

    def _part(self, unit: Unit) -> Tensor:
        return self._cotangents[slice(*unit.cotangents)]

    def _on_ray(
        self,
        units: list[Unit],
        folder: Run | None,
        address: str | None,
        workers: int | None,
    ) -> Iterator[tuple[Unit, dict[str, Float]]]:
        with connected(address, workers) as ray:
            remote = ray.remote(num_cpus=1)(_compute)
            setup = ray.put(self._setup)
            width = 2 * (workers or max(1, int(ray.cluster_resources().get("CPU", 1))))
            waiting: list[tuple[Unit, Any]] = []

            def oldest() -> tuple[Unit, dict[str, Float]]:
                unit, reference = waiting.pop(0)
                if isinstance(reference, dict):
                    return unit, reference
                blocks: Any = fetch(ray, reference, _lost)
                _store(folder, unit, blocks)
                return unit, blocks

            for unit in units:
                blocks = _stored(folder, unit)
                left, right = self._samples(unit)
                waiting.append(
                    (
                        unit,
                        remote.remote(setup, left, right, self._part(unit), self._full, unit.plan)
                        if blocks is None
                        else blocks,
                    )
                )
                if len(waiting) >= width:
                    yield oldest()
            while waiting:
                yield oldest()


def _lost(reason: str) -> SpikedimError:
    return SpikedimError(
        f"a Ray worker died again and again while it computed a tile of the kernel ({reason}); "
        "tiles that are on disk are kept: run it again with fewer workers or less memory"
    )


def _compute(
    setup: Setup, left: Tensor, right: Tensor | None, cotangents: Tensor, full: bool, plan: Plan
) -> dict[str, Float]:
    """One unit: what a worker does."""
    return _arrays(block(setup, left, right, cotangents, full, plan), right is None)


def _stored(folder: Run | None, unit: Unit) -> dict[str, Float] | None:
    return None if folder is None else read_arrays(folder.file("tiles", f"{unit.key}.npz"))


def _store(folder: Run | None, unit: Unit, blocks: dict[str, Float]) -> None:
    if folder is not None:
        write_arrays(folder.file("tiles", f"{unit.key}.npz"), blocks)


class _Sum:
    """Adds up units, in memory or, with a folder, in files mapped from there."""

    def __init__(
        self, folder: Run | None, shape: tuple[int, int], symmetric: bool, side: int
    ) -> None:
        self.blocks: dict[str, Any] = {}
        self._folder, self._shape, self._symmetric, self._side = folder, shape, symmetric, side

    def add(self, unit: Unit, blocks: dict[str, Float]) -> None:
        """Add a unit's blocks to their places."""
        rows, columns = (
            slice(start * self._side, stop * self._side)
            for start, stop in (unit.rows, unit.columns)
        )
        for name, value in blocks.items():
            if name not in self.blocks:
                self.blocks[name] = self._empty(name)
            self.blocks[name][rows, columns] += value
            if self._symmetric and unit.rows != unit.columns:
                self.blocks[name][columns, rows] += value.T

    def _empty(self, name: str) -> Any:
        if self._folder is None:
            return np.zeros(self._shape)
        path = self._folder.file("layers", f"{name}.npy")
        return np.lib.format.open_memmap(path, "w+", np.float64, self._shape)
