"""Measure spikes, synaptic operations and energy of a network on data."""

from __future__ import annotations

from collections import Counter as Multiset
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spikedim.errors import ConfigError, DataError, ModelError
from spikedim.models.base import check_finite, evaluating, foreign
from spikedim.profiling.assemble import assemble
from spikedim.profiling.conventions import EnergyConvention, convention
from spikedim.profiling.counter import Counter
from spikedim.profiling.gates import batchnorm_gates
from spikedim.profiling.registry import neuron_types
from spikedim.profiling.result import Profile
from spikedim.progress import track

DEFAULT_CONVENTIONS = ("paper-sop", "exact-fanout")
Forward = Callable[[nn.Module, Tensor, int], Any]


def _steps(model: nn.Module, x: Tensor, T: int) -> Tensor:
    steps: Callable[[Tensor, int], Tensor] = model.steps  # type: ignore[assignment]
    return steps(x, T)


def profile(
    model: nn.Module,
    inputs: Tensor | Iterable[Tensor],
    T: int,
    conventions: Sequence[str | Path | EnergyConvention] | None = None,
    *,
    batch_size: int = 16,
    saturation: float = 0.9,
    forward: Forward | None = None,
    labels: Tensor | Sequence[int] | None = None,
    state: str = "",
) -> Profile:
    """Count spikes, synaptic operations and energy of ``model`` on ``inputs``.

    Every convolution, linear layer and product of activations that runs is counted, functional
    ones included, with the exact fan-out of each event. Figures are means over samples with
    Student-t intervals. The network runs in eval mode, without gradients, and is left as found.

    Args:
        model: a :class:`spikedim.models.SpikingModel`, or any module whose neurons are registered
            (:func:`register_neuron`) together with ``forward``.
        inputs: static frames [B, C, H, W] (ndim <= 4) or events [T, B, C, H, W], or batches of
            either.
        T: timesteps.
        conventions: names, YAML paths or :class:`EnergyConvention`; ``paper-sop`` and
            ``exact-fanout`` by default.
        batch_size: samples per forward pass, one where a network has layout ``"BT"``; bounds
            memory, and changes no figure but those of conventions with ``judged: call``.
        saturation: rate above which a layer is reported as saturated, in (0, 1].
        forward: runs ``forward(model, x, T)`` for a module without ``steps``.
        labels: class of each input, in order, for the cost per correct prediction; the prediction
            is the largest logit of the output, averaged over time if it is [T, B, classes].
        state: what is known of the weights (``"untrained"``), to stand beside the figures.

    Returns:
        Spikes, operations and energy in mJ per sample.

    Raises:
        ConfigError: ``T``, ``batch_size``, ``saturation`` or a convention is out of domain.
        DataError: no samples, NaN or infinite values, static frames and events mixed, or labels
            that do not fit or are no class of the network.
        ModelError: no spiking layer is found or runs, or the output is not finite.

    Example:
        >>> import torch
        >>> from spikedim.models import create_model
        >>> net = create_model("spikformer_tiny", seed=0)
        >>> result = profile(net, torch.rand(8, *net.input_shape), T=4)
        >>> [e.convention for e in result.energy]
        ['paper-sop', 'exact-fanout']
    """
    _check(model, T, batch_size, saturation, forward)
    rules = [convention(name) for name in conventions or DEFAULT_CONVENTIONS]
    repeated = [name for name, uses in Multiset(rule.name for rule in rules).items() if uses > 1]
    if repeated:
        raise ConfigError(f"energy convention {repeated[0]!r} is given twice; name each once")
    gates = batchnorm_gates(model)
    run = forward or _steps
    counter = Counter(model, T)
    if counter.layout == "BT":
        batch_size = 1
    static: bool | None = None
    parameter = next(model.parameters(), None)
    predictions: list[Tensor] = []
    classes = 0
    with evaluating(model), torch.no_grad():
        for x in track(_batches(inputs, batch_size), "profiling"):
            if static not in (None, x.ndim < 5):
                raise DataError("inputs mix static frames and events; profile them apart")
            static = x.ndim < 5
            check_finite(x, 0 if static else 1, counter.samples)
            x = x if parameter is None else x.to(parameter.device)
            axis = 0 if static else 1
            counter.locate(lambda x: run(model, x, T), x, axis)
            with counter.batch(x.shape[axis]):
                output = run(model, x, T)
            if isinstance(output, Tensor) and not torch.isfinite(output).all():
                layer = _first_not_finite(model, x, T, run)
                raise ModelError(
                    f"the output has NaN or infinite values, first produced by {layer}; check the "
                    "weights and the input"
                )
            if labels is not None:
                predictions.append(_predict(output))
                classes = output.shape[-1]
    if counter.samples == 0:
        raise DataError("inputs hold no samples; give at least one")
    if not counter.neurons:
        raise ModelError(f"no spiking layer of {type(model).__name__} ran; {_registration()}")
    correct = None if labels is None else _correct(torch.cat(predictions), labels, classes)
    return assemble(model, counter, rules, bool(static), saturation, gates, correct, state)


