"""SpikeGPT: a language model of spiking RWKV blocks (Zhu et al., TMLR 2024, arXiv 2302.13939).

The time axis of its neurons is the sequence: token t is timestep t, and nothing looks ahead.
With E channels, x the real residual stream and LIF neurons that run along the sequence::

    x = LN0(1[emb(token) >= 0])
    x = x + LIF1(W_o (sigmoid(r) * wkv))                      time mixing of LN1(x)
    x = x + LIF2(sigmoid(W_r x_r) * W_v relu(W_k x_k)^2)      channel mixing of LN2(x), width 4 E
    logits = W_head LN_out(x)

where each x_k, x_v, x_r mixes a token with the one before it, k, v and r are linear in them, and
wkv averages the values seen so far (:func:`spikedim.models.wkv.wkv`).

Layers carry the names of the released code (github.com/ridgerchu/SpikeGPT, BSD-2-Clause). Of its
two differing forward passes this is the training one; its inference pass halves x every six
layers and skips the embedding's spikes, so that it computes another network. Fresh matrices are
drawn so that neurons fire, not as released. Time comes first inside, [S, B, E].
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from spikedim.errors import ConfigError, ModelError
from spikedim.models.base import Macs, SpikingModel, check_timesteps, evaluating
from spikedim.models.blocks import check_positive, check_whole
from spikedim.models.gating import check_gate, gated, make_gate
from spikedim.models.registry import register_family
from spikedim.models.wkv import Sums, wkv
from spikedim.neurons import LIF, LIFParams, LIFState, Surrogate, spike

EXPANSION = 4


@dataclass(frozen=True)
class SpikeGPTConfig:
    """What determines a SpikeGPT.

    Args:
        num_classes: size V of the vocabulary; tokens are 0 to V - 1.
        embed_dim: channels E.
        depth: blocks.
        context: tokens of a training sequence; the state has constant size, so that any other
            length runs as well.
        dropout: share of each block's outputs dropped in training.
        neuron: parameters of all neurons; its surrogate is also that of the embedding.
        gate: in front of the output projection of time mixing, which has one head, see
            :mod:`spikedim.models.gating`: ``"none"``, ``"position"``, or ``"constant"``.

    Raises:
        ConfigError: a value out of its domain.
    """

    num_classes: int = 50_277
    embed_dim: int = 768
    depth: int = 18
    context: int = 1024
    dropout: float = 0.03
    neuron: LIFParams = field(
        default_factory=lambda: LIFParams(detach_reset=False, surrogate=Surrogate("atan", 2.0))
    )
    gate: str = "none"

    def __post_init__(self) -> None:
        for name in ("num_classes", "embed_dim", "depth", "context"):
            check_whole(name, getattr(self, name))
        number = isinstance(self.dropout, (int, float)) and not isinstance(self.dropout, bool)
        if not (number and 0 <= self.dropout < 1):
            raise ConfigError(f"dropout={self.dropout!r}: expected a number in [0, 1)")
        if not isinstance(self.neuron, LIFParams):
            raise ConfigError(f"neuron={self.neuron!r}: expected a spikedim.neurons.LIFParams")
        check_gate(self)

    @property
    def input_shape(self) -> tuple[int]:
        """(context,): a sample is a sequence of tokens."""
        return (self.context,)


class BlockState(NamedTuple):
    """What a block carries from token to token: last inputs [B, E], sums, neurons, tokens so far.

    Neurons of a continuous twin carry nothing.
    """

    att: Tensor
    ffn: Tensor
    sums: Sums
    lif1: LIFState | None
    lif2: LIFState | None
    tokens: int


State = tuple[BlockState, ...]


def _previous(x: Tensor, last: Tensor | None) -> Tensor:
    """[S, B, E] one token later, ``last`` (or zero) first."""
    first = torch.zeros_like(x[:1]) if last is None else last[None]
    return torch.cat([first, x[:-1]])


def _linear(inputs: int, outputs: int, gain: float) -> nn.Linear:
    """Without bias; a standardised input gives outputs of standard deviation ``gain``."""
    layer = nn.Linear(inputs, outputs, bias=False)
    nn.init.normal_(layer.weight, std=gain / math.sqrt(inputs))
    return layer


class EmbeddingSpikes(LIF):
    """Spikes where an embedding is not negative: neurons without memory, of threshold 0.

    In the continuous twin, neurons whose steady potential exceeds the threshold by the embedding.
    """

    _state: Any  # of the whole network, see SpikeGPT._steps

    def forward(self, x: Tensor) -> Tensor:
        """[S, B, E] to 0 and 1 of the same shape."""
        params = self.params
        if self.activation is not None:
            spikes = self.activation(x + params.threshold, replace(params, decay_input=True))
        elif params.smooth:
            spikes = params.surrogate.primitive(x)
        else:
            spikes = spike(x, params.surrogate)
        for observer, potential in self._observers.items():
            observer(spikes, x if potential else None)
        return spikes


class TimeMix(nn.Module):
    """Receptance-gated :func:`wkv` of keys and values mixed from two neighbouring tokens."""

    output_projection: ClassVar[str] = "output"

    heads = 1

    def __init__(self, config: SpikeGPTConfig, layer: int) -> None:
        super().__init__()
        dim, depth = config.embed_dim, config.depth
        self.gate = make_gate(config, dim, self.heads)
        late = layer / max(1, depth - 1)  # 0 in the first block, 1 in the last
        channel = torch.arange(dim) / max(1, dim - 1)
        zigzag = (torch.arange(dim) + 1) % 3 - 1
        self.time_decay = nn.Parameter(-5 + 8 * channel ** (0.7 + 1.3 * late))
        self.time_first = nn.Parameter(math.log(0.3) + 0.5 * zigzag)
        ramp = _ramp(dim, 1 - layer / depth)
        self.time_mix_k = nn.Parameter(ramp)
        self.time_mix_v = nn.Parameter(ramp + 0.3 * late)
        self.time_mix_r = nn.Parameter(_ramp(dim, 0.5 * (1 - layer / depth)))
        self.key = _linear(dim, dim, 1.0)
        self.value = _linear(dim, dim, 2.0)
        self.receptance = _linear(dim, dim, 1.0)
        self.output = _linear(dim, dim, 2.0)

    def forward(
        self, x: Tensor, last: Tensor | None, sums: Sums | None, start: int = 0
    ) -> tuple[Tensor, Sums]:
        """[S, B, E] to the same shape, and the sums after it; ``start`` tokens came before."""
        previous = _previous(x, last)
        k = self.key(torch.lerp(previous, x, self.time_mix_k))
        v = self.value(torch.lerp(previous, x, self.time_mix_v))
        r = self.receptance(torch.lerp(previous, x, self.time_mix_r))
        average, sums = wkv(self.time_decay, self.time_first, k, v, sums)
        y = (torch.sigmoid(r) * average.to(r.dtype)).transpose(0, 1)[None]  # [1, B, S, E]
        return self.output(gated(self.gate, y, start)[0].transpose(0, 1)), sums


class ChannelMix(nn.Module):
    """Receptance-gated feed-forward with squared ReLU."""

    def __init__(self, config: SpikeGPTConfig, layer: int) -> None:
        super().__init__()
        dim = config.embed_dim
        ramp = _ramp(dim, 1 - layer / config.depth)
        self.time_mix_k = nn.Parameter(ramp)
        self.time_mix_r = nn.Parameter(ramp.clone())
        self.key = _linear(dim, EXPANSION * dim, 1.0)
        self.receptance = _linear(dim, dim, 1.0)
        self.value = _linear(EXPANSION * dim, dim, 2.0)

    def forward(self, x: Tensor, last: Tensor | None) -> Tensor:
        """[S, B, E] to the same shape."""
        previous = _previous(x, last)
        k = self.key(torch.lerp(previous, x, self.time_mix_k))  # [S, B, 4E]
        r = self.receptance(torch.lerp(previous, x, self.time_mix_r))
        out: Tensor = torch.sigmoid(r) * self.value(torch.relu(k).square())
        return out


def _ramp(dim: int, power: float) -> Tensor:
    return ((torch.arange(dim) / dim) ** power)[None, None]  # [1, 1, E]


class Block(nn.Module):
    """Time mixing and channel mixing, each through neurons, added to the stream."""

    def __init__(self, config: SpikeGPTConfig, layer: int) -> None:
        super().__init__()
        dim = config.embed_dim
        self.ln0 = nn.LayerNorm(dim) if layer == 0 else None
        self.ln1, self.ln2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.att, self.ffn = TimeMix(config, layer), ChannelMix(config, layer)
        self.lif1, self.lif2 = LIF(config.neuron), LIF(config.neuron)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[S, B, E] to the same shape, from rest."""
        x = x if self.ln0 is None else self.ln0(x)
        x = x + self.lif1(self.att(self.ln1(x), None, None)[0])
        x = x + self.lif2(self.ffn(self.ln2(x), None))
        out: Tensor = self.dropout(x)
        return out

    def stream(self, x: Tensor, state: BlockState | None) -> tuple[Tensor, BlockState]:
        """As :meth:`forward`, from ``state``, and the state after it without gradients."""
        att, ffn, sums, lif1, lif2, tokens = state or (*(None,) * 5, 0)
        x = x if self.ln0 is None else self.ln0(x)
        y = self.ln1(x)
        current, sums = self.att(y, att, sums, tokens)
        spikes, lif1 = _resumed(self.lif1, current, lif1)
        x = x + spikes
        z = self.ln2(x)
        spikes, lif2 = _resumed(self.lif2, self.ffn(z, ffn), lif2)
        carried = (y[-1].detach(), z[-1].detach(), sums.detach(), lif1, lif2)
        after = BlockState(*carried, tokens + len(x))
        return self.dropout(x + spikes), after


