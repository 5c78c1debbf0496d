"""The kernel as a double sum over timesteps.

A parameter acts at every timestep, so its gradient is a sum J = Σ_t J_t over the steps at which it
was used, and the kernel a double sum K = Σ_{t,t'} ⟨J_t(x), J_t'(x')⟩. The terms with t = t' are
kernels of their own; the others are how steps share gradient directions.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from spikedim.dimension.arrays import spans
from spikedim.dimension.estimators import get_estimator
from spikedim.dimension.moments import centered_gram
from spikedim.dimension.spectrum import spectrum_of_gram
from spikedim.errors import ConfigError
from spikedim.models.base import SpikingModel
from spikedim.neurons import Surrogate
from spikedim.ntk.capture import Capture, Readout, parameters_of, steps_of
from spikedim.ntk.deposit import deposit
from spikedim.ntk.gram import Plan, Setup, products
from spikedim.ntk.kernel import output_sums, prepared, trace_sums
from spikedim.ntk.passes import Call, Rows
from spikedim.ntk.plan import budget_of, plans, probe, verify
from spikedim.progress import note, task
from spikedim.results import Result, Table, plain

Float = NDArray[np.float64]


@dataclass(frozen=True)
class TimestepKernel(Result):
    """Contributions of timesteps to a trace kernel, or to that of one output.

    Attributes:
        blocks: float64 [S, S, n, n]: ⟨J_t(x), J_t'(x')⟩; they add up to the kernel. S is T, and one
            more where some parameters have a gradient for all steps together (``shared``, last).
        traces: by parameter, [S, S]: its part of the traces of the blocks.
        T: timesteps.
        shared: whether the last slot is of parameters that are not told apart by step: layers that
            run once for all steps, learned leaks.
        parameters: number of parameters differentiated.
        outputs: ``"trace"`` or the index of one output.
        seconds: wall time.
        bytes: working memory that was predicted.
    """

    blocks: Float
    traces: dict[str, Float]
    T: int
    shared: bool
    parameters: int
    outputs: str | int
    seconds: float
    bytes: int

    @property
    def samples(self) -> int:
        """N."""
        return self.blocks.shape[-1]

    @property
    def values(self) -> Float:
        """The kernel [n, n]."""
        return np.asarray(self.blocks.sum((0, 1)))

    @property
    def steps(self) -> tuple[str, ...]:
        """Names of the slots: 1 to T, and ``"all"``."""
        return (*map(str, range(1, self.T + 1)), *(("all",) if self.shared else ()))

    def shares(self, layer: str | None = None) -> dict[str, float]:
        """Share of each step in the trace, Σ_t' tr K_tt' / tr K; they add up to 1.

        Args:
            layer: of the part of this layer alone.
        """
        rows = self._trace(layer).sum(1)
        whole = rows.sum() or 1.0
        return {name: float(row / whole) for name, row in zip(self.steps, rows, strict=True)}

    def alone(self) -> dict[str, float]:
        """Share of each step's own kernel in the trace, tr K_tt / tr K."""
        trace = self._trace(None)
        whole = trace.sum() or 1.0
        return {n: float(v / whole) for n, v in zip(self.steps, np.diag(trace), strict=True)}

    def dimensions(self, center: bool = True, estimator: str = "pr") -> dict[str, float]:
        """Effective dimension of each step's own kernel K_tt; NaN where a step has none."""
        item = get_estimator(estimator)
        found = {}
        for place, name in enumerate(self.steps):
            part = self.blocks[place, place]
            part = centered_gram(part) if center else part
            known = np.trace(part) > 1e-12 * max(float(np.trace(self.values)), 1e-300)
            spectrum = spectrum_of_gram(part, self.parameters, center) if known else None
            found[name] = math.nan if spectrum is None else float(item.function(spectrum))
        return found

    def layers(self) -> tuple[str, ...]:
        """Paths of the layers, in order of execution backwards."""
        return tuple(dict.fromkeys(name.rpartition(".")[0] or name for name in self.traces))

    def to_dict(self) -> dict[str, Any]:
        """Traces instead of the n² values of every block."""
        kept = {f.name: plain(getattr(self, f.name)) for f in fields(self) if f.name != "blocks"}
        dimensions = {k: plain(v) for k, v in self.dimensions().items()}
        return kept | {"shares": self.shares(), "alone": self.alone(), "dimensions": dimensions}

    def tables(self) -> list[Table]:
        """Shares of the timesteps, then how each layer's part is spread over them."""
        shares, alone, sizes = self.shares(), self.alone(), self.dimensions()
        rows = [(t, 100 * shares[t], 100 * alone[t], sizes[t]) for t in self.steps]
        between = 100 * (1 - sum(alone.values()))
        notes = [
            "Row sums of tr K = Σ tr K_tt' add up to 100 %; pairs of different steps hold "
            f"{between:.3g} %."
        ]
        if self.shared:
            notes.append("all: layers that run once for all steps, and learned leaks.")
        every = [
            (name, *(100 * share for share in self.shares(name).values())) for name in self.layers()
        ]
        columns = ("timestep", "% of the trace", "alone, %", "d_eff alone (pr, centred)")
        return [
            Table("Share of each timestep", columns, rows, notes),
            Table("Timesteps of each layer, % of its trace", ("layer", *self.steps), every),
        ]

    def plot(self, ax: Any = None) -> Any:
        """Traces of all pairs of steps, in % of the whole; returns the matplotlib axes."""
        import matplotlib.pyplot as plt

        ax = plt.subplots(figsize=(4.2, 3.5), layout="constrained")[1] if ax is None else ax
        trace = self._trace(None)
        image = ax.imshow(100 * trace / (trace.sum() or 1.0), cmap="Blues", vmin=0)
        places = range(len(self.steps))
        ax.set_xticks(places, self.steps)
        ax.set_yticks(places, self.steps)
        ax.set(xlabel="timestep", ylabel="timestep")
        ax.figure.colorbar(image, ax=ax, label="% of the trace")
        return ax

    def _trace(self, layer: str | None) -> Float:
        names = [n for n in self.traces if layer in (None, n.rpartition(".")[0] or n)]
        zero = np.zeros(self.blocks.shape[:2])
        return np.asarray(sum((self.traces[name] for name in names), zero))


