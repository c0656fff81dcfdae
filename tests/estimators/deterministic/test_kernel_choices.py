"""Smoothing of several and of bounded actions, the metric, bandwidths, and estimated behaviour densities."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_off.estimators import deterministic as det
from jaxrl_off.estimators.deterministic.smoothing import action_nodes, checked, log_kernel
from jaxrl_off.ops.kernels import SMOOTHING_KERNELS
from jaxrl_off.types import Estimate, Trajectories


def grid(low, high, size, points=201):
    """Middles of cells and their volume."""
    edges = np.linspace(low, high, points)
    middle = 0.5 * (edges[1:] + edges[:-1])
    axes = np.meshgrid(*[middle] * size, indexing="ij")
    return np.stack(axes, axis=-1).reshape(-1, size), (edges[1] - edges[0]) ** size


TURN = np.array([[1.2, 0.5], [0.1, (1 + 0.05) / 1.2]])  # of determinant 1, and not symmetric


@pytest.mark.parametrize("kernel", SMOOTHING_KERNELS)
@pytest.mark.parametrize("case", ["free", "bounded", "metric"])
def test_kernels_of_two_actions_are_densities_whose_means_the_nodes_have(kernel, case):
    target, extra = np.array([0.2, -0.6]), {}
    if case == "bounded":
        extra = dict(lower=np.array([-1.0, -0.7]), upper=np.array([0.5, 1.0]))
    if case == "metric":
        extra = dict(metric=TURN[None, None])
    with jax.enable_x64(True):
        smoothing = checked(det.Smoothing(0.3, form="soft", kernel=kernel, scale=np.array([1.0, 1.5]), **extra), 2)
        actions, volume = grid(-4.0, 4.0, 2, 801)
        mass = np.exp(np.asarray(log_kernel(smoothing, jnp.asarray(actions)[None], jnp.asarray(target)))).ravel()
        nodes, weights = (np.asarray(x)[0, 0] for x in action_nodes(smoothing, jnp.asarray(target)[None, None]))
    if case == "bounded":
        mass = np.where(((actions >= extra["lower"]) & (actions <= extra["upper"])).all(axis=-1), mass, 0.0)
    mass *= volume
    rough = 0.02 if kernel == "uniform" or case == "bounded" else 1e-3  # jumps between cells
    np.testing.assert_allclose(mass.sum(), 1.0, atol=rough)
    np.testing.assert_allclose(weights.sum(), 1.0, atol=1e-12)

    def q(a):
        return 1.0 - (a[:, 0] - 1.0) ** 2 + a[:, 0] * a[:, 1] + 2.0 * a[:, 1] ** 3

    np.testing.assert_allclose(weights @ q(nodes), mass @ q(actions) / mass.sum(), atol=rough)


@pytest.mark.parametrize("kernel", [name for name in SMOOTHING_KERNELS if name != "uniform"])
@pytest.mark.parametrize("target", [-1.0, -0.9, 0.0, 1.0])
def test_scores_know_of_the_mass_within_bounds(kernel, target):
    """Also at a bound itself, where a policy that is clipped often is; from inside."""
    with jax.enable_x64(True):
        smoothing = checked(det.Smoothing(0.4, kernel=kernel, lower=-1.0, upper=1.0, scale=1.0), 1)
        action = jnp.array([target - 0.1 if target > 0 else target + 0.1])

        def log_density(target):
            return log_kernel(smoothing, action, target[None])

        step = -1e-6 if target > 0 else 1e-6
        wanted = (log_density(jnp.asarray(target + step)) - log_density(jnp.asarray(target))) / step
        np.testing.assert_allclose(jax.grad(log_density)(jnp.asarray(target)), wanted, atol=1e-4)


def test_bounded_soft_values_of_smooth_functions_are_exact_to_many_digits():
    """Of a normal cut at one side, whose moments are known."""
    with jax.enable_x64(True):
        smoothing = checked(det.Smoothing(1.0, form="soft", lower=-0.5, upper=np.inf, scale=1.0), 1)
        nodes, weights = (np.asarray(x)[0] for x in action_nodes(smoothing, jnp.zeros((1, 1))))
        density = np.exp(-0.125) / np.sqrt(2.0 * np.pi) / float(1.0 - jax.scipy.special.ndtr(-0.5))
    mean = weights @ nodes[:, 0]
    np.testing.assert_allclose(mean, density, rtol=1e-6)
    np.testing.assert_allclose(weights @ nodes[:, 0] ** 2, 1.0 - 0.5 * density, rtol=1e-6)
    with pytest.raises(ValueError, match="too many nodes"), jax.enable_x64(True):
        action_nodes(checked(det.Smoothing(1.0, form="soft", lower=-1.0, upper=1.0, scale=1.0), 3), jnp.zeros((1, 3)))


def test_the_scale_is_the_deviation_of_what_was_done(bandit):
    np.testing.assert_allclose(det.action_scale(bandit), np.std(bandit.actions, axis=(0, 1)))
    with pytest.raises(ValueError, match="never vary"):
        det.action_scale(bandit._replace(actions=np.zeros_like(bandit.actions)))


@pytest.mark.parametrize("unit", [0.1, 100.0])
def test_estimates_do_not_depend_on_the_unit_of_actions(unit):
    """Earlier versions took a bandwidth of n^(-1/5) for one in the units of the actions: in units of 0.1 nothing was right."""
    rng = np.random.default_rng(0)
    n = 2000
    x, noise = rng.normal(size=(n, 1, 1)), rng.normal(size=(n, 1, 1))
    ends = np.ones((n, 1), bool)
    density = -0.5 * noise[..., 0] ** 2 - 0.5 * np.log(2.0 * np.pi)
    actions = 0.8 * x + noise
    log = Trajectories(x, actions, -((actions - x)[..., 0] ** 2), density, ends, ends, ~ends, None)
    scaled = log._replace(actions=unit * actions, behaviour_log_prob=density - np.log(unit))

    def policy(gain, observations):
        return gain * observations

    smoothing, method = det.Smoothing(det.rate_bandwidth(n)), "marginal_importance_sampling"
    one = det.evaluate(method, log, policy, 1.0, smoothing, level=0.95)
    other = det.evaluate(method, scaled, policy, unit, smoothing, level=0.95)
    np.testing.assert_allclose(
        [other.value, other.lower, other.upper], [one.value, one.lower, one.upper], rtol=1e-9, atol=1e-12
    )
    # the value of the smoothed policy: minus the square of h in units of the deviations
    truth = -((det.rate_bandwidth(n) * actions.std()) ** 2)
    assert other.lower < truth < other.upper


def test_a_bandwidth_is_no_smoothing(bandit):
    with pytest.raises(ValueError, match=r"got 0.3. For a bandwidth h write Smoothing\(h\)"):
        det.evaluate("cumulative_importance_sampling", bandit, lambda theta, x: theta * x, 1.0, 0.3)


def test_many_actions_have_few_nodes_that_are_exact_for_squares():
    rng = np.random.default_rng(0)
    size = 7
    matrix, target, scale = rng.normal(size=(size, size)), rng.normal(size=size), rng.uniform(0.5, 2.0, size=size)
    with jax.enable_x64(True):
        smoothing = checked(det.Smoothing(0.4, form="soft", kernel="epanechnikov", scale=scale), size)
        nodes, weights = (np.asarray(x) for x in action_nodes(smoothing, jnp.asarray(target)))
    assert len(nodes) == 2 * size
    found = weights @ np.einsum("mi,ij,mj->m", nodes, matrix, nodes)
    wanted = target @ matrix @ target + 0.2 * 0.4**2 * np.sum(np.diag(matrix) * scale**2)
    np.testing.assert_allclose(found, wanted, rtol=1e-12)


def test_the_metric_cancels_the_curvature_and_keeps_the_volume():
    rng = np.random.default_rng(1)
    square = rng.normal(size=(50, 3, 3))
    mixed = square + np.swapaxes(square, 1, 2)
    root = np.asarray(det.kernel_metric(mixed, floor=1e-6))
    signs = np.sign(np.linalg.eigvalsh(mixed))
    both = np.abs(signs.sum(axis=1)) < 3
    trace = np.einsum("nij,nji->n", np.linalg.inv(np.swapaxes(root, 1, 2) @ root), mixed)
    np.testing.assert_allclose(np.linalg.det(root), 1.0, rtol=1e-9)
    np.testing.assert_allclose(trace[both], 0.0, atol=1e-9)
    definite = square @ np.swapaxes(square, 1, 2)
    root = np.asarray(det.kernel_metric(definite, floor=1e-6))
    trace = np.einsum("nij,nji->n", np.linalg.inv(root @ root), definite)
    # by the inequality of the means no metric has less
    np.testing.assert_allclose(trace, 3.0 * np.linalg.det(definite) ** (1 / 3), rtol=1e-6)
    np.testing.assert_allclose(det.kernel_metric(np.zeros((2, 2))), np.eye(2))
    with pytest.raises(ValueError, match="floor"):
        det.kernel_metric(definite, floor=0.0)
    with pytest.raises(ValueError, match="must be finite"):
        det.kernel_metric([[np.nan]])


def policy(gain, observations):
    return jnp.concatenate([gain * observations, 0.0 * observations], axis=-1)


@pytest.fixture(scope="module")
def bandit():
    """Two actions; the reward curves up in one and down in the other."""
    rng = np.random.default_rng(2)
    n = 1500
    x = rng.normal(size=(n, 1, 1))
    mean = np.concatenate([0.5 * x, 0.2 * x], axis=-1)
    noise = rng.normal(size=(n, 1, 2))
    root = np.array([[1.0, 0.0], [0.4, 0.8]])
    actions = mean + noise @ root.T
    error = actions - np.concatenate([x, 0.0 * x], axis=-1)
    rewards = error[..., 0] ** 2 - 4.0 * error[..., 1] ** 2
    density = -0.5 * (noise**2).sum(-1) - np.log(2 * np.pi * 0.8)
    ends = np.ones((n, 1), bool)
    return Trajectories(x, actions, rewards, density, ends, ends, ~ends, None)


def test_with_the_learned_metric_smoothing_is_less_biased(bandit):
    smoothing = det.Smoothing(0.5, scale=1.0)
    curvature = det.fit_curvature(bandit, policy, 1.0, smoothing)
    np.testing.assert_allclose(curvature, np.broadcast_to([[2.0, 0.0], [0.0, -8.0]], curvature.shape), atol=1e-5)
    method = "cumulative_importance_sampling"
    plain = det.evaluate(method, bandit, policy, 1.0, smoothing)
    learned = det.evaluate(method, bandit, policy, 1.0, smoothing.replace(metric=det.kernel_metric(curvature)))
    # the bias of the plain one is h^2 / 2 tr H
    assert abs(float(plain.value) + 0.75) < 4.0 * float(plain.standard_error)
    assert abs(float(learned.value)) < 4.0 * float(learned.standard_error)
    assert abs(float(learned.value)) < 0.5 * abs(float(plain.value))
    turned = np.broadcast_to(2.0 * np.eye(2), (*bandit.rewards.shape, 2, 2))
    with pytest.raises(ValueError, match="determinants of 1"):
        det.evaluate(method, bandit, policy, 1.0, smoothing.replace(metric=turned))
    with pytest.raises(ValueError, match="n and T must agree"):
        det.evaluate(method, bandit, policy, 1.0, smoothing.replace(metric=turned[:5] / 2.0))


def test_behaviour_densities_are_recovered_and_marked(bandit):
    found = det.estimate_behaviour_density(bandit._replace(behaviour_log_prob=None))
    error = np.asarray(found.trajectories.behaviour_log_prob) - bandit.behaviour_log_prob
    assert np.abs(error).mean() < 0.1
    assert abs(error.mean()) < 0.03
    smoothing, method = det.Smoothing(0.2, form="point", scale=1.0), "cumulative_importance_sampling"
    options = dict(behaviour_at_target=found.log_density)
    estimate = det.evaluate(method, found.trajectories, policy, 1.0, smoothing, **options)
    # of m b / b at the target, the second derivative of m alone: that of b is multiplied by m, which is 0
    assert abs(float(estimate.value) + 3.0 * 0.2**2) < 4.0 * float(estimate.standard_error)
    assert float(estimate.diagnostics["behaviour_estimated"]) == 1.0
    # the density at the target moves with the target
    slope = det.gradient(method, found.trajectories, policy, 1.0, smoothing, **options)

    def value(gain):
        return float(det.evaluate(method, found.trajectories, policy, gain, smoothing, **options).value)

    np.testing.assert_allclose(slope.value, (value(1.0 + 1e-5) - value(1.0 - 1e-5)) / 2e-5, rtol=1e-5)
    # a row's density is fitted to other rows
    own = np.random.default_rng(0).permutation(np.arange(len(bandit.rewards)) % 2) == 0
    moved = bandit._replace(actions=np.where(own[:, None, None], 3.0 * bandit.actions, bandit.actions))
    other = det.estimate_behaviour_density(moved).log_density(bandit.observations, bandit.actions)
    change = np.abs(other - found.trajectories.behaviour_log_prob)[:, 0]
    np.testing.assert_allclose(change[own], 0.0, atol=1e-12)
    assert np.median(change[~own]) > 0.1
    still = bandit._replace(actions=np.broadcast_to(bandit.observations, bandit.actions.shape))
    with pytest.raises(ValueError, match="do not vary given observations"):
        det.estimate_behaviour_density(still)
    with pytest.raises(ValueError, match="observations must be finite"):
        det.estimate_behaviour_density(bandit._replace(observations=np.full_like(bandit.observations, np.nan)))


def test_bootstrap_and_normal_intervals_agree(bandit):
    smoothing, method = det.Smoothing(0.5, scale=1.0), "cumulative_importance_sampling"
    shared = dict(level=0.9, resamples=300, self_normalised=True)
    widths = []
    for interval in ("normal", "bootstrap"):
        found = det.evaluate(method, bandit, policy, 1.0, smoothing, interval=interval, **shared)
        assert found.lower < found.value < found.upper
        widths.append(float(found.upper - found.lower))
    np.testing.assert_allclose(*widths, rtol=0.2)
    sizes = np.asarray(found.diagnostics["effective_sample_sizes"])
    np.testing.assert_allclose(sizes, [found.effective_sample_size])
    assert 30 < sizes[0] < 1500


def estimate(value, error, level=2.0):
    return Estimate(np.float64(value), np.float64(error), value - level * error, value + level * error, None, {})


def test_bandwidths():
    assert det.rate_bandwidth(1024, dimension=6) == pytest.approx(0.5)
    assert det.rate_bandwidth(1024, horizon=6) == pytest.approx(0.25)
    assert det.rate_bandwidth(1024, horizon=6, method="cumulative_doubly_robust") == pytest.approx(0.5)
    assert det.rate_bandwidth(1024, dimension=4, gradient=True) == pytest.approx(0.5)
    assert det.rate_bandwidth(1024, dimension=5, gradient=True, undersmooth=True) == pytest.approx(0.5)
    # B = -2, C = 3, n = 1000
    n, h, bias, constant = 1000, 0.4, -2.0, 3.0
    wide = estimate(5.0 + bias * h**2, (constant / (n * h)) ** 0.5)
    narrow = estimate(5.0 + bias * (h / 2) ** 2, (constant / (n * h / 2)) ** 0.5)
    found = det.extrapolate(wide, narrow)
    np.testing.assert_allclose(found.value, 5.0)
    np.testing.assert_allclose(found.bias, bias * (h / 2) ** 2)
    wanted = (constant / (4 * n * bias**2)) ** 0.2
    np.testing.assert_allclose(det.plug_in_bandwidth(wide, narrow, h), wanted)
    flat = det.plug_in_bandwidth(estimate(5.0, wide.standard_error), narrow._replace(value=5.0), h)
    assert 0.0 < flat < np.inf
    with pytest.raises(ValueError, match="must be finite"):
        det.plug_in_bandwidth(wide, narrow._replace(value=np.nan), h)
    candidates = [0.1, 0.2, 0.4, 0.8, 1.6]
    chosen = det.select_bandwidth(lambda h: estimate(5.0 - 2.0 * h**2, (0.0004 / h) ** 0.5), candidates)
    assert chosen.bandwidth == 0.2
    assert len(chosen.estimates) == 5
    # with no action near the target an estimate is 0, and has no error
    chosen = det.select_bandwidth(lambda h: estimate(5.0 * (h > 1e-3), (0.0004 * (h > 1e-3) / h) ** 0.5), [1e-4, 0.1])
    assert chosen.bandwidth == 0.1
    with pytest.raises(ValueError, match="give wider ones"):
        det.select_bandwidth(lambda h: estimate(0.0, 0.0), candidates)
    for wrong in (dict(n=0), dict(n=5, constant=0.0), dict(n=5, method="magic")):
        with pytest.raises(ValueError, match="must be"):
            det.rate_bandwidth(**wrong)
