"""What estimators for finitely many states and actions share: checked columns, counts of pairs, and the counted model.

Trajectories hold `observations int[n, T]`, states counted from 0, `actions int[n, T]`, and `final_observation int[n]`
or None. The target policy is a table `pi_e(a|s)`, `float[S, A]`, which also says how many states and actions there are.

`ends` says what the end of a row means.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_off.estimators.common import is_concrete
from jaxrl_off.estimators.trajectory.columns.ends import ends_of
from jaxrl_off.estimators.trajectory.steps import Steps, quotient, steps_of
from jaxrl_off.types import Array, Trajectories


class TabularSteps(NamedTuple):
    """Checked columns, neutral where there is padding.

    Attributes:
        steps: counts, rewards, ratios (1 where they were not asked for), mask, discounts.
        policy: `float64[S, A]`, pi_e(a|s).
        states: `int32[n, T]`.
        pairs: `int32[n, T]`, `s_t A + a_t`.
        successors: `int32[n, T]`, the state after each step; 0 where there is none.
        used: `float64[n, T]`, 1 where the step is one of the model's.
        continues: `float64[n, T]`, 1 where it is used and not followed by an exit.
        discount: `float64[]`.
    """

    steps: Steps
    policy: Array
    states: Array
    pairs: Array
    successors: Array
    used: Array
    continues: Array
    discount: Array


Method = Callable[[TabularSteps, Array], tuple[Array, Array, dict[str, Array]]]


def tabular_steps_of(
    trajectories: Trajectories,
    target_policy: Any,
    *,
    discount: float = 1.0,
    counts: Any = None,
    horizon_exit: bool = True,
) -> TabularSteps:
    """Check trajectories of finite states and actions. To be called within `float64`.

    Args:
        trajectories: n of them.
        target_policy: `float[S, A]`, pi_e(a|s).
        discount: gamma, in [0, 1].
        counts: `float[n]`, or None for once each.
        horizon_exit: what the end of a row means; see `ends`.

    Raises:
        ValueError: for what `steps.steps_of` refuses; a policy whose rows are no distributions; states or actions that
            are missing, no integers, or not in the policy's table; and rows that go on after a step that ended them.
    """
    policy = policy_of("target_policy", target_policy)
    steps = steps_of(trajectories, None, discount=discount, counts=counts, horizon_exit=horizon_exit)
    concrete = is_concrete(trajectories, counts, steps)
    library = np if concrete else jnp
    mask = library.asarray(steps.mask)
    states = _index("observations", trajectories.observations, mask, policy.shape[0], "states")
    actions = _index("actions", trajectories.actions, mask, policy.shape[1], "actions")
    ends = ends_of(trajectories, mask, mask, horizon_exit=horizon_exit)
    successors = library.concatenate([states[:, 1:], library.zeros_like(states[:, :1])], axis=1)
    if not horizon_exit and trajectories.final_observation is not None:
        unended = (ends.continues & ~ends.goes_on).any(axis=1)
        final = _index("final_observation", trajectories.final_observation, unended, policy.shape[0], "states")
        successors = library.where(ends.goes_on, successors, final[:, None])
    return TabularSteps(
        steps,
        jnp.asarray(policy),
        jnp.asarray(states),
        jnp.asarray(states * policy.shape[1] + actions),
        jnp.asarray(library.where(ends.continues, successors, 0)),
        jnp.asarray(ends.usable, jnp.float64),
        jnp.asarray(ends.continues, jnp.float64),
        jnp.asarray(discount, jnp.float64),
    )


def with_ratios(
    columns: TabularSteps,
    trajectories: Trajectories,
    *,
    behaviour_policy: Array | None = None,
    target_log_prob: Any = None,
) -> TabularSteps:
    """The columns with importance ratios, of tables, or where these are None of what was logged and of the policy.

    Raises:
        ValueError: if behaviour probabilities are missing, or 0 for what was logged.
    """
    if behaviour_policy is not None:
        trajectories = trajectories._replace(behaviour_log_prob=_log_prob(behaviour_policy, columns))
    if target_log_prob is None:
        target_log_prob = _log_prob(columns.policy, columns)
    settings = dict(discount=columns.discount, counts=columns.steps.counts)
    steps = steps_of(trajectories, target_log_prob, **settings)
    return columns._replace(steps=steps._replace(horizon_exit=columns.steps.horizon_exit))


def _log_prob(policy: Array, columns: TabularSteps) -> Array:
    chosen = jnp.asarray(policy).reshape(-1)[columns.pairs]
    return jnp.where(chosen > 0, jnp.log(jnp.where(chosen > 0, chosen, 1.0)), -jnp.inf)


def summed(values: Array, index: Array, segments: int) -> Array:
    """Sums `[segments]` of values by their index, both of one shape."""
    return jax.ops.segment_sum(values.reshape(-1), index.reshape(-1), num_segments=segments)


def initial(columns: TabularSteps, counts: Array) -> Array:
    """eta, the share of trajectories that begin in each state, `float64[S]`."""
    return summed(counts, columns.states[:, 0], len(columns.policy)) / jnp.sum(counts)


def visits_of(columns: TabularSteps, counts: Array) -> Array:
    """N(s, a), `float64[S, A]`."""
    policy = columns.policy
    return summed(counts[:, None] * columns.used, columns.pairs, policy.size).reshape(policy.shape)


def system_of(columns: TabularSteps, counts: Array, policy: Array) -> tuple[Array, Array]:
    """The counted model under a policy.

    Returns:
        `(I - gamma P_pi, weights)`: `float64[S, S]` with `P_pi(s, s') = sum_a pi(a|s) N(s, a, s') / N(s, a)`, in which
        exits and unseen pairs are missing; and `float64[n, T]`, `pi(a_t|s_t) / N(s_t, a_t)`.
    """
    size = len(policy)
    weights = columns.used * quotient(policy, visits_of(columns, counts)).reshape(-1)[columns.pairs]
    flow = counts[:, None] * weights * columns.continues
    place = columns.states.astype(jnp.int64) * size + columns.successors
    transition = summed(flow, place, size * size).reshape(size, size)
    return jnp.eye(size) - columns.discount * transition, weights


def occupancy(columns: TabularSteps, counts: Array) -> tuple[Array, Array]:
    """The target's discounted visits in the counted model, which ends on unseen pairs.

    Returns:
        `(d, unsupported)`: `float64[S]`, `d = (I - gamma P_pi^T)^-1 eta`, not normalised; and the share of
        `d(s) pi_e(a|s)` that is on unseen pairs.
    """
    system, _ = system_of(columns, counts, columns.policy)
    visits = jnp.linalg.solve(system.T, initial(columns, counts))
    unseen = jnp.sum(jnp.where(visits_of(columns, counts) > 0, 0.0, columns.policy), axis=1)
    return visits, jnp.sum(visits * unseen) / jnp.sum(visits)


def policy_of(name: str, given: Any) -> Array:
    """A checked table of probabilities, `float64[S, A]`.

    Raises:
        ValueError: if it is none.
    """
    concrete = is_concrete(given)
    policy = (np if concrete else jnp).asarray(given, np.float64)
    if policy.ndim != 2 or 0 in policy.shape:
        raise ValueError(f"{name} must be a table [S, A] of probabilities, got shape {policy.shape}.")
    if concrete:
        wrong = ~((policy >= 0).all(axis=1) & (np.abs(policy.sum(axis=1) - 1.0) < 1e-6))
        if wrong.any():
            row = int(np.argmax(wrong))
            raise ValueError(
                f"{name} must have a distribution in every row; state {row} has {policy[row]}; "
                f"{int(wrong.sum())} rows in all are wrong. States in which nobody acts need some distribution, too."
            )
    return policy


def _index(name: str, given: Any, shown: Array, bound: int, kind: str) -> Array:
    """Integers in [0, bound), 0 where they are not shown."""
    if given is None:
        raise ValueError(f"the trajectories have no {name}; tabular estimators need integers for {kind}.")
    concrete = is_concrete(given, shown)
    library = np if concrete else jnp
    column = library.asarray(given)
    if column.shape != shown.shape:
        raise ValueError(
            f"{name} has shape {column.shape}, and must have {shown.shape}: {kind} are integers. Number others."
        )
    if concrete:
        wrong = shown & ~((column >= 0) & (column < bound) & (column == np.floor(column)))
        if wrong.any():
            place = tuple(int(x) for x in np.argwhere(wrong)[0])
            raise ValueError(
                f"{name} must be integers from 0 to {bound - 1}, as the policy has {bound} {kind}; at {place} there is "
                f"{column[place]}. Renumber them from 0, or give a policy with a row and a column for all of them."
            )
    return library.where(shown, column, 0).astype(np.int32)