def by_timestep(
    model: nn.Module,
    x: Tensor,
    *,
    T: int | None = None,
    outputs: str | int = "trace",
    surrogate: str | Surrogate | None = None,
    width: float | None = None,
    readout: Readout | None = None,
    memory: float | None = None,
) -> TimestepKernel:
    """The exact kernel taken apart by the timesteps at which the parameters acted.

    Arguments as for :func:`spikedim.ntk.gram`. A static input is shown to the network as T equal
    frames, so that its first layer is told apart by step as well.

    Raises:
        ModelError: the network is in training mode or a parameter has no rule.
        ConfigError: an unknown option.
        BudgetError: it does not fit ``memory``.

    Example:
        >>> import torch
        >>> from spikedim.models import create_model
        >>> net = create_model("spikformer_micro", seed=0).eval()
        >>> found = by_timestep(net, torch.randn(8, *net.input_shape), T=2)
        >>> found.blocks.shape
        (2, 2, 8, 8)
    """
    started = time.monotonic()
    if outputs == "full":
        raise ConfigError("outputs='full' has no share of a timestep; use 'trace' or an index")
    setup = prepared(model, x, T, readout, surrogate, width)
    if isinstance(model, SpikingModel) and x.is_floating_point() and not setup.events:
        x = x.expand(steps_of(model, x, T), *x.shape)
        setup = replace(setup, T=None, events=True)
    verify(setup, x)
    sums = trace_sums(setup, x) if outputs == "trace" else output_sums(setup, x, outputs)
    n = setup.count(x)
    pair = setup.capture(setup.batch(x, 0, min(2, n)))
    shared = bool(pair.leaks) or any(_cut(call, pair) is None for call in pair.calls)
    slots, steps = pair.steps + shared, pair.steps
    del pair
    kernel = 16.0 * (slots * n) ** 2
    room = budget_of(memory) - kernel
    made, need = plans(probe(setup, x), slots * n, len(sums), False, room)
    note(f"kernel of {n:,} samples by {slots} steps: about {(need + kernel) / 2**30:.2g} GiB")
    total = np.zeros((slots * n, slots * n))
    traces: dict[str, Float] = {}
    with torch.no_grad(), task("timesteps", len(made) * len(sums)) as bar:
        for plan in made:
            side = _Side(setup, x, plan, slots)
            for weights in sums:
                for name, rows in side.gradients(weights):
                    part = products(rows[None], rows[None], False).cpu().numpy()
                    total += part
                    part = part.reshape(slots, n, slots, n)
                    traces[name] = traces.get(name, 0.0) + np.einsum("sntn->st", part)
                bar.advance()
    blocks = (total + total.T).reshape(slots, n, slots, n).transpose(0, 2, 1, 3) / 2
    moving = parameters_of(model)
    return TimestepKernel(
        blocks,
        traces,
        steps,
        shared,
        moving,
        outputs,
        time.monotonic() - started,
        int(need + kernel),
    )


