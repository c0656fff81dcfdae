"""Kernelised values and gradients with known nuisances, on the linear-quadratic family whose truths are known."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_off.estimators import deterministic as det
from jaxrl_off.types import Trajectories

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "kallus_uehara.json").read_text())
FOUR = GOLDEN["four_trajectories"]
NOISE, GAIN, BEHAVIOUR, DEVIATION = 0.03, 1.2, 0.8, 1.0


def policy(gain, observations):
    return gain * observations


def log_normal(x, mean, deviation):
    return -0.5 * ((x - mean) / deviation) ** 2 - jnp.log(deviation) - 0.5 * jnp.log(2 * jnp.pi)


def data_of(states, actions):
    """Rewards -x^2, all of one length."""
    rewards = -(states**2)
    ends = np.broadcast_to(np.arange(states.shape[-1]) == states.shape[-1] - 1, states.shape)
    density = log_normal(actions, BEHAVIOUR * states, DEVIATION)
    none = np.zeros_like(ends)
    return Trajectories(states[..., None], actions[..., None], rewards, density, ~none, none, ends, None)


@pytest.fixture(scope="module")
def four():
    row, step = np.meshgrid(np.arange(4), np.arange(3), indexing="ij")

    def fraction(x):
        return 2.0 * (x - np.floor(x)) - 1.0

    actions = fraction((3 * row + step + 1) * 0.6180339887498949)
    states = np.zeros((4, 3))
    for t in (1, 2):
        states[:, t] = actions[:, t - 1] - states[:, t - 1] + NOISE * fraction((3 * row[:, 0] + t) * 0.4142135623730951)
    return data_of(states, actions)


def constants(gain, horizon, width):
    """P_t and c_t of `v_t(x) = -P_t x^2 - c_t`, t = 0 .. horizon, of the policy smoothed by this width."""
    p, c = [0.0], [0.0]
    for _ in range(horizon):
        c.append(c[-1] + (NOISE**2 + width**2) * p[-1])
        p.append(1.0 + (gain - 1.0) ** 2 * p[-1])
    return jnp.stack([jnp.asarray(x) for x in p[::-1]]), jnp.stack([jnp.asarray(x) for x in c[::-1]])


def oracle(form, width, horizon):
    """q and the marginal ratio as functions of the gain."""
    width = width if form == "soft" else 0.0

    def q(gain, x, a):
        p, c = constants(gain, horizon, width)
        x, a = x[..., 0], a[..., 0]
        return -(x**2) - p[1:] * (a - x) ** 2 - NOISE**2 * p[1:] - c[1:]

    def ratio(gain, x):
        target, behaviour, columns = 0.0, 0.0, []
        for t in range(horizon):
            column = jnp.ones_like(x[:, t, 0])
            if t:
                column = jnp.exp(
                    log_normal(x[:, t, 0], 0.0, jnp.sqrt(target)) - log_normal(x[:, t, 0], 0.0, jnp.sqrt(behaviour))
                )
            columns.append(column)
            target = NOISE**2 + width**2 + (gain - 1.0) ** 2 * target
            behaviour = NOISE**2 + DEVIATION**2 + (BEHAVIOUR - 1.0) ** 2 * behaviour
        return jnp.stack(columns, axis=1)

    return q, ratio


def nuisances_of(data, gain, smoothing, gradient=False):
    q, ratio = oracle(smoothing.form, smoothing.bandwidth, data.rewards.shape[-1])
    return det.given_nuisances(data, policy, gain, smoothing, q=q, ratio=ratio, gradient=gradient)


VALUED = tuple(name for name, method in det.METHODS.items() if method.valued)


@functools.partial(jax.jit, static_argnames=("form", "normalised", "kernel"))
def everything(data, gain, width, form, normalised=False, discount=1.0, kernel="gaussian"):
    """Values, their derivatives by `jax`, and by the recursion, in the order of the golden numbers."""
    smoothing, options = (
        det.Smoothing(width, form=form, kernel=kernel, scale=1.0),
        dict(self_normalised=normalised, discount=discount),
    )

    def values(gain):
        nuisances = nuisances_of(data, gain, smoothing)
        return jnp.stack(
            [det.evaluate(m, data, policy, gain, smoothing, nuisances, **options).value for m in FOUR["methods"]]
        )

    nuisances = nuisances_of(data, gain, smoothing, gradient=True)
    slopes = [det.gradient(m, data, policy, gain, smoothing, nuisances, **options).value for m in FOUR["methods"]]
    return values(gain), jax.jacrev(values)(gain), jnp.stack(slopes)


def test_there_are_golden_numbers_for_every_value():
    assert set(VALUED) == set(FOUR["methods"])


@pytest.mark.parametrize(("form", "width"), [("mixed", 0.3), ("mixed", 0.57), ("soft", 0.3), ("soft", 0.57)])
def test_four_trajectories_have_the_golden_values_and_gradients(four, form, width):
    with jax.enable_x64(True):
        values, derived, slopes = everything(four, jnp.asarray(GAIN), jnp.asarray(width), form)
    np.testing.assert_allclose(values, FOUR["values"][f"{form} {width}"], atol=6e-11)
    np.testing.assert_allclose(slopes, FOUR["gradients"][f"{form} {width}"], atol=6e-8)
    np.testing.assert_allclose(slopes, derived, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("form", "kernel"), [("mixed", "gaussian"), ("soft", "epanechnikov")])
def test_self_normalised_recursions_are_derivatives_too(four, form, kernel):
    with jax.enable_x64(True):
        given = (four, jnp.asarray(GAIN), jnp.asarray(0.57))
        values, derived, slopes = everything(*given, form, True, 0.9, kernel)
    np.testing.assert_allclose(slopes, derived, rtol=1e-10, atol=1e-12)
    assert np.isfinite(values).all()


def test_without_jit_and_in_float32_by_default_it_is_the_same(four):
    smoothing, method = det.Smoothing(0.3, form="soft", scale=1.0), "marginal_doubly_robust"
    nuisances = nuisances_of(four, GAIN, smoothing, gradient=True)
    place = FOUR["methods"].index(method)
    found = det.evaluate(method, four, policy, GAIN, smoothing, nuisances)
    np.testing.assert_allclose(found.value, FOUR["values"]["soft 0.3"][place], atol=6e-11)
    slope = det.gradient(method, four, policy, GAIN, smoothing, nuisances)
    np.testing.assert_allclose(slope.value, FOUR["gradients"]["soft 0.3"][place], atol=6e-8)
    assert found.value.dtype == slope.covariance.dtype == np.float64
    with pytest.raises(ValueError, match="enable_x64"):
        jax.grad(lambda gain: det.evaluate(method, four, policy, gain, smoothing, nuisances).value)(GAIN)


def test_first_trajectory_has_the_golden_columns(four):
    smoothing = det.Smoothing(0.3, form="soft", scale=1.0)
    found, wanted = nuisances_of(four, GAIN, smoothing), FOUR["soft 0.3, first trajectory"]
    for name in ("q", "v", "ratio"):
        np.testing.assert_allclose(getattr(found, name)[0], wanted[name], atol=1e-12)
    actions, states = four.actions[0, :, 0], four.observations[0, :, 0]
    eta = np.exp(log_normal(actions, GAIN * states, 0.3) - log_normal(actions, BEHAVIOUR * states, DEVIATION))
    np.testing.assert_allclose(eta, wanted["eta"], rtol=1e-6)


@functools.partial(jax.jit, static_argnames="form")
def first_values(data, gain, form):
    smoothing = det.Smoothing(GOLDEN["truth"]["bandwidth"], form=form, scale=1.0)
    found = nuisances_of(data, gain, smoothing, gradient=True)
    return found.v[0], found.v_gradient[0, :, 0]


@pytest.mark.parametrize("form", ["mixed", "soft"])
def test_oracle_values_of_the_first_state_are_the_truth(form):
    longest = max(row[1] for row in GOLDEN["truth"]["rows"])
    data = data_of(np.zeros((2, longest)), np.zeros((2, longest)))
    for gain, horizon, *wanted in GOLDEN["truth"]["rows"]:
        with jax.enable_x64(True):
            values, slopes = first_values(data, jnp.asarray(gain), form)
        # with so many steps to go the value is that of this horizon
        found = values[longest - horizon], slopes[longest - horizon]
        np.testing.assert_allclose(found, wanted[:2] if form == "mixed" else wanted[2:], atol=6e-11)


def test_long_products_neither_overflow_nor_vanish():
    """A horizon of 400: weights are products of 400 ratios, and self-normalised ones are shares."""
    rng = np.random.default_rng(0)
    states = rng.normal(size=(6, 400))
    data = data_of(states, BEHAVIOUR * states + rng.normal(size=states.shape))
    smoothing = det.Smoothing(0.01, scale=1.0)
    found = det.evaluate("cumulative_importance_sampling", data, policy, GAIN, smoothing, self_normalised=True)
    assert -(states**2).sum(axis=1).max() * 1.01 < float(found.value) < 0.0
    assert np.isfinite(float(found.standard_error))
    slope = det.gradient("cumulative_importance_sampling", data, policy, GAIN, smoothing, self_normalised=True)
    assert np.isfinite(float(slope.value))
