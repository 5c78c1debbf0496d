"""SpikedAttention: a trained transformer as a spiking one, without training.

Every neuron fires at most once per window of T steps and the step carries the value (one-spike
phase code, :mod:`spikedim.models.phase_code`); products of two activations run on spike traces,
softmax on a falling threshold (Hwang et al., NeurIPS 2024). A layer integrates in the window in
which the layer below fires, so an image takes one window per layer and images follow each other
every T steps.

The released code has two faults, corrected here unless ``legacy=True``: its trace product is
wrong for negative spikes that meet a spike of the other side, and its softmax is that of B times
the scores.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map

from spikedim.errors import ConfigError, DataError, ModelError
from spikedim.models import phase_code
from spikedim.models.base import Macs, SpikingModel
from spikedim.models.blocks import check_whole
from spikedim.models.spikedattention_graph import Site, call, dense_macs, roles, sites, trace
from spikedim.neurons.continuous import Activation, activation_function

RANGE = 256.0
Watch = Callable[[str, Tensor], None]


@dataclass(frozen=True)
class SpikedAttentionConfig:
    """What determines a conversion.

    Args:
        T: steps of a window where the caller gives none.
        base: B of the code; ``None`` takes 256^(1/T), so that values 1 to 1/256 of a neuron's
            largest are told apart at any T (1.41 at T=16, 1.15 at T=40: the published settings).
        legacy: the two faults of the released code, see the module.

    Raises:
        ConfigError: a field is out of its domain.
    """

    T: int = 40
    base: float | None = None
    legacy: bool = False
    neuron: ClassVar[None] = None

    def __post_init__(self) -> None:
        check_whole("T", self.T)
        number = isinstance(self.base, (int, float)) and not isinstance(self.base, bool)
        if self.base is not None and not (number and 1 < self.base <= 2):
            raise ConfigError(f"base={self.base!r}: expected None or a number above 1, at most 2")

    def base_at(self, T: int) -> float:
        """Base of the code at ``T`` steps."""
        return min(2.0, RANGE ** (1 / T)) if self.base is None else self.base


class PhaseNeurons(nn.Module):
    """Neurons that fire at most once per window.

    Args:
        site: place and kind.
        peak: largest magnitude seen in calibration, broadcastable to the values; the largest
            value that a spike of phase 1 stands for. A softmax has none.
    """

    peak: Tensor

    def __init__(self, site: Site, peak: Tensor) -> None:
        super().__init__()
        self.site = site
        self.register_buffer("peak", peak)

    def phases(self, a: Tensor, T: int, base: float, legacy: bool) -> tuple[Tensor, Tensor]:
        """Phase 0 (silent) to T of each neuron's spike, and what a spike is scaled with."""
        if self.site.kind == "winner":
            v = a * base ** (T if legacy else T - 1)
            k = phase_code.winner_step(v, T, base)
            worth = phase_code.phase_value(k, T, base, a)
            return k, (1 / worth.sum(-1, keepdim=True)).expand_as(a)
        scale = base * self.peak.clamp(min=torch.finfo(a.dtype).tiny)
        k = phase_code.phase_step(a / scale, T, base, signed=self.site.kind == "signed")
        return k, a.sign() * scale

    def exact(self, a: Tensor) -> Tensor:
        """What the spikes stand for, without rounding."""
        if self.site.kind == "winner":
            return a.softmax(-1)
        return a.relu() if self.site.kind == "relu" else a


