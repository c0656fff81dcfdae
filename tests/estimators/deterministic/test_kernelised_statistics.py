"""What holds over many data sets: bias, order of deviations, double robustness, coverage. Repetitions are vmapped."""

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
NOISE, GAIN, BEHAVIOUR, DEVIATION, HORIZON = 0.03, 1.2, 0.8, 1.0, 5
RUNS, ROWS = 100, 1000
METHODS = (
    "marginal_doubly_robust",
    "cumulative_doubly_robust",
    "marginal_importance_sampling",
    "cumulative_importance_sampling",
)
GRADIENTS = (*METHODS[:2], "marginal_policy_gradient", "cumulative_policy_gradient")
TRUTH = {(row[0], row[1]): row[2:] for row in GOLDEN["truth"]["rows"]}


def policy(gain, observations):
    return gain * observations


def log_normal(x, mean, deviation):
    return -0.5 * ((x - mean) / deviation) ** 2 - jnp.log(deviation) - 0.5 * jnp.log(2 * jnp.pi)


def simulated(key):
    """Trajectories of the linear-quadratic family."""
    noise = jax.random.normal(key, (2, HORIZON, ROWS), jnp.float64)
    states, actions = [jnp.zeros(ROWS)], []
    for t in range(HORIZON):
        actions.append(BEHAVIOUR * states[t] + DEVIATION * noise[0, t])
        states.append(actions[t] - states[t] + NOISE * noise[1, t])
    x, a = jnp.stack(states[:-1], axis=1), jnp.stack(actions, axis=1)
    ends = jnp.ones(x.shape, bool)
    density = log_normal(a, BEHAVIOUR * x, DEVIATION)
    return Trajectories(x[..., None], a[..., None], -(x**2), density, ends, ~ends, ~ends, None)


def oracle(width):
    """q and the marginal ratio of the policy smoothed by this width."""

    def q(gain, x, a):
        p, c, columns = 0.0, 0.0, []
        for t in reversed(range(HORIZON)):
            state, action = x[:, t, 0], a[:, t, 0]
            columns.append(-(state**2) - p * (action - state) ** 2 - NOISE**2 * p - c)
            c, p = c + (NOISE**2 + width**2) * p, 1.0 + (gain - 1.0) ** 2 * p
        return jnp.stack(columns[::-1], axis=1)

    def ratio(gain, x):
        target, behaviour, columns = 0.0, 0.0, []
        for t in range(HORIZON):
            state = x[:, t, 0]
            laws = [log_normal(state, 0.0, jnp.sqrt(v)) for v in (target, behaviour)] if t else [0.0 * state] * 2
            columns.append(jnp.exp(laws[0] - laws[1]))
            target = NOISE**2 + width**2 + (gain - 1.0) ** 2 * target
            behaviour = NOISE**2 + DEVIATION**2 + (BEHAVIOUR - 1.0) ** 2 * behaviour
        return jnp.stack(columns, axis=1)

    return dict(q=q, ratio=ratio)


@functools.partial(jax.jit, static_argnames=("form", "spoilt"))
def repeated(width, form, spoilt=None):
    """Values and gradients `[runs, methods]`; one of the nuisances may be wrong by far."""

    def once(key):
        data, smoothing = simulated(key), det.Smoothing(width, form=form, scale=1.0)
        known = oracle(width if form == "soft" else 0.0)
        if spoilt == "q":
            known["q"] = lambda gain, x, a, q=known["q"]: q(gain, x, a) + 1.0 + gain * x[..., 0] + a[..., 0] ** 2
        if spoilt == "ratio":
            known["ratio"] = lambda gain, x: 0.5 + gain * jnp.square(x[..., 0])
        nuisances = det.given_nuisances(data, policy, jnp.asarray(GAIN), smoothing, gradient=True, **known)
        given = (data, policy, jnp.asarray(GAIN), smoothing, nuisances)
        values = jnp.stack([det.evaluate(method, *given).value for method in METHODS])
        return values, jnp.stack([det.gradient(method, *given).value for method in GRADIENTS])

    return jax.vmap(once)(jax.random.split(jax.random.key(0), RUNS))


def moments(form, width, spoilt=None):
    with jax.enable_x64(True):
        found = [np.asarray(x) for x in repeated(jnp.asarray(width), form, spoilt)]
    return [(x.mean(0), x.std(0, ddof=1), x.std(0, ddof=1) / RUNS**0.5) for x in found]


