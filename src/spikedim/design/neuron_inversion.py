"""Which threshold, leak and refractory period give the network a wanted effective dimension."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from spikedim.data import Dataset
from spikedim.errors import ConfigError
from spikedim.models import SpikingModel, load_checkpoint
from spikedim.models.features import batch_axis
from spikedim.ntk import invert
from spikedim.ntk.invert import Inversion
from spikedim.ntk.variants import calibrated

#: Samples of the kernel whose dimension is measured, and those behind batch-norm statistics.
KERNEL_SAMPLES, _CALIBRATION_SAMPLES = 64, 128


@dataclass(frozen=True)
class NeuronTarget:
    """What the neurons should do to the tangent kernel; give one of the first two.

    Attributes:
        d_eff: wanted participation ratio of the centred trace kernel.
        reduction: wanted R, d_eff over that of the continuous twin.
        rates: least and largest firing rate, spikes per neuron and step, or Hz with ``dt``; any
            by default.
        dt: seconds per step.

    Raises:
        ConfigError: no target, or two.
    """

    d_eff: float | None = None
    reduction: float | None = None
    rates: tuple[float, float] | None = None
    dt: float | None = None

    def __post_init__(self) -> None:
        if (self.d_eff is None) == (self.reduction is None):
            raise ConfigError("give one target of the neurons: a d_eff or a reduction R")


def find_neuron(
    network: SpikingModel,
    dataset: Dataset,
    target: NeuronTarget,
    T: int,
    weights: str | Path | None = None,
    seed: int = 0,
    betas: Sequence[float] | None = None,
    *,
    trained: bool = False,
) -> Inversion:
    """Search v_th, beta and t_ref whose measured d_eff meets a target, at T timesteps.

    Args:
        network: built for the data set; it is left as it is, ``weights`` apart.
        dataset: training images or recordings behind the kernel.
        target: what is wanted.
        T: timesteps.
        weights: checkpoint of the trained network; an untrained network (``None``) has its batch
            norm calibrated for every neuron tried.
        seed: of the samples.
        betas: leaks to try, as for :func:`spikedim.ntk.invert`.
        trained: the network is trained as it stands, without ``weights``.

    Raises:
        ConfigError: a target or window out of its domain.
    """
    x, _ = dataset.network_input(T, "train", KERNEL_SAMPLES, seed)
    more, _ = dataset.network_input(T, "train", _CALIBRATION_SAMPLES, seed)
    if weights is not None:
        load_checkpoint(network, weights)
    place = next(network.parameters()).device
    return invert(
        network.eval(),
        x.to(place),
        target_d_eff=target.d_eff,
        target_reduction=target.reduction,
        rate_window=target.rates,
        dt=target.dt,
        betas=betas,
        T=T,
        prepare=None
        if trained or weights is not None
        else calibrated(*torch.split(more.to(place), 64, batch_axis(more))),
    )
