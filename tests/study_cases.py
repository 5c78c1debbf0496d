"""Synthetic studies for the tests of the predictors: the truth is known because we make it."""

from __future__ import annotations

import numpy as np

from spikedim.design.cases import Case, Outcome, Pilot
from spikedim.training.study_table import OutputRow, StudyRow
from spikedim.training.timestep import t_star

GRID = (1, 2, 3, 4, 6, 8)


def curve(amplitude: float, decay: float, top: float = 90.0) -> dict[int, float]:
    """Accuracy that approaches ``top`` as T^(−decay)."""
    return {T: top - amplitude * (T**-decay - GRID[-1] ** -decay) for T in GRID}


def hits(accuracy: float, n: int, rng: np.random.Generator) -> np.ndarray:
    return (rng.random(n) < accuracy / 100).astype(np.uint8)


def case(dataset="a", model="m", seed=0, t=4, d_eff=30.0, noise=0.0, pilot=True) -> Case:
    """A case whose T* is ``t``: two points are lost below it, none from it on."""
    rng = np.random.default_rng([seed, t, len(dataset), len(model)])
    accuracy = {T: 90.0 - (2.0 * (t - T) if t > T else 0.0) for T in GRID}
    values = tuple(float(v + noise * rng.standard_normal()) for v in accuracy.values())
    fitted = tuple(accuracy.values())
    read = Pilot(8, GRID, tuple(v - (0 if T == 8 else 1.0) for T, v in accuracy.items()))
    outcome = Outcome(GRID, values, fitted, t, t, t, 1.0, 1000)
    return Case(
        dataset, model, seed, d_eff, 10, 1000, 500, 8, 1.0, read if pilot else None, outcome
    )


def rows(datasets=("a", "b", "c", "d"), models=("m", "n", "o"), seeds=(0, 1), n=400, seed=0):
    """Rows and outputs of a study as the engine writes them."""
    rng = np.random.default_rng(seed)
    table, outputs = [], []
    for i, dataset in enumerate(datasets):
        for j, model in enumerate(models):
            for s in seeds:
                truth = curve(4.0 + 3 * i + 2 * j, 1.0)
                for T in GRID:
                    for eval_T in sorted({T, *[e for e in GRID if e <= T and T == 8]}):
                        right = hits(truth[eval_T] - (1.5 if eval_T < T else 0), n, rng)
                        table.append(row(dataset, model, s, T, eval_T, right, 10.0 + 8 * i))
                outputs += output_rows(dataset, model, s, n, rng)
    return table, outputs


def row(dataset, model, seed, T, eval_T, right, d_eff, **changes) -> StudyRow:
    hit = int(right.sum())
    values = dict(  # noqa: C408
        study="test", dataset=dataset, model=model, parameters=1000, train_T=T, eval_T=eval_T,
        seed=seed, beta=0.5, v_th=1.0, t_ref=0, reset="hard", encoder="direct",
        train_samples=500, test_samples=len(right), classes=10, image_size=8, components=None,
        epochs=5, correct=hit, accuracy=100 * hit / len(right), accuracy_low=0.0,
        accuracy_high=100.0, held_out_accuracy=None, spikes_per_sample=1000.0 * eval_T,
        firing_rate=0.1, energy_paper_sop_uJ=1.0, energy_exact_fanout_uJ=1.0,
        d_eff_pca95=d_eff, d_eff_pr=d_eff / 2, train_seconds=1.0,
        key=f"{dataset}-{model}-{seed}-{T}", fingerprint=dataset, status="done",
        correct_bits=np.packbits(right).tobytes(),
    )  # fmt: skip
    return StudyRow(**{**values, **changes})


def output_rows(dataset, model, seed, n, rng) -> list[OutputRow]:
    margins = rng.normal(1.5, 1.2, n)
    found = []
    for T in (*GRID, 32):
        error = rng.standard_normal(n) / T if T < 32 else np.zeros(n)
        values = dict(  # noqa: C408
            dataset=dataset, model=model, seed=seed, train_T=8, eval_T=T,
            key=f"{dataset}-{model}-{seed}-8", samples=n, classes=10, logit_samples=0,
            logit_mean=0.0, logit_std=1.0, error_mean=0.0, error_std=1.0 / T,
            margin_error_mean=float(error.mean()), margin_error_std=float(error.std()),
            step_std=0.1, positions_bytes=np.arange(n, dtype=np.int32).tobytes(),
            labels_bytes=np.zeros(n, np.int32).tobytes(),
            margin_bytes=(margins + error).astype(np.float16).tobytes(), logits_bytes=b"",
        )  # fmt: skip
        found.append(OutputRow(**values))
    return found


def truth_of(right: dict[int, np.ndarray], tolerance: float) -> int:
    return int(t_star(right, tolerance).estimate.value)
