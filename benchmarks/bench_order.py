"""Causal orders on models with a known graph: order violations, structural Hamming distance, time.

Parts, all on Erdős–Rényi graphs with two expected edges a variable and noise of variance 1:

- ``linear``: violations given the true precision, and estimated from 5,000 samples; beside them
  sorting by variance, which such models reward (varsortability).
- ``nonlinear``: distance to the true graph and processor seconds on non-linear models, beside peers
  where they are installed (gcastle, causal-learn, dagma), with default settings on the same
  samples; DAGMA-MLP only ``--peer-share`` of its default 230,000 iterations. Undirected edges of
  PC count as right in either direction. ``--skip NAME`` leaves a method out. The true order shows
  what the regressions behind every order of ours get wrong.
- ``extract``: seconds to sort a matrix of 1,000 variables.
- ``residual``: how often the residual test speaks on additive and on post-nonlinear noise.

``OMP_NUM_THREADS=1 python benchmarks/bench_order.py [--parts extract linear] [--seeds 5]``
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Callable

import numpy as np
import torch

from spikedim.order import (
    GaussianScore,
    NetworkScore,
    ScoreConfig,
    SteinScore,
    causal_order,
    graph_of,
    hamming_distance,
    information,
    order_violations,
    random_model,
    refit_sort,
    schur_sort,
    sparse_regressions,
)
from spikedim.theory.statistics import mean_interval

PARTS = ("extract", "linear", "residual", "nonlinear")


def linear(options: argparse.Namespace) -> None:
    print(f"linear, violations: mean [95 % interval] over {options.seeds} models, n = 5,000")
    for d in options.sizes:
        found: dict[str, list[float]] = {}
        for seed in range(options.seeds):
            model = random_model(d, seed=seed)
            x = model.sample(5000, seed=1000 + seed)
            steps = options.steps if d <= 50 else max(1, options.steps // 5)
            estimates = {
                "true, ridge 0": lambda m=model: m.precision(),
                "gaussian": lambda x=x: GaussianScore(x).information(),
                f"network, {steps} steps": lambda x=x, s=steps: NetworkScore(
                    x, ScoreConfig(steps=s)
                ).information(),
            }
            for name, made in estimates.items():
                order = schur_sort(made()).order
                found.setdefault(name, []).append(order_violations(order, model.graph))
            order = schur_sort(model.precision(), ridge=1e-4).order
            found.setdefault("true, ridge 1e-4", []).append(order_violations(order, model.graph))
            by_variance = order_violations(np.argsort(x.var(0)), model.graph)
            found.setdefault("by variance", []).append(by_variance)
        for name, values in found.items():
            print(f"  d = {d:3d}  {name:22s} {_mean(values)}", flush=True)


def nonlinear(options: argparse.Namespace) -> None:
    peers = {}
    for name, (package, run) in PEERS.items():
        if importlib.util.find_spec(package):
            peers[name] = run
        else:
            print(f"{name} is not installed and left out")
    for kind in options.kinds:
        for d in options.nonlinear_sizes:
            found: dict[str, list[tuple[float, float, float]]] = {}
            edges, violations = [], []
            for seed in range(options.seeds):
                model = random_model(d, kind, seed=seed)
                x = model.sample(options.samples, seed=1000 + seed)
                edges.append(int(model.graph.sum()))
                torch_x = torch.from_numpy(x[:500])
                true = schur_sort(information(model.score, torch_x)).order
                violations.append(order_violations(true, model.graph))
                runs: dict[str, Callable[[], np.ndarray]] = {
                    "true order": lambda m=model, x=x: _edges(x, m.order()),
                    "true score, schur": lambda o=true, x=x: _edges(x, o),
                    "by variance": lambda x=x: _edges(x, np.argsort(x.var(0))),
                    "gaussian, schur": lambda x=x: _edges(
                        x, schur_sort(GaussianScore(x).information()).order
                    ),
                    "network, schur": lambda x=x: _edges(
                        x, schur_sort(_network(x, options).information()).order
                    ),
                    "network, refit": lambda x=x: _edges(x, refit_sort(_network(x, options)).order),
                    "stein, refit": lambda x=x: _edges(x, refit_sort(SteinScore(x)).order),
                    **{k: (lambda r=r, x=x: r(x, options)) for k, r in peers.items()},
                }
                for name, run in runs.items():
                    if name in options.skip:
                        continue
                    started = time.process_time()
                    graph = run()
                    seconds = time.process_time() - started
                    distance = hamming_distance(_benefit(graph, model.graph), model.graph)
                    found.setdefault(name, []).append((distance, seconds))
                    print(
                        f"    {kind} d={d} seed={seed} {name}: {distance}, {seconds:.0f} s",
                        flush=True,
                    )
            print(
                f"{kind}, d = {d}, n = {options.samples}, {np.mean(edges):.0f} edges: "
                f"SHD mean [95 % t interval] of {options.seeds} models, processor seconds"
            )
            print(f"  true score, schur: order violations {violations}")
            for name, values in found.items():
                distances, seconds = zip(*values, strict=True)
                print(f"  {name:22s} {_mean(distances):24s} {np.mean(seconds):8.1f} s", flush=True)


def extract(options: argparse.Namespace) -> None:
    model = random_model(1000, seed=0)
    precision = model.precision()
    for tolerance in (0.0, 0.05):
        seconds, processor = [], []
        for _ in range(3):
            started, before = time.monotonic(), time.process_time()
            found = schur_sort(precision, tolerance)
            seconds.append(time.monotonic() - started)
            processor.append(time.process_time() - before)
        wrong = order_violations(found.order, model.graph)
        print(
            f"extract, d = 1,000, tolerance {tolerance:g}: {min(seconds):.2f} s, "
            f"{min(processor):.2f} processor seconds (best of 3), "
            f"{max(found.block) + 1} rounds, {wrong} violations"
        )


def residual(options: argparse.Namespace) -> None:
    print("residual test, d = 10, n = 2,000, level 0.01 for all variables of a model together")
    for kind, estimator in (
        ("linear", "gaussian"),
        ("gp-add", "stein"),
        ("post-nonlinear", "stein"),
    ):
        spoke = 0
        for seed in range(options.residual_seeds):
            x = random_model(10, kind, seed=seed).sample(2000, seed=1000 + seed)
            found = causal_order(x, estimator=estimator, marginal="refit", tolerance=0)
            spoke += any(variable.dependent for variable in found.variables)
        print(f"  {kind:15s} rejected in {spoke} of {options.residual_seeds} models", flush=True)


def _benefit(graph: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Undirected edges (both directions) turned the way of the truth where it has the edge."""
    undirected = graph & graph.T
    return np.where(undirected & (truth | truth.T), truth, graph)


