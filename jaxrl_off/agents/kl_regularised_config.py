"""The configuration of the KL-regularised actor-critic and its presets: SAC, BRAC, N-PPAC, RLPD, AWAC, MPO, ABM, cloning."""

from __future__ import annotations

import math
from typing import Any

import flax.struct

from jaxrl_off.agents.normalisation import refuse_normalised_demonstrations
from jaxrl_off.pytrees import POSITIVE, build, check_choices, check_ranges, static

_CHOICES: dict[str, tuple[str, ...]] = {
    "policy": ("tanh_normal", "normal"),
    "kl": ("sampled", "analytic"),
    "temperature": ("fixed", "entropy", "kl"),
    "actor": ("reparameterised", "mpo", "advantage_weighted", "cloning"),
    "actor_value": ("min", "mean"),
    "prior": ("frozen", "advantage_filtered"),
    "initial_actions": ("policy", "uniform"),
}
DEMONSTRATION_FIELDS = ("demonstration_fraction", "pretrain_updates", "offline_updates")


@flax.struct.dataclass
class KLRegularisedConfig:
    """`J(pi) = E sum_t gamma^t (r_t - alpha KL(pi(.|s_t) || pi_0(.|s_t)))`, pi_0 a frozen reference policy.

    Defaults are N-PPAC's locomotion settings (Rudner, Lu, Osborne, Gal and Teh, "On Pathologies in KL-Regularized
    Reinforcement Learning from Expert Demonstrations", NeurIPS 2021; numbers are those of the released code, because the
    paper's own table was not at hand). Switches and sizes are static; the reals are pytree leaves and may be swept.

    Attributes:
        with_reference: whether there is a reference policy; without one the KL is taken to the base measure, which is SAC.
        policy: `tanh_normal` (squashed; MuJoCo) or `normal` (mean squashed, samples not; the paper's hand tasks).
        kl: `sampled` (`log pi(a|s) - log pi_0(a|s)` at sampled actions, as the released code) or `analytic` (closed form;
            needs policy and reference of one kind).
        kl_samples: actions a sampled KL averages over in the critic's target and the actor's loss (BRAC: 4).
        value_penalty: whether the KL also enters the critic's target (BRAC-v, SAC, N-PPAC) or only the actor's loss
            (BRAC-p).
        temperature: how alpha moves: `fixed`; `entropy` (SAC's dual for an entropy of `target_entropy` x action
            dimensions); or `kl` (dual for a mean KL of `kl_budget`; ours, as BRAC's adaptive coefficient).
        critics: size of the critic ensemble.
        target_critics: how many of them, drawn anew at every update, the target's minimum goes over; 0 means all (RLPD: 2).
        actor: how the policy is improved, see `kl_regularised_losses`: `reparameterised`, `mpo`, `advantage_weighted` or
            `cloning`.
        actor_value: `min` (SAC) or `mean` (RLPD) of the critics in the actor's loss.
        mpo_samples: actions of the reference that `mpo` weighs.
        prior: `frozen`, or `advantage_filtered`: instead of a given reference, one that is learned beside the critics from
            replayed actions whose advantage is not negative (ABM).
        critic_layer_norm: LayerNorm before each activation of the critics (RLPD).
        policy_sizes, critic_sizes: widths of hidden layers, ReLU.
        policy_period: updates of the critics per update of the policy (RLPD: its update-to-data ratio).
        initial_actions: who acts until the first update: the (pre-trained) `policy`, or `uniform` random actions.
        demonstration_fraction: share of every batch that is drawn from the demonstrations (RLPD: 0.5).
        pretrain_updates: updates of the policy alone before anything else, towards the reference at the demonstrations'
            observations (`min KL(pi || pi_0)`, as N-PPAC), or without a reference towards their actions (cloning).
        pretrain_batch: observations in each of them.
        offline_updates: updates of everything on demonstrations alone before the first online one (AWAC).
        offline_batch: transitions in each of them.
        normalise_observations: whether the networks see observations standardised by running moments, which are part of the
            learner's state; references see them as they are. Not with demonstrations.
        normalise_rewards: whether rewards are divided by the running standard deviation of their discounted sum. Not with
            demonstrations.
        alpha: coefficient of the KL, initial value where it moves; lambda of `advantage_weighted` and eta of `mpo`.
        target_entropy: per action dimension; SAC -1, RLPD -0.5.
        kl_budget: see `temperature`.
        advantage_weight_max: bound of the weights of `advantage_weighted`.
        learning_rate: of the policy (Adam). critic_learning_rate, alpha_learning_rate: of the others.
        gamma: discount.
        tau: step of the target critics towards the critics.
        reward_scale: factor of rewards in the critic's target.
        reference_std_floor: guard rail, off at 0: the reference's standard deviation is not taken below it.
        kl_clip: guard rail, off at infinity: a sampled or analytic KL counts at most this much (its gradient is 0 beyond).
        max_grad_norm: guard rail, off at infinity: global-norm clip of the policy's and the critics' gradients.
    """

    with_reference: bool = static(True)
    policy: str = static("tanh_normal")
    kl: str = static("sampled")
    kl_samples: int = static(1)
    value_penalty: bool = static(True)
    temperature: str = static("fixed")
    critics: int = static(2)
    target_critics: int = static(0)
    actor: str = static("reparameterised")
    actor_value: str = static("min")
    mpo_samples: int = static(20)
    prior: str = static("frozen")
    critic_layer_norm: bool = static(False)
    policy_sizes: tuple[int, ...] = static((256, 256))
    critic_sizes: tuple[int, ...] = static((256, 256))
    policy_period: int = static(1)
    initial_actions: str = static("policy")
    demonstration_fraction: float = static(0.0)
    pretrain_updates: int = static(0)
    pretrain_batch: int = static(64)
    offline_updates: int = static(0)
    offline_batch: int = static(256)
    normalise_observations: bool = static(False)
    normalise_rewards: bool = static(False)
    alpha: float = 0.1
    target_entropy: float = -1.0
    kl_budget: float = 1.0
    advantage_weight_max: float = 100.0
    learning_rate: float = 3e-4
    critic_learning_rate: float = 3e-4
    alpha_learning_rate: float = 3e-4
    gamma: float = 0.99
    tau: float = 5e-3
    reward_scale: float = 1.0
    reference_std_floor: float = 0.0
    kl_clip: float = math.inf
    max_grad_norm: float = math.inf

    @property
    def with_demonstrations(self) -> bool:
        """Whether an agent of this config is made with demonstrations."""
        return any(getattr(self, name) > 0 for name in DEMONSTRATION_FIELDS)


