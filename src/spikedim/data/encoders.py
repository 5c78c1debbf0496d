"""Encoders: from a static batch to T timesteps of network input."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spikedim.errors import ConfigError, DataError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

ENCODERS = ("direct", "bernoulli", "latency")


def encode(
    x: Tensor,
    T: int,
    encoder: str = "direct",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Present a batch over ``T`` timesteps.

    - ``direct``: the same values at every step (a view, no copy).
    - ``bernoulli``: independent spikes with ``P(s[t] = 1) = x``.
    - ``latency``: at most one spike, the earlier the larger the value:
      ``s[t] = 1`` where ``t = min(T - 1, floor((1 - x) T))``; ``x = 1`` fires at step 0 and
      ``x = 0`` never fires.

    Args:
        x: values, shape [B, ...]; floats in [0, 1] for the spiking encoders.
        T: number of timesteps, at least 1.
        encoder: one of :data:`ENCODERS`.
        generator: source of the draws of ``bernoulli``, on the device of ``x``.

    Returns:
        Shape [T, B, ...], type of ``x``.

    Raises:
        ConfigError: T below 1, unknown encoder, or ``bernoulli`` without a generator.
        DataError: a spiking encoder got values outside [0, 1], NaN, or integers.

    Example:
        >>> import torch
        >>> encode(torch.tensor([[1.0, 0.5, 0.0]]), T=2, encoder="latency")[:, 0]
        tensor([[1., 0., 0.],
                [0., 1., 0.]])
    """
    import torch

    if T < 1:
        raise ConfigError(f"T={T} timesteps: give at least 1")
    if encoder not in ENCODERS:
        raise ConfigError(f"encoder={encoder!r}: expected one of {', '.join(ENCODERS)}")
    if encoder == "direct":
        return x.unsqueeze(0).expand(T, *x.shape)
    _check_unit_interval(x, encoder)
    if encoder == "latency":
        first = ((1 - x) * T).floor().clamp(max=T - 1)
        steps = torch.arange(T, device=x.device, dtype=x.dtype).view(T, *[1] * x.dim())
        return ((steps == first) & (x > 0)).to(x.dtype)
    if generator is None:
        raise ConfigError(
            "encoder='bernoulli' draws spikes at random and needs a generator; "
            "pass generator=torch.Generator().manual_seed(0)"
        )
    draws = torch.rand((T, *x.shape), generator=generator, device=x.device, dtype=x.dtype)
    return (draws < x).to(x.dtype)


def _check_unit_interval(x: Tensor, encoder: str) -> None:
    if not x.is_floating_point():
        raise DataError(
            f"encoder={encoder!r} got {x.dtype} values; "
            "convert them to floats in [0, 1], for bytes x.float() / 255"
        )
    if x.numel() == 0:
        return
    low, high = float(x.min()), float(x.max())
    if not (low >= 0 and high <= 1):
        raise DataError(
            f"encoder={encoder!r} needs values in [0, 1] but got {low:.4g} to {high:.4g}; "
            "use unstandardised pixels (Dataset.features) or encoder='direct'"
        )