def _resumed(layer: LIF, x: Tensor, state: LIFState | None) -> tuple[Tensor, LIFState | None]:
    """Spikes of a layer that starts from ``state``, and its state after them."""
    outer = layer._streaming, layer._state
    layer._streaming, layer._state = True, state
    try:
        return layer(x), layer._state
    finally:
        layer._streaming, layer._state = outer


@register_family(SpikeGPTConfig)
class SpikeGPT(SpikingModel):
    """SpikeGPT language model; see :class:`SpikeGPTConfig` for its options.

    ``steps`` takes tokens, int64 [B, S], and returns logits [S, B, V]: step t predicts token
    t + 1 from tokens 0 to t. ``forward`` returns the same as [B, S, V], not a mean. T, if given,
    is S.
    """

    family = "spikegpt"
    reads_in_time = True
    config: SpikeGPTConfig

    def __init__(self, config: SpikeGPTConfig) -> None:
        super().__init__()
        self.config = config
        self.input_shape = config.input_shape  # type: ignore[assignment]
        self.num_classes = config.num_classes
        self.emb = nn.Embedding(config.num_classes, config.embed_dim)
        nn.init.normal_(self.emb.weight, std=0.1)
        self.emb_lif = EmbeddingSpikes(config.neuron)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.depth))
        self.ln_out = nn.LayerNorm(config.embed_dim)
        self.head = _linear(config.embed_dim, config.num_classes, 0.5)

    def forward(self, x: Tensor, T: int | None = None) -> Tensor:
        """Logits [B, S, V] of tokens [B, S]; errors as :meth:`SpikingModel.steps`."""
        return self.steps(x, T).transpose(0, 1)

    def _steps(self, x: Tensor, T: int, static: bool) -> Tensor:
        if self.emb_lif._streaming:
            # These neurons have no state of their own: they keep that of the whole network.
            logits, self.emb_lif._state = self.stream(x, self.emb_lif._state)
            return logits.transpose(0, 1)
        y = self.emb_lif(self.emb(x.T))  # [S, B, E]
        for block in self.blocks:
            y = block(y)
        out: Tensor = self.head(self.ln_out(y))  # [S, B, V]
        return out

    def stream(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Continue a sequence; the state has constant size, however long the past.

        Gradients stop at each call. :func:`spikedim.neurons.streaming` does the same for
        ``steps`` and keeps the state itself.

        Args:
            tokens: the next tokens, int64 [B, S].
            state: what the last call returned, ``None`` at the start.

        Returns:
            Logits [B, S, V], equal to those of the whole sequence at once, and the new state.

        Raises:
            ModelError: ``tokens`` do not fit the network, or the state is of another batch size.
        """
        self._check_input(tokens, None)
        if state is not None and len(state[0].att) != len(tokens):
            sizes = f"{len(state[0].att)} sequences, the tokens of {len(tokens)}"
            raise ModelError(f"the state is of {sizes}; start with state=None")
        y, states = self.emb_lif(self.emb(tokens.T)), []
        for index, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            y, after = block.stream(y, None if state is None else state[index])
            states.append(after)
        return self.head(self.ln_out(y)).transpose(0, 1), tuple(states)

    @torch.no_grad()
    def generate(
        self,
        prompt: Tensor,
        length: int,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Continue each prompt by ``length`` drawn tokens, one step of the network per token.

        Args:
            prompt: int64 [B, S], S >= 1.
            length: tokens to draw.
            temperature: of the softmax the tokens are drawn from; 0 takes the likeliest.
            generator: source of the draws, needed for a positive temperature.

        Returns:
            [B, S + length], the prompt included.

        Raises:
            ConfigError: a length or temperature out of its domain, or no generator.
            ModelError: the prompt does not fit the network, or a logit is not finite.
        """
        check_whole("length", length)
        if temperature != 0:
            check_positive("temperature", temperature)
        if temperature and generator is None:
            raise ConfigError(
                "drawing tokens needs a generator, e.g. torch.Generator().manual_seed(0); "
                "temperature=0 needs none"
            )
        tokens, state, new = [prompt], None, prompt
        with evaluating(self):
            for _ in range(length):
                logits, state = self.stream(new, state)
                last = logits[:, -1].double()
                if not torch.isfinite(last).all():
                    raise ModelError("a logit is NaN or infinite; check the weights")
                if generator is None or not temperature:
                    new = last.argmax(-1, keepdim=True)
                else:
                    weights = torch.softmax(last / temperature, -1).to(generator.device)
                    new = torch.multinomial(weights, 1, generator=generator).to(prompt.device)
                tokens.append(new)
        return torch.cat(tokens, 1)

    def _check_input(self, x: Tensor, T: int | None) -> tuple[bool, int]:
        if not isinstance(x, Tensor):
            raise ModelError(f"input is a {type(x).__name__}, expected a torch.Tensor of tokens")
        if x.ndim != 2 or x.dtype != torch.int64:
            found = f"shape {tuple(x.shape)} and type {x.dtype}"
            raise ModelError(f"input has {found}, expected tokens [B, S] of torch.int64")
        if 0 in x.shape:
            raise ModelError(f"input has shape {tuple(x.shape)}: nothing to compute")
        check_timesteps(T)
        if T is not None and x.shape[1] != T:
            raise ModelError(
                f"T={T}, but the sequences have {x.shape[1]} tokens, one per timestep; "
                "leave T out or cut the input"
            )
        if x.device != (where := self.emb.weight.device):
            raise ModelError(f"input is on {x.device}, the network on {where}; move one")
        if not torch.compiler.is_compiling():
            self._check_range(x)
        return False, x.shape[1]

    def _check_range(self, x: Tensor) -> None:
        try:
            low, high = int(x.amin()), int(x.amax())
        except RuntimeError:  # values cannot be read on the meta device or inside torch.func
            return
        if low < 0 or high >= self.num_classes:
            raise ModelError(
                f"tokens run from {low} to {high}, the vocabulary from 0 to {self.num_classes - 1};"
                " number the tokens so, or build the network with another num_classes"
            )

    def macs_per_step(self) -> Macs:
        """Exact multiply-accumulates of one token; the averages of :func:`wkv` have none."""
        c = self.config
        matrices = 4 + 1 + 2 * EXPANSION
        return Macs(c.depth * matrices * c.embed_dim**2, 0, c.embed_dim * c.num_classes)


def l2_wrap(loss: Tensor, logits: Tensor, strength: float = 1e-4) -> Tensor:
    """``loss``, with a gradient that pulls the largest logit of each token towards 0.

    The value stays; the gradient gains strength / (B S) times the largest logit, at its place.

    Args:
        loss: a mean over the tokens of ``logits`` [B, S, V].
    """
    largest = logits.max(-1).values
    penalty = 0.5 * strength * largest.square().mean()
    return loss + (penalty - penalty.detach())


def language_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of logits [B, S, V] and targets [B, S] in nats, with :func:`l2_wrap`."""
    return l2_wrap(functional.cross_entropy(logits.flatten(0, 1), targets.flatten()), logits)
