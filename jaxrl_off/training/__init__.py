"""Training loops: pure `train(config, key)` for notebooks, and `run` with files, progress and exact resume."""

from jaxrl_off.training.checkpoints import CheckpointError
from jaxrl_off.training.collect import collect, policy_of, policy_of_file
from jaxrl_off.training.evaluation import Evaluation, evaluate, summarise_evaluation
from jaxrl_off.training.on_policy import (
    Loop,
    LoopState,
    TrainResult,
    make_loop,
    make_train,
    stack_configs,
    summarise,
    sweep,
)
from jaxrl_off.training.regimes import REGIMES, Regime, regime
from jaxrl_off.training.run import RunResult, TrainingDiverged, TrainingInterrupted, run
from jaxrl_off.training.settings import LoopSettings, Plan, plan
from jaxrl_off.training.stored import LoadedRun, load_run

__all__ = [
    "REGIMES",
    "CheckpointError",
    "Evaluation",
    "LoadedRun",
    "Loop",
    "LoopSettings",
    "LoopState",
    "Plan",
    "Regime",
    "RunResult",
    "TrainResult",
    "TrainingDiverged",
    "TrainingInterrupted",
    "collect",
    "evaluate",
    "load_run",
    "make_loop",
    "make_train",
    "plan",
    "policy_of",
    "policy_of_file",
    "regime",
    "run",
    "stack_configs",
    "summarise",
    "summarise_evaluation",
    "sweep",
]
