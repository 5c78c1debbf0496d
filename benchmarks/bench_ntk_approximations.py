"""Sketched kernel against the exact one: time and error of the participation ratio.

Method: one network and batch, float32, one thread. The exact trace kernel over all outputs is
computed once; the sketch once per seed, with its own signs. Times are process seconds, the
sketch's the median; the error is the root mean square over the seeds of the relative error in the
centred participation ratio, beside the half-width of the intervals and how many of them cover.
The error falls as 1/√probes whatever the number of outputs, the exact cost grows with it.

Run: ``OMP_NUM_THREADS=1 python benchmarks/bench_ntk_approximations.py
[OUTPUTS] [SAMPLES] [PROBES] [SEEDS] [MODEL]``
"""

from __future__ import annotations

import statistics
import sys
import time

import torch

from spikedim.models import calibrate_batchnorm, create_model
from spikedim.ntk.kernel import gram
from spikedim.ntk.sketch import sketched_gram

T = 4


def main(
    outputs: str = "1000",
    samples: str = "64",
    probes: str = "40",
    seeds: str = "6",
    name: str = "spikformer_nano",
) -> None:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    model = create_model(name, seed=0, num_classes=int(outputs), input_shape=(3, 16, 16))
    x = torch.randn(int(samples), *model.input_shape, generator=generator)
    calibrate_batchnorm(model, [x[:64]], T)
    sketched_gram(model, x[:2], T=T, probes=3)  # what is imported or cached once
    start = time.process_time()
    values = gram(model, x, T=T).centred()
    exact_seconds = time.process_time() - start
    exact = float(values.trace() ** 2 / (values**2).sum())
    seconds, errors, half_widths, covered = [], [], [], 0
    for seed in range(int(seeds)):
        start = time.process_time()
        found = sketched_gram(model, x, T=T, probes=int(probes), seed=seed).centered
        seconds.append(time.process_time() - start)
        assert found.low is not None
        assert found.high is not None
        errors.append(found.value / exact - 1)
        half_widths.append((found.high - found.low) / 2 / exact)
        covered += found.low <= exact <= found.high
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{name}, {parameters:,} parameters, {outputs} outputs, {samples} samples, T {T}")
    print(f"exact           {exact_seconds:8.1f} s   participation ratio {exact:.3f}")
    print(f"sketch          {statistics.median(seconds):8.1f} s   {probes} probes")
    print(f"ratio           {exact_seconds / statistics.median(seconds):8.1f}")
    print(f"error           {100 * statistics.fmean(e * e for e in errors) ** 0.5:8.2f} %")
    print(f"half-width      {100 * statistics.median(half_widths):8.2f} %")
    print(f"covered         {covered:5d} of {seeds}")


if __name__ == "__main__":
    main(*sys.argv[1:])
