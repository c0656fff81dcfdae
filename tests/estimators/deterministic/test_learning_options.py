"""What `learn` is asked for reaches the fits and the estimates: its first gradients are those of the parts."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.deterministic.process import Process, log_density, policy, simulate
from jaxrl_off.estimators import deterministic as det

PROCESS = Process(3, 1.2, noise=0.1)
SOFT = det.Smoothing(0.4, form="soft", scale=1.0)


@pytest.fixture(scope="module")
def data():
    with jax.enable_x64(True):
        return jax.device_get(simulate(jax.random.key(3), 150, PROCESS))


def density(observations, actions):
    return log_density(PROCESS, observations, actions)


@pytest.mark.parametrize(
    "objective", ["marginal_doubly_robust", "cumulative_importance_sampling", "deterministic_policy_gradient"]
)
def test_the_first_gradient_is_that_of_the_estimate_with_the_same_settings(data, objective):
    counts = np.random.default_rng(2).integers(0, 3, len(data.rewards)).astype(float)
    shared = dict(discount=0.8, counts=counts)
    fitting, at_target = dict(folds=3, seed=5, **shared), dict(behaviour_at_target=density)
    model = det.LinearSieve(degree=3, ratio="polynomial", ratio_degree=2)
    plug_in = objective == "deterministic_policy_gradient"
    given = data, policy, 1.2, det.Smoothing(0.4, form="point", scale=1.0)
    options = dict(model=model, largest_ratio=1.5, **at_target, **fitting)
    learned = det.learn(*given, objective=objective, steps=1, self_normalised=not plug_in, **options)
    fit = det.fit_nuisances(*given, gradient=True, **options)
    judging = dict(self_normalised=True, **at_target, **shared)
    if plug_in:
        slope = det.fit_action_gradient(*given, model, **fitting)
        wanted = det.deterministic_policy_gradient(data, policy, 1.2, slope, fit, **shared).value
        value = det.evaluate("direct_method", *given, fit, **judging).value
    else:
        wanted = det.gradient(objective, *given, fit, **judging).value
        found = det.evaluate(objective, *given, fit, **judging)
        value, share = found.value, counts @ np.asarray(fit.clipped).mean(axis=1) / counts.sum()
        np.testing.assert_allclose(found.diagnostics["clipped_share"], share)
    # what is above the largest ratio is all the same, in each fold and step
    largest = np.asarray(fit.ratio)[(np.asarray(fit.clipped) > 0) & (np.asarray(fit.ratio) > 0)]
    assert 0 < len(np.unique(largest.round(9))) <= 3 * 2 < len(largest)
    np.testing.assert_allclose(learned.gradient_norm[0], abs(wanted), rtol=1e-7)
    np.testing.assert_allclose(learned.objective[0], value, rtol=1e-9)
    np.testing.assert_allclose(learned.parameters, 1.2 + 0.01 * np.sign(wanted), rtol=1e-6)


def test_rates_fall_to_zero_linearly_and_between_fits_slopes_are_kept(data):
    """A linear policy has one gradient then, along which Adam takes whole steps."""
    options = dict(objective="deterministic_policy_gradient", steps=4, refit=4, learning_rate=0.02)
    found = det.learn(data, policy, 1.2, SOFT, **options)
    np.testing.assert_allclose(found.gradient_norm, found.gradient_norm[0])
    np.testing.assert_allclose(np.diff([*found.path, found.parameters]), [-0.02, -0.015, -0.01, -0.005], rtol=1e-6)


def test_steps_without_a_finite_gradient_are_not_taken(data):
    def rooted(gain, observations):
        return jnp.sqrt(gain) * observations

    found = det.learn(data, rooted, 0.0, SOFT, objective="direct_method", steps=2)
    assert not np.isfinite(found.gradient_norm).any()
    assert found.parameters == 0.0


def test_networks_have_the_gradient_of_their_fitted_derivatives(data):
    model = det.NetworkRegression(sizes=(8,), updates=20, batch_size=32)
    given = data, policy, 1.2, SOFT
    learned = det.learn(*given, steps=1, model=model, largest_ratio=5.0)
    fit = det.fit_nuisances(*given, model, largest_ratio=5.0, gradient=True)
    wanted = det.gradient("marginal_doubly_robust", *given, fit).value
    np.testing.assert_allclose(learned.gradient_norm[0], abs(wanted), rtol=1e-4)


def test_what_cannot_be_meant_is_refused(data):
    with pytest.raises(ValueError, match="as a function"):
        det.learn(
            data, policy, 1.2, det.Smoothing(0.4, form="point", scale=1.0), behaviour_at_target=data.behaviour_log_prob
        )
    with pytest.raises(ValueError, match="learning_rate must be positive"):
        det.learn(data, policy, 1.2, SOFT, learning_rate=0.0)
    with pytest.raises(ValueError, match="uniform kernel has no gradient"):
        det.learn(
            data,
            policy,
            1.2,
            det.Smoothing(0.4, kernel="uniform", scale=1.0),
            objective="cumulative_importance_sampling",
        )
    nuisances = det.Nuisances(ratio=np.full(data.rewards.shape, -1.0))
    with pytest.raises(ValueError, match="not negative"):
        det.deterministic_policy_gradient(data, policy, 1.2, data.actions, nuisances)
