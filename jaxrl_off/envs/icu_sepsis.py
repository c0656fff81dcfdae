"""ICU-Sepsis as a finite process.

It (716 states, 25 actions) was estimated from records of intensive care; the reward is 1 on survival. Its
arrays are those of the package `icu-sepsis`, which is not imported, as it needs far more than its one file. Actions
that records do not show in a state do there what the mean of the others does ("mean", the package's default).

Reference: Choudhary, Gupta and Thomas, "ICU-Sepsis: A Benchmark MDP Built from Real Medical Data", RLC 2024.
"""

from __future__ import annotations

import importlib.resources
import importlib.util
from typing import NamedTuple

import numpy as np

from jaxrl_off.envs.finite import uniform_policy
from jaxrl_off.envs.tabular import TabularMDP

DEATH, SURVIVAL, END = 713, 714, 715


class IcuSepsis(NamedTuple):
    """The benchmark; NumPy arrays in float64.

    Attributes:
        mdp: the process, with r(s, a) the probability to survive in this step and discount 1.
        expert: `[S, A]`, what the records show; uniform in the terminal states, where nothing is left to decide.
        terminal: `bool[S]`, `DEATH`, `SURVIVAL`, and `END`, which both lead to.
        arrival_reward: `[S]`, 1 for entering `SURVIVAL`.
        features: `[S, 47]`, the centre of the records that make up each state, standardised.
    """

    mdp: TabularMDP
    expert: np.ndarray
    terminal: np.ndarray
    arrival_reward: np.ndarray
    features: np.ndarray


def load() -> IcuSepsis:
    """Read the arrays that the package `icu-sepsis` ships (2.0.1); about a second.

    Raises:
        ImportError: if it is not installed.
        ValueError: if another version ships other arrays.
    """
    specification = importlib.util.find_spec("icu_sepsis")
    if specification is None:
        raise ImportError(
            'ICU-Sepsis needs the data of icu-sepsis, which is not installed: pip install "jaxrl_off[ope]", or '
            "pip install --no-deps icu-sepsis, as only its data are read."
        )
    # A module that is made but not executed: importing the package would need gym, pandas and others.
    folder = importlib.resources.files(importlib.util.module_from_spec(specification))
    with (folder / "envs" / "assets" / "dynamics.npz").open("rb") as stream, np.load(stream) as file:
        names = ("tx_mat", "d_0", "expert_policy", "state_cluster_centers")
        missing = [name for name in names if name not in file.files]
        if missing:
            raise ValueError(f"dynamics.npz of icu-sepsis lacks {', '.join(missing)}; install version 2.0.1.")
        transition, initial, expert, features = (file[name] for name in names)
    if transition.shape != (716, 25, 716):
        raise ValueError(f"icu-sepsis has a process of shape {transition.shape}, not (716, 25, 716); install 2.0.1.")
    terminal, arrival_reward = np.zeros(716, bool), np.zeros(716)
    terminal[[DEATH, SURVIVAL, END]], arrival_reward[SURVIVAL] = True, 1.0
    reward = np.where(terminal[:, None], 0.0, transition[:, :, SURVIVAL])
    expert = np.where(terminal[:, None], uniform_policy(716, 25), expert)
    return IcuSepsis(
        TabularMDP(transition, reward, initial, np.float64(1.0)), expert, terminal, arrival_reward, features
    )