class SpikedAttention(SpikingModel):
    """A converted network; made by :func:`convert`.

    ``forward`` evaluates the code in closed form, which costs one pass of the original whatever
    T is; :meth:`steps` runs the spikes through every window. ``ann`` holds the weights,
    ``neurons`` the neuron layers by name. Inputs are static; T may differ from call to call.
    """

    family = "spikedattention"
    config: SpikedAttentionConfig

    def __init__(
        self,
        ann: fx.GraphModule,
        peaks: dict[str, Tensor],
        macs: Macs,
        config: SpikedAttentionConfig,
        shape: tuple[int, int, int],
        num_classes: int,
    ) -> None:
        super().__init__()
        self.config, self.ann = config, ann
        self.input_shape, self.num_classes = shape, num_classes
        self.default_timesteps = config.T
        self._macs, self._exact = macs, False
        role = roles(ann)
        self._roles = {node.name: kind for node, kind in role.items()}
        self._sites = {node.name: site for node, site in sites(ann, role).items()}
        self.neurons = nn.ModuleDict(
            {site.name: PhaseNeurons(site, peaks[site.name]) for site in self._sites.values()}
        )
        self.register_buffer("input_peak", peaks["input"])
        self.eval()

    def train(self, mode: bool = True) -> SpikedAttention:
        """A converted network has nothing to train: its weights stay in eval mode."""
        super().train(False)
        return self

    def forward(self, x: Tensor, T: int | None = None) -> Tensor:
        """Logits [B, classes] that the spikes of T steps per window encode.

        Arguments and errors as :meth:`SpikingModel.steps`.
        """
        T = self._check_input(x, T)[1]
        if self.config.legacy:
            return self._steps(x, T, True).mean(0)
        logits: Tensor = self._closed(x, T, None)
        return logits

    def trains(self, x: Tensor, T: int | None = None) -> dict[str, Tensor]:
        """Spikes -1, 0 or 1 of every neuron layer, int8 [T, B, ...], each in its own window."""
        T = self._check_input(x, T)[1]
        found: dict[str, Tensor] = {}
        with torch.no_grad():
            self._timed(x, T, lambda name, train: found.update({name: train.sign().char()}))
        return found

    def continuous(self, activation: str | Activation = "surrogate") -> SpikedAttention:
        """The continuous twin: the original network, sharing the parameters of this one.

        Args:
            activation: as for :meth:`SpikingModel.continuous`; each gives the original, whose
                activations the code approaches as T grows.

        Raises:
            ConfigError: unknown activation.
        """
        activation_function(activation)
        twin = copy.copy(self)
        twin._exact, twin.default_timesteps = True, 1
        return twin

    def set_neurons(self, **changes: Any) -> SpikingModel:
        """Refused: the code has no LIF parameters."""
        raise ConfigError(
            "a one-spike phase code has no LIF parameters to set; choose T or base in convert"
        )

    def macs_per_step(self) -> Macs:
        """Multiply-accumulates of one sample of the original, once per T steps, not per step."""
        return self._macs

    def _check_input(self, x: Tensor, T: int | None) -> tuple[bool, int]:
        static, T = super()._check_input(x, T)
        if not static:
            raise ModelError(
                f"input has shape {tuple(x.shape)}: a converted network takes static frames "
                "[B, C, H, W], not events"
            )
        return static, T

    def _steps(self, x: Tensor, T: int, static: bool) -> Tensor:
        """Contributions of each step to the logits: T B^-(t+1) I_t of the last layer."""
        if self._exact:
            return cast(Tensor, self._closed(x, T, None)).expand(T, -1, -1)
        current = self._timed(x, T, None)
        weights = phase_code.phase_weights(T, self.config.base_at(T), x)
        return current * (T * weights).view(-1, 1, 1)

    def _closed(self, x: Tensor, T: int, watch: Watch | None) -> Any:
        """Evaluate on what spikes are worth; ``watch`` receives each layer's phases."""
        base = self.config.base_at(T)
        env: dict[fx.Node, Any] = {}
        for node in self.ann.graph.nodes:
            if self._roles[node.name] == "input":
                peak = cast(Tensor, self.input_peak)
                value = x if self._exact else peak * phase_code.binary_value(x / peak, T)
            elif (site := self._sites.get(node.name)) and site.kind != "signed":
                value = env[node.all_input_nodes[0]]
            else:
                value = call(self.ann, node, env)
            if site := self._sites.get(node.name):
                neurons = cast(PhaseNeurons, self.neurons[site.name])
                if self._exact:
                    value = neurons.exact(value)
                else:
                    k, scale = neurons.phases(value, T, base, self.config.legacy)
                    if watch is not None:
                        watch(site.name, k)
                    value = scale * phase_code.phase_value(k, T, base, value)
            env[node] = value
        return env[next(reversed(self.ann.graph.nodes))]

    def _timed(self, x: Tensor, T: int, watch: Watch | None) -> Tensor:
        """Evaluate on spike trains and currents [T, ...]; ``watch`` receives each layer's."""
        base = self.config.base_at(T)
        env: dict[fx.Node, Any] = {}
        for node in self.ann.graph.nodes:
            role = self._roles[node.name]
            site = self._sites.get(node.name)
            if role == "input":
                peak = cast(Tensor, self.input_peak)
                value: Any = peak * phase_code.binary_train(x / peak, T, base)
            elif role == "constant":
                sample = {
                    n: env[n][0] if self._roles[n.name] != "constant" else env[n]
                    for n in node.all_input_nodes
                }
                value = call(self.ann, node, sample)
            elif role == "product":
                one, other = (env[cast(fx.Node, n)] for n in node.args[:2])
                value = phase_code.trace_product(one, other.mT, base, legacy=self.config.legacy)
            elif site is not None and site.kind != "signed":
                value = env[node.all_input_nodes[0]]
            else:
                value = self._each_step(node, env, T, base)
            if site is not None:
                neurons = cast(PhaseNeurons, self.neurons[site.name])
                a = phase_code.integrate(value, base) / base**T
                k, scale = neurons.phases(a, T, base, self.config.legacy)
                value = scale * phase_code.phase_train(k, T, a)
                if watch is not None:
                    watch(site.name, value)
            env[node] = value
        result: Tensor = env[next(reversed(self.ann.graph.nodes))]
        return result

    def _each_step(self, node: fx.Node, env: dict[fx.Node, Any], T: int, base: float) -> Any:
        """Currents of a linear operation; its constant part flows in T equal steps."""
        moving = [n for n in node.all_input_nodes if self._roles[n.name] != "constant"]
        fixed = {n: env[n] for n in node.all_input_nodes if self._roles[n.name] == "constant"}

        def apply(*values: Any) -> Any:
            return call(self.ann, node, {**fixed, **dict(zip(moving, values, strict=True))})

        values = [env[n] for n in moving]
        currents = torch.vmap(apply)(*values)
        if self._roles[node.name] in ("shape", "parts", "output"):
            return currents
        constant = apply(*(torch.zeros_like(value[0]) for value in values))
        share = 1 / phase_code.phase_weights(T, base, constant).sum()
        return tree_map(lambda i, c: i - c + share * c, currents, constant)


