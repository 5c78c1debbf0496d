"""One trial of a study: train, test at many T, count energy, store; finished trials are read."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from spikedim.data import Dataset
from spikedim.data.representations import represent
from spikedim.data.sampling import stratified_order
from spikedim.dimension import get_estimator, spectrum
from spikedim.errors import ModelError
from spikedim.models import SpikingModel
from spikedim.neurons import LIFParams
from spikedim.profiling import profile
from spikedim.storage import Run, digest
from spikedim.training.batches import Batches, read_as, samples, why_no_prefix
from spikedim.training.fit import decisive_versions, load_trained
from spikedim.training.network import network_for
from spikedim.training.study_table import OutputRow, StudyRow
from spikedim.training.threads import math_threads
from spikedim.training.trial import Trial, run_trial

if TYPE_CHECKING:
    from spikedim.training.study import Cell, Study

OUTPUT_T = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
OUTPUT_SAMPLES = 500
_ENERGY_SAMPLES = 32
_CONVENTIONS = ("paper-sop", "exact-fanout")
_BATCH = 250


@dataclass(frozen=True)
class StudyTrial:
    """One training: which cell of the study, T, seed and neurons."""

    cell: int
    T: int
    seed: int
    neuron: LIFParams | None

    def label(self, study: Study) -> str:
        """What the progress display says."""
        cell = study.cells[self.cell]
        return f"{cell.model} on {cell.dataset.name} T={self.T} seed {self.seed}"


@dataclass(frozen=True)
class Measurement:
    """What a trial gave: its key and its rows as plain data (bytes as base64)."""

    key: str
    rows: list[dict[str, Any]]
    outputs: list[dict[str, Any]]


@dataclass(frozen=True)
class StudyWork:
    """A study with its run directory; travels to worker processes."""

    study: Study
    run: Run
    threads: int

    def key(self, trial: StudyTrial) -> str:
        """The same for the same training and test of the same data by the same versions."""
        study, cell = self.study, self.study.cells[trial.cell]
        outputs = (
            (study.outputs_eval_T, study.output_samples, study.logit_samples)
            if trial.T in study.outputs_T
            else None
        )
        what = [
            cell.model, replace(cell.config, seed=trial.seed), trial.T, trial.neuron,
            study.encoder, cell.dataset.fingerprint, self.eval_T(trial), outputs,
            decisive_versions(),
        ]  # fmt: skip
        name = f"{cell.dataset.name}-{cell.model}-T{trial.T}-s{trial.seed}"
        readable = re.sub(r"[^\w.-]", "_", name)
        return f"{readable}-{digest([repr(item) for item in what], 12)}"

    def eval_T(self, trial: StudyTrial) -> tuple[int, ...]:
        """The T the network is tested at, ascending: its own, the study's below it, ``eval_T``."""
        dataset = self.study.cells[trial.cell].dataset
        below = () if why_no_prefix(dataset, self.study.encoder) else self.study.T
        return tuple(sorted({*(t for t in below if t <= trial.T), trial.T, *self.study.eval_T}))

    def stored(self, trial: StudyTrial) -> bool:
        """Whether the trial is finished."""
        return self.run.stored(self.key(trial))

    def trial(self, trial: StudyTrial) -> Measurement:
        """Measure the trial, or read it back."""
        with math_threads(self.threads):
            return self.keep(trial, None)

    def keep(self, trial: StudyTrial, measured: Measurement | None) -> Measurement:
        """Store a measurement made elsewhere, or make it here; what is stored already wins."""
        key = self.key(trial)

        def compute() -> Measurement:
            return measured if measured is not None else _measure(self, trial, key)

        return Measurement(**self.run.step(key, compute))


def rows_of(measurements: Iterable[Measurement]) -> tuple[list[StudyRow], list[OutputRow]]:
    """The rows of a study's tables."""
    rows, outputs = [], []
    for measurement in measurements:
        rows += [StudyRow(**_decoded(StudyRow, row)) for row in measurement.rows]
        outputs += [OutputRow(**_decoded(OutputRow, row)) for row in measurement.outputs]
    return rows, outputs


def _decoded(kind: type, row: dict[str, Any]) -> dict[str, Any]:
    packed = {f.name for f in fields(kind) if "bytes" in str(f.type)}
    return {
        name: base64.b64decode(value) if name in packed and value is not None else value
        for name, value in row.items()
    }


def _packed(value: np.ndarray) -> str:
    return base64.b64encode(value.tobytes()).decode()