@pytest.mark.parametrize("width", [0.2, 0.4])
def test_soft_estimates_are_unbiased_for_the_smoothed_policy_and_in_order(width):
    (mean, deviation, error), (slope, slope_deviation, slope_error) = moments("soft", width)
    truth, _, smoothed, smoothed_slope = TRUTH[GAIN, HORIZON]
    # both are proportional to the variance that smoothing adds
    factor = (NOISE**2 + width**2) / (NOISE**2 + 0.2**2)
    np.testing.assert_array_less(np.abs(mean - factor * smoothed), 4.0 * error)
    np.testing.assert_array_less(np.abs(slope - factor * smoothed_slope), 4.0 * slope_error)
    assert (np.diff(deviation) > 0).all(), deviation
    # deviations of one run of 5000: the first by a NumPy loop over a million rows, the others of 40 runs, with long tails
    wanted = {0.2: [0.00083, 0.0026, 0.0033], 0.4: [0.00092, 0.0013, 0.0068]}[width]
    np.testing.assert_allclose(deviation[:3] / 5**0.5, wanted, rtol=0.35)
    if width == 0.2:
        np.testing.assert_allclose(slope_deviation[:2] / 5**0.5, [0.0010, 0.0025], rtol=0.35)


@pytest.mark.parametrize("width", [0.1, 0.2, 0.4])
def test_with_exact_action_values_no_bandwidth_is_biased(width):
    (mean, _, error), (slope, _, slope_error) = moments("mixed", width)
    value, wanted = TRUTH[GAIN, HORIZON][:2]
    np.testing.assert_array_less(np.abs(mean - value)[:2], 4.0 * error[:2])
    np.testing.assert_array_less(np.abs(slope - wanted)[:2], 4.0 * slope_error[:2])
    # its reward looks at the state alone, whose exact ratio there is
    assert abs(mean[2] - value) < 4.0 * error[2]


@pytest.mark.parametrize("spoilt", ["q", "ratio"])
def test_either_nuisance_may_be_wrong(spoilt):
    (mean, _, error), (slope, _, slope_error) = moments("soft", 0.2, spoilt)
    _, _, value, wanted = TRUTH[GAIN, HORIZON]
    np.testing.assert_array_less(np.abs(mean - value)[:2], 4.0 * error[:2])
    np.testing.assert_array_less(np.abs(slope - wanted)[:2], 4.0 * slope_error[:2])
    assert error[0] < 0.02
    if spoilt == "ratio":  # which alone is as wrong as it is
        assert abs(mean[2] - value) > 10.0 * error[2]


# bandits


@functools.partial(jax.jit, static_argnames=("kernel", "rows", "runs"))
def bandits(width, kernel, rows, runs):
    """Value, lower and upper bounds `[runs, 3]` of importance sampling, self-normalised and doubly robust."""

    def q(_, x, a):
        return -((a - x)[..., 0] ** 2)

    def once(key):
        noise = jax.random.normal(key, (3, rows, 1), jnp.float64)
        x, a = noise[0], 0.5 * noise[0] + noise[1]
        ends = jnp.ones((rows, 1), bool)
        rewards = -((a - x) ** 2) + 0.5 * noise[2]
        data = Trajectories(x[..., None], a[..., None], rewards, log_normal(a, 0.5 * x, 1.0), ends, ends, ~ends, None)
        smoothing, gain = det.Smoothing(width, kernel=kernel, scale=1.0), jnp.asarray(1.0)
        nuisances = det.given_nuisances(data, policy, gain, smoothing, q=q)
        found = [
            det.evaluate(method, data, policy, gain, smoothing, nuisances, level=0.95, self_normalised=normalised)
            for method, normalised in (
                ("cumulative_importance_sampling", False),
                ("cumulative_importance_sampling", True),
                ("cumulative_doubly_robust", False),
            )
        ]
        return jnp.array([[x.value, x.lower, x.upper] for x in found])

    return jax.vmap(once)(jax.random.split(jax.random.key(1), runs))


@pytest.mark.parametrize(("kernel", "rows", "runs"), [("gaussian", 2000, 400), ("epanechnikov", 8000, 100)])
def test_bandits_have_the_known_bias_deviation_and_coverage(kernel, rows, runs):
    width = rows**-0.2
    with jax.enable_x64(True):
        found = np.asarray(bandits(jnp.asarray(width), kernel, rows, runs))
    values = found[..., 0]
    mean, deviation = values.mean(0), values.std(0, ddof=1)
    error = deviation / runs**0.5
    moment, roughness = {"gaussian": (1.0, 0.28209479), "epanechnikov": (0.2, 0.6)}[kernel]
    np.testing.assert_array_less(np.abs(mean[0] + moment * width**2), 4.0 * error[0])
    np.testing.assert_array_less(np.abs(mean[2]), 4.0 * error[2])
    assert abs(mean[1] - mean[0]) < 0.005
    golden = {name: x for k, n, name, _, x in GOLDEN["bandit"]["rows"] if (k, n) == (kernel, rows)}
    allowed = 4.0 / (2 * runs) ** 0.5
    for place, name in ((0, "importance"), (1, "self-normalised"), (2, "doubly robust")):
        if name in golden:
            np.testing.assert_allclose(deviation[place], golden[name], rtol=allowed)
    theory = np.sqrt(roughness * 0.25 * 2.8945 / (rows * width))
    np.testing.assert_allclose(deviation[2], theory, rtol=allowed)
    covered = ((found[:, 2, 1] < 0.0) & (found[:, 2, 2] > 0.0)).mean()
    assert abs(covered - 0.95) < 4.0 * (0.05 * 0.95 / runs) ** 0.5
