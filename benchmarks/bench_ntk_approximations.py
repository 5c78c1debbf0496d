"""Sketched kernel against the exact one: time and error of the participation ratio.

Method: one network and batch, float32, one thread. The exact trace kernel over all outputs is
computed once; the sketch once per seed, with its own signs. Times are process seconds, the
sketch's the median; the error is the root mean square over the seeds of the relative error in the
centred participation ratio, beside the half-width of the intervals and how many of them cover.
The exact kernel takes one backward pass per output, or per feature of the head where those are
fewer; the sketch one per random sum. Its error falls as 1/√sums and with the width of the network.

Run: ``OMP_NUM_THREADS=1 python benchmarks/bench_ntk_approximations.py``: 1,000 outputs on 384
features (five minutes). ``--help`` lists the sizes.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from spikedim.models import calibrate_batchnorm, create_model
from spikedim.ntk.kernel import gram
from spikedim.ntk.sketch import sketched_gram

T = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--outputs", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=12)
    parser.add_argument("--probes", type=int, default=26, help="random sums of outputs")
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--embed-dim", type=int, default=384)
    parser.add_argument("--depth", type=int, default=1)
    parser.add_argument("--image", type=int, default=4, help="pixels on a side")
    options = parser.parse_args()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    model = create_model(
        "spikformer_nano",
        seed=0,
        num_classes=options.outputs,
        input_shape=(3, options.image, options.image),
        embed_dim=options.embed_dim,
        depth=options.depth,
        num_heads=options.embed_dim // 32,
    )
    x = torch.randn(options.samples, *model.input_shape, generator=generator)
    calibrate_batchnorm(model, [x[:64]], T)
    sketched_gram(model, x[:2], T=T, probes=3)  # what is imported or cached once
    start = time.process_time()
    values = gram(model, x, T=T).centred()
    exact_seconds = time.process_time() - start
    exact = float(values.trace() ** 2 / (values**2).sum())
    seconds, errors, half_widths, covered = [], [], [], 0
    for seed in range(options.seeds):
        start = time.process_time()
        found = sketched_gram(model, x, T=T, probes=options.probes, seed=seed).centered
        seconds.append(time.process_time() - start)
        assert found.low is not None
        assert found.high is not None
        errors.append(found.value / exact - 1)
        half_widths.append((found.high - found.low) / 2 / exact)
        covered += found.low <= exact <= found.high
    parameters = sum(p.numel() for p in model.parameters())
    print(
        f"Spikformer, {parameters:,} parameters, {options.embed_dim} features, "
        f"{options.outputs} outputs, {options.samples} samples, T {T}"
    )
    print(f"exact           {exact_seconds:8.1f} s   participation ratio {exact:.3f}")
    print(f"sketch          {statistics.median(seconds):8.1f} s   {options.probes} probes")
    print(f"ratio           {exact_seconds / statistics.median(seconds):8.1f}")
    print(f"error           {100 * statistics.fmean(e * e for e in errors) ** 0.5:8.2f} %")
    print(f"half-width      {100 * statistics.median(half_widths):8.2f} %")
    print(f"covered         {covered:5d} of {options.seeds}")


if __name__ == "__main__":
    main()
