"""Peak memory of dimension measurements on files far larger than memory.

A sparse file stands for the data: it takes no disk space and reads as zeros but for a few
thousand written samples, and costs the same arithmetic and page faults as a full one. Two layouts
of the same size: ``long`` (many samples of few features) and ``wide`` (ImageNet at 224 x 224,
3 x 224 x 224 = 150,528 features, where neither the covariance nor the Gram matrix fits). Every
case runs in a process of its own; its peak resident memory includes the pages of the map.

``OMP_NUM_THREADS=1 python benchmarks/bench_dimension_memory.py [--gib 50] [--limit-gib 2]
[--cases read stochastic exact spectrum measure stochastic-wide sketch-wide]``; without ``--cases``
the four usual ones of the long layout, about a minute and a half of one core each.
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

FEATURES = {"long": 256, "wide": 3 * 224 * 224}
WRITTEN = {"long": 4000, "wide": 200}
# decay of the spectrum; that of wide is about that of images, whose participation ratio is below 10
DECAY = {"long": -0.5, "wide": -0.75}


def read(x):
    """The floor: every page is touched once, nothing is computed but a sum."""
    from spikedim.dimension.arrays import as_samples

    samples = as_samples(x)
    total = sum(float(samples.rows(*span, np.float32).sum()) for span in samples.row_blocks(4))
    return f"sum {total:.4g}"


def stochastic(x):
    from spikedim.dimension import participation_ratio

    return f"PR {participation_ratio(x, tolerance=0.01)}"


def exact(x):
    from spikedim.dimension import participation_ratio

    return f"PR {participation_ratio(x)}"


def spectrum(x):
    from spikedim.dimension import pca_count
    from spikedim.dimension import spectrum as measured

    found = measured(x)
    return f"PCA-95 {pca_count(found):.0f}, PR {found.total_variance**2 / found.square:.5g}"


def measure(x):
    from spikedim.dimension import measure as measured

    keys = ["pca95", "pr", "pr_corrected", "stable_rank", "entropy_rank", "ridge"]
    found = measured(x, keys, interval="none")
    return ", ".join(f"{key} {e.value:.5g}" for key, e in found.estimates.items())


def sketch(x):
    from spikedim.dimension import sketch_spectrum

    found = sketch_spectrum(x, 16)
    return f"leading eigenvalue {found.eigenvalues[0]:.4g} ± {found.error:.2g}"


CASES = {
    "read": (read, "long"),
    "stochastic": (stochastic, "long"),
    "exact": (exact, "long"),
    "spectrum": (spectrum, "long"),
    "measure": (measure, "long"),
    "stochastic-wide": (stochastic, "wide"),
    "sketch-wide": (sketch, "wide"),
}
USUAL = ("stochastic", "exact", "spectrum", "measure")


def make(path: Path, layout: str, gib: float) -> tuple[int, int]:
    """Create the sparse file and write a few samples, spread over its whole length."""
    d = FEATURES[layout]
    n = int(gib * 2**30 / (4 * d))
    x = np.memmap(path, np.float32, "w+", shape=(n, d))
    rng = np.random.default_rng(0)
    scale = np.arange(1, d + 1, dtype=np.float32) ** DECAY[layout]
    for row in range(0, n, max(n // WRITTEN[layout], 1)):
        x[row] = rng.standard_normal(d, dtype=np.float32) * scale
    x.flush()
    return n, d


def child(case: str, path: str, n: int, d: int) -> None:
    import spikedim.dimension  # noqa: F401  (imports are not part of the time)

    function, _ = CASES[case]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    x = np.memmap(path, np.float32, "r", shape=(n, d))
    wall, cpu = time.perf_counter(), time.process_time()
    text = function(x)
    figures = {
        "wall_s": time.perf_counter() - wall,
        "cpu_s": time.process_time() - cpu,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "start_gib": before / 2**20,
        "result": text,
    }
    print(json.dumps(figures))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gib", type=float, default=50.0, help="size of the file")
    parser.add_argument("--limit-gib", type=float, default=2.0, help="peak memory that may not be "
                        "passed; the exit status is 1 if it is")  # fmt: skip
    parser.add_argument("--cases", nargs="+", choices=CASES, default=USUAL)
    parser.add_argument("--folder", help="where the sparse file goes; a temporary folder")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        case, path, n, d = options.child
        child(case, path, int(n), int(d))
        return 0
    worst = 0.0
    print(f"{'case':16s} {'n':>11s} {'d':>8s} {'wall s':>7s} {'CPU s':>7s} {'GiB/s':>6s} "
          f"{'peak GiB':>8s}  result")  # fmt: skip
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        shapes: dict[str, tuple[Path, int, int]] = {}
        for case in options.cases:
            layout = CASES[case][1]
            if layout not in shapes:
                path = Path(folder) / f"{layout}.dat"
                shapes[layout] = (path, *make(path, layout, options.gib))
            path, n, d = shapes[layout]
            done = subprocess.run(
                [sys.executable, __file__, "--child", case, str(path), str(n), str(d)],
                check=True, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            f = json.loads(done.stdout.splitlines()[-1])
            worst = max(worst, f["peak_gib"])
            print(
                f"{case:16s} {n:11,} {d:8,} {f['wall_s']:7.1f} {f['cpu_s']:7.1f} "
                f"{options.gib / f['wall_s']:6.2f} {f['peak_gib']:8.2f}  {f['result']}",
                flush=True,
            )
    print(f"highest peak {worst:.2f} GiB of {options.limit_gib:g} GiB allowed, on "
          f"{options.gib:g} GiB of data")  # fmt: skip
    return int(worst > options.limit_gib)


if __name__ == "__main__":
    sys.exit(main())
