"""Action values that are networks: fitted Q-evaluation and minimax Q learning, by their settings.

Fitted Q-evaluation (`FittedQConfig`, the default) is regression of `r + gamma V(s')` on (s, a), V by a slowly moving copy:

`min_theta sum (Q_theta(s_t, a_t) - r_t - gamma sum_m weight_m Q_theta'(s_{t+1}, a_m))^2`, with theta' a copy that moves
towards theta at a rate, or is replaced after a number of updates. The target's candidates in s_{t+1} are drawn in s_{t+1}
(see `target_policy`), not in s_t.

Minimax Q learning (`MinimaxQConfig`) has no copy. It minimises

    max_f E_D[f(s_t, a_t) (r_t + gamma Q(s_{t+1}, pi) - Q(s_t, a_t))]^2

over functions of a reproducing kernel Hilbert space with `E_D f^2 + e |f|^2 <= 1`, in which the maximum is `|g|^2` with
`g = (E_D[phi phi^T] + e I)^-1/2 E_D[phi (r + gamma Q' - Q)]` (see `kernel_features`). E_D f^2 makes all that the data tell
apart count alike; in the unit ball of the paper, e alone, what the kernel has little of (the difference between two actions,
say) takes ten times as many updates. Gradients are unbiased, as the two factors of `g . g` come from
minibatches of their own. It is the mirror image of `occupancy.network.minimax_weight`, in which zeta is a network and Q
in the unit ball.

All updates are one compiled program; members of an ensemble and target policies are batched in it. Policies share minibatches
and initial weights, which reduces the noise of differences between their values.

The network works on standardised observations and actions, and on values in units of the deviation of logged returns, so that
one learning rate serves all scales. It begins at the one value that solves the Bellman equations on average, `mean r / gap`,
`gap = 1 - mean(gamma c)`, c = 0 before an exit and else 1: the error that dies out most slowly, that of the level, is gone at
the start. (Ours.) Learning is float32, what is made of it float64.

**Whether a fit has converged.** By the identity `V^pi = V + sum_t gamma^t E_pi[delta_t]`, `delta = r + gamma c V(s') - Q(s, a)`
the mean of delta over the data divided by the gap says by about how much the value would still change: the diagnostic
`bellman_error`, 0 at the fixed point. Of fitted Q-evaluation with target rate r and U moves of the copy about `exp(-gap r U)`
of the initial error is left, `initial_error_left`. `unconverged` is 1 if the first is above 5 % of the scale of values (the
larger of |value| and the deviation of logged returns), or the second above 5 %. Members of an ensemble stop at the same place,
so that their agreement says nothing of this.

References: Le, Voloshin and Yue, "Batch Policy Learning under Constraints", ICML 2019; Uehara, Huang and Jiang, "Minimax
Weight and Q-Function Learning for Off-Policy Evaluation", ICML 2020.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_off.estimators.common import float64, named_options
from jaxrl_off.estimators.trajectory.columns.target_policy import TargetActions
from jaxrl_off.estimators.trajectory.columns.transitions import (
    ActionValues,
    Standardisation,
    Transitions,
    action_values,
    flattened,
    standardisation_of,
    standardised,
    transitions_of,
)
from jaxrl_off.estimators.trajectory.statistics import Settings, settings_of
from jaxrl_off.estimators.trajectory.values.fitting_minimax_q import MinimaxQConfig as MinimaxQConfig
from jaxrl_off.estimators.trajectory.values.fitting_minimax_q import learn_minimax
from jaxrl_off.estimators.trajectory.values.fitting_q import FittedQConfig as FittedQConfig
from jaxrl_off.estimators.trajectory.values.fitting_q import evaluate, learn, rate_for
from jaxrl_off.estimators.trajectory.weights import doubly_robust as corrected
from jaxrl_off.ops.intervals import normal_interval, student_t_interval
from jaxrl_off.types import Array, Estimate, PyTree, Trajectories

QConfig = FittedQConfig | MinimaxQConfig
_SMALLEST_GAP = 1e-9  # below it nothing ends, and there is no fixed point
_TOLERATED = 0.05  # share of the scale of values, and of the initial error, beyond which a fit counts as unconverged


class Scale(NamedTuple):
    """Between what networks see and give, and the units of the data; float64.

    Attributes:
        inputs: of observations and continuous actions.
        value_mean: `[]`, the constant that solves the Bellman equations on average, where networks begin.
        value_deviation: `[]`, deviation of the returns to go that were logged.
    """

    inputs: Standardisation
    value_mean: Array
    value_deviation: Array


class FittedQ(NamedTuple):
    """An action-value function that was fitted; of P policies, values and parameters have a leading axis `[P]`.

    Attributes:
        values: along the trajectories, of all of them, also of those that count 0; the mean over members.
        member_values: `float64[K]`, `mean_i V(s_0)` by each member, with the counts that it has learned from.
        losses: `float32[K, L]`, mean of the loss over stretches of the updates, in units of the squared deviation of
            logged returns. That of fitted Q-evaluation has the noise of rewards and transitions in it, that of minimax Q
            learning, `|g|^2 / 2`, not in the mean; it may be negative.
        parameters: of the networks, `[K, ...]`.
        scale: what they see.
        bellman_error: `float64[]`, about by how much the value would still change; see the module.
        initial_error_left: `float64[]`, share of it that is left by the target rate; 0 of minimax Q learning, which has none.
    """

    values: ActionValues
    member_values: Array
    losses: Array
    parameters: PyTree
    scale: Scale
    bellman_error: Array
    initial_error_left: Array


def fit_network_q(
    trajectories: Trajectories,
    target: TargetActions,
    key: Array,
    config: QConfig | None = None,
    *,
    discount: float = 1.0,
    counts: Any = None,
    horizon_exit: bool = True,
) -> FittedQ:
    """Fit networks to the target's action values.

    Args:
        trajectories: n of them; behaviour log-probabilities are not needed.
        target: of `target_policy.target_actions`; several policies at once have a leading axis `[P]`.
        key: consumed.
        config: a `FittedQConfig` or a `MinimaxQConfig`; None for the former with its defaults.
        discount: gamma in [0, 1].
        counts: `float[n]`, how often each trajectory counts, or None for once. Those that count 0 are not learned from.
        horizon_exit: what the end of a row means; see `transitions`.

    Returns:
        `FittedQ`, whose values `doubly_robust` and its kin take; for cross-fitting
        `trajectory.cross_fitted(lambda counts: fit_network_q(..., counts=counts).values, np.ones(n))`.

    Raises:
        ValueError: for invalid data.

    Example:
        >>> from jaxrl_off.estimators.trajectory.columns.target_policy import target_actions
        >>> yes, no = np.ones((4, 1), bool), np.zeros((4, 1), bool)
        >>> actions, rewards = np.array([[0], [1], [0], [1]]), np.array([[1.0], [3.0], [1.0], [3.0]])
        >>> data = Trajectories(np.zeros((4, 1, 1)), actions, rewards, None, yes, yes, no, None)
        >>> target = target_actions(data, np.full((4, 1, 2), [0.25, 0.75]))
        >>> config = FittedQConfig(sizes=(8,), updates=500, batch_size=4, learning_rate=0.05)
        >>> fit_network_q(data, target, jax.random.key(0), config).values.v[0, 0].round(2).item()
        2.5
    """
    config = config or FittedQConfig()
    fit_key, resample_key = jax.random.split(key)
    with float64(trajectories, target, counts):
        given = transitions_of(trajectories, target, discount=discount, counts=counts, horizon_exit=horizon_exit)
        gap, scale = gap_of(given), _scale_of(given)
        left = jnp.zeros(())
        if isinstance(config, FittedQConfig):
            rate = rate_for(gap, config.moves) if config.target_rate is None else config.target_rate
            left = jnp.exp(-gap * rate * config.moves)
            config = config.replace(target_rate=jnp.asarray(rate, jnp.float32))
        flat = flattened(standardised(given, scale.inputs))
        member_counts = _member_counts(resample_key, given, config)
        reward, discount_ = given.steps.rewards, given.discount * given.continues
        reward = (reward + (discount_ - 1.0) * scale.value_mean) / scale.value_deviation
        weights = member_counts[:, flat.row] * given.used[flat.row, flat.step]
        flat = flat._replace(
            reward=reward[flat.row, flat.step].astype(jnp.float32),
            continues=discount_[flat.row, flat.step].astype(jnp.float32),
            weight=weights.astype(jnp.float32),
        )
    # float32 from here on, whatever the caller's default
    with jax.enable_x64(False):
        learner = learn_minimax if isinstance(config, MinimaxQConfig) else learn
        parameters, losses = learner(flat, config, fit_key, target.weights.ndim > 3)
    with float64(trajectories, target, counts):
        members = _values_along(given, parameters, scale, config)
        starts = members[1][..., 0]
        member_values = jnp.sum(member_counts * starts, axis=-1) / jnp.sum(member_counts, axis=-1)
        q, v = (jnp.mean(x, axis=-3) for x in members)
        error = _bellman_error(given, q, v, gap)
        left = jnp.broadcast_to(left, error.shape)
        return FittedQ(action_values(q, v, trajectories), member_values, losses, parameters, scale, error, left)


def network_values(
    fit: FittedQ, trajectories: Trajectories, target: TargetActions, config: QConfig | None = None
) -> ActionValues:
    """Values of a fit along other trajectories than those it was fitted to.

    Args:
        fit: of `fit_network_q`, with the same number of policies.
        trajectories: m of them; rewards are not looked at.
        target: candidates in their states.
        config: what was fitted with.

    Returns:
        `ActionValues`, the mean over members.

    Raises:
        ValueError: for invalid data.
    """
    with float64(trajectories, target):
        without = trajectories._replace(rewards=np.zeros(jnp.shape(trajectories.rewards)))
        given = transitions_of(without, target)
        found = _values_along(given, fit.parameters, fit.scale, config or FittedQConfig())
        return action_values(*(jnp.mean(x, axis=-3) for x in found), trajectories)


@named_options
def fitted_q_evaluation(
    trajectories: Trajectories,
    target: TargetActions,
    key: Array,
    config: QConfig | None = None,
    *,
    discount: float = 1.0,
    counts: Any = None,
    horizon_exit: bool = True,
    level: float | None = None,
    sides: str = "two",
    interval: str = "student_t",
    resamples: int = 1000,
    seed: int = 0,
    floor: float = 10.0,
) -> Estimate:
    """The value `mean_i V(s_0)` of the target by networks.

    Args: as `fit_network_q`, and
        level: confidence level, such as 0.95; None for no interval.
        sides: "two", "lower" or "upper".
        interval: "student_t", "normal", "bootstrap" or "bca".
        resamples: number of bootstrap resamples.
        seed: of the bootstrap.
        floor: effective number of trajectories below which the diagnostic `below_floor` is 1.

    Returns:
        An `Estimate`; of P policies with a leading axis. Without `config.bootstrap` it is `trajectory.direct_method` on the
        fit: its standard error is that of the initial states alone, and too small, as the fit's is not in it. With
        `bootstrap` the standard error is the deviation of members, each with its own trajectories, and the interval is
        Student's t, or the normal one, with it; ten members or more are needed for that, and `resamples` is not looked at.
        Diagnostics also `member_deviation`; `final_loss`, the last stretch of the curve; and `bellman_error`,
        `initial_error_left` and `unconverged`, which say how far the fit got (see the module); and `fit_in_error`, 1 if the
        standard error includes the fit's, 0 if not.

    Raises:
        ValueError: for invalid data or settings.
    """
    config = config or FittedQConfig()
    checked = settings_of(level, sides, interval, resamples, seed, floor)
    if config.bootstrap and checked.interval not in ("student_t", "normal"):
        raise ValueError(
            f"interval={checked.interval!r} would resample values of one fit; with members of a bootstrap student_t and "
            "normal are allowed."
        )
    shared = dict(discount=discount, counts=counts, horizon_exit=horizon_exit)
    fit = fit_network_q(trajectories, target, key, config, **shared)
    policies = fit.member_values.ndim > 1
    fits = fit._replace(scale=None, parameters=None)  # one of all policies, and not needed
    estimates = []
    for i in range(len(fit.member_values) if policies else 1):
        one = jax.tree.map(lambda x, i=i: x[i], fits) if policies else fits
        v = one.values.v
        found = corrected.direct_method(
            trajectories,
            v,
            counts=counts,
            horizon_exit=horizon_exit,
            level=level,
            sides=sides,
            interval=interval,
            resamples=resamples,
            seed=seed,
            floor=floor,
        )
        with float64(trajectories, target, counts):
            estimates.append(_with_members(found, one, fit.scale, config, checked))
    if not policies:
        return estimates[0]
    with float64(trajectories, target, counts):
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *estimates)


def _with_members(found: Estimate, fit: FittedQ, scale: Scale, config: QConfig, settings: Settings) -> Estimate:
    members = fit.member_values
    size = jnp.maximum(jnp.abs(found.value), scale.value_deviation)
    unconverged = (jnp.abs(fit.bellman_error) > _TOLERATED * size) | (fit.initial_error_left > _TOLERATED)
    told = {
        "member_deviation": jnp.std(members, ddof=1) if config.members > 1 else jnp.zeros(()),
        "final_loss": jnp.mean(fit.losses[:, -1]).astype(jnp.float64),
        "bellman_error": fit.bellman_error,
        "initial_error_left": fit.initial_error_left,
        "unconverged": unconverged.astype(jnp.float64),
        "fit_in_error": jnp.asarray(float(config.bootstrap)),
    }
    found = found._replace(diagnostics=found.diagnostics | told)
    if not config.bootstrap:
        return found
    found = found._replace(standard_error=told["member_deviation"])
    if settings.level is None:
        return found
    # made so that the error of their mean is the deviation of members
    spread = found.value + jnp.sqrt(float(config.members)) * (members - jnp.mean(members))
    method = normal_interval if settings.interval == "normal" else student_t_interval
    lower, upper = method(spread, level=settings.level, sides=settings.sides)
    return found._replace(lower=lower, upper=upper)


def gap_of(given: Transitions) -> Array:
    """`1 - mean(gamma c)` over the steps that count, `float64[]`: 1 - gamma where nothing ends."""
    weights = given.steps.counts[:, None] * given.used
    return 1.0 - given.discount * jnp.sum(weights * given.continues) / jnp.sum(weights)


def _bellman_error(given: Transitions, q: Array, v: Array, gap: Array) -> Array:
    """The mean of `r + gamma c V(s') - Q(s, a)` divided by the gap, `float64[...]`; infinite where the gap is 0."""
    weights = given.steps.counts[:, None] * given.used
    delta = given.steps.rewards + given.discount * given.continues * v[..., 1:] - q
    mean = jnp.sum(weights * delta, axis=(-2, -1)) / jnp.sum(weights)
    return jnp.where(gap > _SMALLEST_GAP, mean / jnp.maximum(gap, _SMALLEST_GAP), jnp.sign(mean) * jnp.inf)


def _scale_of(given: Transitions) -> Scale:
    steps = given.steps

    def step(ahead: Array, now: tuple[Array, Array]) -> tuple[Array, Array]:
        reward, mask = now
        ahead = jnp.where(mask, reward + given.discount * ahead, 0.0)
        return ahead, ahead

    columns = (steps.rewards.T, steps.mask.T)
    _, returns = jax.lax.scan(step, jnp.zeros(len(steps.rewards)), columns, reverse=True)
    weights = steps.counts[:, None] * given.used
    weights = weights / jnp.sum(weights)
    mean = jnp.sum(weights * returns.T)
    deviation = jnp.sqrt(jnp.sum(weights * (returns.T - mean) ** 2))
    varies = deviation > 1e-10 * (1.0 + jnp.abs(mean))
    gap = gap_of(given)
    level = jnp.sum(weights * steps.rewards) / jnp.maximum(gap, _SMALLEST_GAP)
    start = jnp.where(gap > _SMALLEST_GAP, level, mean)
    return Scale(standardisation_of(given), start, jnp.where(varies, deviation, 1.0))


def _member_counts(key: Array, given: Transitions, config: QConfig) -> Array:
    """How often each trajectory counts to each member, `float64[K, n]`."""
    counts = given.steps.counts
    if not config.bootstrap:
        return jnp.broadcast_to(counts, (config.members, len(counts)))
    total = jnp.round(jnp.sum(counts))
    drawn = jax.random.multinomial(key, total, counts / jnp.sum(counts), shape=(config.members, len(counts)))
    return drawn.astype(jnp.float64)


def _values_along(given: Transitions, parameters: PyTree, scale: Scale, config: QConfig) -> tuple[Array, Array]:
    """Q of what was done `float64[..., K, n, T]`, and V of all states `[..., K, n, T + 1]`, 0 where not known."""
    scaled = standardised(given, scale.inputs)
    cast = jax.tree.map(lambda x: x.astype(jnp.float32), (scaled.observations, scaled.target))
    with jax.enable_x64(False):
        found = evaluate(*cast, _float32(scaled.actions), parameters, config)
    known = jnp.any(given.target.weights > 0, axis=-1)[..., None, :, :]
    q, v = (scale.value_mean + scale.value_deviation * x.astype(jnp.float64) for x in found)
    return jnp.where(given.mask, q, 0.0), jnp.where(known, v, 0.0)


def _float32(actions: Array) -> Array:
    return actions if jnp.issubdtype(actions.dtype, jnp.integer) else actions.astype(jnp.float32)