def _predict(output: Any) -> Tensor:
    if not isinstance(output, Tensor) or output.ndim not in (2, 3):
        what = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise DataError(
            f"labels need logits [B, classes] or [T, B, classes], but the network gives {what}"
        )
    return (output if output.ndim == 2 else output.mean(0)).argmax(-1).cpu()


def _correct(predictions: Tensor, labels: Tensor | Sequence[int], classes: int) -> np.ndarray:
    known = torch.as_tensor(labels).cpu()
    if known.shape != predictions.shape:
        raise DataError(
            f"labels have shape {tuple(known.shape)}, but there are {len(predictions)} samples"
        )
    strange = known[(known < 0) | (known >= classes)]
    if len(strange):
        raise DataError(
            f"{len(strange)} of {len(known)} labels are no class of the network, which has "
            f"{classes} (0 to {classes - 1}), e.g. {strange[0].item()}; check the labels, or build "
            "the network with more classes"
        )
    return (predictions == known).double().numpy()


def _check(
    model: nn.Module, T: int, batch_size: int, saturation: float, forward: Forward | None
) -> None:
    if isinstance(T, bool) or not isinstance(T, int) or T < 1:
        raise ConfigError(f"T={T!r}: the number of timesteps must be a whole number, 1 or more")
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ConfigError(f"batch_size={batch_size!r} must be a whole number, 1 or more")
    if not 0 < saturation <= 1:
        raise ConfigError(f"saturation={saturation!r} must be a rate in (0, 1], e.g. 0.9")
    if forward is None and not hasattr(model, "steps"):
        raise ModelError(
            f"{foreign(model)}. Or count it as it is, its neurons registered: pass "
            "forward=lambda model, x, T: ..."
        )
    if not any(isinstance(module, neuron_types()) for module in model.modules()):
        raise ModelError(f"no spiking layers found in {type(model).__name__}; {_registration()}")


def _registration() -> str:
    known = ", ".join(cls.__name__ for cls in neuron_types())
    return (
        f"known neurons: {known}. Register another class first: "
        "spikedim.profiling.register_neuron(TheNeuronClass)"
    )


def _batches(inputs: Tensor | Iterable[Tensor], size: int) -> Iterator[Tensor]:
    for x in [inputs] if isinstance(inputs, Tensor) else inputs:
        if not isinstance(x, Tensor) or x.ndim < 2:
            what = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise DataError(f"inputs must be tensors [B, ...] or [T, B, C, H, W], got {what}")
        axis = 0 if x.ndim < 5 else 1
        if x.shape[axis]:
            yield from x.split(size, axis)


def _first_not_finite(model: nn.Module, x: Tensor, T: int, run: Forward) -> str:
    """Name of the first layer whose output is not finite."""
    culprits: list[str] = []

    def watch(name: str) -> Callable[..., None]:
        def look(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and not torch.isfinite(output).all():
                culprits.append(name)

        return look

    modules = [item for item in model.named_modules() if item[0]]
    handles = [module.register_forward_hook(watch(name)) for name, module in modules]
    try:
        run(model, x, T)
    finally:
        for handle in handles:
            handle.remove()
    return culprits[0] if culprits else "an operation outside any layer"
