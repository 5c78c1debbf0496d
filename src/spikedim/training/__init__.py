"""Training: resumable fits, measured accuracy against T, and the statistics of T*."""

from spikedim.training.batches import samples
from spikedim.training.budget import Budgeted, budget, default_config, predict_seconds
from spikedim.training.config import TrainConfig, resolve_device
from spikedim.training.engines import Engine
from spikedim.training.evaluation import Evaluation, evaluate
from spikedim.training.fit import EpochRecord, FitResult, fit
from spikedim.training.neuron_sweep import NeuronPoint, NeuronSweep, sweep_neurons
from spikedim.training.parallel import default_workers
from spikedim.training.replay import compare_search, replay_search
from spikedim.training.search import SearchResult, SearchSettings, run_search
from spikedim.training.study import Cell, Study, StudyResult, merge_studies, neuron_grid, run_study
from spikedim.training.study_table import OutputRow, StudyRow, StudyTable, read_outputs, read_study
from spikedim.training.sweep import TimestepPoint, TimestepSweep, sweep_timesteps
from spikedim.training.timestep import TStar, t_star
from spikedim.training.trial import Trial, run_trial

__all__ = [
    "Budgeted",
    "Cell",
    "Engine",
    "EpochRecord",
    "Evaluation",
    "FitResult",
    "NeuronPoint",
    "NeuronSweep",
    "OutputRow",
    "SearchResult",
    "SearchSettings",
    "Study",
    "StudyResult",
    "StudyRow",
    "StudyTable",
    "TStar",
    "TimestepPoint",
    "TimestepSweep",
    "TrainConfig",
    "Trial",
    "budget",
    "compare_search",
    "default_config",
    "default_workers",
    "evaluate",
    "fit",
    "merge_studies",
    "neuron_grid",
    "predict_seconds",
    "read_outputs",
    "read_study",
    "replay_search",
    "resolve_device",
    "run_search",
    "run_study",
    "run_trial",
    "samples",
    "sweep_neurons",
    "sweep_timesteps",
    "t_star",
]
