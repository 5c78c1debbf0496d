"""Time and peak memory of the spectrum against scikit-learn's solvers, in one run.

``OMP_NUM_THREADS=1 python benchmarks/bench_dimension.py [--data x.npy] [--repeats 3]
[--skip incremental] [--memmap-gib 50]``

Every case runs in a process of its own: CPU seconds of the call alone and the rise of its peak
resident memory, imports excluded, best of the repeats. Like is compared with like: the full
spectrum with solvers that give all eigenvalues (and IncrementalPCA, which gives fewer), the
truncated one with the truncated randomised solver at the same number of components. That solver
gives PCA-95 only when told a number of components that reaches 95 %, which is the question; of
the solvers that find it (``n_components=0.95``) the fastest is ``covariance_eigh``. The exact
ratio and our spectrum share the products (n·d²/2 in float32), so their times cannot be far apart.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np


def run_spikedim(x):
    from spikedim.dimension import pca_count, spectrum

    found = spectrum(x)
    return pca_count(found), found.total_variance**2 / found.square


def run_exact_ratio(x):
    from spikedim.dimension import participation_ratio

    return None, participation_ratio(x).value


def run_stochastic_ratio(x):
    from spikedim.dimension import participation_ratio

    found = participation_ratio(x, tolerance=0.01)
    print(f"stochastic interval {found}", file=sys.stderr)
    return None, found.value


def run_spikedim_randomised(x, components):
    from spikedim.dimension import pca_count, randomised_spectrum

    found = randomised_spectrum(x, components)
    return pca_count(found), None


def _sklearn(model, x):
    values = model.fit(x).explained_variance_.astype(np.float64)
    share = np.cumsum(model.explained_variance_ratio_.astype(np.float64))
    return int(np.searchsorted(share, 0.95)) + 1, values.sum() ** 2 / (values @ values)


def run_full(x):
    from sklearn.decomposition import PCA

    return _sklearn(PCA(svd_solver="full"), x)


def run_covariance_eigh(x):
    from sklearn.decomposition import PCA

    return _sklearn(PCA(svd_solver="covariance_eigh"), x)


def run_randomized(x, components):
    from sklearn.decomposition import PCA

    return _sklearn(PCA(components, svd_solver="randomized", random_state=0), x)


def run_incremental(x, components):
    from sklearn.decomposition import IncrementalPCA

    return _sklearn(IncrementalPCA(components, batch_size=4 * components), x)


LIKE_FOR_LIKE = (
    ("spectrum", "spikedim", ("full", "covariance_eigh", "incremental")),
    ("randomised_spectrum", "spikedim_randomised", ("randomized",)),
    ("exact participation_ratio", "exact_ratio", ("full", "covariance_eigh", "spikedim")),
    ("participation_ratio within 1 %", "stochastic_ratio", ("full", "covariance_eigh", "spikedim")),
)
PARTIAL = ("spikedim_randomised", "randomized", "incremental")
CASES = {
    "spikedim": run_spikedim,
    "exact_ratio": run_exact_ratio,
    "stochastic_ratio": run_stochastic_ratio,
    "spikedim_randomised": run_spikedim_randomised,
    "full": run_full,
    "covariance_eigh": run_covariance_eigh,
    "randomized": run_randomized,
    "incremental": run_incremental,
}


def synthetic(n: int, d: int, seed: int = 0) -> np.ndarray:
    """Float32 data with a power-law spectrum, mixed so that no axis is special."""
    rng = np.random.default_rng(seed)
    scale = np.arange(1, d + 1, dtype=np.float32) ** -0.75
    mix, _ = np.linalg.qr(rng.standard_normal((d, d), dtype=np.float32))
    return (rng.standard_normal((n, d), dtype=np.float32) * scale) @ mix + np.float32(0.5)


def child(case: str, path: str, components: int) -> None:
    """Run one case here and print its figures as JSON.

    Solvers that want a number of components get just enough of them to reach 95 %.
    """
    import sklearn.decomposition  # noqa: F401  (imports are not part of the time)
    import torch  # noqa: F401

    import spikedim.dimension  # noqa: F401

    x = np.load(path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, wall = time.process_time(), time.perf_counter()
    arguments = (x, components) if case in PARTIAL else (x,)
    count, ratio = CASES[case](*arguments)
    figures = {
        "cpu": time.process_time() - start,
        "wall": time.perf_counter() - wall,
        "mib": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
        "count": count,
        "ratio": ratio,
    }
    print(json.dumps(figures))


def memmap_child(path: str, rows: int, d: int) -> None:
    """Spectrum and exact ratio of a huge memory-mapped file; print peak memory."""
    from spikedim.dimension import participation_ratio, spectrum

    x = np.memmap(path, np.float32, "r", shape=(rows, d))
    start = time.perf_counter()
    found = spectrum(x)
    between = time.perf_counter()
    stochastic = participation_ratio(x, tolerance=0.01)
    figures = {
        "spectrum_s": between - start,
        "stochastic_s": time.perf_counter() - between,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "ratio": found.total_variance**2 / found.square,
        "stochastic": stochastic.value,
    }
    print(json.dumps(figures))


def spawn(*arguments: str) -> dict:
    done = subprocess.run(
        [sys.executable, __file__, *arguments], check=True, capture_output=True, text=True
    )
    if done.stderr:
        print(done.stderr.strip(), flush=True)
    return json.loads(done.stdout.splitlines()[-1])


def bench_memmap(gib: float, folder: str, d: int = 256) -> None:
    rows = int(gib * 2**30 / (4 * d))
    path = Path(folder) / "huge.dat"
    x = np.memmap(path, np.float32, "w+", shape=(rows, d))
    x[:: max(rows // 2000, 1)] = 1 + np.random.default_rng(0).standard_normal(d)
    del x
    figures = spawn("--memmap-child", str(path), str(rows), str(d))
    print(f"{gib:g} GiB memory map [{rows:,} x {d}]: " + json.dumps(figures))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--skip", nargs="*", default=[])
    parser.add_argument("--memmap-gib", type=float, default=0.0)
    parser.add_argument("--child", nargs=3)
    parser.add_argument("--memmap-child", nargs=3)
    options = parser.parse_args()
    if options.child:
        case, path, components = options.child
        return child(case, path, int(components))
    if options.memmap_child:
        path, rows, d = options.memmap_child
        return memmap_child(path, int(rows), int(d))
    with tempfile.TemporaryDirectory() as folder:
        path = options.data or str(Path(folder) / "x.npy")
        if not options.data:
            np.save(path, synthetic(10_000, 3072))
        names = [name for name in CASES if name not in options.skip]
        best: dict[str, dict] = {}
        components = 0
        for _ in range(options.repeats):
            for name in names:
                figures = spawn("--child", name, path, str(components))
                if name == "spikedim":
                    components = int(figures["count"]) + 1
                if name not in best or figures["cpu"] < best[name]["cpu"]:
                    best[name] = figures
                print(f"  {name}: {figures}", flush=True)
        base = best["spikedim"]
        print(f"{'case':20s} {'CPU s':>8s} {'MiB':>8s} {'x time':>7s} {'x memory':>8s}  PCA-95  PR")
        for name, f in best.items():
            print(
                f"{name:20s} {f['cpu']:8.2f} {f['mib']:8.0f} {f['cpu'] / base['cpu']:7.2f} "
                f"{f['mib'] / max(base['mib'], 1):8.2f}  {f['count']}  {f['ratio']}"
            )
        print("\nlike for like (time, peak memory of the other over ours)")
        for label, ours, others in LIKE_FOR_LIKE:
            for other in others:
                if ours in best and other in best:
                    time_, mib = (best[other][k] / max(best[ours][k], 1e-9) for k in ("cpu", "mib"))
                    print(f"{label:32s} vs {other:16s} {time_:6.2f}x  {mib:6.2f}x")
        if options.memmap_gib:
            bench_memmap(options.memmap_gib, folder)
    return None


if __name__ == "__main__":
    main()
