"""``spikedim train``: train one network at one T."""

from __future__ import annotations

from spikedim.cli import options
from spikedim.cli.output import emit, say, working


def train(
    data: options.Data = "digits",
    model: options.Model = "spikformer_tiny",
    timesteps: options.OneT = 4,
    encoder: options.Encoder = "direct",
    epochs: options.Epochs = None,
    train_samples: options.TrainSamples = None,
    out: options.Out = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    data_root: options.DataRoot = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    config: options.ConfigFile = None,
) -> None:
    """Train a network at T timesteps; run the same command again to resume after an interruption.

    Example: spikedim train --data digits --model spikformer_nano --timesteps 4
    """
    from spikedim.cli.job import prepare
    from spikedim.training import fit
    from spikedim.training.batches import check_encoder

    with working(quiet):
        job = prepare(
            data, data_root, model, (timesteps,), epochs, train_samples, None, seed, device
        )
        check_encoder(job.dataset, encoder)
        job.dataset.check_steps(timesteps)
        job.announce((timesteps,), workers=1)
        with job.run("train", {"timesteps": timesteps, "encoder": encoder}, out) as run:
            result = fit(job.network(), job.dataset, job.config, timesteps, run.path, encoder)
    emit(result, as_json)
    say(f"Weights: {result.weights}")
