"""Time and memory of the exact neural tangent kernel by each method, in one run.

The network of the acceptance figures: a Spikformer of 0.8 M parameters (embed_dim 128, depth 4,
64 tokens, T = 4, 10 outputs, soft reset, atan surrogate), trace kernel of 64 images of 8 x 8 in
float32. Every case runs in a process of its own: processor seconds of the kernel without imports
(median [least, most] of ``--repeats``), peak resident memory of the whole process. Ratios are
medians of those within a repeat, in which the cases take turns. Compiled code that is not yet on
disk costs the first repeat a second. ``structured-lean`` runs in the
memory of ``--lean`` GiB;
``float64`` is the structured kernel in double precision, which the others are compared with.
``jacobian`` runs on the fused neurons of this package with their own vmap rule,
``jacobian-plain`` on neurons of plain PyTorch operations (``SPIKEDIM_KERNEL=reference``), the
peer that a user has. Both differentiate eight samples at a time, the faster way;
``jacobian-tutorial`` takes all at once, as PyTorch's tutorial on neural tangent kernels does, on
plain neurons.

``OMP_NUM_THREADS=1 python benchmarks/bench_ntk.py [--samples 64] [--lean 0.8] [--repeats 1]
[--cases structured structured-lean jacobian jacobian-plain jacobian-tutorial loop float64]``;
three minutes of one core. On a
GPU: ``--device cuda``, where seconds are wall time and memory is that of the device.

``--model spikformer_4_384 --images CIFAR.npy --cases structured --memory 5`` measures one network
of the registry on images [n, C, H, W] of a file, or on noise without one. The case ``sketch``,
which is not among the default ones, estimates the kernel from 8 random sums of outputs: with
``--samples 10000 --device cuda`` the size that no exact kernel of this network reaches.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

import numpy as np

PEERS = ("jacobian", "jacobian-plain", "jacobian-tutorial", "loop")
EXACT = ("structured", "structured-lean", *PEERS, "float64")
CASES = (*EXACT, "sketch")
NETWORK = {"input_shape": (1, 8, 8), "embed_dim": 128, "depth": 4, "num_heads": 4}


def measure(case: str, options: argparse.Namespace) -> dict[str, object]:
    import torch

    from spikedim.claims.tiny import participation
    from spikedim.models import calibrate_batchnorm, create_model
    from spikedim.neurons import LIFParams, Surrogate
    from spikedim.ntk import gram, sketched_gram

    generator = torch.Generator().manual_seed(0)
    neuron = LIFParams(reset="soft", threshold=0.5, surrogate=Surrogate("atan", 2.0))
    extra = {**NETWORK, "neuron": neuron} if options.model == "spikformer_nano" else {}
    model = create_model(options.model, seed=0, **extra)
    x = torch.randn(options.samples + 32, *model.input_shape, generator=generator)
    if options.images:
        x = torch.from_numpy(np.load(options.images)[: len(x)]).float()
    calibrate_batchnorm(model, x[-32:].split(16), 4)
    model.eval().to(options.device)
    x = x[: options.samples].to(options.device)
    if case == "float64":
        model, x = model.double(), x.double()
    method = case.removesuffix("-plain") if case in PEERS else "structured"
    memory = options.lean if case == "structured-lean" else options.memory
    gpu = options.device != "cpu"
    clock = time.perf_counter if gpu else time.process_time
    if gpu:
        gram(model, x[:2], T=4, method=method, memory=memory)
        torch.cuda.reset_peak_memory_stats()
    started = clock()
    if case == "sketch":
        sketch = sketched_gram(model, x, T=4, memory=memory)
        seconds, parameters, pr = clock() - started, sketch.parameters, sketch.centered.value
        values = None
    elif case == "jacobian-tutorial":
        parameters, values = tutorial(model, x)
        seconds, pr = clock() - started, participation(torch.tensor(values, dtype=torch.float64))
    else:
        kernel = gram(model, x, T=4, method=method, memory=memory)
        seconds, parameters = clock() - started, kernel.parameters
        pr = kernel.dimension(interval="none")["pr"].value
        values = kernel.values.tolist()
    peak = (
        torch.cuda.max_memory_allocated() / 2**20
        if gpu
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    )
    return {
        "seconds": seconds,
        "MB": peak,
        "parameters": parameters,
        "pr": pr,
        "values": values,
    }


def tutorial(model: Any, x: Any) -> tuple[int, list[list[float]]]:
    """Number of parameters and trace kernel by vmap of jacrev over all samples."""
    import torch
    from torch.func import functional_call, jacrev, vmap

    moving = {name: p.detach() for name, p in model.named_parameters()}

    def single(parameters: Any, sample: Any) -> Any:
        return functional_call(model, parameters, (sample[None], 4))[0]

    jacobian = vmap(jacrev(single), (None, 0))(moving, x)
    parts = [part.flatten(2) for part in jacobian.values()]
    kernel = torch.stack([torch.einsum("Naf,Maf->NM", part, part) for part in parts]).sum(0)
    return sum(p.numel() for p in moving.values()), kernel.double().tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=EXACT)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--memory", type=float, default=16.0, help="GiB allowed")
    parser.add_argument("--lean", type=float, default=0.8, help="GiB allowed in structured-lean")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--model", default="spikformer_nano")
    parser.add_argument("--images")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--one", choices=CASES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options)))
        return
    runs: dict[str, list[dict[str, Any]]] = {case: [] for case in options.cases}
    for _ in range(options.repeats):  # in turn, as a shared machine is not equally fast for long
        for case in options.cases:
            command = [sys.executable, __file__, *sys.argv[1:], "--one", case]
            environment = dict(os.environ)
            if case.endswith(("-plain", "-tutorial")):
                environment["SPIKEDIM_KERNEL"] = "reference"
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment)
            runs[case].append(json.loads(done.stdout))
    found = {}
    for case, several in runs.items():
        found[case] = first = several[0]
        first["MB"] = statistics.median(run["MB"] for run in several)
        seconds = [run["seconds"] for run in several]
        spread = f" [{min(seconds):.1f}, {max(seconds):.1f}]" if len(seconds) > 1 else ""
        print(
            f"{case:16} {statistics.median(seconds):8.1f}{spread} s {first['MB']:8.0f} MB  "
            f"PR {first['pr']:.4f}  {first['parameters']:,} parameters",
            flush=True,
        )
    true = found.get("float64")
    for case, run in found.items():
        parts = []
        for other in PEERS:
            if other in found and other != case and case.startswith("structured"):
                pairs = zip(runs[other], runs[case], strict=True)
                ratio = statistics.median(a["seconds"] / b["seconds"] for a, b in pairs)
                parts.append(
                    f"{ratio:.2f}x faster than {other} "
                    f"at {run['MB'] / found[other]['MB']:.2f} of its memory"
                )
        if true is not None and run is not true and run["values"] is not None:
            a, b = np.array(run["values"]), np.array(true["values"])
            parts.append(f"relative error {np.linalg.norm(a - b) / np.linalg.norm(b):.1e}")
        if parts:
            print(f"{case}: {'; '.join(parts)}")


if __name__ == "__main__":
    main()
