"""Cost of counting: time and peak memory of ``profile`` against plain forward passes.

Method: the same batches, eval mode, no gradients, one thread; plain and counted runs alternate, and
the medians of process time over the repeats are compared. Peak memory is the growth of the
resident set during one run (Linux), median of three fresh processes, with glibc told to return
freed memory at once, so that tensors are measured and not what the allocator keeps. Where
SpikingJelly 2 is installed its counters run on the same forward pass.

Run: ``OMP_NUM_THREADS=1 python benchmarks/bench_profiling.py [MODEL] [BATCH] [REPEATS]``
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from spikedim.models import calibrate_batchnorm, create_model
from spikedim.profiling import profile

T = 4


def setup(name: str, batch: int) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return the plain and the counted run of the same work."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    model = create_model(name, seed=0)
    x = torch.randn(batch, *model.input_shape, generator=generator)
    calibrate_batchnorm(model, [x[:2]], T)

    def plain() -> object:
        with torch.no_grad():
            return model.steps(x, T)

    return plain, lambda: profile(model, x, T, batch_size=batch)


def peer(plain: Callable[[], object]) -> Callable[[], object]:
    """The same forward pass under the counters of SpikingJelly 2."""
    from spikingjelly.activation_based.op_counter import (
        DispatchCounterMode,
        MACCounter,
        SynOpCounter,
    )

    def run() -> object:
        with DispatchCounterMode([SynOpCounter(), MACCounter()]):
            return plain()

    return run


def peak_mib(name: str, batch: int, counted: bool) -> float:
    """Growth of the peak resident set during one run, in MiB; call in a fresh process."""
    setup(name, 1)[counted]()  # what is imported or cached once does not grow with the batch
    runs = setup(name, batch)
    Path("/proc/self/clear_refs").write_text("5")
    before = _peak_kib()
    runs[counted]()
    return (_peak_kib() - before) / 1024


def _peak_kib() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


def main(name: str = "spikformer_tiny", batch: str = "16", repeats: str = "7") -> None:
    plain, counted = setup(name, int(batch))
    work = {"plain": plain, "counted": counted}
    if importlib.util.find_spec("spikingjelly") is not None:
        work["SpikingJelly"] = peer(plain)
    times: dict[str, list[float]] = {label: [] for label in work}
    for _ in range(int(repeats) + 1):
        for label, run in work.items():
            start = time.process_time()
            run()
            times[label].append(time.process_time() - start)
    medians = {label: statistics.median(values[1:]) for label, values in times.items()}
    print(f"{name}, batch {batch}, T {T}, one thread, median of {repeats}")
    print(f"plain forward   {medians['plain'] * 1e3:8.1f} ms")
    print(f"profile         {medians['counted'] * 1e3:8.1f} ms")
    print(f"ratio           {medians['counted'] / medians['plain']:8.2f}")
    if "SpikingJelly" in medians:
        print(f"SpikingJelly's  {medians['SpikingJelly'] / medians['plain']:8.2f}")
    os.environ.update(MALLOC_MMAP_THRESHOLD_="65536", MALLOC_TRIM_THRESHOLD_="0")
    context = multiprocessing.get_context("spawn")
    growth = {}
    for label, flag in (("plain", False), ("counted", True)):
        runs = []
        for _ in range(3):
            with context.Pool(1) as pool:
                runs.append(pool.apply(peak_mib, (name, int(batch), flag)))
        growth[label] = statistics.median(runs)
        print(f"peak growth     {growth[label]:8.1f} MiB ({label}, median of 3 processes)")
    print(f"memory overhead {100 * (growth['counted'] / growth['plain'] - 1):8.1f} %")


if __name__ == "__main__":
    main(*sys.argv[1:])