PRESETS: dict[str, dict[str, Any]] = {
    "sac": dict(with_reference=False, temperature="entropy", alpha=1.0, initial_actions="uniform"),
    "sacfd": dict(with_reference=False, temperature="entropy", alpha=1.0, demonstration_fraction=0.25),
    "brac_v": dict(kl_samples=4),
    "brac_p": dict(kl_samples=4, value_penalty=False),
    "nppac": dict(pretrain_updates=20_000),
    "nppac_hand": dict(
        policy="normal", kl="analytic", alpha=0.5, policy_sizes=(256, 256, 256, 256), pretrain_updates=20_000
    ),
    "rlpd": dict(
        with_reference=False,
        temperature="entropy",
        alpha=1.0,
        target_entropy=-0.5,
        critics=10,
        target_critics=2,
        actor_value="mean",
        critic_layer_norm=True,
        policy_period=20,
        initial_actions="uniform",
        demonstration_fraction=0.5,
    ),
    "awac": dict(
        with_reference=False,
        actor="advantage_weighted",
        policy="normal",
        value_penalty=False,
        alpha=1.0 / 3.0,
        demonstration_fraction=0.25,
        offline_updates=25_000,
    ),
    "bm_mpo": dict(actor="mpo", policy="normal", value_penalty=False, temperature="kl", alpha=1.0, kl_budget=0.5),
    "abm": dict(
        with_reference=False,
        prior="advantage_filtered",
        actor="mpo",
        policy="normal",
        value_penalty=False,
        temperature="kl",
        alpha=1.0,
        kl_budget=0.5,
        demonstration_fraction=0.25,
        offline_updates=25_000,
    ),
    "bc": dict(
        with_reference=False,
        actor="cloning",
        policy="normal",
        value_penalty=False,
        demonstration_fraction=1.0,
        pretrain_updates=20_000,
    ),
}
"""Where a method's paper or code leaves a number open, or has one that presumes other machinery, the number is ours: 20,000
updates of pre-training (N-PPAC's code: 400 epochs in minibatches of 64, for 15,000 points 94,000), a fixed share of 0.25
of demonstrations in a batch for methods that put them into the replay (`sacfd`, `awac`, `abm`), MPO's 20 samples and its
budget. `awac` has CORL's weights (alpha is their lambda: 1/3 for MuJoCo, 0.1 for Adroit) and a standard deviation that
depends on the observation, where AWAC's is one vector. `bm_mpo` is ABM's baseline: MPO towards a reference fitted to all
data, here the one that is given. `rlpd` moves its policy at every twentieth update: it wants the regime of its name."""