def _measure(work: StudyWork, place: StudyTrial, key: str) -> Measurement:
    study, cell = work.study, work.study.cells[place.cell]
    config = replace(cell.config, seed=place.seed)
    common = _common(study, cell, place, key)
    steps = work.eval_T(place)
    try:
        trial = run_trial(
            cell.dataset, cell.model, place.T, config, work.run, place.neuron, study.encoder,
            steps[-1],
        )  # fmt: skip
    except ModelError as error:
        absent = [f.name for f in fields(StudyRow) if f.name not in common]
        failed = dict.fromkeys(absent) | {"eval_T": place.T, "status": f"failed: {error}"}
        return Measurement(key, [common | failed], [])
    net = network_for(cell.model, cell.dataset, neuron=place.neuron)
    load_trained(net, work.run.path / trial.weights, cell.dataset)
    net.to(config.device)
    common |= {"parameters": sum(p.numel() for p in net.parameters())}
    x, y = samples(cell.dataset, "test", steps[-1], study.encoder)
    order = torch.from_numpy(stratified_order(y.numpy(), len(y), 0))
    few = order[:_ENERGY_SAMPLES]
    rows = []
    for t in steps:
        batch = Batches(x[few], y[few], len(few), t, study.encoder, place.seed)
        energies = profile(net, (inputs for inputs, _ in batch), t, _CONVENTIONS).energy
        rows.append(common | _row(trial, t, [energy.total.value * 1e3 for energy in energies]))
    outputs = []
    if place.T in study.outputs_T:
        chosen = order[: study.output_samples]
        outputs = _outputs(study, net, x[chosen], y[chosen], chosen, place.seed)
        shared = ("dataset", "model", "seed", "train_T", "key")
        outputs = [{name: common[name] for name in shared} | row for row in outputs]
    return Measurement(key, rows, outputs)


def _common(study: Study, cell: Cell, place: StudyTrial, key: str) -> dict[str, Any]:
    dataset, neuron = cell.dataset, place.neuron
    pca95, pr = _dimensions(dataset)
    return {
        "study": study.name,
        "dataset": dataset.name,
        "model": cell.model,
        "parameters": 0,
        "train_T": place.T,
        "seed": place.seed,
        "beta": None if neuron is None else float(np.mean(np.asarray(neuron.beta))),
        "v_th": None if neuron is None else float(np.mean(np.asarray(neuron.threshold))),
        "t_ref": None if neuron is None else neuron.refractory,
        "reset": None if neuron is None else neuron.reset,
        "encoder": read_as(dataset, study.encoder),
        "train_samples": len(dataset.train),
        "test_samples": len(dataset.split("test")),
        "classes": dataset.num_classes,
        "image_size": 0 if dataset.kind == "text" else max(dataset.input_shape[1:]),
        "components": cell.components,
        "epochs": cell.config.epochs,
        "d_eff_pca95": pca95,
        "d_eff_pr": pr,
        "key": key,
        "fingerprint": dataset.fingerprint,
    }


@lru_cache(maxsize=16)
def _dimensions(dataset: Dataset) -> tuple[float, float]:
    """PCA-95 % and participation ratio of the training inputs."""
    found = spectrum(represent(dataset))
    pca95, pr = (get_estimator(name).function(found) for name in ("pca95", "pr"))
    return float(pca95), float(pr)


def _row(trial: Trial, t: int, energies: list[float]) -> dict[str, Any]:
    hits, accuracy = trial.correct[t - 1], trial.accuracy[t - 1]
    return {
        "eval_T": t,
        "epochs": trial.epochs,
        "correct": int(hits.sum()),
        "accuracy": accuracy.value,
        "accuracy_low": accuracy.low,
        "accuracy_high": accuracy.high,
        "held_out_accuracy": None if trial.held_out is None else trial.held_out.value,
        "spikes_per_sample": trial.spikes_per_sample[t - 1].value,
        "firing_rate": trial.firing_rate[t - 1].value,
        "energy_paper_sop_uJ": energies[0],
        "energy_exact_fanout_uJ": energies[1],
        "train_seconds": trial.train_seconds,
        "status": "done",
        "correct_bits": _packed(np.packbits(hits)),
    }


def _outputs(
    study: Study,
    net: SpikingModel,
    x: torch.Tensor,
    y: torch.Tensor,
    chosen: torch.Tensor,
    seed: int,
) -> list[dict[str, Any]]:
    """Running means of the logits of chosen test samples, with their moments."""
    longest, direct = max(study.outputs_eval_T), study.encoder == "direct"
    device = next(net.parameters()).device
    parts = []
    net.eval()
    with torch.inference_mode():
        for inputs, _ in Batches(x, y, _BATCH, longest, study.encoder, seed):
            steps = net.steps(inputs.to(device), longest if direct else None)
            parts.append(steps.float().cpu().numpy().astype(np.float64))
    logits = np.concatenate(parts, axis=1)  # [T, samples, classes]
    labels = y.numpy()

    def margin(mean: np.ndarray) -> np.ndarray:
        own = mean[np.arange(len(labels)), labels]
        others = mean.copy()
        others[np.arange(len(labels)), labels] = -np.inf
        result: np.ndarray = own - others.max(axis=1)
        return result

    limit = logits.mean(axis=0)
    rows = []
    for t in sorted(study.outputs_eval_T):
        mean = logits[:t].mean(axis=0)
        error, margins = mean - limit, margin(mean)
        margin_error = margins - margin(limit)
        rows.append(
            {
                "eval_T": t,
                "samples": len(labels),
                "classes": mean.shape[1],
                "logit_samples": min(study.logit_samples, len(labels)),
                "logit_mean": mean.mean(),
                "logit_std": mean.std(),
                "error_mean": error.mean(),
                "error_std": error.std(),
                "margin_error_mean": margin_error.mean(),
                "margin_error_std": margin_error.std(),
                "step_std": np.sqrt(logits[:t].var(axis=0).mean()),
                "positions_bytes": _packed(chosen.numpy().astype(np.int32)),
                "labels_bytes": _packed(labels.astype(np.int32)),
                "margin_bytes": _packed(margins.astype(np.float16)),
                "logits_bytes": _packed(mean[: study.logit_samples].astype(np.float16)),
            }
        )
    return rows
