"""Time the fused LIF kernel against the reference and, where installed, against peers.

Variants run interleaved in one process; a figure is the median over rounds. Run with
``OMP_NUM_THREADS=1 python benchmarks/bench_neurons.py``.
"""

from __future__ import annotations

import argparse
import importlib
import os
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from spikedim.neurons import LIF, LIFParams

Layer = Callable[[Tensor], Tensor]


def spikedim_layer(kernel: str, params: LIFParams) -> Layer:
    layer = LIF(params)

    def run(x: Tensor) -> Tensor:
        os.environ["SPIKEDIM_KERNEL"] = kernel
        spikes: Tensor = layer(x)
        return spikes

    return run


def spikingjelly_layer() -> Layer:
    neuron = importlib.import_module("spikingjelly.activation_based.neuron")
    surrogates = importlib.import_module("spikingjelly.activation_based.surrogate")
    node = neuron.LIFNode(
        tau=2.0, detach_reset=True, step_mode="m", surrogate_function=surrogates.Sigmoid()
    )

    def run(x: Tensor) -> Tensor:
        node.reset()
        spikes: Tensor = node(x)
        return spikes

    return run


def snntorch_layer() -> Layer:
    snntorch = importlib.import_module("snntorch")
    leaky = snntorch.Leaky(beta=0.5, reset_mechanism="zero", reset_delay=False)

    def run(x: Tensor) -> Tensor:
        memory = torch.zeros_like(x[0])
        spikes = []
        for x_t in x:
            s, memory = leaky(x_t, memory)
            spikes.append(s)
        return torch.stack(spikes)

    return run


def layers() -> dict[str, Layer]:
    params = LIFParams.from_tau(2.0)
    found = {kernel: spikedim_layer(kernel, params) for kernel in ("reference", "fused")}
    for name, make in (("spikingjelly", spikingjelly_layer), ("snntorch", snntorch_layer)):
        try:
            found[name] = make()
        except ImportError:
            print(f"{name}: not installed, skipped")
    return found


def measure(
    layers: dict[str, Layer], x: Tensor, rounds: int
) -> dict[str, tuple[list[float], list[float]]]:
    """CPU seconds (process time) of forward alone and of forward + backward, by layer."""
    grad = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(x.dtype)
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in layers}
    for turn in range(rounds + 3):
        for name, layer in layers.items():
            with torch.no_grad():
                start = time.process_time()
                layer(x)
                forward = time.process_time() - start
            leaf = x.clone().requires_grad_()
            start = time.process_time()
            layer(leaf).backward(grad)
            both = time.process_time() - start
            if turn >= 3:
                times[name][0].append(forward)
                times[name][1].append(both)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--shape", type=int, nargs="+", default=[4, 32, 64, 384])
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    x = torch.randn(args.shape, generator=torch.Generator().manual_seed(0)) * 1.5
    x = x.to(getattr(torch, args.dtype))
    print(f"shape {tuple(args.shape)}, {args.dtype}, {torch.get_num_threads()} thread(s)")
    times = measure(layers(), x, args.rounds)
    base = [statistics.median(t) for t in times["reference"]]
    print(f"{'kernel':14}{'fwd ms':>9}{'vs ref':>8}{'fwd+bwd ms':>12}{'vs ref':>8}")
    for name, pair in times.items():
        forward, both = (statistics.median(t) for t in pair)
        print(
            f"{name:14}{1e3 * forward:9.2f}{base[0] / forward:7.2f}x"
            f"{1e3 * both:12.2f}{base[1] / both:7.2f}x"
        )


if __name__ == "__main__":
    main()
