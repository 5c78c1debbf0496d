"""Time a million neuron-steps of the softmax circuits against a per-step loop and Brian2.

The loops run over trials and timesteps in Python, with NumPy over the units of a circuit. Brian2
runs all trials at once as one network (the shunting circuit without its relays, which repeat
encoder spikes: fewer units than ours); its build, its compilation and what an empty run takes are
left out. Variants run interleaved in one process; a figure is the median of wall-clock times over
rounds. The shunting variants must agree in spikes, the races in the law of their winners. Run with
``OMP_NUM_THREADS=1 python benchmarks/bench_circuits.py``.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from spikedim.circuits.softmax import RaceSoftmax, ShuntingSoftmax

Array = NDArray[np.float64]
Variant = Callable[[], Array]  # simulate and return output spikes [trials, n]


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def shunting(logits: Array, T: int) -> Array:
    ran = ShuntingSoftmax().run(torch.from_numpy(logits), T=T, generator=generator())
    return (ran.output[0] * T).round().numpy()


def shunting_loop(logits: Array, T: int) -> Array:
    counts = np.zeros_like(logits)
    for trial, row in enumerate(logits):
        drive = np.exp(row - row.max())
        u, w = np.full(len(row), 0.5), np.full(len(row), 0.5)
        conductance, count = np.zeros(len(row)), np.zeros(len(row))
        for _ in range(T):
            u += drive
            s = u >= 1
            u -= s
            conductance += s
            w += conductance / conductance.sum()
            s = w >= 1
            w -= s
            count += s
        counts[trial] = count
    return counts


def race(logits: Array, T: int) -> Array:
    # one row of logits, many trials: races differ by their spikes
    ran = RaceSoftmax().run(
        torch.from_numpy(logits[0]), T=T, trials=len(logits), generator=generator()
    )
    return (ran.output * T).round().numpy()


def race_loop(logits: Array, T: int) -> Array:
    rng = np.random.default_rng(1)
    mean = np.log(2) + logits[0].max() - logits[0]
    counts = np.zeros_like(logits)
    for trial in range(len(logits)):
        for _ in range(T):
            level, spikes = 0.0, 0
            while True:
                events = rng.poisson(mean + level)
                spikes += events.sum()
                (bidders,) = np.nonzero(events == 0)
                spikes += len(bidders) + min(len(bidders), 2)
                if len(bidders) == 1:
                    events = rng.poisson(mean[bidders[0]] + level)
                    spikes += events + 1
                    if events > 0:
                        break
                    level += np.log(2)
                else:
                    level = max(0.0, level + np.log(len(bidders) or 0.5))
            counts[trial, bidders[0]] += 1
    return counts


def brian(logits: Array, T: int, target: str) -> tuple[Variant, Variant]:
    """The simulation, and the same without a step: what Brian2 spends on code for each run."""
    b2 = importlib.import_module("brian2")
    trials, n = logits.shape
    encoders = b2.NeuronGroup(
        trials * n, "drive : 1\nv : 1", threshold="v >= 1", reset="v -= 1", name="encoders*"
    )
    outputs = b2.NeuronGroup(
        trials * n,
        "excitation : 1\nshunt : 1\nw : 1\ncount : 1",
        threshold="w >= 1",
        reset="w -= 1; count += 1",
        name="outputs*",
    )
    encoders.drive = np.exp(logits - logits.max(1, keepdims=True)).ravel()
    encoders.v = outputs.w = 0.5
    drive = encoders.run_regularly("v += drive", when="start")
    # after this step's synapses; the threshold is then crossed in the next step
    divide = outputs.run_regularly("w += excitation / shunt", when="end")
    own = b2.Synapses(encoders, outputs, on_pre="excitation_post += 1")
    own.connect(j="i")
    pool = b2.Synapses(encoders, outputs, on_pre="shunt_post += 1")
    pool.connect(j=f"k for k in range({n} * (i // {n}), {n} * (i // {n}) + {n})")
    network = b2.Network(encoders, outputs, drive, divide, own, pool)
    network.store()

    def run(steps: int) -> Array:
        b2.prefs.codegen.target = target
        network.restore()
        network.run(steps * b2.defaultclock.dt)
        return np.asarray(outputs.count).reshape(trials, n)

    return lambda: run(T + 1), lambda: run(0)


def variants(logits: Array, T: int) -> tuple[dict[str, Variant], dict[str, Variant]]:
    overheads: dict[str, Variant] = {}
    found: dict[str, Variant] = {
        "shunting": lambda: shunting(logits, T),
        "shunting, loop": lambda: shunting_loop(logits, T),
        "race": lambda: race(logits, T),
        "race, loop": lambda: race_loop(logits, T),
    }
    for target in ("numpy", "cython"):
        name = f"shunting, Brian2 {target}"
        try:
            found[name], overheads[name] = brian(logits, T, target)
        except ImportError as error:
            print(f"Brian2 ({target}): not installed, skipped ({error})")
    return found, overheads


def timed(variant: Variant) -> tuple[Array, float]:
    start = time.perf_counter()
    counts = variant()
    return counts, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--units", type=int, default=8)
    parser.add_argument("--steps", type=int, default=1000)
    args = parser.parse_args()
    n, T = args.units, args.steps
    trials = -(-1_000_000 // (3 * n * T))
    logits = np.random.default_rng(0).standard_normal((trials, n))
    print(
        f"{trials} trials of {n} logits, {T} steps, {torch.get_num_threads()} thread(s): "
        f"{3 * n * trials * T:,} neuron-steps of shunting, {(3 * n + 2) * trials * T:,} of race"
    )
    times: dict[str, list[float]] = {}
    counts: dict[str, Array] = {}
    run, overheads = variants(logits, T)
    for turn in range(args.rounds + 1):
        for name, variant in run.items():
            counts[name], seconds = timed(variant)
            if name in overheads:
                seconds -= timed(overheads[name])[1]
            if turn > 0:
                times.setdefault(name, []).append(seconds)
    print(f"{'circuit':26}{'ms':>10}{'ours is':>12}   agreement")
    for name in times:
        ours = name.split(",")[0]
        spent = statistics.median(times[name])
        ratio = spent / statistics.median(times[ours])
        away = np.abs(counts[name] - counts[ours])
        if ours == "race":
            away = np.abs(counts[name].sum(0) - counts[ours].sum(0)) / np.sqrt(trials * T)
            agreement = f"wins within {away.max():.2f}·√races"
        else:
            agreement = f"spikes within {away.max():.0f}"
        factor = "" if name == ours else f"{ratio:.1f}x faster"
        print(f"{name:26}{1e3 * spent:10.2f}{factor:>14}   {agreement}")


if __name__ == "__main__":
    main()
