"""The configuration of the divergence-augmented family and its named presets."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import flax.struct

from jaxrl_off.networks import ACTIVATIONS
from jaxrl_off.ops.divergence import DIVERGENCES
from jaxrl_off.pytrees import POSITIVE, build, check_choices, check_ranges, static

_CHOICES: dict[str, tuple[str, ...]] = {
    "weight": ("identity", "clip", "truncate", "acer", "effective_sample_size", "centred_clip", "exponential"),
    "advantage": ("vtrace", "gae", "gae_current"),
    "advantage_normalisation": ("rms", "standard", "none"),
    "divergence": ("none", *DIVERGENCES),
    "divergence_steps": ("multi", "one"),
    "penalty": ("none", "kl", "reverse_kl"),
    "penalty_schedule": ("constant", "mirror_descent", "one_minus_effective_sample_size", "adaptive", "learned"),
    "value_loss": ("weighted", "plain", "clipped"),
    "optimiser": ("adam", "rmsprop"),
    "torso": ("auto", "mlp", "minatar", "nature", "impala"),
    "activation": tuple(ACTIVATIONS),
}


@flax.struct.dataclass
class DivergenceAugmentedConfig:
    """`loss = weight(ratio) x (A - D / eta) + penalty + value loss - entropy bonus`.

    Defaults are PPO+DA with the paper's hyperparameters (Wang et al., NeurIPS 2019, Table 1 and section 5; what only the
    authors' code says is marked C). Switches and sizes are static; the reals are pytree leaves, so that configs stack and
    `jax.vmap(train)(configs, keys)` sweeps them.

    Attributes:
        weight: how the importance ratio enters the policy loss; a name, or a function `(ratio, log_prob, advantage) ->
            surrogate` of arrays `[B, T]` such as those of `jaxrl_off.ops.surrogates`. Names: `identity` (eq. 13), `clip` (PPO,
            eq. 19 with the whole augmented advantage inside the clip), `truncate` (IMPALA), `acer` (C: truncation with bias
            correction on the sampled action), `effective_sample_size` (P3O: truncated at the batch's effective sample size),
            `centred_clip` (GePPO: clipped around pi_k / pi_t, pi_k the published policy), `exponential` (V-MPO: softmax of
            the advantages of the better half of the batch).
        advantage: `vtrace` (target-policy advantage, eq. 11), `gae` (behaviour-time values, computed once) or
            `gae_current` (the same from the current values at every update, uncorrected, as P3O).
        advantage_normalisation: `rms` (C: `A / (sqrt(mean A^2) + 1e-4)`, the mean is not subtracted; the paper is silent,
            but its 1/eta = 0.5 presumes it), `standard` (mean and standard deviation) or `none`.
        divergence: `none`, a key of `jaxrl_off.ops.divergence.DIVERGENCES`, or a function `(log_prob, behaviour_log_prob) ->
            f` of arrays `[B, T]`.
        divergence_steps: `multi` (eq. 12) or `one` (D = f).
        product_start: 1 (section 5 and C) or 0 (eq. 12 as printed); see `multi_step_divergence`.
        released_code: reproduce the index slip of C; for golden tests only.
        penalty: exact state-wise divergence added to the loss: `kl` = KL(pi || pi_t) (MDPO), `reverse_kl` =
            KL(pi_t || pi) (TRPO, P3O, V-MPO), or `none`.
        penalty_schedule: `constant`; `mirror_descent` (MDPO: `1/t_k` with `t_k = 1 - k/K`, floored at 1e-2);
            `one_minus_effective_sample_size` (P3O); `adaptive` (PPO's rule: doubled above 1.5 x target, halved below
            target / 1.5); `learned` (V-MPO's dual variable).
        value_loss: `weighted` (C: weight min(ratio, value_weight_cap)), `plain`, or `clipped` (PPO's value clip).
        optimiser: `adam` or `rmsprop`.
        adapt_learning_rate: GePPO's rule: the learning rate is divided by 1.03 after every update whose total variation
            exceeds half the clip range.
        torso: network, `auto` chooses by the observation's shape.
        sizes: widths of dense layers.
        activation: of the `mlp` torso.
        core_size: LSTM cells, 0 for feed-forward.
        separate_critic: whether the value has its own torso. None means yes for the `mlp` torso without a recurrent core,
            where a shared one lets the value loss drown the policy, and no for images, where sharing saves most of the work.
        normalise_observations: whether observations are standardised by running moments, which are part of the learner's
            state; see `jaxrl_off.agents.normalisation`.
        normalise_rewards: whether rewards are divided by the running standard deviation of their discounted sum.
        initial_log_std: of the Gaussian policy of continuous actions, in units of half the action box.
        learning_rate: Adam's step size; falls linearly to `learning_rate * final_learning_rate_fraction`.
        final_learning_rate_fraction: 0 as the paper.
        gamma: discount.
        lambda_: TD(lambda) tail (0.9 as the paper), and lambda of `gae`.
        trace_lambda: extra decay of V-trace inside a roll-out (1 as the paper).
        clip_epsilon: PPO clip.
        divergence_coefficient: 1/eta.
        penalty_coefficient: factor of the penalty (initial value where adaptive).
        penalty_target: target KL of `adaptive`, epsilon_alpha of `learned`.
        temperature_target: epsilon_eta of V-MPO.
        value_coefficient: b; C halves the squared error besides, as we do.
        entropy_coefficient: entropy bonus.
        rho_bar_value, c_bar_value: V-trace clips.
        rho_bar_divergence, c_bar_divergence: divergence clips.
        weight_cap: c of `truncate`, `acer`.
        value_weight_cap: 3 (C; the paper's eq. 14 has no cap).
        max_grad_norm: global-norm clip (C).
        adam_epsilon: (C) 1e-5.
    """

    weight: str | Callable[..., Any] = static("clip")
    advantage: str = static("vtrace")
    advantage_normalisation: str = static("rms")
    divergence: str | Callable[..., Any] = static("kl")
    divergence_steps: str = static("multi")
    product_start: int = static(1)
    released_code: bool = static(False)
    penalty: str = static("none")
    penalty_schedule: str = static("constant")
    value_loss: str = static("weighted")
    optimiser: str = static("adam")
    adapt_learning_rate: bool = static(False)
    torso: str = static("auto")
    sizes: tuple[int, ...] = static(())
    activation: str = static("tanh")
    core_size: int = static(0)
    separate_critic: bool | None = static(None)
    normalise_observations: bool = static(False)
    normalise_rewards: bool = static(False)
    learning_rate: float = 1e-3
    final_learning_rate_fraction: float = 0.0
    initial_log_std: float = 0.0
    gamma: float = 0.99
    lambda_: float = 0.9
    trace_lambda: float = 1.0
    clip_epsilon: float = 0.2
    divergence_coefficient: float = 0.5
    penalty_coefficient: float = 1.0
    penalty_target: float = 0.01
    temperature_target: float = 0.1
    value_coefficient: float = 0.5
    entropy_coefficient: float = 0.0
    rho_bar_value: float = 1.0
    c_bar_value: float = 1.0
    rho_bar_divergence: float = 1.0
    c_bar_divergence: float = 0.5
    weight_cap: float = 1.0
    value_weight_cap: float = 3.0
    max_grad_norm: float = 0.5
    adam_epsilon: float = 1e-5

    @property
    def needs_behaviour_parameters(self) -> bool:
        """Whether the loss compares whole distributions, so that roll-outs must carry those of the behaviour policy."""
        return self.penalty != "none"


PRESETS: dict[str, dict[str, Any]] = {
    "ppo": dict(divergence="none"),
    "ppo_gae": dict(
        divergence="none", advantage="gae", advantage_normalisation="standard", value_loss="clipped", lambda_=0.95
    ),
    "ppo_continuous": dict(
        divergence="none",
        advantage="gae",
        advantage_normalisation="standard",
        value_loss="clipped",
        lambda_=0.95,
        normalise_observations=True,
        normalise_rewards=True,
    ),
    "ppo_entropy": dict(divergence="entropy", divergence_coefficient=0.1),
    "ppo_da": dict(),
    "ppo_da_one_step": dict(divergence_steps="one"),
    "dapo": dict(weight="identity"),
    "importance_weighted": dict(weight="identity", divergence="none"),
    "vtrace": dict(
        weight="truncate",
        divergence="none",
        advantage_normalisation="none",
        entropy_coefficient=0.01,
        value_loss="plain",
    ),
    "acer": dict(weight="acer", divergence="none"),
    "acer_da": dict(weight="acer"),
    "mdpo": dict(
        weight="identity",
        divergence="none",
        advantage="gae",
        advantage_normalisation="standard",
        value_loss="clipped",
        penalty="kl",
        penalty_schedule="mirror_descent",
        lambda_=0.95,
    ),
    "trpo_penalty": dict(
        weight="identity",
        divergence="none",
        advantage="gae",
        advantage_normalisation="standard",
        value_loss="plain",
        penalty="reverse_kl",
        penalty_schedule="adaptive",
        lambda_=0.95,
    ),
    "p3o": dict(
        weight="effective_sample_size",
        divergence="none",
        advantage="gae_current",
        advantage_normalisation="none",
        value_loss="plain",
        penalty="reverse_kl",
        penalty_schedule="one_minus_effective_sample_size",
        entropy_coefficient=0.01,
        lambda_=0.95,
    ),
    "geppo": dict(
        weight="centred_clip",
        divergence="none",
        advantage_normalisation="standard",
        value_loss="plain",
        adapt_learning_rate=True,
        lambda_=0.97,
        trace_lambda=0.97,
    ),
    "vmpo": dict(
        weight="exponential",
        divergence="none",
        advantage="vtrace",
        value_loss="plain",
        penalty="reverse_kl",
        penalty_schedule="learned",
    ),
}


def preset(name: str, **overrides: Any) -> DivergenceAugmentedConfig:
    """A named member of the family.

    Args:
        name: a key of `PRESETS`.
        **overrides: fields of `DivergenceAugmentedConfig` that differ from the preset.

    Returns:
        A checked config.

    Raises:
        ValueError: for an unknown preset, field or choice, or a number outside its range.

    Example:
        >>> preset("ppo_da", learning_rate=3e-4).divergence
        'kl'
    """
    config = build(DivergenceAugmentedConfig, PRESETS, name, overrides)
    check(config)
    return config


def check(config: DivergenceAugmentedConfig) -> None:
    """Refuse a config whose choices or numbers cannot be meant. Numbers that are arrays or tracers are not looked at.

    Raises:
        ValueError: naming the field, what was given and what is allowed.
    """
    own = [name for name in ("weight", "divergence") if callable(getattr(config, name))]
    check_choices(config, {name: allowed for name, allowed in _CHOICES.items() if name not in own})
    if config.separate_critic and config.core_size:
        raise ValueError("separate_critic needs a feed-forward network; set core_size=0 or separate_critic=False.")
    if config.weight == "exponential" and config.penalty_schedule != "learned":
        raise ValueError("weight='exponential' (V-MPO) learns its duals; set penalty_schedule='learned'.")
    if config.penalty_schedule != "constant" and config.penalty == "none":
        raise ValueError(
            f"penalty_schedule={config.penalty_schedule!r} moves the factor of a penalty, and penalty='none' has none; set "
            "penalty to 'kl' or 'reverse_kl', or penalty_schedule='constant'."
        )
    infinity = math.inf
    ranges = {
        "core_size": (0, infinity),
        "product_start": (0, 1),
        "learning_rate": (0.0, infinity),
        "final_learning_rate_fraction": (0.0, infinity),
        "initial_log_std": (-infinity, infinity),
        "gamma": (0.0, 1.0),
        "lambda_": (0.0, 1.0),
        "trace_lambda": (0.0, 1.0),
        "clip_epsilon": (0.0, 1.0),
        "divergence_coefficient": (0.0, infinity),
        "penalty_coefficient": (0.0, infinity),
        "penalty_target": POSITIVE,
        "temperature_target": POSITIVE,
        "value_coefficient": (0.0, infinity),
        "entropy_coefficient": (0.0, infinity),
        "rho_bar_value": (0.0, infinity),
        "c_bar_value": (0.0, infinity),
        "rho_bar_divergence": (0.0, infinity),
        "c_bar_divergence": (0.0, infinity),
        "weight_cap": POSITIVE,
        "value_weight_cap": POSITIVE,
        "max_grad_norm": POSITIVE,
        "adam_epsilon": (0.0, infinity),
    }
    check_ranges(config, ranges)
    if config.released_code and config.product_start == 0:
        raise ValueError("released_code=True follows section 5 of the paper; set product_start=1.")