def _network(x: np.ndarray, options: argparse.Namespace) -> NetworkScore:
    return NetworkScore(x, ScoreConfig(steps=options.steps))


def _edges(x: np.ndarray, order: object) -> np.ndarray:
    return graph_of(sparse_regressions(x, [int(j) for j in order]))  # type: ignore[attr-defined]


def _dagma(x: np.ndarray, options: argparse.Namespace) -> np.ndarray:
    from dagma.nonlinear import DagmaMLP, DagmaNonlinear

    torch.manual_seed(0)
    network = DagmaMLP(dims=[x.shape[1], 10, 1], bias=True, dtype=torch.double)
    share = options.peer_share
    weights = DagmaNonlinear(network, dtype=torch.double).fit(
        x, lambda1=0.02, lambda2=0.005, warm_iter=int(5e4 * share), max_iter=int(8e4 * share)
    )
    return np.asarray(weights) != 0


def _notears(x: np.ndarray, options: argparse.Namespace) -> np.ndarray:
    from castle.algorithms import NotearsNonlinear

    torch.manual_seed(0)
    found = NotearsNonlinear()
    found.learn(x)
    return np.asarray(found.causal_matrix) != 0


def _pc(x: np.ndarray, options: argparse.Namespace) -> np.ndarray:
    from causallearn.search.ConstraintBased.PC import pc

    marks = pc(x, 0.01, show_progress=False).G.graph
    # marks[i, j] = -1 and marks[j, i] = 1: i → j; both -1: undirected
    return (marks == -1) & (marks.T != 0)


PEERS = {
    "NOTEARS-MLP (gcastle)": ("castle", _notears),
    "PC (causal-learn)": ("causallearn", _pc),
    "DAGMA-MLP (dagma)": ("dagma", _dagma),
}


def _mean(values: object) -> str:
    array = np.asarray(values, float)
    if not array.any():  # no event in n: exact Poisson limit of the mean
        return f"0 [0, {-np.log(0.025) / len(array):.2f}]"
    if len(array) < 2 or array.std() == 0:
        return f"{array.mean():.2f} (all equal)"
    low, high = mean_interval(array.mean(), array.std(ddof=1), len(array))
    return f"{array.mean():.2f} [{max(0.0, low):.2f}, {high:.2f}]"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=["extract", "linear"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--sizes", nargs="+", type=int, default=[20, 50, 100, 200])
    parser.add_argument("--nonlinear-sizes", nargs="+", type=int, default=[20, 50])
    parser.add_argument("--kinds", nargs="+", default=["mlp", "gp-add"])
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--residual-seeds", type=int, default=20)
    parser.add_argument("--peer-share", type=float, default=0.1)
    parser.add_argument("--skip", nargs="*", default=[])
    chosen = parser.parse_args()
    for part in chosen.parts:
        {"extract": extract, "linear": linear, "residual": residual, "nonlinear": nonlinear}[part](
            chosen
        )