def preset(name: str, **overrides: Any) -> KLRegularisedConfig:
    """A named member of the family.

    Args:
        name: a key of `PRESETS`.
        **overrides: fields of `KLRegularisedConfig` that differ from the preset.

    Returns:
        A checked config.

    Raises:
        ValueError: for an unknown preset, field or choice, or a number outside its range.

    Example:
        >>> preset("rlpd", critics=5).target_critics
        2
    """
    config = build(KLRegularisedConfig, PRESETS, name, overrides)
    check(config)
    return config


def check(config: KLRegularisedConfig) -> None:
    """Raise an error if a choice or a number of the config is invalid. Numbers that are arrays or tracers are not checked.

    Raises:
        ValueError: naming the field, what was given and what is allowed.
    """
    check_choices(config, _CHOICES)
    if config.kl == "analytic" and not config.with_reference and config.prior == "frozen":
        raise ValueError("kl='analytic' compares the policy with a reference; set with_reference=True or kl='sampled'.")
    if config.prior != "frozen" and config.with_reference:
        raise ValueError(f"prior={config.prior!r} learns the reference; set with_reference=False or prior='frozen'.")
    if config.actor == "mpo" and not config.with_reference and config.prior == "frozen":
        raise ValueError(
            "actor='mpo' samples from a reference; set with_reference=True, or prior='advantage_filtered' to learn one."
        )
    budget, samples = config.kl_budget, config.mpo_samples
    bounded = config.actor == "mpo" and config.temperature == "kl" and isinstance(budget, (int, float))
    if bounded and samples >= 1 and budget >= math.log(samples):
        raise ValueError(
            f"kl_budget={budget} cannot be spent: weights of mpo_samples={samples} actions are at most log({samples}) = "
            f"{math.log(samples):.2f} nats away from the reference; lower the one or raise the other."
        )
    infinity = math.inf
    ranges = {
        "kl_samples": (1, infinity),
        "critics": (1, infinity),
        "target_critics": (0, config.critics),
        "policy_period": (1, infinity),
        "mpo_samples": (1, infinity),
        "demonstration_fraction": (0.0, 1.0),
        "pretrain_updates": (0, infinity),
        "pretrain_batch": (1, infinity),
        "offline_updates": (0, infinity),
        "offline_batch": (1, infinity),
        "alpha": (0.0, infinity),
        "kl_budget": (0.0, infinity),
        "advantage_weight_max": (0.0, infinity),
        "learning_rate": (0.0, infinity),
        "critic_learning_rate": (0.0, infinity),
        "alpha_learning_rate": (0.0, infinity),
        "gamma": (0.0, 1.0),
        "tau": (0.0, 1.0),
        "reference_std_floor": (0.0, infinity),
        "kl_clip": (0.0, infinity),
        "target_entropy": (-infinity, infinity),
        "reward_scale": (-infinity, infinity),
        "max_grad_norm": POSITIVE,
    }
    check_ranges(config, ranges)
    refuse_normalised_demonstrations(config)
    learned = config.temperature in ("entropy", "kl")
    divides = config.actor in ("mpo", "advantage_weighted")
    if (learned or divides) and isinstance(config.alpha, (int, float)) and config.alpha <= 0.0:
        why = (
            f"temperature={config.temperature!r} moves log(alpha)"
            if learned
            else f"actor={config.actor!r} divides by alpha"
        )
        raise ValueError(f"{why}; alpha must be positive, got {config.alpha}.")
