"""Record what the neurons of a network do, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from spikedim.errors import ConfigError, ModelError
from spikedim.neurons.module import LIF, Observer

QUANTITIES: tuple[str, ...] = ("spikes", "potential")


@dataclass(frozen=True)
class Trace:
    """One call of one layer.

    Args:
        spikes: outputs [T, ...neurons], or ``None`` when not recorded.
        potential: potentials before reset [T, ...neurons], or ``None`` when not recorded.
    """

    spikes: Tensor | None = None
    potential: Tensor | None = None


class Recording(Mapping[str, Trace]):
    """Traces by module path, in order of execution.

    The first call of layer ``a.lif`` is ``"a.lif"``, later ones ``"a.lif#2"``, ``"a.lif#3"``, ...,
    whether the layer runs several times in one forward or the network is called again; use
    :meth:`clear` between batches. Tensors keep their autograd graph: record under
    ``torch.no_grad()`` to save memory.
    """

    def __init__(self) -> None:
        self._traces: dict[str, Trace] = {}
        self._calls: dict[str, int] = {}

    def __getitem__(self, name: str) -> Trace:
        return self._traces[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._traces)

    def __len__(self) -> int:
        return len(self._traces)

    @property
    def spikes(self) -> dict[str, Tensor]:
        """Recorded spikes by key."""
        return {k: t.spikes for k, t in self._traces.items() if t.spikes is not None}

    @property
    def potential(self) -> dict[str, Tensor]:
        """Recorded potentials before reset by key."""
        return {k: t.potential for k, t in self._traces.items() if t.potential is not None}

    def clear(self) -> None:
        """Forget every trace and start counting calls anew."""
        self._traces.clear()
        self._calls.clear()

    def add(self, name: str, trace: Trace) -> None:
        """Store one call of layer ``name``."""
        call = self._calls[name] = self._calls.get(name, 0) + 1
        self._traces[name if call == 1 else f"{name}#{call}"] = trace


@contextmanager
def record(model: nn.Module, what: Sequence[str] = ("spikes",)) -> Iterator[Recording]:
    """Record every :class:`~spikedim.neurons.LIF` layer called inside the ``with`` block.

    Recording stops at the end of the block and leaves no trace in the network.

    Args:
        model: a network with LIF layers, or one LIF layer (its key is then ``""``).
        what: any of ``"spikes"`` and ``"potential"``.

    Yields:
        The recording, filled as the network runs.

    Raises:
        ConfigError: unknown quantity.
        ModelError: the network has no LIF layer.

    Example:
        >>> import torch
        >>> from spikedim.models import create_model
        >>> model = create_model("spikformer_micro", seed=0).eval()
        >>> with record(model, what=("spikes", "potential")) as recording:
        ...     logits = model(torch.randn(2, *model.input_shape))
        >>> rates = {name: float(s.mean()) for name, s in recording.spikes.items()}
    """
    wanted = (what,) if isinstance(what, str) else tuple(what)
    unknown = [w for w in wanted if w not in QUANTITIES]
    if unknown or not wanted:
        raise ConfigError(
            f"cannot record {unknown or 'nothing'}; choose from {', '.join(QUANTITIES)}"
        )
    layers = {name: m for name, m in model.named_modules() if isinstance(m, LIF)}
    if not layers:
        raise ModelError(f"{type(model).__name__} has no spikedim.neurons.LIF layer to record")
    recording = Recording()
    observers = {name: _observer(recording, name, wanted) for name in layers}
    for name, layer in layers.items():
        layer.observe(observers[name], potential="potential" in wanted)
    try:
        yield recording
    finally:
        for name, layer in layers.items():
            layer.unobserve(observers[name])


def _observer(recording: Recording, name: str, wanted: tuple[str, ...]) -> Observer:
    def observe(spikes: Tensor, potential: Tensor | None) -> None:
        recording.add(
            name,
            Trace(
                spikes if "spikes" in wanted else None,
                potential if "potential" in wanted else None,
            ),
        )

    return observe
