"""The data that flows between environments, agents, loops and estimators.

Every container is a `NamedTuple` and therefore a pytree. Shapes are written for one environment lane; a leading axis
`[N]` (lanes), `[T]` (time) or `[B]` (batch) is added by whoever stacks them and is named where that happens.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

Array = jax.Array
PyTree = Any
Column = Any  # an array of NumPy or of JAX: logs are NumPy on the host, and JAX within transformations


class EpisodeStatistics(NamedTuple):
    """What a whole episode (for Atari: a whole game, not one life) was worth, reported on the step that ends it.

    Attributes:
        done: `bool[]`, whether an episode ended on this step. The other fields mean something only where this is True.
        episode_return: `float32[]`, undiscounted sum of the *unclipped* rewards of the episode that ended.
        length: `int32[]`, number of decisions of the episode that ended.
    """

    done: Array
    episode_return: Array
    length: Array


class Timestep(NamedTuple):
    """What an environment answers to `reset` and `step`.

    `reward`, `terminated`, `truncated`, `final_observation`, `valid` and `episode` describe the transition that has just
    been made; `observation` and `first` describe where the agent stands now, after any automatic reset.

    Attributes:
        observation: the observation to act on next. After the end of an episode it belongs to the next episode.
        reward: `float32[]`, the reward the learner sees (clipped if the environment clips).
        terminated: `bool[]`, the trace ended and the value of what follows is zero (a life lost counts, where configured).
        truncated: `bool[]`, the trace was cut; bootstrap from `final_observation`. False where `terminated`.
        final_observation: the successor observation of the transition, before any automatic reset.
        first: `bool[]`, whether `observation` starts a new trace, so that recurrent state is to be reset before it.
        valid: `bool[]`, False for the fake transition an ALE reset makes; such a transition must carry no weight.
        episode: statistics of the episode that ended here, if one did.
    """

    observation: PyTree
    reward: Array
    terminated: Array
    truncated: Array
    final_observation: PyTree
    first: Array
    valid: Array
    episode: EpisodeStatistics


class Rollout(NamedTuple):
    """A contiguous piece of behaviour, the unit that a replay stores and an on-policy learner samples.

    Fields up to `advantage` have a leading time axis `[T]`; the rest describe the whole piece. "Behaviour" quantities
    were computed in float32 when the action was taken and are never recomputed.

    Attributes:
        observation: `[T, ...]`, what was acted on.
        action: `int32[T]` or `float32[T, A]`.
        reward: `float32[T]`.
        terminated: `bool[T]`.
        truncated: `bool[T]`.
        valid: `bool[T]`, False where the transition is fake and carries no weight.
        first: `bool[T]`, whether recurrent state is reset before this step.
        behaviour_log_prob: `float32[T]`, log pi_t(a|s) of the policy that acted.
        behaviour_value: `float32[T]`, V_t(s).
        final_value: `float32[T]`, V_t(final_observation) where `truncated`, else 0.
        behaviour_parameters: distribution parameters of pi_t(.|s), `[T, ...]`, or `()` where no loss needs them.
        advantage: `float32[T]`, generalised advantage estimate under V_t.
        lambda_return: `float32[T]`, TD(lambda) return under V_t.
        tail_value: `float32[]`, lambda * q + (1 - lambda) * V_t of the state that follows the last step; what the last
            step bootstraps from (papers' TD(lambda) tail). 0 where that step ended the trace.
        core_state: recurrent state before the first step, or `()`.
        policy_version: `int32[]`, number of learner updates behind the policy that acted.
    """

    observation: PyTree
    action: Array
    reward: Array
    terminated: Array
    truncated: Array
    valid: Array
    first: Array
    behaviour_log_prob: Array
    behaviour_value: Array
    final_value: Array
    behaviour_parameters: PyTree
    advantage: Array
    lambda_return: Array
    tail_value: Array
    core_state: PyTree
    policy_version: Array


class Transition(NamedTuple):
    """One decision and what came of it, the unit that a replay of an off-policy learner stores.

    Attributes:
        observation: `[...]`, s.
        action: `float32[D]`, in the canonical box [-1, 1]^D.
        reward: `float32[]`.
        terminated: `bool[]`, whether the value of what follows is zero. A truncated transition is False here.
        next_observation: `[...]`, s', before any automatic reset.
        reference: pi_0(.|s), a distribution without batch axes, or `()` where no reference policy is used.
        next_reference: pi_0(.|s').
    """

    observation: PyTree
    action: Array
    reward: Array
    terminated: Array
    next_observation: PyTree
    reference: PyTree
    next_reference: PyTree


class BanditLog(NamedTuple):
    """Logged decisions of one step each: what was seen, what was done, how likely that was, and what came of it.

    Fields are NumPy or JAX arrays of `n` rows; what is not known is None.

    Attributes:
        context: `float[n, d]`, x; `d` may be 0.
        action: `int32[n]`, a, counted from 0.
        reward: `float[n]`, r; NaN where it is censored (known not to have been observed).
        propensity: `float[n]`, h(a|x) in (0, 1], probability under the policy that acted.
        target_propensity: `float[n]`, pi(a|x) of the policy to be judged.
        num_actions: K; None only before `data.bandit_logs.check` has counted actions.
        columns: further columns by name, for slices; these may hold text.
    """

    context: Column
    action: Column
    reward: Column
    propensity: Column
    target_propensity: Column | None
    num_actions: int | None
    columns: dict[str, Any]


class Trajectories(NamedTuple):
    """Logged decisions of whole trajectories, padded to one length T; NumPy or JAX arrays of n rows.

    What stands in the padding is arbitrary. What is not known is None.

    Attributes:
        observations: `[n, T, ...]`, s_t; None where no estimator looks at it.
        actions: `int32[n, T]` or `float[n, T, A]`, a_t; None likewise.
        rewards: `float[n, T]`, r_t.
        behaviour_log_prob: `float[n, T]`, log pi_b(a_t|s_t); None where it is not known.
        mask: `bool[n, T]`, which steps were made: the first ones of each row.
        terminated: `bool[n, T]`, after which step the value of what follows is zero.
        truncated: `bool[n, T]`, after which step the trajectory was cut. Both False: it goes on, or the horizon ended it.
        final_observation: `[n, ...]`, what followed the last step, or None.
        behaviour_estimated: `bool[n]`, whose behaviour_log_prob was not logged but estimated, or None where all were logged;
            estimators that use it say so in their diagnostics.
    """

    observations: PyTree | None
    actions: Column | None
    rewards: Column
    behaviour_log_prob: Column | None
    mask: Column
    terminated: Column
    truncated: Column
    final_observation: PyTree | None
    behaviour_estimated: Column | None = None


class Estimate(NamedTuple):
    """What an estimator says of a policy's value; float64 scalars, with a leading axis under `vmap`.

    Attributes:
        value: the estimate.
        standard_error: of it, by the estimator's own linearisation.
        lower: bound, or None where no level was asked.
        upper: bound, or None.
        effective_sample_size: Kish's `(sum w)^2 / sum w^2`, in rows.
        diagnostics: further numbers by name; each estimator says which.
    """

    value: Array
    standard_error: Array
    lower: Array | None
    upper: Array | None
    effective_sample_size: Array
    diagnostics: dict[str, Array]
