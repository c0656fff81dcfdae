"""Training loops: pure `train(config, key)` for notebooks, and `run` with files, progress and exact resume."""

from jaxrl_off.training.checkpoints import CheckpointError
from jaxrl_off.training.demonstrations import collect, policy_of, policy_of_file
from jaxrl_off.training.evaluation import Evaluation, evaluate, summarise_evaluation
from jaxrl_off.training.loop import (
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
from jaxrl_off.training.trajectories import PolicyFunctions, monte_carlo_value, policy_functions, roll_out

__all__ = [
    "REGIMES",
    "CheckpointError",
    "Evaluation",
    "LoadedRun",
    "Loop",
    "LoopSettings",
    "LoopState",
    "Plan",
    "PolicyFunctions",
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
    "monte_carlo_value",
    "plan",
    "policy_functions",
    "policy_of",
    "policy_of_file",
    "regime",
    "roll_out",
    "run",
    "stack_configs",
    "summarise",
    "summarise_evaluation",
    "sweep",
]
