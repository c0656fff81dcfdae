"""Training loops: pure `train(config, key)` for notebooks, and `run` with files, progress and exact resume."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxrl_off._lazy import modules_on_demand
from jaxrl_off.training.checkpoints import CheckpointError
from jaxrl_off.training.demonstrations import collect, policy_of, policy_of_file
from jaxrl_off.training.driver import TrainingDiverged, TrainingInterrupted
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
from jaxrl_off.training.policies import SavedPolicy, load_policy, save_policy
from jaxrl_off.training.regimes import REGIMES, Regime, regime
from jaxrl_off.training.run import RunResult, run
from jaxrl_off.training.settings import LoopSettings, Plan, plan
from jaxrl_off.training.stored import LoadedRun, load_run
from jaxrl_off.training.trajectories import PolicyFunctions, monte_carlo_value, policy_functions, roll_out

if TYPE_CHECKING:
    from jaxrl_off.training import (
        checkpoints,
        demonstrated,
        demonstrations,
        driver,
        environments,
        evaluation,
        loop,
        metrics,
        policies,
        progress,
        regimes,
        settings,
        stored,
        trajectories,
    )

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
    "SavedPolicy",
    "TrainResult",
    "TrainingDiverged",
    "TrainingInterrupted",
    "checkpoints",
    "collect",
    "demonstrated",
    "demonstrations",
    "driver",
    "environments",
    "evaluate",
    "evaluation",
    "load_policy",
    "load_run",
    "loop",
    "make_loop",
    "make_train",
    "metrics",
    "monte_carlo_value",
    "plan",
    "policies",
    "policy_functions",
    "policy_of",
    "policy_of_file",
    "progress",
    "regime",
    "regimes",
    "roll_out",
    "run",
    "save_policy",
    "settings",
    "stack_configs",
    "stored",
    "summarise",
    "summarise_evaluation",
    "sweep",
    "trajectories",
]

__getattr__, __dir__ = modules_on_demand(__name__, __all__)
