"""The empirical neural tangent kernel of a spiking network, exactly (claim SNTK).

K(x, x') = ⟨J(x), J(x')⟩ with J the Jacobian of the outputs with respect to the parameters, spikes
differentiated through their surrogate. Three implementations agree: ``structured`` reads each
layer's gradient off its input and output gradient (the fast one), ``jacobian`` is ``torch.func``'s
vmap of jacrev, ``loop`` is autograd, one sample and output at a time.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import cycle

import torch
from torch import Tensor, nn

from spikedim.errors import ModelError
from spikedim.neurons import LIF, Surrogate
from spikedim.ntk.capture import Capture, Readout, check_evaluating, neurons_of
from spikedim.ntk.deposit import deposit
from spikedim.ntk.multiply import multiply
from spikedim.ntk.passes import Call

METHODS = ("structured", "jacobian", "loop")
Blocks = dict[str, Tensor]


@dataclass(frozen=True)
class Setup:
    """What the Jacobian is of.

    Attributes:
        model: the network, in eval mode.
        T: timesteps of a static input.
        readout: function of (model, x, T) that is differentiated, [B, outputs].
        events: whether inputs are [T, B, ...] rather than [B, ...].
        samples_first: layers of :func:`~spikedim.ntk.capture.samples_first`.
    """

    model: nn.Module
    T: int | None
    readout: Readout
    events: bool
    samples_first: frozenset[str] = frozenset()

    def batch(self, x: Tensor, start: int, stop: int) -> Tensor:
        """Samples ``start`` to ``stop`` of ``x``."""
        return x[:, start:stop] if self.events else x[start:stop]

    def count(self, x: Tensor) -> int:
        """Number of samples of ``x``."""
        return x.shape[1] if self.events else len(x)

    def capture(self, x: Tensor, without: tuple[str, ...] = ()) -> Capture:
        """A forward of the samples ``x``, ready to be differentiated."""
        samples = self.count(x)
        return Capture(self.model, x, self.T, self.readout, samples, without, self.samples_first)


def with_surrogate(model: nn.Module, surrogate: Surrogate | None) -> nn.Module:
    """The same network, parameters shared, with another surrogate in every neuron.

    Raises:
        ModelError: a neuron, or the network, has a surrogate of its own that is not known.
    """
    if surrogate is None:
        return model
    kept = [type(m).__name__ for m in model.modules() if isinstance(m, LIF) and not m.known]
    if kept or not neurons_of(model):
        what = "neurons that are kept as they are" if kept else "no neurons of spikedim"
        raise ModelError(
            f"the surrogate of {type(model).__name__} cannot be changed, it has {what}; leave "
            "surrogate and width out, or register the neurons (spikedim.adapters.register_neuron)"
        )
    shared = {id(t): t for t in (*model.parameters(), *model.buffers())}
    twin = copy.deepcopy(model, shared)
    for layer in neurons_of(twin):
        layer.params = replace(layer.params, surrogate=surrogate)
    return twin


def surrogates_of(model: nn.Module) -> tuple[tuple[str, float, float], ...]:
    """Distinct (kind, width, peak) of the neurons that are known."""
    found = {layer.params.surrogate for layer in neurons_of(model)}
    return tuple(sorted({(s.kind, s.width, s.peak) for s in found}))


@dataclass(frozen=True)
class Plan:
    """How one block of the kernel is worked off.

    Attributes:
        batch: samples per forward.
        flight: sums of outputs whose gradients are held at once.
        keep: every batch's forward is kept, rather than run again for each flight.
        group: the layers (paths) and channels whose gradients are held; all if ``None``.
        without: parameters that have no rule.
        alone: those of them to differentiate by autograd, sample by sample.
    """

    batch: int
    flight: int
    keep: bool
    group: dict[str, slice] | None = None
    without: tuple[str, ...] = ()
    alone: tuple[str, ...] = ()

    def channels(self, layer: str) -> slice | None:
        """Channels wanted of a layer."""
        return slice(None) if self.group is None else self.group.get(layer)


def block(
    setup: Setup, left: Tensor, right: Tensor | None, cotangents: Tensor, full: bool, plan: Plan
) -> Blocks:
    """Kernel block of every parameter between two sets of samples, by layer-wise contraction.

    Per sum of outputs and batch one backward pass gives every sample's gradients, which are laid
    side by side, [samples, parameters], and multiplied.

    Args:
        setup: what is differentiated.
        left, right: samples; ``right=None`` is ``left`` itself.
        cotangents: [F, outputs]: the sums of outputs whose gradients are taken.
        full: all pairs of sums, [n·F, m·F] with the sum running fastest, instead of their trace,
            [n, m].
        plan: how.

    Returns:
        By parameter, float64; sum them for the kernel.
    """
    sides = [_Side(setup, x, plan) for x in (left, right) if x is not None]
    out: Blocks = {}
    for piece in cotangents.split(len(cotangents) if full else plan.flight):
        for side in sides:
            side.gather(piece)
        for name, mine in sides[0].rows.items():
            found = products(mine, sides[-1].rows[name], full)
            out[name] = out[name] + found if name in out else found
    return out


def batches(count: int, most: int, shrinking: bool) -> list[tuple[int, int]]:
    """Spans of ``most`` samples; of one less every time, down to half, if ``shrinking``.

    glibc before 2.38 never places an aligned block in a hole of its own size: batches of one size
    that are all kept would take fresh memory for every temporary of every one of them. A smaller
    batch fits in the holes that a larger one left.
    """
    sizes = cycle(range(most, most // 2, -1) if shrinking else (most,))
    spans = [(0, 0)]
    while spans[-1][1] < count:
        stop = spans[-1][1]
        spans.append((stop, min(stop + next(sizes), count)))
    return spans[1:]


class _Side:
    """Gradients of one set of samples, [F, n, P] for every parameter."""

    def __init__(self, setup: Setup, x: Tensor, plan: Plan) -> None:
        self.rows: Blocks = {}
        self._setup, self._x, self._plan = setup, x, plan
        self._count = setup.count(x)
        shrinking = plan.keep and x.device.type == "cpu"
        self._batches = batches(self._count, plan.batch, shrinking)
        self._names = {id(p): n for n, p in setup.model.named_parameters()}
        self._kept: dict[int, Capture] = {}
        self._filled: set[tuple[str, int, int]] = set()

    def gather(self, piece: Tensor) -> None:
        """Fill the rows with the gradients of these sums of outputs."""
        self._filled.clear()
        for start, stop in self._batches:
            capture = self._kept.get(start)
            if capture is None:
                x = self._setup.batch(self._x, start, stop)
                capture = self._setup.capture(x, self._plan.without)
            if self._plan.keep:
                self._kept[start] = capture
            for index, weights in enumerate(piece):
                last = not self._plan.keep and index == len(piece) - 1
                self._differentiate(capture, weights, (len(piece), index, start, stop), last)
        if self._plan.alone:
            self._gather_alone(piece)
        for name, rows in self.rows.items():
            self.rows[name] = rows[: len(piece)]
            for index in range(len(piece)):
                for start, stop in self._batches:
                    if (name, index, start) not in self._filled:
                        rows[index, start:stop] = 0

    def _gather_alone(self, piece: Tensor) -> None:
        alone = list(self._plan.alone)
        for start, stop in self._batches:
            for sample in range(start, stop):
                x = self._setup.batch(self._x, sample, sample + 1)
                for index, found in enumerate(loop_rows(self._setup, x, piece, alone)):
                    place = len(piece), index, start, stop
                    for name, value in zip(alone, found, strict=True):
                        rows, _ = self._made(name, place, value.shape)
                        rows[sample - start] = value

    def _differentiate(
        self, capture: Capture, weights: Tensor, place: tuple[int, int, int, int], last: bool
    ) -> None:
        plan = self._plan
        calls = [c for c in capture.calls if plan.channels(c.layer) is not None]
        leaks = [
            name
            for name in capture.leaks
            if plan.channels(name) is not None and name not in plan.without
        ]

        def room(module: nn.Module, layer: str, name: str, shape: tuple[int, ...]) -> Place:
            path = self._names[id(getattr(module, name))]
            if path in plan.without:  # used here as well, but differentiated as a whole
                return None
            return self._made(path, place, shape[1:])

        def receive(call: Call, gradient: Tensor) -> None:
            channels = plan.channels(call.layer)
            assert channels is not None
            deposit(call, gradient, capture.samples, capture.steps, channels, room)

        with torch.no_grad():
            found = capture.run(weights, receive, calls, leaks, keep=not last)
            for name, gradient in found.items():
                rows, _ = self._made(name, place, (1,))
                rows.copy_(gradient[:, None])

    def _made(
        self, name: str, place: tuple[int, int, int, int], shape: tuple[int, ...]
    ) -> tuple[Tensor, bool]:
        """Where the gradients of a parameter belong, and whether nothing is there yet."""
        functions, index, start, stop = place
        if name not in self.rows or len(self.rows[name]) < functions:
            like = next(self._setup.model.parameters())
            self.rows[name] = like.new_empty(functions, self._count, math.prod(shape))
        fresh = (name, index, start) not in self._filled
        self._filled.add((name, index, start))
        return self.rows[name][index, start:stop], fresh


Place = tuple[Tensor, bool] | None
_STRIP = 32  # rows of one product of a symmetric block, at least
_COLUMNS = 1 << 18  # of one product in the precision of the network, added up in float64


def products(x: Tensor, y: Tensor, full: bool) -> Tensor:
    """Inner products of gradients [F, n, P] and [F, m, P]: their trace over F, or all pairs.

    Of gradients with themselves only the upper half is multiplied, in strips of rows.
    """
    same = x.data_ptr() == y.data_ptr() and x.shape == y.shape
    if full:
        x = x.transpose(0, 1).flatten(0, 1)[None]
        y = x if same else y.transpose(0, 1).flatten(0, 1)[None]
    out = torch.zeros(x.shape[1], y.shape[1], dtype=torch.float64, device=x.device)
    strip = max(_STRIP, -(-len(out) // 4)) if same else len(out)
    for a, b in zip(x, y, strict=True):
        for start in range(0, a.shape[1], _COLUMNS):
            left = a[:, start : start + _COLUMNS].contiguous()
            right = left if same else b[:, start : start + _COLUMNS].contiguous()
            for top in range(0, len(left), strip):
                rows = slice(top, top + strip)
                first = top if same else 0
                out[rows, first:] += multiply(left[rows], right[first:])
    return out.triu() + out.triu(1).mT if same else out


def jacobian_rows(
    setup: Setup, x: Tensor, cotangents: Tensor, method: str, chunk: int = 8
) -> Iterator[tuple[str, Tensor]]:
    """Jacobian of every parameter, [F, B, P], by ``torch.func`` or by a loop of autograd calls.

    Raises:
        ModelError: the network is in training mode, or ``torch.func`` cannot transform it.
    """
    check_evaluating(setup.model)
    names = [n for n, p in setup.model.named_parameters() if p.requires_grad]
    count = setup.count(x)
    if method == "loop":
        samples = [
            [torch.stack(g) for g in zip(*loop_rows(setup, one, cotangents, names), strict=True)]
            for one in (setup.batch(x, i, i + 1) for i in range(count))
        ]
        for index, name in enumerate(names):
            yield name, torch.stack([sample[index] for sample in samples], 1)
        return
    fixed: dict[str, Tensor] = {n: p for n, p in setup.model.named_parameters() if n not in names}
    fixed |= dict(setup.model.named_buffers())
    moving = {n: p.detach() for n, p in setup.model.named_parameters() if n in names}
    model = ReadoutModule(setup)

    def single(parameters: dict[str, Tensor], sample: Tensor) -> Tensor:
        values = {f"model.{n}": p for n, p in {**fixed, **parameters}.items()}
        batch = sample[:, None] if setup.events else sample[None]
        return cotangents @ torch.func.functional_call(model, values, (batch,))[0]

    axis = 1 if setup.events else 0
    per_sample = torch.func.vmap(torch.func.jacrev(single), in_dims=(None, axis))
    try:
        parts = [
            per_sample(moving, setup.batch(x, start, min(start + chunk, count)))
            for start in range(0, count, chunk)
        ]
    except RuntimeError as error:
        if "functorch" not in str(error) and "vmap" not in str(error):
            raise
        raise ModelError(
            "torch.func cannot transform this network, e.g. a torch.autograd.Function without "
            f"setup_context; use method='structured' or 'loop' ({str(error).splitlines()[0]})"
        ) from error
    for name in names:
        yield name, torch.cat([p.pop(name) for p in parts]).flatten(2).transpose(0, 1)


class ReadoutModule(nn.Module):
    """The readout as a module, so that parameters can be swapped by name."""

    def __init__(self, setup: Setup) -> None:
        super().__init__()
        self.model, self._setup = setup.model, setup

    def forward(self, x: Tensor) -> Tensor:
        """What is differentiated, [B, outputs]."""
        return self._setup.readout(self.model, x, self._setup.T)


def loop_rows(
    setup: Setup, x: Tensor, cotangents: Tensor, names: list[str]
) -> Iterator[list[Tensor]]:
    """Gradients [P] of the named parameters, of one sample, for each sum of outputs in turn."""
    parameters = dict(setup.model.named_parameters())
    with torch.enable_grad():
        y = cotangents @ setup.readout(setup.model, x, setup.T)[0]
    for index in range(len(cotangents)):
        found = torch.autograd.grad(
            y[index],
            [parameters[n] for n in names],
            retain_graph=index < len(cotangents) - 1,
            allow_unused=True,
            materialize_grads=True,
        )
        yield [gradient.flatten() for gradient in found]