def convert(
    ann: nn.Module,
    calibration: Iterable[Tensor],
    T: int = 40,
    base: float | None = None,
    *,
    legacy: bool = False,
) -> SpikedAttention:
    """Convert a trained network to spikes, without training it.

    Linear layers, convolutions, batch norm, average pooling, ReLU, softmax over the last axis,
    sums, matrix products and reshapes are converted. Neurons take the scale of the largest
    activation in ``calibration``, per channel, and one for all operands of a product.

    Args:
        ann: the network, images [B, C, H, W] to logits [B, classes]; copied, in eval mode.
        calibration: inputs from the training data.
        T, base, legacy: see :class:`SpikedAttentionConfig`.

    Raises:
        ConfigError: ``T`` or ``base`` out of its domain.
        DataError: no calibration batch, or values that are not finite.
        ModelError: a layer has no spiking equivalent (named), or the network cannot be traced.

    Example:
        >>> import torch
        >>> from spikedim.models import VisionTransformer, convert
        >>> images = torch.rand(16, 1, 8, 8)
        >>> spiking = convert(VisionTransformer().eval(), [images], T=32)
        >>> spiking(images).shape
        torch.Size([16, 10])
    """
    config = SpikedAttentionConfig(T, base, legacy)
    graph = trace(copy.deepcopy(ann).eval())
    role = roles(graph)
    places = sites(graph, role)
    peaks: dict[str, Tensor] = {}
    macs, classes = Macs(0, 0, 0), 0
    shape: tuple[int, int, int] = (0, 0, 0)
    for batch in calibration:
        env: dict[fx.Node, Any] = {}
        if not isinstance(batch, Tensor) or batch.ndim != 4:
            raise DataError("calibration batches must be tensors [B, C, H, W]")
        try:
            with torch.no_grad():
                for node in graph.graph.nodes:
                    env[node] = batch if role[node] == "input" else call(graph, node, env)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0][:160]
            raise ModelError(
                f"{type(ann).__name__} does not run on a calibration batch of shape "
                f"{tuple(batch.shape)}: {reason}"
            ) from error
        for node, site in places.items():
            _raise_peak(peaks, site.name, env[node], site.axis)
        _raise_peak(peaks, "input", batch, None)
        macs = _count_macs(graph, role, env)
        logits = env[next(reversed(graph.graph.nodes))]
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            raise ModelError(f"{type(ann).__name__} does not give logits [B, classes]")
        channels, height, width = batch.shape[1:]
        shape, classes = (channels, height, width), logits.shape[1]
    if not peaks:
        raise DataError("no batch to calibrate with; give at least one")
    for name, peak in peaks.items():
        if not torch.isfinite(peak).all():
            raise DataError(f"activations of {name} are not finite; check weights and inputs")
    return SpikedAttention(graph, peaks, macs, config, shape, classes)


def _raise_peak(peaks: dict[str, Tensor], name: str, value: Tensor, axis: int | None) -> None:
    """Raise the layer's largest magnitude by what ``value`` [B, ...] shows, per ``axis``."""
    magnitude = value.abs()
    if axis is None:
        peak = magnitude.amax()
    else:
        kept = axis % value.ndim
        peak = magnitude.amax([i for i in range(value.ndim) if i != kept], keepdim=True)
    peaks[name] = torch.maximum(peaks[name], peak) if name in peaks else peak


def _count_macs(graph: fx.GraphModule, role: dict[fx.Node, str], env: dict[fx.Node, Any]) -> Macs:
    counts = {n: dense_macs(graph, n, env) for n in role if role[n] in ("weights", "product")}
    last = next(reversed(graph.graph.nodes)).all_input_nodes[0]
    head = counts.pop(last, 0) if role[last] == "weights" else 0
    attention = sum(count for node, count in counts.items() if role[node] == "product")
    return Macs(sum(counts.values()) - attention, attention, head)
