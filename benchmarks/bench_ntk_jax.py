"""The exact trace kernel of one spiking transformer by spikedim and by neural-tangents in JAX.

The network is a Spikformer of 0.1 M parameters (embed_dim 64, depth 2, 64 tokens, T = 4, 10
outputs, soft reset, atan surrogate, batch norm in eval mode), written again in JAX with the same
parameters; the kernel of 64 images of 8 x 8 in float32. In float64 the outputs and kernels of 8
images must agree to 1e-9, or the script ends in an error; in float32 rounding moves a few
potentials across the threshold, and the difference is printed. Processor seconds of each, in a
process of its own; of JAX the second call, with compilation apart.

neural-tangents 0.6.5 is not maintained: it needs JAX 0.5.3 or older (newer ones have no
``jax.core.Jaxpr``), and two names that JAX has moved are put back below. So it lives in an
environment of its own::

    python -m venv jax-env
    jax-env/bin/pip install "jax[cpu]==0.5.3" tf2jax==0.3.7 neural-tangents
    OMP_NUM_THREADS=1 python benchmarks/bench_ntk_jax.py --jax jax-env/bin/python

``--implementations 1 2 3`` are Jacobian contraction, NTK-vector products and structured
derivatives; ``--batch 8`` computes the kernel by JAX in tiles of 8 samples.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

NETWORK = {"input_shape": (1, 8, 8), "embed_dim": 64, "depth": 2, "num_heads": 4}
T, THRESHOLD, WIDTH, BETA = 4, 0.5, 2.0, 0.5
CHECKED = 8  # images of the comparison in float64
NAMES = {1: "Jacobian contraction", 2: "NTK-vector products", 3: "structured derivatives"}


def export(path: Path, samples: int) -> None:
    """Write parameters, running statistics and images."""
    model, x = network(samples)
    arrays = {name: value.numpy() for name, value in model.state_dict().items()}
    np.savez(path, x=x.numpy(), **arrays)


def network(samples: int) -> tuple[Any, Any]:
    """The calibrated network and ``samples`` images."""
    import torch

    from spikedim.models import calibrate_batchnorm, create_model
    from spikedim.neurons import LIFParams, Surrogate

    neuron = LIFParams(
        beta=BETA, reset="soft", threshold=THRESHOLD, surrogate=Surrogate("atan", WIDTH)
    )
    model = create_model("spikformer_nano", seed=0, neuron=neuron, **NETWORK)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(samples + 32, *model.input_shape, generator=generator)
    calibrate_batchnorm(model, x[-32:].split(16), T)
    return model.eval(), x[:samples]


def by_spikedim(samples: int, double: bool) -> dict[str, Any]:
    from spikedim.ntk import gram

    model, x = network(samples)
    if double:
        model, x = model.double(), x[:CHECKED].double()
    started = time.process_time()
    kernel = gram(model, x, T=T, method="structured", memory=16)
    seconds = time.process_time() - started
    return {
        "seconds": seconds,
        "MB": peak(),
        "outputs": model(x, T).tolist(),
        "values": kernel.values.tolist(),
    }


def by_jax(path: Path, implementation: int, batch: int, double: bool) -> dict[str, Any]:
    import jax
    import jax.numpy as jnp
    from jax._src import source_info_util
    from jax.interpreters import ad

    ad.source_info_util, ad.config = source_info_util, jax.config
    jax.config.update("jax_enable_x64", double)
    import neural_tangents

    with np.load(path) as data:
        kind = np.float64 if double else np.float32
        arrays = {name: jnp.asarray(data[name].astype(kind)) for name in data.files}
    x = arrays.pop("x")[: CHECKED if double else None]
    forward, parameters = jax_network(arrays)
    outputs = np.asarray(forward(parameters, x), float)
    kernel = neural_tangents.empirical_ntk_fn(
        forward,
        trace_axes=(-1,),
        vmap_axes=0,
        implementation=neural_tangents.NtkImplementation(implementation),
    )

    def whole(x: Any) -> Any:
        if batch >= len(x):
            return compiled(x, None, parameters)
        parts = [x[i : i + batch] for i in range(0, len(x), batch)]
        rows = [jnp.concatenate([compiled(a, b, parameters) for b in parts], 1) for a in parts]
        return jnp.concatenate(rows)

    compiled = jax.jit(kernel)
    times = []
    for _ in range(2):
        started = time.process_time()
        values = np.array(jax.block_until_ready(whole(x)), float)
        times.append(time.process_time() - started)
    values *= outputs.shape[1]  # neural-tangents takes the mean over outputs
    return {
        "seconds": times[1],
        "compile": times[0] - times[1],
        "MB": peak(),
        "outputs": outputs.tolist(),
        "version": f"jax {jax.__version__}, neural-tangents {neural_tangents.__version__}",
        "values": values.tolist(),
    }


def jax_network(arrays: dict[str, Any]) -> tuple[Any, Any]:
    """The same Spikformer as a function of its parameters and images [B, C, H, W]."""
    import jax
    import jax.numpy as jnp

    constants = {n: v for n, v in arrays.items() if "running" in n or "num_batches" in n}
    unused = [n for n in arrays if ".norm" in n]
    parameters = {n: v for n, v in arrays.items() if n not in constants and n not in unused}

    @jax.custom_jvp
    def spike(u: Any) -> Any:
        return (u >= 0).astype(u.dtype)

    @spike.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        (u,), (du,) = primals, tangents
        return spike(u), du * (WIDTH / 2) / (1 + (jnp.pi / 2 * WIDTH * u) ** 2)

    def lif(current: Any, threshold: float = THRESHOLD) -> Any:
        u = s = jnp.zeros_like(current[0])
        spikes = []
        for step in current:
            u = BETA * (u - threshold * jax.lax.stop_gradient(s)) + (1 - BETA) * step
            s = spike(u - threshold)
            spikes.append(s)
        return jnp.stack(spikes)

    def norm(p: Any, name: str, x: Any) -> Any:  # channels last
        scale = 1 / jnp.sqrt(constants[f"{name}.running_var"] + 1e-5)
        y = (x - constants[f"{name}.running_mean"]) * scale
        return y * p[f"{name}.weight"] + p[f"{name}.bias"]

    def conv(p: Any, name: str, x: Any) -> Any:  # [N, H, W, C]
        kernel = p[f"{name}.weight"].transpose(2, 3, 1, 0)
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def images(p: Any, conv_name: str, bn: str, x: Any) -> Any:  # [T, B, H, W, C]
        y = norm(p, bn, conv(p, conv_name, x.reshape(-1, *x.shape[2:])))
        return y.reshape(*x.shape[:2], *y.shape[1:])

    def branch(p: Any, name: str, bn: str, x: Any) -> Any:
        return lif(norm(p, bn, x @ p[f"{name}.weight"].T + p[f"{name}.bias"]))

    def attention(p: Any, name: str, x: Any) -> Any:
        q, k, v = (branch(p, f"{name}.{c}_linear", f"{name}.{c}_bn", x) for c in "qkv")
        heads = (*x.shape[:3], NETWORK["num_heads"], -1)
        q, k, v = (y.reshape(heads).swapaxes(2, 3) for y in (q, k, v))  # [T, B, h, N, d]
        y = q @ (k.swapaxes(-1, -2) @ v) * 0.125
        y = lif(y.swapaxes(2, 3).reshape(x.shape), THRESHOLD / 2)
        return branch(p, f"{name}.proj_linear", f"{name}.proj_bn", y)

    def mlp(p: Any, name: str, x: Any) -> Any:
        y = branch(p, f"{name}.fc1_linear", f"{name}.fc1_bn", x)
        return branch(p, f"{name}.fc2_linear", f"{name}.fc2_bn", y)

    def forward(p: Any, x: Any) -> Any:
        y = x.transpose(0, 2, 3, 1)[None]  # [1, B, H, W, C]
        for stage in ("", "1", "2", "3"):
            y = images(p, f"patch_embed.proj_conv{stage}", f"patch_embed.proj_bn{stage}", y)
            y = lif(jnp.broadcast_to(y, (T, *y.shape[1:])))
        y = y + lif(images(p, "patch_embed.rpe_conv", "patch_embed.rpe_bn", y))
        y = y.reshape(*y.shape[:2], -1, y.shape[-1])  # [T, B, N, D]
        for block in range(NETWORK["depth"]):
            y = y + attention(p, f"block.{block}.attn", y)
            y = y + mlp(p, f"block.{block}.mlp", y)
        return (y.mean(2) @ p["head.weight"].T + p["head.bias"]).mean(0)

    return forward, parameters


def peak() -> float:
    """Peak resident memory of this process in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jax", default=os.environ.get("SPIKEDIM_JAX"), help="its Python")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64, help="samples per tile in JAX")
    parser.add_argument("--implementations", nargs="+", type=int, choices=NAMES, default=[1, 3])
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--double", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one == 0:
        print(json.dumps(by_spikedim(options.samples, options.double)))
        return
    if options.one:
        found = by_jax(options.file, options.one, options.batch, options.double)
        print(json.dumps(found))
        return
    if options.jax is None:
        print("skipped: give --jax PYTHON, the Python of an environment with neural-tangents")
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.npz"
        export(file, options.samples)

        def run(which: int, *more: str) -> dict[str, Any]:
            python = options.jax if which else sys.executable
            command = [python, __file__, *sys.argv[1:], "--one", str(which), "--file", str(file)]
            found = subprocess.run([*command, *more], capture_output=True, text=True)
            if found.returncode:
                raise SystemExit(found.stderr[-2000:])
            return json.loads(found.stdout.splitlines()[-1])

        true, again = run(0, "--double"), run(options.implementations[0], "--double")
        errors = [distance(again[name], true[name]) for name in ("outputs", "values")]
        print(
            "float64, 8 images: relative difference of outputs {:.1e}, kernels {:.1e}".format(
                *errors
            )
        )
        if not max(errors) < 1e-9:
            raise SystemExit("the kernels differ: not the same network")
        mine = run(0)
        print(
            f"{'spikedim, structured':24} {mine['seconds']:6.1f} s {mine['MB']:6.0f} MB", flush=True
        )
        for number in options.implementations:
            peer = run(number)
            print(
                f"{NAMES[number]:24} {peer['seconds']:6.1f} s {peer['MB']:6.0f} MB  after "
                f"{peer['compile']:.0f} s of compilation ({peer['version']}, tiles of "
                f"{options.batch}); relative difference in float32 "
                f"{distance(peer['values'], mine['values']):.1e}; spikedim takes "
                f"{mine['seconds'] / peer['seconds']:.2f} of its time and "
                f"{mine['MB'] / peer['MB']:.2f} of its memory",
                flush=True,
            )


def distance(a: Any, b: Any) -> float:
    """‖a − b‖/‖b‖."""
    x, y = np.array(a), np.array(b)
    return float(np.linalg.norm(x - y) / np.linalg.norm(y))


if __name__ == "__main__":
    main()
