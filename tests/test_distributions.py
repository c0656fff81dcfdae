"""Distributions against scipy, quadrature and samples; edges, tails and jax transformations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from scipy import integrate, special, stats

from jaxrl_off.distributions import Categorical, DiagonalNormal, TanhNormal

SAMPLES = 20_000
MEANS, LOG_STDS = np.array([0.3, -1.2, 2.0]), np.array([-0.5, 0.4, 0.0])
OTHER_MEANS, OTHER_LOG_STDS = np.array([-0.2, -1.0, 1.1]), np.array([0.1, -0.3, 0.5])


def make(name):
    """One distribution over `[3]` (or three actions) of each kind, and a second one for the KL."""
    return {
        "categorical": (Categorical(jnp.asarray(MEANS)), Categorical(jnp.asarray(OTHER_MEANS))),
        "normal": (
            DiagonalNormal(jnp.asarray(MEANS), jnp.asarray(LOG_STDS)),
            DiagonalNormal(jnp.asarray(OTHER_MEANS), jnp.asarray(OTHER_LOG_STDS)),
        ),
        "tanh": (
            TanhNormal(jnp.asarray(MEANS), jnp.asarray(LOG_STDS)),
            TanhNormal(jnp.asarray(OTHER_MEANS), jnp.asarray(OTHER_LOG_STDS)),
        ),
    }[name]


KINDS = ["categorical", "normal", "tanh"]


def tanh_density(action, mean, log_std):
    """Change of variables."""
    return stats.norm.pdf(np.arctanh(action), mean, np.exp(log_std)) / (1 - action**2)


def assert_finite(tree):
    for leaf in jax.tree.leaves(tree):
        assert np.isfinite(leaf).all()


def draw(distribution, seed=0, count=SAMPLES):
    return np.asarray(jax.jit(jax.vmap(distribution.sample))(jax.random.split(jax.random.key(seed), count)))


# Against scipy and quadrature ---------------------------------------------------------------------------------------


def test_categorical_agrees_with_scipy():
    with jax.enable_x64(True):
        distribution, other = make("categorical")
        p, q = special.softmax(MEANS), special.softmax(OTHER_MEANS)
        np.testing.assert_allclose(distribution.log_probabilities, np.log(p), rtol=1e-12)
        np.testing.assert_allclose(jax.vmap(distribution.log_prob)(jnp.arange(3)), np.log(p), rtol=1e-12)
        np.testing.assert_allclose(distribution.entropy(), stats.entropy(p), rtol=1e-12)
        np.testing.assert_allclose(distribution.kl(other), stats.entropy(p, q), rtol=1e-12)
        np.testing.assert_allclose(distribution.kl(distribution), 0.0, atol=1e-15)
        assert int(distribution.mode()) == 2


def test_normal_agrees_with_scipy():
    action = np.array([[0.1, 0.2, 0.3], [-3.0, 2.0, 9.0]])
    with jax.enable_x64(True):
        distribution, other = make("normal")
        expected = stats.norm.logpdf(action, MEANS, np.exp(LOG_STDS)).sum(-1)
        np.testing.assert_allclose(distribution.log_prob(jnp.asarray(action)), expected, rtol=1e-12)
        covariance = np.diag(np.exp(2 * LOG_STDS))
        np.testing.assert_allclose(distribution.log_prob(jnp.asarray(action[0])), expected[0], rtol=1e-12)
        np.testing.assert_allclose(
            distribution.entropy(), stats.multivariate_normal(MEANS, covariance).entropy(), rtol=1e-12
        )
        kl = sum(
            integrate.quad(
                lambda x, a=a, b=b: a.pdf(x) * (a.logpdf(x) - b.logpdf(x)),
                a.mean() - 12 * a.std(),
                a.mean() + 12 * a.std(),
            )[0]
            for a, b in zip(
                map(stats.norm, MEANS, np.exp(LOG_STDS)),
                map(stats.norm, OTHER_MEANS, np.exp(OTHER_LOG_STDS)),
                strict=True,
            )
        )
        np.testing.assert_allclose(distribution.kl(other), kl, rtol=1e-8)
        np.testing.assert_allclose(distribution.kl(distribution), 0.0, atol=1e-15)
        np.testing.assert_array_equal(distribution.mode(), MEANS)


def test_tanh_normal_agrees_with_the_change_of_variables():
    action = np.array([[0.1, -0.999, 0.3], [-0.5, 0.2, 0.9999]])
    with jax.enable_x64(True):
        distribution, other = make("tanh")
        expected = np.log(tanh_density(action, MEANS, LOG_STDS)).sum(-1)
        np.testing.assert_allclose(distribution.log_prob(jnp.asarray(action)), expected, rtol=1e-10)
        np.testing.assert_allclose(distribution.mode(), np.tanh(MEANS), rtol=1e-12)

        def integrand(x, a, b):
            # KL by quadrature over x, in which the densities of the actions are those of the normals times a Jacobian.
            y = np.tanh(x)
            ratio = np.log(tanh_density(y, *a)) - np.log(tanh_density(y, *b))
            return tanh_density(y, *a) * ratio * (1 - y**2)

        kl = 0.0
        for *parameters, other_mean, other_log_std in zip(MEANS, LOG_STDS, OTHER_MEANS, OTHER_LOG_STDS, strict=True):
            reach = 6 * np.exp(parameters[1])
            limits = parameters[0] - reach, parameters[0] + reach
            kl += integrate.quad(integrand, *limits, args=(parameters, (other_mean, other_log_std)))[0]
        np.testing.assert_allclose(distribution.kl(other), kl, rtol=1e-6)


@pytest.mark.parametrize("kind", ["normal", "tanh"])
def test_densities_integrate_to_one(kind):
    with jax.enable_x64(True):
        distribution, _ = make(kind)
        for k in range(3):
            one = jax.tree.map(lambda leaf, k=k: leaf[k : k + 1], distribution)
            x = np.linspace(MEANS[k] - 7, MEANS[k] + 7, 2001)
            x = x[np.abs(x) < 7.2]  # where tanh is within its bound
            weights = np.full(len(x), x[1] - x[0])
            if kind == "tanh":
                x, weights = np.tanh(x), weights * (1 - np.tanh(x) ** 2)
            total = np.sum(weights * np.exp(one.log_prob(jnp.asarray(x)[..., None])))
            np.testing.assert_allclose(total, 1.0, atol=5e-5)  # the tails beyond the nodes


# Samples ------------------------------------------------------------------------------------------------------------


def test_categorical_samples_have_the_right_frequencies():
    distribution, _ = make("categorical")
    actions = draw(distribution)
    assert actions.dtype == np.int32
    observed = np.bincount(actions, minlength=3)
    assert stats.chisquare(observed, special.softmax(MEANS) * SAMPLES).pvalue > 1e-3


@pytest.mark.parametrize("kind", ["normal", "tanh"])
def test_continuous_samples_have_the_right_distribution(kind):
    distribution, _ = make(kind)
    actions = draw(distribution)
    assert actions.shape == (SAMPLES, 3)
    normal = stats.norm(MEANS, np.exp(LOG_STDS))
    for k in range(3):
        x = actions[:, k]
        if kind == "tanh":
            x = np.arctanh(x.astype(np.float64))
        mean, std = normal.mean()[k], normal.std()[k]
        assert stats.kstest(x, stats.norm(mean, std).cdf).pvalue > 1e-3
        np.testing.assert_allclose(x.mean(), mean, atol=4.5 * std / np.sqrt(SAMPLES))
        np.testing.assert_allclose(x.std(), std, rtol=0.03)
    # Independent components.
    np.testing.assert_allclose(np.corrcoef(actions.T), np.eye(3), atol=4.5 / np.sqrt(SAMPLES))


@pytest.mark.parametrize("kind", ["normal", "tanh"])
def test_entropy_and_kl_agree_with_samples(kind):
    distribution, other = make(kind)
    actions = jnp.asarray(draw(distribution, seed=1))
    log_prob = np.asarray(distribution.log_prob(actions), np.float64)
    error = 4.5 / np.sqrt(SAMPLES)
    if kind != "tanh":
        np.testing.assert_allclose(distribution.entropy(), -log_prob.mean(), atol=error * log_prob.std())
    if other is not None:
        ratio = log_prob - np.asarray(other.log_prob(actions))
        np.testing.assert_allclose(distribution.kl(other), ratio.mean(), atol=error * ratio.std())


def test_tanh_sample_and_log_prob_belong_together():
    distribution, _ = make("tanh")
    keys = jax.random.split(jax.random.key(2), 100)
    actions, log_prob = jax.vmap(distribution.sample_and_log_prob)(keys)
    np.testing.assert_array_equal(actions, jax.vmap(distribution.sample)(keys))
    inside = np.abs(actions).max(-1) < 0.999
    assert inside.sum() > 50
    np.testing.assert_allclose(log_prob[inside], distribution.log_prob(actions)[inside], atol=2e-2)
    with jax.enable_x64(True):
        x = np.arctanh(np.asarray(actions, np.float64))[inside]
        expected = stats.norm.logpdf(x, MEANS, np.exp(LOG_STDS)).sum(-1) - np.log(1 - np.tanh(x) ** 2).sum(-1)
    np.testing.assert_allclose(log_prob[inside], expected, atol=2e-2)


@pytest.mark.parametrize("kind", ["normal", "tanh"])
def test_samples_are_differentiable_in_the_parameters(kind):
    """The pathwise gradient against finite differences with the same key, in float64."""
    with jax.enable_x64(True):
        distribution, _ = make(kind)
        key = jax.random.key(3)

        def total(mean, log_std):
            return jnp.sum(distribution._replace(mean=mean, log_std=log_std).sample(key) ** 2)

        arguments = (distribution.mean, distribution.log_std)
        for argument in (0, 1):
            gradient = jax.grad(total, argnums=argument)(*arguments)
            for k in range(3):
                step = 1e-5 * jnp.eye(3)[k]
                ahead, behind = (
                    total(*(x + sign * step if i == argument else x for i, x in enumerate(arguments)))
                    for sign in (1, -1)
                )
                np.testing.assert_allclose(gradient[k], (ahead - behind) / 2e-5, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_key_decides_the_sample_and_different_keys_differ(kind):
    distribution, _ = make(kind)
    distribution = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (20, 3)), distribution)
    one, two = (distribution.sample(jax.random.key(seed)) for seed in (0, 1))
    np.testing.assert_array_equal(one, distribution.sample(jax.random.key(0)))
    assert (np.asarray(one) != np.asarray(two)).any()
    assert len(np.unique(one, axis=0)) > 1  # every row of a batch has its own noise


# Edges --------------------------------------------------------------------------------------------------------------


def test_categorical_with_impossible_actions():
    logits = jnp.array([0.5, -jnp.inf, -0.5, -jnp.inf])
    p = special.softmax([0.5, -0.5])
    entropy, gradient = jax.value_and_grad(lambda x: Categorical(x).entropy())(logits)
    np.testing.assert_allclose(entropy, stats.entropy(p), rtol=1e-5)
    inside = -p * (np.log(p) + stats.entropy(p))
    np.testing.assert_allclose(gradient, [inside[0], 0.0, inside[1], 0.0], atol=1e-6)

    other = jnp.array([0.0, -jnp.inf, 1.0, 2.0])
    kl, gradients = jax.value_and_grad(lambda x, y: Categorical(x).kl(Categorical(y)), argnums=(0, 1))(logits, other)
    q = special.softmax([0.0, 1.0, 2.0])
    np.testing.assert_allclose(kl, np.sum(p * np.log(p / q[:2])), rtol=1e-5)
    for gradient in gradients:
        assert np.isfinite(gradient).all()
    np.testing.assert_allclose(gradients[1], [q[0] - p[0], 0.0, q[1] - p[1], q[2]], atol=1e-6)
    assert Categorical(other).kl(Categorical(logits)) == jnp.inf

    assert Categorical(logits).log_prob(jnp.array(1)) == -jnp.inf
    gradient = jax.grad(lambda x: Categorical(x).log_prob(jnp.array(0)))(logits)
    np.testing.assert_allclose(gradient, [1 - p[0], 0.0, -p[1], 0.0], atol=1e-6)
    assert set(draw(Categorical(logits), count=200)) == {0, 2}


@pytest.mark.parametrize("scale", [1e4, 1e30])
def test_categorical_with_extreme_logits(scale):
    distribution = Categorical(scale * jnp.array([1.0, 0.0, -1.0]))
    for function in (
        lambda d: d.entropy(),
        lambda d: d.kl(Categorical(jnp.zeros(3))),
        lambda d: d.log_prob(jnp.array(2)),
    ):
        value, gradient = jax.value_and_grad(function)(distribution)
        assert np.isfinite(value)
        assert np.isfinite(gradient.logits).all()
    assert distribution.entropy() == 0.0
    np.testing.assert_allclose(distribution.kl(Categorical(jnp.zeros(3))), np.log(3), rtol=1e-6)


@pytest.mark.parametrize("action", [-1.0, -0.9999999, 0.0, 0.9999999, 1.0])
@pytest.mark.parametrize("mean", [-20.0, 0.0, 20.0])
@pytest.mark.parametrize("log_std", [-5.0, 2.0])
def test_tanh_log_prob_is_finite_at_the_ends(action, mean, log_std):
    value, gradients = jax.value_and_grad(lambda d, a: d.log_prob(a), argnums=(0, 1))(
        TanhNormal(jnp.array([mean]), jnp.array([log_std])), jnp.array([action])
    )
    assert np.isfinite(value)
    assert_finite(gradients)


def test_tanh_log_prob_moves_the_ends_inside_by_a_millionth():
    with jax.enable_x64(True):
        distribution, _ = make("tanh")
        inside = np.log(tanh_density(np.array([1 - 1e-6, -1 + 1e-6, 1 - 1e-6]), MEANS, LOG_STDS)).sum()
        np.testing.assert_allclose(distribution.log_prob(jnp.array([1.0, -1.0, 1.0])), inside, rtol=1e-9)


@pytest.mark.parametrize("mean", [-1e4, -30.0, 30.0, 1e4])
def test_saturated_tanh_samples_keep_their_log_prob_and_gradient(mean):
    """At |x| = 30 the action is 1 in float32; log(1 - tanh(x)^2) = 2 log 2 - 2 |x| up to exp(-2 |x|)."""
    key = jax.random.key(0)

    def log_prob(mean, log_std):
        return TanhNormal(mean, log_std).sample_and_log_prob(key)[1]

    value, gradients = jax.value_and_grad(log_prob, argnums=(0, 1))(jnp.array([mean]), jnp.array([0.3]))
    x = float(DiagonalNormal(jnp.array([mean]), jnp.array([0.3])).sample(key)[0])
    expected = stats.norm.logpdf(x, mean, np.exp(0.3)) - (2 * np.log(2) - 2 * abs(x))
    np.testing.assert_allclose(value, expected, rtol=1e-4)
    np.testing.assert_allclose(gradients[0], [2 * np.sign(mean)], rtol=1e-3)
    assert np.isfinite(gradients[1]).all()


@pytest.mark.parametrize("log_std", [-20.0, -5.0, 5.0, 20.0])
def test_normal_is_finite_for_extreme_spreads(log_std):
    distribution = DiagonalNormal(jnp.zeros(2), jnp.full(2, log_std))
    other = DiagonalNormal(jnp.zeros(2), jnp.full(2, log_std + 1.0))
    action = distribution.sample(jax.random.key(0))
    expected = stats.norm.logpdf(np.asarray(action, np.float64), 0.0, np.exp(log_std)).sum()
    np.testing.assert_allclose(distribution.log_prob(action), expected, rtol=1e-4)
    for function in (lambda d: d.log_prob(action), lambda d: d.entropy(), lambda d: d.kl(other)):
        assert_finite(jax.grad(function)(distribution))
    np.testing.assert_allclose(distribution.kl(other), 2 * (1 + 0.5 * np.exp(-2.0) - 0.5), rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_of_log_prob_agrees_with_finite_differences(kind):
    with jax.enable_x64(True):
        distribution, _ = make(kind)
        action = jnp.array(1) if kind == "categorical" else jnp.array([0.4, -0.9, 0.7])
        flat, rebuild = ravel_pytree(distribution)

        def log_prob(flat):
            return rebuild(flat).log_prob(action)

        gradient = jax.grad(log_prob)(flat)
        difference = jax.vmap(lambda step: (log_prob(flat + step) - log_prob(flat - step)) / 2e-5)(
            1e-5 * jnp.eye(len(flat))
        )
        np.testing.assert_allclose(gradient, difference, rtol=1e-5, atol=1e-7)


# Transformations ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_jit_vmap_and_batch_axes_agree(kind):
    traces = []

    def everything(distribution, other, key):
        traces.append(None)
        action = distribution.sample(key)
        results = {"action": action, "log_prob": distribution.log_prob(action), "mode": distribution.mode()}
        if kind != "tanh":
            results["entropy"] = distribution.entropy()
        results["kl"] = distribution.kl(other)
        return results

    one, other = make(kind)
    batch, others = (
        jax.tree.map(lambda leaf: jnp.stack([leaf, leaf + 0.1, leaf - 0.2]), x)
        for x in (one, one if other is None else other)
    )
    keys = jax.random.split(jax.random.key(0), 3)
    batched = jax.vmap(everything)(batch, others, keys)
    compiled = jax.jit(everything)
    traces.clear()
    for i in range(3):
        row, other_row = (jax.tree.map(lambda leaf, i=i: leaf[i], x) for x in (batch, others))
        jitted = compiled(row, other_row, keys[i])
        for name, got in jitted.items():
            np.testing.assert_allclose(got, batched[name][i], rtol=1e-5, atol=1e-6, err_msg=name)
    assert len(traces) == 1
    # Leading axes are batch axes.
    np.testing.assert_allclose(batch.log_prob(batched["action"]), batched["log_prob"], rtol=1e-5, atol=1e-6)
    for name in {"entropy", "kl"} & batched.keys():
        got = batch.entropy() if name == "entropy" else batch.kl(others)
        assert got.shape == (3,)
        np.testing.assert_allclose(got, batched[name], rtol=1e-5, atol=1e-6)
    assert batch.sample(jax.random.key(1)).shape == batched["action"].shape


@pytest.mark.parametrize("kind", KINDS)
def test_distributions_are_pytrees_of_their_parameters(kind):
    distribution, _ = make(kind)
    leaves, structure = jax.tree.flatten(distribution)
    assert len(leaves) == len(distribution._fields)
    rebuilt = jax.tree.unflatten(structure, leaves)
    assert type(rebuilt) is type(distribution)
    np.testing.assert_array_equal(rebuilt.mode(), distribution.mode())
    carried, _ = jax.lax.scan(lambda d, _: (d, None), distribution, None, length=2)
    assert type(carried) is type(distribution)
