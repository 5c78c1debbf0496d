"""A network of another library under our contract."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from spikedim.adapters.neurons import AdaptedLIF, Kept
from spikedim.adapters.probe import probe
from spikedim.adapters.registry import (
    LIBRARIES,
    derived,
    how_to_register,
    registered,
    replacement,
    root,
)
from spikedim.adapters.unrecorded import own_neuron, unrecorded
from spikedim.errors import ConfigError, ModelError, SpikedimWarning
from spikedim.models.base import Macs, SpikingModel, evaluating, override
from spikedim.neurons import LIFParams
from spikedim.neurons.continuous import Activation

LAYOUTS = ("TB", "BT", "step", "static")
_TIMESTEPS = ("T", "num_steps", "timesteps", "time_steps", "time_step", "timestep")


@dataclass(frozen=True)
class AdaptedConfig:
    """What is known of an adapted network.

    Attributes:
        source: class of the network, or the file and function that made it.
        input_shape, num_classes: as for every network.
        layout: how it takes its input, see :func:`wrap`.
        neuron: parameters of its first neuron layer that is not kept (means of per-neuron ones);
            ``None`` where all are.
        tokens, embed_dim: size of its representation, where it was given (see :func:`wrap`).
    """

    source: str
    input_shape: tuple[int, int, int]
    num_classes: int
    layout: str
    neuron: LIFParams | None
    tokens: int | None
    embed_dim: int | None


class AdaptedModel(SpikingModel):
    """A network of another library; made by :func:`wrap`.

    Modules, and with them ``state_dict`` entries, have the names they have in the original.
    """

    family = "adapted"
    config: AdaptedConfig

    def __init__(
        self,
        network: nn.Module,
        config: AdaptedConfig,
        *,
        reset: Callable[[nn.Module], Any] | None,
        output: int,
        flatten: bool,
    ) -> None:
        super().__init__()
        self._parameters, self._buffers = network._parameters, network._buffers
        self._modules = network._modules
        self._non_persistent_buffers_set = network._non_persistent_buffers_set
        self._original = (network,)  # in a tuple: its children are already ours
        self.config = config
        self.input_shape, self.num_classes = config.input_shape, config.num_classes
        self._reset, self._output, self._flatten = reset, output, flatten
        self._ratios = {
            name: _mean(layer.params.threshold) / _mean(config.neuron.threshold)
            for name, layer in _layers(self)
            if config.neuron is not None and layer.known
        }
        self.training = network.training

    def train(self, mode: bool = True) -> AdaptedModel:
        """Set the mode of the original too."""
        super().train(mode)
        self._original[0].training = mode
        return self

    def threshold_ratio(self, name: str) -> float:
        """Threshold of a layer over that of the first one whose threshold is known.

        Raises:
            ModelError: the layer is kept as it is.
        """
        if name not in self._ratios:
            cast(AdaptedLIF, self.get_submodule(name)).dynamics()  # refuses
        return self._ratios[name]

    def set_neurons(self, **changes: Any) -> AdaptedModel:
        """Change the given parameters of every neuron; thresholds keep their ratios.

        Raises:
            ConfigError: an unknown field, or a value out of its domain.
            ModelError: a neuron that is kept as it is has no such parameters.
        """
        if not changes:
            return self
        for name in self.kept:  # refuses before any layer is changed
            cast(Kept, self.get_submodule(name)).change(**changes)
        neuron = override(self.config.neuron, changes, "neuron parameter")
        for name, layer in _layers(self):
            fields = dict(changes)
            if "threshold" in fields:
                fields["threshold"] = self._ratios[name] * fields["threshold"]
            layer.change(**fields)
        self.config = replace(self.config, neuron=neuron)
        return self

    def continuous(self, activation: str | Activation = "surrogate") -> SpikingModel:
        """As :meth:`SpikingModel.continuous`.

        Raises:
            ConfigError: unknown activation.
            ModelError: a neuron that is kept as it is has no twin.
        """
        for name in self.kept:
            raise cast(Kept, self.get_submodule(name)).refusal("has no continuous twin")
        return super().continuous(activation)

    def macs_per_step(self) -> Macs:
        """Multiply-accumulates of one sample in one step, counted in a forward pass."""
        from torch.utils.flop_counter import FlopCounterMode

        weight = next(self.parameters())
        x = torch.zeros(1, *self.input_shape, dtype=weight.dtype, device=weight.device)
        with evaluating(self), torch.no_grad(), FlopCounterMode(display=False) as counter:
            T = len(self.steps(x, None if self.config.layout == "static" else 1))
        counts = counter.get_flop_counts()["Global"]
        products = sum(n for op, n in counts.items() if "bmm" in str(op))
        return Macs((sum(counts.values()) - products) // (2 * T), products // (2 * T), 0)

    def _steps(self, x: Tensor, T: int, static: bool) -> Tensor:
        layout = self.config.layout
        if layout == "static" and not static:
            raise ModelError(
                "the network repeats its input itself (layout='static'), it takes no events "
                "[T, B, C, H, W]; wrap one that takes them with layout='TB', 'BT' or 'step'"
            )
        if self._flatten:
            x = x.flatten(-3)
        if layout == "static":
            self._set_timesteps(T)
        elif static:
            x = x.unsqueeze(0).repeat(T, *[1] * x.ndim)
        with self._at_rest():
            if layout == "step":
                return torch.stack(list(self._stepwise(x)))
            out = self._select(self._original[0](x.transpose(0, 1) if layout == "BT" else x))
        if out.ndim == 2:  # one output for all timesteps
            return out.expand(T, *out.shape)
        out = out.transpose(0, 1) if layout == "BT" else out
        if out.ndim != 3 or len(out) != T:
            raise ModelError(
                f"the network gives shape {tuple(out.shape)} for T={T}; expected logits "
                "[T, B, classes], or [B, classes] for all timesteps together (layout='BT': "
                "[B, T, classes])"
            )
        return out

    def _stepwise(self, x: Tensor) -> Iterator[Tensor]:
        network = self._original[0]
        explicit = "state" in inspect.signature(network.forward).parameters
        state = None
        for x_t in x:
            if explicit:
                out, state = network(x_t, state)
            else:
                out = network(x_t)
            yield self._select(out)

    def _select(self, out: Any) -> Tensor:
        while isinstance(out, (tuple, list)):
            out = out[self._output]
        if not isinstance(out, Tensor):
            raise ModelError(f"the network gives a {type(out).__name__}; expected a tensor")
        return out

    def _set_timesteps(self, T: int) -> None:
        network = self._original[0]
        for name in _TIMESTEPS:
            if isinstance(getattr(network, name, None), int):
                setattr(network, name, T)
                return
        raise ModelError(
            f"{type(network).__name__} repeats its input itself, but has no attribute "
            f"{', '.join(_TIMESTEPS[:-1])} or {_TIMESTEPS[-1]} that says how often; add one"
        )

    @contextmanager
    def _at_rest(self) -> Iterator[None]:
        """One forward pass, from rest."""
        if self._reset is not None:
            self._reset(self._original[0])
        for module in self.modules():
            if isinstance(module, AdaptedLIF):
                module.begin()
            elif root(type(module)) == "spikingjelly" and callable(
                again := getattr(module, "reset", None)
            ):
                again()
        yield
        for module in self.modules():
            if isinstance(module, AdaptedLIF):
                module.finish()


def wrap(
    network: nn.Module,
    *,
    input_shape: tuple[int, int, int],
    num_classes: int | None = None,
    layout: str = "TB",
    reset: Callable[[nn.Module], Any] | None = None,
    output: int = 0,
    flatten: bool = False,
    tokens: int | None = None,
    embed_dim: int | None = None,
    source: str | None = None,
) -> AdaptedModel:
    """Bring a network of SpikingJelly, snnTorch, Norse or our own neurons under our contract.

    Its neurons are replaced by ours with the same dynamics (spikes equal those of the original,
    float rounding at the threshold aside), because none of those libraries works under
    ``torch.func``; parameters and buffers are shared with ``network``, which itself stays as it
    is. A neuron without an exact equivalent is kept and listed in ``kept``: its spikes are
    recorded and counted and it is reset around every forward pass, but its potential, neuron
    sweeps, the continuous twin and ``ntk`` by ``torch.func`` are not available. A module of the
    user's own that gives zeros and ones for other numbers, and is not registered, is warned of: its
    spikes are not seen.

    Args:
        network: the network. SpikingJelly's may be in step mode ``"s"`` or ``"m"``.
        input_shape: (C, H, W) of one frame.
        num_classes: length of the logits; ``None`` finds it by running the network.
        layout: what one call of the network takes and gives:

            - ``"TB"``: [T, B, C, H, W] to [T, B, classes] (SpikingJelly ``"m"``, Norse sequences,
              :class:`spikedim.LIF`);
            - ``"BT"``: [B, T, C, H, W] to [B, T, classes];
            - ``"step"``: one timestep, [B, C, H, W] to [B, classes] (snnTorch, Norse cells,
              SpikingJelly ``"s"``); an argument called ``state`` is handed from step to step;
            - ``"static"``: [B, C, H, W] to [T, B, classes]; the network repeats the frames itself,
              as often as its attribute ``T`` or ``num_steps`` says.

            Where the output is [B, classes] for all timesteps together, steps are equal copies of
            it: accuracy after fewer steps than T cannot be read off.
        reset: called with the network before every forward pass, for state we know nothing of.
        output: which element of a returned tuple holds the logits.
        flatten: give the network vectors [.., C·H·W] instead of frames.
        tokens, embed_dim: n and d of the representation, for the bounds of ``design``; by default
            those of the last spiking layer that has tokens (pixels are), or else of the last one.
        source: what results call the network; its class by default.

    Raises:
        ConfigError: an unknown layout, a shape that is none, tokens or channels below 1, or a
            registered function that returns neither a neuron nor ``None``.
        ModelError: no neuron is recognised, one is of an unknown class (the message shows how to
            register it), a module keeps state between calls, the network does not run, or it
            mixes samples.

    Example:
        >>> from spikedim.adapters import wrap
        >>> from spikedim.profiling import profile
        >>> model = wrap(network, input_shape=(3, 32, 32))  # doctest: +SKIP
        >>> profile(model, images, T=4)  # doctest: +SKIP
    """
    if layout not in LAYOUTS:
        raise ConfigError(f"layout={layout!r}; expected one of {', '.join(LAYOUTS)}")
    if not isinstance(network, nn.Module):
        raise ConfigError(f"network is a {type(network).__name__}; expected a torch.nn.Module")
    shape = tuple(input_shape)
    if len(shape) != 3 or not all(isinstance(n, int) and n >= 1 for n in shape):
        raise ConfigError(f"input_shape={input_shape!r}: expected three whole numbers (C, H, W)")
    for name, size in (("tokens", tokens), ("embed_dim", embed_dim)):
        if size is not None and not (isinstance(size, int) and size >= 1):
            raise ConfigError(f"{name}={size!r}: expected a whole number, 1 or more")
    network = _copied(network)
    layers = _convert(network, multistep=layout != "step")
    config = AdaptedConfig(
        source or type(network).__name__,
        shape,
        num_classes or 1,
        layout,
        _nominal(layers),
        tokens,
        embed_dim,
    )
    model = AdaptedModel(network, config, reset=reset, output=output, flatten=flatten)
    found = probe(model, model._original[0], config.source, layout)
    if num_classes not in (None, found):
        raise ModelError(
            f"{config.source} gives {found} classes, num_classes={num_classes} was asked for"
        )
    model.config = replace(config, num_classes=found)
    model.num_classes = found
    for cls, paths in _by_class(unrecorded(model)).items():
        warnings.warn(
            f"{cls} at {paths} gives zeros and ones as a spiking neuron does, but is not known as "
            f"one: its spikes are neither recorded nor counted; say what it is with "
            f"@spikedim.adapters.register_neuron({cls}), a function that returns its LIFParams, or "
            "None to keep it as it is",
            SpikedimWarning,
            stacklevel=2,
        )
    kept = {name: cast(Kept, model.get_submodule(name)).original for name in model.kept}
    chosen = {name: neuron for name, neuron in kept.items() if registered(neuron)}
    for cls, paths in _by_class(chosen).items():
        warnings.warn(
            f"{cls} at {paths} is kept as it is, because the function registered for it returned "
            "None; to have its potentials, neuron sweeps and continuous twin, return its LIFParams",
            SpikedimWarning,
            stacklevel=2,
        )
    return model


def _by_class(modules: dict[str, nn.Module]) -> dict[str, str]:
    """Class name → quoted paths."""
    found: dict[str, list[str]] = {}
    for path, module in modules.items():
        found.setdefault(type(module).__name__, []).append(repr(path))
    return {cls: ", ".join(paths) for cls, paths in found.items()}


def adapted_neuron(network: nn.Module) -> LIFParams | None:
    """``AdaptedConfig.neuron`` of a network that was not wrapped.

    Raises:
        ModelError: as :func:`wrap`, for its neurons.
    """
    return _nominal(_convert(_copied(network), multistep=True))


def _copied(network: nn.Module) -> nn.Module:
    """A copy that shares parameters and buffers, the neurons' states aside."""
    shared: dict[int, Any] = {id(t): t for t in (*network.parameters(), *network.buffers())}
    try:
        return copy.deepcopy(network, shared)
    except RuntimeError as error:
        raise ModelError(
            f"{type(network).__name__} still holds the state of a forward pass; reset it first "
            "(spikingjelly functional.reset_net, snntorch utils.reset)"
        ) from error


