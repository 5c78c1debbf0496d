"""How a kernel is worked off within a memory budget, from one forward of one sample."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from spikedim.dimension.spectrum import available_memory
from spikedim.errors import BudgetError, ConfigError, ModelError
from spikedim.ntk.capture import uncovered
from spikedim.ntk.deposit import deposit
from spikedim.ntk.gram import Plan, Setup
from spikedim.ntk.layers import CONVOLUTIONS
from spikedim.ntk.passes import Call
from spikedim.ntk.spikes import Spikes
from spikedim.progress import note

_CACHE = 1 << 24  # bytes of the largest tensor of one batch, so that most stay in cache
_SEARCHED = 1 << 26  # the same of inputs that are read but once, to find their spikes
_ROWS = 1 << 25  # the same of gradients of single samples, which share every read of the weights
_DEVICE = 1 << 29  # the same on an accelerator, where launches cost more than memory
_TOLERANCE = 1e-2  # of a gradient: far above rounding in single precision, far below a mistake
_ROUNDINGS = 32  # of a gradient in a coarser one
_LIVE = 6  # tensors of the largest size alive at once in a backward pass


@dataclass
class _Layer:
    """Parameters behind one layer path, the norm folded into it included."""

    columns: int = 0
    channels: int = 1
    calls: int = 0
    tied: bool = False
    sizes: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Probe:
    """What one sample takes.

    Attributes:
        saved: bytes that its forward keeps for the backward passes.
        largest: bytes of its largest tensor.
        searched: bytes of the largest inputs that were searched for spikes, which exist while they
            are.
        layers: parameters by layer path.
        itemsize: bytes of a number.
        outputs: of the network.
        accelerator: whether it runs on one.
    """

    saved: int
    largest: int
    searched: int
    layers: dict[str, _Layer]
    itemsize: int
    outputs: int
    accelerator: bool

    @property
    def columns(self) -> int:
        """Length of one gradient."""
        return sum(layer.columns for layer in self.layers.values())

    @property
    def passing(self) -> int:
        """Bytes that a sample takes while its forward and a backward pass run."""
        return self.saved + max(_LIVE * self.largest, 2 * self.searched)


def probe(setup: Setup, x: Tensor, without: tuple[str, ...] = ()) -> Probe:
    """Measure one sample of ``x`` by a forward and a backward pass."""
    storages: dict[int, int] = {}
    spikes: dict[int, int] = {}
    fixed = {t.untyped_storage().data_ptr() for t in setup.model.state_dict().values()}

    def count(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in fixed:
            storages[storage.data_ptr()] = storage.nbytes()
        return value.detach()

    with torch.autograd.graph.saved_tensors_hooks(count, _same):
        capture = setup.capture(setup.batch(x, 0, 1), without)
    layers: dict[str, _Layer] = {}
    owners: dict[int, str] = {}
    sizes = [0]

    def receive(call: Call, gradient: Tensor) -> None:
        sizes.append(gradient.nbytes)
        layer = layers.setdefault(call.layer, _Layer())
        layer.calls += 1
        if _splittable(call):
            layer.channels = len(call.module.weight)

        def room(module: nn.Module, path: str, name: str, shape: tuple[int, ...]) -> None:
            key = id(getattr(module, name))
            if owners.setdefault(key, call.layer) != call.layer:
                layer.tied = layers[owners[key]].tied = True
            layer.sizes[f"{path}.{name}"] = math.prod(shape[1:])

        deposit(call, gradient, 1, capture.steps, slice(None), room)

    with torch.no_grad():
        capture.run(torch.ones_like(capture.output[0]), receive, leaks=list(capture.leaks))
    for layer in layers.values():
        layer.columns = sum(layer.sizes.values())
    layers |= {name: _Layer(1) for name in capture.leaks}
    for call in capture.calls:
        rows = call.rows.value
        for kept in (call.input, rows):
            if isinstance(kept, Tensor):
                count(kept)
        if isinstance(rows, Spikes):  # those of other samples need not be few
            spikes[id(rows)] = max(rows.nbytes, rows.dense)
    return Probe(
        sum(storages.values()) + sum(spikes.values()),
        max([*sizes, *storages.values()]),
        max(spikes.values(), default=0),
        layers,
        capture.output.element_size(),
        capture.outputs,
        capture.output.is_cuda,
    )


def without_rule(setup: Setup, x: Tensor) -> tuple[str, ...]:
    """Parameters that need autograd, sample by sample."""
    names = tuple(name for name, _ in setup.model.named_parameters())
    output = setup.capture(setup.batch(x, 0, 1), names).output
    found = tuple(name for name, _ in uncovered(setup.model, output))
    if found:
        some = f"{', '.join(found[:3])}{f' and {len(found) - 3} more' if len(found) > 3 else ''}"
        note(f"without a rule, by autograd sample by sample: {some}", topic="fallback")
    return found


def verify(setup: Setup, x: Tensor, without: tuple[str, ...] = ()) -> None:
    """Check on two samples that every layer's rows are told apart by sample.

    The gradient of the second sample's outputs is compared with autograd's, from the same spikes;
    the first sample must have none, which also tells samples from timesteps.

    Raises:
        ModelError: it differs, naming the parameter.
    """
    count = min(2, setup.count(x))
    pair = setup.batch(x, 0, count)
    chosen = torch.zeros(count, 1, dtype=torch.bool, device=x.device)
    chosen[-1] = True

    def readout(model: nn.Module, x: Tensor, T: int | None) -> Tensor:
        return torch.where(chosen, setup.readout(model, x, T), 0.0)

    found = replace(setup, readout=readout).capture(pair, without)
    weights = torch.linspace(0.5, 1.5, found.outputs).to(found.output)
    gradients = found.gradients(weights[None], last=True)
    moving = {n: p for n, p in setup.model.named_parameters() if p.requires_grad}
    with torch.enable_grad():
        total = readout(setup.model, pair, setup.T) @ weights
    true = torch.autograd.grad(
        total.sum(), list(moving.values()), allow_unused=True, materialize_grads=True
    )
    scale = sum(float(g.norm()) ** 2 for g in true) ** 0.5
    tolerance = max(_TOLERANCE, _ROUNDINGS * torch.finfo(weights.dtype).eps)
    frozen = next((name for name in gradients if name not in moving), None)
    assert frozen is None, f"a gradient of {frozen}, which is frozen"
    for (name, _), gradient in zip(moving.items(), true, strict=True):
        if name in without:
            continue
        mine = gradients[name].dense()[0] if name in gradients else gradient.new_zeros(count, 1)
        error = float((mine[-1] - gradient.flatten()).norm()) + float(mine[:-1].norm())
        if error > tolerance * (float(gradient.norm()) + 1e-3 * scale):
            raise ModelError(
                f"the gradient of {name} is not told apart by sample (off by "
                f"{error / max(float(gradient.norm()), 1e-300):.2g}): a layer's input has no axis "
                "of samples where one is looked for, or samples influence each other, as timesteps "
                "do. Samples are along axis 0 of x; give T, the timesteps that layers see as [T, "
                "B, ...]; for layers that see neither use method='jacobian' or 'loop'"
            )


def _same(value: Tensor) -> Tensor:
    return value


def _splittable(call: Call) -> bool:
    return isinstance(call.module, (nn.Linear, *CONVOLUTIONS)) and (
        getattr(call.module, "groups", 1) == 1
    )


def budget_of(memory: float | None) -> float:
    """Bytes of a budget in GiB; half of the free memory for ``None``.

    Raises:
        ConfigError: it is not positive.
    """
    if memory is not None and not memory > 0:
        raise ConfigError(f"memory={memory:g} GiB must be above 0")
    return 0.5 * available_memory() if memory is None else memory * 2**30


def in_flight(found: Probe, samples: int, row: int = 0) -> int:
    """Samples of one forward, so that its largest tensor, and their ``row`` bytes, stay small."""
    cache, rows = (_DEVICE, _DEVICE) if found.accelerator else (_CACHE, _ROWS)
    searched = _SEARCHED // max(found.searched, 1)
    fits = min(cache // max(found.largest, 1), rows // max(row, 1))
    return max(1, min(samples, searched, fits))


def plans(
    found: Probe,
    samples: int,
    functions: int,
    full: bool,
    budget: float,
    without: tuple[str, ...] = (),
) -> tuple[list[Plan], float]:
    """Plans that together give every parameter's block once, and the bytes they need.

    Args:
        found: what one sample takes.
        samples: of both sides together.
        functions: sums of outputs.
        full: whether all of them are held at once.
        budget: bytes.
        without: parameters for autograd, sample by sample.

    Raises:
        BudgetError: not even a single channel of all samples fits.
    """
    batch = in_flight(found, samples)

    column = samples * found.itemsize * (functions if full else 1)
    whole = column * found.columns
    kept = (samples - batch) * found.saved + batch * found.passing + whole
    if kept <= budget:
        flight = functions if full else 1
        return [Plan(batch, flight, True, None, without, without)], kept
    while batch > 1 and batch * found.passing > budget / 3:
        batch //= 2
    passing = batch * found.passing
    room = budget - passing
    if whole <= room:
        flight = functions if full else int(min(functions, room // whole))
        used = passing + whole * (1 if full else flight)
        return [Plan(batch, flight, False, None, without, without)], used
    groups = _groups(found.layers, int(room // column)) if room >= column else None
    if groups is None:
        raise BudgetError(
            f"{budget / 2**30:.2g} GiB hold no channel's gradients of {samples:,} samples beside "
            f"one forward ({passing / 2**30:.2g} GiB); give more memory or fewer samples"
        )
    flight = functions if full else 1
    out = [
        Plan(batch, flight, False, group, without, without if place == 0 else ())
        for place, group in enumerate(groups)
    ]
    return out, budget


def _groups(layers: dict[str, _Layer], room: int) -> list[dict[str, slice]] | None:
    """Layers and channels in groups of at most ``room`` columns; ``None`` if one does not fit."""
    groups: list[dict[str, slice]] = [{}]
    free = room
    tied = [name for name, layer in layers.items() if layer.tied]
    if tied:  # their gradients add up, so they belong together
        groups[0] = dict.fromkeys(tied, slice(None))
        free -= sum(layers[name].columns for name in tied)
        if free < 0:
            return None
    for name, layer in layers.items():
        if layer.tied:
            continue
        single = -(-layer.columns // layer.channels)
        start = 0
        while start < layer.channels:
            fit = free // single if single else layer.channels
            if fit < layer.channels - start and (layer.channels == 1 or fit == 0):
                if not groups[-1]:
                    return None
                groups.append({})
                free = room
                continue
            stop = min(layer.channels, start + fit)
            groups[-1][name] = slice(start, stop)
            free -= single * (stop - start)
            start = stop
            if start < layer.channels:
                groups.append({})
                free = room
    return groups
