"""Training: resumable fits, measured accuracy against T, and the statistics of T*."""

from spikedim.training.batches import samples
from spikedim.training.budget import Budgeted, budget, default_config, predict_seconds
from spikedim.training.config import TrainConfig, resolve_device
from spikedim.training.evaluation import Evaluation, evaluate
from spikedim.training.fit import EpochRecord, FitResult, fit
from spikedim.training.neuron_sweep import NeuronPoint, NeuronSweep, sweep_neurons
from spikedim.training.parallel import default_workers
from spikedim.training.sweep import TimestepPoint, TimestepSweep, sweep_timesteps
from spikedim.training.timestep import TStar, t_star
from spikedim.training.trial import Trial, run_trial

__all__ = [
    "Budgeted",
    "EpochRecord",
    "Evaluation",
    "FitResult",
    "NeuronPoint",
    "NeuronSweep",
    "TStar",
    "TimestepPoint",
    "TimestepSweep",
    "TrainConfig",
    "Trial",
    "budget",
    "default_config",
    "default_workers",
    "evaluate",
    "fit",
    "predict_seconds",
    "resolve_device",
    "run_trial",
    "samples",
    "sweep_neurons",
    "sweep_timesteps",
    "t_star",
]