class _Side:
    """Gradients of all samples and timesteps, one sum of outputs at a time."""

    def __init__(self, setup: Setup, x: Tensor, plan: Plan, slots: int) -> None:
        self._setup, self._x, self._plan, self._slots = setup, x, plan, slots
        self._names = {id(p): n for n, p in setup.model.named_parameters()}
        self._kept: dict[int, Capture] = {}

    def gradients(self, weights: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Parameter name and its gradients [slots · n, P]."""
        n = self._setup.count(self._x)
        rows: dict[str, Tensor] = {}
        for start, stop in spans(n, self._plan.batch):
            capture = self._kept.get(start)
            if capture is None:
                capture = self._setup.capture(self._setup.batch(self._x, start, stop))
            if self._plan.keep:
                self._kept[start] = capture
            self._differentiate(capture, weights, rows, n, slice(start, stop))
        while rows:
            name, found = rows.popitem()
            yield name, found.flatten(0, 1)

    def _differentiate(
        self, capture: Capture, weights: Tensor, rows: dict[str, Tensor], n: int, where: slice
    ) -> None:
        plan = self._plan

        def space(name: str, size: int, slot: int) -> Tensor:
            if name not in rows:
                rows[name] = weights.new_zeros(self._slots, n, size)
            return rows[name][slot, where]

        def receive(call: Call, gradient: Tensor) -> None:
            channels = plan.channels(call.layer)
            assert channels is not None
            parts = _cut(call, capture, gradient)
            last = [(self._slots - 1, call, gradient)]
            for slot, part, g in last if parts is None else parts:

                def room(
                    module: nn.Module,
                    layer: str,
                    name: str,
                    shape: tuple[int, ...],
                    slot: int = slot,
                ) -> tuple[Tensor, bool]:
                    full = self._names[id(getattr(module, name))]
                    return space(full, math.prod(shape[1:]), slot), False

                steps = capture.steps if parts is None else 1
                deposit(part, g, capture.samples, steps, channels, room)

        calls = [c for c in capture.calls if plan.channels(c.layer) is not None]
        leaks = [name for name in capture.leaks if plan.channels(name) is not None]
        found = capture.run(weights, receive, calls, leaks, keep=plan.keep)
        for name, gradient in found.items():
            space(name, 1, self._slots - 1).copy_(gradient[:, None])


def _cut(
    call: Call, capture: Capture, g: Tensor | None = None
) -> list[tuple[int, Call, Tensor]] | None:
    """A call as one call for every timestep, with its part of the gradient ``g`` at the output.

    ``None`` where it ran once for all steps. Inputs are read as in :mod:`spikedim.ntk.deposit`:
    [T, B, ...], or with the leading axes merged, time first.
    """
    steps, samples, x = capture.steps, capture.samples, call.input
    if steps == 1:
        return [(0, call, x if g is None else g)]
    timed = not call.merged and x.ndim > 2 and x.shape[1] == samples
    apart, once = timed and len(x) == steps, len(x) == samples or (timed and len(x) == 1)
    if not apart and (once or len(x) % (steps * samples)):
        return None
    inputs = x.chunk(steps)
    outputs = inputs if g is None else g.chunk(steps)
    return [
        (t, replace(call, input=a, rows=Rows()), b)
        for t, (a, b) in enumerate(zip(inputs, outputs, strict=True))
    ]
