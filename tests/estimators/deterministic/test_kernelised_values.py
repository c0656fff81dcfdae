"""Kernelised values and gradients with known nuisances, on the linear-quadratic family whose truths are known."""

from __future__ import annotations

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


CASES = [("mixed", 0.3), ("mixed", 0.57), ("soft", 0.3), ("soft", 0.57)]


@pytest.mark.parametrize(("form", "width"), CASES)
def test_four_trajectories_have_the_golden_values_and_gradients(four, form, width):
    smoothing = det.Smoothing(width, form=form)
    nuisances = nuisances_of(four, GAIN, smoothing, gradient=True)
    for place, method in enumerate(FOUR["methods"]):
        value = det.evaluate(method, four, policy, GAIN, smoothing, nuisances).value
        np.testing.assert_allclose(value, FOUR["values"][f"{form} {width}"][place], atol=6e-11)
        slope = det.gradient(method, four, policy, GAIN, smoothing, nuisances).value
        np.testing.assert_allclose(slope, FOUR["gradients"][f"{form} {width}"][place], atol=6e-8)


def test_first_trajectory_has_the_golden_columns(four):
    smoothing = det.Smoothing(0.3, form="soft")
    found, wanted = nuisances_of(four, GAIN, smoothing), FOUR["soft 0.3, first trajectory"]
    for name in ("q", "v", "ratio"):
        np.testing.assert_allclose(getattr(found, name)[0], wanted[name], atol=1e-12)


VALUED = [name for name, method in det.METHODS.items() if method.valued]


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("form", ["mixed", "soft"])
def test_the_recursion_is_the_derivative_of_the_value(four, form, normalised):
    smoothing = det.Smoothing(0.57, form=form)
    options = dict(self_normalised=normalised, discount=0.9)
    explicit = nuisances_of(four, GAIN, smoothing, gradient=True)
    for method in VALUED:
        found = det.gradient(method, four, policy, GAIN, smoothing, explicit, **options).value
        with jax.enable_x64(True):

            def value(gain, method=method):
                return det.evaluate(
                    method, four, policy, gain, smoothing, nuisances_of(four, gain, smoothing), **options
                ).value

            wanted = jax.grad(value)(jnp.asarray(GAIN))
        np.testing.assert_allclose(found, wanted, rtol=1e-10, atol=1e-12)