def _convert(network: nn.Module, multistep: bool) -> list[AdaptedLIF]:
    made: dict[nn.Module, AdaptedLIF] = {}
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if child not in made:
                layer = replacement(child, multistep)
                if layer is None:
                    _refuse_unknown(network, child)
                    continue
                made[child] = layer.train(child.training)
            setattr(parent, name, made[child])
    if not made:
        own = {type(m) for m in network.modules() if root(type(m)) not in ("torch", "spikedim")}
        names = ", ".join(sorted(cls.__name__ for cls in own - {type(network)})) or "none"
        found = (
            f"no spiking neuron found in {type(network).__name__} (its own module classes: "
            f"{names}); known are those of {', '.join(LIBRARIES)}. "
        )
        neuron = own_neuron(network)
        if neuron is None:
            raise ModelError(
                f"{found}Neurons must be modules: put what spikes inside a forward into a "
                "torch.nn.Module, and register its class with spikedim.adapters.register_neuron"
            )
        raise ModelError(f"{found}Register another class:{how_to_register(neuron)}")
    return list(made.values())


def _refuse_unknown(network: nn.Module, module: nn.Module) -> None:
    library = derived(module)
    if library is None:
        return
    cls = type(module)
    path = next(name for name, m in network.named_modules() if m is module)
    raise ModelError(
        f"{cls.__name__} at {path!r} extends a neuron of {library}: it may do anything. Say what "
        f"it is:{how_to_register(cls.__name__)}"
    )


def _layers(model: nn.Module) -> list[tuple[str, AdaptedLIF]]:
    return [(name, m) for name, m in model.named_modules() if isinstance(m, AdaptedLIF)]


def _nominal(layers: list[AdaptedLIF]) -> LIFParams | None:
    """Parameters of the first layer that has known ones, as plain numbers."""
    for layer in layers:
        if layer.known:
            p = layer.params
            return replace(p, beta=_mean(p.beta), threshold=_mean(p.threshold))
    return None


def _mean(value: float | Tensor) -> float:
    return value.detach().float().mean().item() if isinstance(value, Tensor) else float(value)
