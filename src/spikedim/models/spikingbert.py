"""SpikingBERT: a spiking encoder for text (Bal & Sengupta, AAAI 2024, arXiv 2308.10873).

Tokens enter as a constant current, the layer norm of their embeddings; neurons without leak and
with soft reset (integrate and fire) stand behind every linear layer. One encoder, all in one
timestep, from the spikes S below it::

    K = fire(W_k S)      V = fire(W_v S)
    C = fire(softmax((W_q S) K^T / sqrt(d) + mask) V)     query and softmax are real numbers
    Y = fire(LN(W_o C + S))      M = fire(GELU(W_1 Y))      S' = fire(LN(W_2 M + Y))

The classifier reads the firing rate (ASR) of the first token. Layers, and with them
``state_dict`` entries, carry the names of the released code
(github.com/NeuroCompLab-psu/SpikingBERT), including parameters that its classifier never uses.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from spikedim.errors import CheckpointError, ConfigError, ModelError
from spikedim.models.base import Macs, SpikingModel, check_timesteps
from spikedim.models.blocks import check_positive, check_whole, merge_heads, split_heads
from spikedim.models.gating import GateScores, check_gate, gated, make_gate
from spikedim.models.registry import register_family
from spikedim.neurons import LIF, LIFParams

GRADIENTS = ("equilibrium", "surrogate")
_MASKED = -10_000.0
_IDS = (torch.int64, torch.int32)
_LAYERS = 6  # of an encoder: key, value, query and softmax, projection, MLP in, MLP out

Fire = Callable[[LIF, Tensor], Tensor]


@dataclass(frozen=True)
class SpikingBERTConfig:
    """What determines a SpikingBERT.

    Args:
        vocabulary: number of token ids.
        positions: longest sequence.
        token_types: number of segment ids.
        num_classes: classes of the head; ``None`` for the networks of general distillation,
            which have no classifier (see :meth:`SpikingBERT.student_layers`).
        hidden: token width, divisible by ``num_heads``.
        num_heads: attention heads.
        depth: number of encoders.
        intermediate: hidden width of the MLP.
        dropout: share of embedding channels dropped in training, the same ones at every step
            (the released code also drops inside the encoders; here spikes are never dropped).
        init_std: standard deviation of fresh weights.
        padding: token id that, where no mask is given, is masked and fires nowhere; ``None`` for
            none.
        gradient: how ``forward`` is differentiated: ``"equilibrium"``, the published way, or
            ``"surrogate"``, back through time.
        neuron: parameters of every neuron.
        gate: in front of the attention's output projection, see :mod:`spikedim.models.gating`:
            ``"none"``, ``"position"``, or its control ``"constant"``.

    Raises:
        ConfigError: a field is out of its domain.
    """

    vocabulary: int = 30_522
    positions: int = 512
    token_types: int = 2
    num_classes: int | None = 2
    hidden: int = 768
    num_heads: int = 12
    depth: int = 4
    intermediate: int = 3072
    dropout: float = 0.1
    init_std: float = 0.02
    padding: int | None = None
    gradient: str = "equilibrium"
    neuron: LIFParams = field(
        default_factory=lambda: LIFParams(beta=1.0, reset="soft", decay_input=False)
    )
    gate: str = "none"

    def __post_init__(self) -> None:
        whole = ("vocabulary", "positions", "token_types", "hidden", "num_heads", "depth")
        for name in (*whole, "intermediate"):
            check_whole(name, getattr(self, name))
        if self.num_classes is not None:
            check_whole("num_classes", self.num_classes)
        if self.hidden % self.num_heads:
            raise ConfigError(
                f"hidden={self.hidden} must be divisible by num_heads={self.num_heads}"
            )
        check_positive("init_std", self.init_std)
        whole_or_none = self.padding is None or type(self.padding) is int
        if not (whole_or_none and 0 <= (self.padding or 0) < self.vocabulary):
            raise ConfigError(
                f"padding={self.padding!r}: expected a token id below vocabulary="
                f"{self.vocabulary}, or None"
            )
        if not (isinstance(self.dropout, (int, float)) and 0 <= self.dropout < 1):
            raise ConfigError(f"dropout={self.dropout!r}: expected a share in [0, 1)")
        if self.gradient not in GRADIENTS:
            raise ConfigError(f"gradient={self.gradient!r}: expected {' or '.join(GRADIENTS)}")
        if not isinstance(self.neuron, LIFParams):
            raise ConfigError(f"neuron={self.neuron!r}: expected a spikedim.neurons.LIFParams")
        check_gate(self)
        plain = self.neuron.reset == "soft" and not self.neuron.refractory
        if self.gradient == "equilibrium" and not plain:
            raise ConfigError(
                f"gradient='equilibrium' needs a soft reset and no refractory period, got reset="
                f"{self.neuron.reset!r}, refractory={self.neuron.refractory}; use "
                "gradient='surrogate'"
            )

    @property
    def input_shape(self) -> tuple[int]:
        """Longest sequence of tokens, (N,)."""
        return (self.positions,)


class Embedding(nn.Module):
    """Word, position and segment embeddings, summed and normalised: the input current."""

    def __init__(self, config: SpikingBERTConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocabulary, config.hidden)
        self.position_embeddings = nn.Embedding(config.positions, config.hidden)
        self.token_type_embeddings = nn.Embedding(config.token_types, config.hidden)
        self.LayerNorm = _norm(config)
        self.dropout = nn.Dropout(config.dropout)
        self.lif = LIF(config.neuron)

    def forward(self, tokens: Tensor, types: Tensor) -> Tensor:
        """Token and segment ids [B, N] to currents [B, N, D]."""
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.word_embeddings(tokens) + self.position_embeddings(places)
        current: Tensor = self.dropout(self.LayerNorm(x + self.token_type_embeddings(types)))
        return current


class Projection(nn.Module):
    """Keys or values: fire(W S)."""

    def __init__(self, config: SpikingBERTConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden, config.hidden)
        self.lif = LIF(config.neuron)

    def forward(self, x: Tensor, fire: Fire) -> Tensor:
        """[T, B, N, D] to [T, B, N, D]."""
        return fire(self.lif, self.dense(x))


class Attention(nn.Module):
    """fire(softmax((W_q S) K^T / sqrt(d) + mask) V); the maps are the output of ``softmax``."""

    def __init__(self, config: SpikingBERTConfig) -> None:
        super().__init__()
        self.heads = config.num_heads
        self.query = nn.Linear(config.hidden, config.hidden)
        self.softmax = nn.Softmax(-1)
        self.lif = LIF(config.neuron)

    def forward(self, x: Tensor, key: Tensor, value: Tensor, mask: Tensor, fire: Fire) -> Tensor:
        """Spikes [T, B, N, D] and an additive mask [B, 1, 1, N] to spikes [T, B, N, D]."""
        q, k, v = (split_heads(y, self.heads) for y in (self.query(x), key, value))
        maps = self.softmax(q @ k.mT / math.sqrt(q.shape[-1]) + mask)  # [T, B, h, N, N]
        return fire(self.lif, merge_heads(maps @ v))


class Intermediate(nn.Module):
    """First half of the MLP: fire(GELU(W Y))."""

    def __init__(self, config: SpikingBERTConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden, config.intermediate)
        self.lif = LIF(config.neuron)

    def forward(self, x: Tensor, fire: Fire) -> Tensor:
        """[T, B, N, D] to [T, B, N, intermediate]."""
        return fire(self.lif, functional.gelu(self.dense(x)))


class Output(nn.Module):
    """A projection with its residual: fire(LN(W x + residual)).

    Args:
        inputs: channels of x.
        config: the network's.
        heads: of the attention whose output it projects; ``None`` behind an MLP.
    """

    def __init__(self, inputs: int, config: SpikingBERTConfig, heads: int | None = None) -> None:
        super().__init__()
        self.gate = None if heads is None else make_gate(config, inputs, heads)
        if heads is not None:
            self.heads, self.output_projection = heads, "dense"
        self.dense = nn.Linear(inputs, config.hidden)
        self.LayerNorm = _norm(config)
        self.lif = LIF(config.neuron)

    def forward(self, x: Tensor, residual: Tensor, fire: Fire) -> Tensor:
        """[T, B, N, inputs] and [T, B, N, D] to [T, B, N, D]."""
        return fire(self.lif, self.LayerNorm(self.dense(gated(self.gate, x)) + residual))


@register_family(SpikingBERTConfig)
class SpikingBERT(SpikingModel):
    """SpikingBERT classifier of token sequences; see :class:`SpikingBERTConfig`.

    Inputs are token ids int64 [B, N] with N up to ``config.positions``; samples of other lengths
    are padded, and masked by ``mask`` or where the id is ``config.padding``. With
    ``gradient="equilibrium"`` the value of :meth:`forward` is that of the spiking network, and its
    gradient that of the fixed point of the firing rates, a' = clamp(f(a) / v_th, 0, 1) layer by
    layer, with the last layer's measured rate in the place of its fixed point: one pass, no memory
    over time (arXiv 2308.10873). Layer norm, GELU and softmax act on the spikes of each step, and
    their mean is not what they give for the mean spikes: the measured rates of deeper layers do not
    approach the fixed point as T grows. :meth:`steps` is always differentiated through time by
    surrogates.

    Where all value neurons of a head fire, its context is a sum of softmax weights, 1 up to
    rounding and so exactly at the released threshold: there a spike hangs on the last bit.
    """

    family = "spikingbert"
    config: SpikingBERTConfig
    default_timesteps = 16

    def __init__(self, config: SpikingBERTConfig) -> None:
        super().__init__()
        self.config = config
        self.input_shape = config.input_shape  # type: ignore[assignment]  # tokens, not frames
        self.num_classes = config.num_classes or 0
        self.network_x = Embedding(config)
        for first in range(1, _LAYERS * config.depth, _LAYERS):
            layers = (
                Projection(config),
                Projection(config),
                Attention(config),
                Output(config.hidden, config, config.num_heads),
                Intermediate(config),
                Output(config.intermediate, config),
            )
            for place, layer in enumerate(layers, first):
                self.add_module(f"network_s{place}", layer)
        # Stored by the released code: a layer never applied, the map that distillation compares
        # with the teacher, and a pooler that the classifier leaves out.
        last = nn.ModuleDict({"fc": nn.Linear(config.hidden, config.hidden, bias=False)})
        self.add_module(f"network_s{_LAYERS * config.depth + 1}", last)
        self.fit_dense = nn.Linear(config.hidden, config.hidden)
        if config.num_classes is not None:
            self.pooler_layer = nn.ModuleDict({"dense": nn.Linear(config.hidden, config.hidden)})
            self.classification = nn.Linear(config.hidden, config.num_classes)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)) and not isinstance(module, GateScores):
                nn.init.normal_(module.weight, std=config.init_std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def steps(
        self,
        x: Tensor,
        T: int | None = None,
        mask: Tensor | None = None,
        types: Tensor | None = None,
    ) -> Tensor:
        """Logits of each timestep; their mean is the classifier on firing rates.

        Args:
            x: token ids, integer [B, N], shown T times.
            T: timesteps; ``None`` takes ``default_timesteps``.
            mask: [B, N], 1 where there is a token and 0 where there is padding.
            types: segment ids [B, N]; ``None`` is all 0.

        Returns:
            [T, B, classes].

        Raises:
            ConfigError: ``T`` is not a whole number of at least 1.
            ModelError: the inputs do not fit the network or each other, or it has no classifier.
        """
        self._check_classifier()
        T = self._check_input(x, T)[1]
        return self._steps(x, T, True, mask, types)

    def forward(
        self,
        x: Tensor,
        T: int | None = None,
        mask: Tensor | None = None,
        types: Tensor | None = None,
    ) -> Tensor:
        """Logits [B, classes]: the mean over time of :meth:`steps`, same arguments and errors."""
        self._check_classifier()
        rates = self._rates(x, T, mask, types)[-1]
        logits: Tensor = self.classification(rates[:, 0].relu())
        return logits

    def student_layers(
        self,
        x: Tensor,
        T: int | None = None,
        mask: Tensor | None = None,
        types: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Firing rates of the embedding and of every encoder, mapped to the teacher's space.

        Distillation compares them with the hidden states of a BERT. Differentiated as
        :meth:`forward`; same arguments and errors.

        Returns:
            depth + 1 tensors [B, N, D].
        """
        return tuple(self.fit_dense(rates) for rates in self._rates(x, T, mask, types))

    def macs_per_step(self, tokens: int | None = None) -> Macs:
        """Exact multiply-accumulates of one sample of ``tokens`` (default: the longest)."""
        c, n = self.config, self.config.positions if tokens is None else tokens
        dense = c.depth * n * c.hidden * (4 * c.hidden + 2 * c.intermediate)
        attention = c.depth * 2 * n * n * c.hidden
        return Macs(dense, attention, c.hidden * self.num_classes)

    def unused_parameters(self) -> int:
        """Parameters that the released code stores and that never act on the output."""
        unused = [f"network_s{_LAYERS * self.config.depth + 1}."]
        if self.config.num_classes is not None:
            unused += ["fit_dense.", "pooler_layer."]
        return sum(p.numel() for n, p in self.named_parameters() if n.startswith(tuple(unused)))

    def _steps(
        self,
        x: Tensor,
        T: int,
        static: bool,
        mask: Tensor | None = None,
        types: Tensor | None = None,
    ) -> Tensor:
        current, additive, present = self._embed(x, mask, types)
        frames = current.expand(T, *current.shape)
        spikes = self._stages(frames, additive, _among(present, _spiking))[-1]
        logits: Tensor = self.classification(spikes[:, :, 0].relu())  # [T, B, classes]
        return logits

    def _rates(
        self, x: Tensor, T: int | None, mask: Tensor | None, types: Tensor | None
    ) -> list[Tensor]:
        """Firing rates [B, N, D] behind the embedding and behind every encoder."""
        T = self._check_input(x, T)[1]
        current, additive, present = self._embed(x, mask, types)
        spiking, equilibrium = _among(present, _spiking), _among(present, _equilibrium)
        frames = current.expand(T, *current.shape)
        through_time = self.config.gradient == "surrogate" or self._is_continuous()
        if through_time or not torch.is_grad_enabled():
            return [spikes.mean(0) for spikes in self._stages(frames, additive, spiking)]
        with torch.no_grad():
            measured = [s.mean(0) for s in self._stages(frames, additive, spiking)]
        fixed = (a[0] for a in self._stages(current[None], additive, equilibrium))
        return [a + (m - a).detach() for a, m in zip(fixed, measured, strict=True)]

    def _stages(self, current: Tensor, mask: Tensor, fire: Fire) -> list[Tensor]:
        """Spikes [T, B, N, D] behind the embedding and behind every encoder."""
        x = fire(self.network_x.lif, current)
        stages = [x]
        for first in range(1, _LAYERS * self.config.depth, _LAYERS):
            key, value, attend, project, mlp_in, mlp_out = (
                getattr(self, f"network_s{first + place}") for place in range(_LAYERS)
            )
            context = attend(x, key(x, fire), value(x, fire), mask, fire)
            x = project(context, x, fire)
            x = mlp_out(mlp_in(x, fire), x, fire)
            stages.append(x)
        return stages

    def _embed(
        self, x: Tensor, mask: Tensor | None, types: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Input currents [B, N, D], the additive attention mask [B, 1, 1, N], tokens that fire."""
        for name, value in (("mask", mask), ("types", types)):
            if value is not None and (not isinstance(value, Tensor) or value.shape != x.shape):
                found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise ModelError(f"{name} is {found}; expected a tensor {tuple(x.shape)} as tokens")
        segments = torch.zeros_like(x) if types is None else types
        if segments.dtype not in _IDS:
            raise ModelError(
                f"types has type {segments.dtype}, expected segment ids as torch.int64"
            )
        try:
            current = self.network_x(x, segments)
        except IndexError as error:
            c = self.config
            raise ModelError(
                f"token ids must lie in [0, {c.vocabulary}) and segment ids in "
                f"[0, {c.token_types}); ids out of range: check the tokeniser's vocabulary"
            ) from error
        present = None
        if mask is None and self.config.padding is not None:
            mask = present = x != self.config.padding
        elif mask is None:
            mask = torch.ones_like(x)
        additive = (1 - mask.to(current.dtype)) * _MASKED
        return current, additive[:, None, None, :], present

    def _is_continuous(self) -> bool:
        return self.network_x.lif.activation is not None

    def _check_classifier(self) -> None:
        if self.config.num_classes is None:
            raise ModelError(
                "this network has no classifier (num_classes=None, general distillation); build "
                "it with num_classes=2, say, or use student_layers"
            )

    def _check_input(self, x: Tensor, T: int | None) -> tuple[bool, int]:
        check_timesteps(T)
        if not isinstance(x, Tensor):
            raise ModelError(f"input is a {type(x).__name__}, expected a torch.Tensor of token ids")
        longest = self.config.positions
        if x.ndim != 2 or 0 in x.shape or x.shape[1] > longest:
            raise ModelError(
                f"input has shape {tuple(x.shape)}, expected token ids [B, N] with N from 1 to "
                f"{longest} (positions); cut longer texts, pad shorter ones and mask the padding"
            )
        if x.dtype not in _IDS:
            raise ModelError(f"input has type {x.dtype}, expected token ids as torch.int64")
        device = self.network_x.word_embeddings.weight.device
        if x.device != device:
            raise ModelError(f"input is on {x.device}, the network on {device}; move one")
        return True, self.default_timesteps if T is None else int(T)

    def released_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Entries of a released ``state_dict`` under this network's names.

        The released classifier stores every layer under up to four names. The aliases
        (``snn_func.*``, ``snn_ide_conv.*``) must hold the same numbers as the layer they name;
        the frozen copy from before training (``snn_func_copy.*``) is left out.

        Raises:
            CheckpointError: an alias contradicts its layer, or names none.
        """
        state = {name: value for name, value in state.items() if "snn_func_copy." not in name}
        targets = {name: _alias(name) for name in state}
        kept = {name: state[name] for name, target in targets.items() if target is None}
        for name, target in targets.items():
            if target is not None and not _same(kept.get(target), state[name]):
                raise CheckpointError(
                    f"entry {name!r} is an alias of {target!r}, which is absent or different; the "
                    "file is not a SpikingBERT state_dict as released"
                )
        return kept


def _alias(name: str) -> str | None:
    """The layer's own name, if ``name`` is another one for it."""
    match = re.fullmatch(r"(?:snn_ide_conv\.)?snn_func\.(.*)", name)
    if match is None:
        return None
    inner = re.fullmatch(r"network_s_list\.(\d+)\.(.*)", match[1])
    return match[1] if inner is None else f"network_s{int(inner[1]) + 1}.{inner[2]}"


def _same(one: Tensor | None, other: Tensor) -> bool:
    return one is not None and torch.equal(one, other)


def _spiking(neurons: LIF, current: Tensor) -> Tensor:
    spikes: Tensor = neurons(current)
    return spikes


def _among(present: Tensor | None, fire: Fire) -> Fire:
    """``fire`` for the tokens that are ``present`` [B, N]; the others get no current."""
    if present is None:
        return fire
    return lambda neurons, current: fire(neurons, current * present[..., None])


def _equilibrium(neurons: LIF, current: Tensor) -> Tensor:
    """Long-run rate of integrate-and-fire neurons with soft reset under constant current."""
    return (current / neurons.params.threshold).clamp(0, 1)


def _norm(config: SpikingBERTConfig) -> nn.LayerNorm:
    return nn.LayerNorm(config.hidden, eps=1e-12)
