"""The case of a plan: what is known of data and network, with one training read out earlier."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from spikedim.data import Dataset
from spikedim.design.cases import Case, Outcome, Pilot
from spikedim.models import SpikingModel
from spikedim.models.base import evaluating
from spikedim.storage import Run
from spikedim.theory import accuracy_from_margins
from spikedim.training import TimestepSweep, samples
from spikedim.training.batches import why_no_prefix
from spikedim.training.fit import load_trained

#: Steps that stand for the large-T limit of an output, in multiples of the pilot's T.
_LIMIT = 4
_SAMPLES = 500


def case_of(
    dataset: Dataset,
    model: str,
    network: SpikingModel,
    d_eff: float,
    seed: int,
    sweep: TimestepSweep | None,
    run: Run | None,
) -> Case:
    """The case, with a pilot where a network was trained and an outcome where one was at every T.

    Where there is a pilot, leaves its weights in ``network``.
    """
    pilot = None
    if sweep is not None and run is not None and not why_no_prefix(dataset, sweep.encoder):
        pilot = _pilot(dataset, network, sweep, run)
    outcome = None
    if sweep is not None and sweep.mode == "train":
        outcome = Outcome(
            tuple(point.T for point in sweep.points),
            tuple(point.accuracy.value for point in sweep.points),
            sweep.fitted,
            int(sweep.t_star.value),
            int(sweep.t_star.low or 1),
            None if sweep.t_star.high is None else int(sweep.t_star.high),
            sweep.tolerance,
            sweep.t_star.n or 0,
            tuple(point.spikes_per_sample.value for point in sweep.points),
        )
    return Case(
        dataset.name,
        model,
        seed,
        d_eff,
        dataset.num_classes,
        sum(p.numel() for p in network.parameters()),
        len(dataset.train),
        0 if dataset.kind == "text" else dataset.input_shape[1],
        None if network.config.neuron is None else network.config.neuron.threshold,
        pilot,
        outcome,
    )


def _pilot(dataset: Dataset, network: SpikingModel, sweep: TimestepSweep, run: Run) -> Pilot | None:
    from pyarrow import parquet

    last = sweep.points[-1]
    rows = parquet.read_table(
        run.file("sweep.parquet"), columns=["trained_T", "T", "accuracy"]
    ).to_pylist()
    read = {row["T"]: row["accuracy"] for row in rows if row["trained_T"] == last.trained_at}
    steps = tuple(sorted(read))
    if len(steps) < 2:
        return None
    load_trained(network, last.checkpoint, dataset)
    x, y = samples(dataset.limited(None, _SAMPLES), "test", last.T, sweep.encoder)
    expected = expected_accuracy(network, x, y, steps) if sweep.encoder == "direct" else ()
    return Pilot(last.trained_at, steps, tuple(read[T] for T in steps), expected)


@torch.no_grad()
def expected_accuracy(
    network: SpikingModel, x: torch.Tensor, y: torch.Tensor, steps: Sequence[int]
) -> tuple[float, ...]:
    """Accuracy in percent at each T from output noise and the margins of the large-T limit.

    The limit is the mean output of four times the largest of ``steps``
    (:func:`spikedim.theory.accuracy_from_margins`).

    Args:
        network: trained; run in evaluation mode.
        x, y: inputs [N, C, H, W] and classes [N].
        steps: T, ascending.
    """
    longest = _LIMIT * max(steps)
    parts = []
    with evaluating(network):
        for inputs, labels in zip(x.split(128), y.split(128), strict=True):
            running = network.steps(inputs, longest).float().cumsum(0)
            count = torch.arange(1, longest + 1).view(-1, 1, 1)
            means = (running / count)[[T - 1 for T in (*steps, longest)]]
            own = means.gather(2, labels.expand(len(means), -1)[..., None])[..., 0]
            others = means.scatter(2, labels.expand(len(means), -1)[..., None], -torch.inf)
            parts.append((own - others.amax(2)).numpy())
    margins = np.concatenate(parts, axis=1)
    limit = margins[-1]
    errors = margins[:-1] - limit
    return tuple(
        100 * accuracy_from_margins(limit, float(e.std()), float(e.mean())) for e in errors
    )
