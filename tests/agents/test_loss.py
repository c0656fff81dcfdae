"""The family's loss against golden numbers, a float64 NumPy version with hand-written gradients, and identities.

Everything runs op by op (no jit) in float64 and on the same small shapes, which is the cheap way to try many members.
"""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_off.agents import AgentState, preset
from jaxrl_off.agents.divergence_augmented import Duals, build_network, make
from jaxrl_off.agents.divergence_augmented_config import PRESETS
from jaxrl_off.agents.divergence_augmented_losses import family_loss
from jaxrl_off.distributions import Categorical, DiagonalNormal
from jaxrl_off.envs.base import DiscreteSpace, EnvironmentSpec, continuous_space
from jaxrl_off.types import Rollout

GOLDEN = json.loads((pathlib.Path(__file__).parents[1] / "golden" / "dapo.json").read_text())["rollout"]
ROUNDING = 6e-11  # the golden numbers have ten decimals
EXACT = {"rtol": 1e-10, "atol": 1e-12}
B, T, A = 4, 5, 3
TOTAL_UPDATES = 10
QUICK = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}  # less time in the compiler
PUBLISHED_AT = 3
PENALTY = 1.7
DUALS = {"log_temperature": 0.3, "log_penalty": -0.4}
DISCRETE = EnvironmentSpec("test", (2,), "float32", DiscreteSpace(A))
CONTINUOUS = EnvironmentSpec("test", (2,), "float32", continuous_space([-1.0, -1.0], [1.0, 1.0]))


@pytest.fixture(autouse=True)
def op_by_op_in_float64():
    with jax.enable_x64(True), jax.disable_jit():
        yield


# A batch, and the loss of the library on it ---------------------------------------------------------------------------


def make_batch(seed, continuous=False, fresh=False, log_ratio_scale=0.6):
    """Random roll-outs with terminated, truncated and fake steps; parameters of pi and of the published policy, V."""
    rng = np.random.default_rng(seed)

    def parameters(mean=None, spread=1.0):
        if continuous:
            base = (0.0, -0.3) if mean is None else mean
            return DiagonalNormal(*(jnp.asarray(b + spread * rng.normal(size=(B, T, 2)) * 0.5) for b in base))
        base = 0.0 if mean is None else mean.logits
        return Categorical(jnp.asarray(base + spread * rng.normal(size=(B, T, A))))

    behaviour = parameters()
    current = behaviour if fresh else parameters(behaviour, log_ratio_scale)
    published = behaviour if fresh else parameters(behaviour, 0.5 * log_ratio_scale)
    action = jnp.asarray(rng.integers(A, size=(B, T)))
    if continuous:
        action = behaviour.mean + jnp.exp(behaviour.log_std) * rng.normal(size=(B, T, 2))
    terminated, truncated = np.zeros((B, T), bool), np.zeros((B, T), bool)
    valid = np.ones((B, T), bool)
    terminated[0, 1] = terminated[1, 4] = terminated[3, 2] = truncated[1, 0] = truncated[2, 2] = True
    valid[0, 2] = valid[2, 3] = valid[3, 0] = valid[3, 3] = False  # after an end, or at the beginning; 16 remain
    value = rng.normal(size=(B, T))
    batch = Rollout(
        observation=jnp.zeros((B, T, 2)),
        action=action,
        reward=jnp.asarray(rng.normal(size=(B, T))),
        terminated=jnp.asarray(terminated),
        truncated=jnp.asarray(truncated),
        valid=jnp.asarray(valid),
        first=jnp.zeros((B, T), bool),
        behaviour_log_prob=behaviour.log_prob(action),
        behaviour_value=jnp.asarray(value + 0.3 * rng.normal(size=(B, T))),
        final_value=jnp.asarray(np.where(truncated, rng.normal(size=(B, T)), 0.0)),
        behaviour_parameters=behaviour,
        advantage=jnp.asarray(rng.normal(size=(B, T))),
        lambda_return=jnp.asarray(rng.normal(size=(B, T))),
        tail_value=jnp.asarray(rng.normal(size=B)),
        core_state=(),
        policy_version=jnp.zeros(B, jnp.int32),
    )
    return batch, current, published, jnp.asarray(value)


def make_state(published_at=PUBLISHED_AT):
    return AgentState({}, {}, (), Duals(jnp.asarray(PENALTY), jnp.ones(())), jnp.asarray(4), jnp.asarray(published_at))


def loss_of(config, batch, current, published, value, state=None):
    """Loss, metrics and gradients in (distribution parameters, value, duals)."""
    duals = {name: jnp.asarray(number) for name, number in DUALS.items()}
    centre = published if config.weight == "centred_clip" else None

    def loss(distribution, value, duals):
        return family_loss(config, duals, state or make_state(), batch, distribution, value, centre, TOTAL_UPDATES)

    (total, metrics), gradients = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(current, value, duals)
    return total, metrics, gradients


def same(left, right, **tolerance):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        if tolerance:
            np.testing.assert_allclose(a, b, **tolerance)
        else:
            np.testing.assert_array_equal(a, b)


# The same in NumPy ----------------------------------------------------------------------------------------------------


def traces(batch):
    """Index pairs of every unbroken run of real steps, and the value that follows its last step."""
    for row in range(B):
        run = []
        for t in range(T):
            if not batch.valid[row, t]:
                assert not run, "a fake step follows an end"
                continue
            run.append((row, t))
            if batch.terminated[row, t]:
                yield run, 0.0
            elif batch.truncated[row, t]:
                yield run, batch.final_value[row, t]
            elif t == T - 1:
                yield run, batch.tail_value[row]
            else:
                continue
            run = []


def reference_targets(config, batch, value, ratio):
    """Value targets and advantages as explicit sums."""
    if config.advantage == "gae":
        return batch.lambda_return, batch.advantage
    target, advantage = np.zeros((B, T)), np.zeros((B, T))
    gamma = config.gamma
    for run, after in traces(batch):
        v = [value[i] for i in run] + [after]
        if config.advantage == "gae_current":
            for start, index in enumerate(run):
                for k in range(start, len(run)):
                    delta = batch.reward[run[k]] + gamma * v[k + 1] - v[k]
                    advantage[index] += (gamma * config.lambda_) ** (k - start) * delta
                target[index] = advantage[index] + v[start]
            continue
        corrected = []
        for start in range(len(run)):
            total, product = v[start], 1.0
            for k in range(start, len(run)):
                r = ratio[run[k]]
                delta = min(config.rho_bar_value, r) * (batch.reward[run[k]] + gamma * v[k + 1] - v[k])
                total += gamma ** (k - start) * product * delta
                product *= config.trace_lambda * min(config.c_bar_value, r)
            corrected.append(total)
        corrected.append(after)
        for start, index in enumerate(run):
            target[index] = corrected[start]
            advantage[index] = batch.reward[index] + gamma * corrected[start + 1] - v[start]
    return target, advantage


def reference_divergence(config, batch, log_prob, ratio):
    if config.divergence == "none":
        return np.zeros((B, T))
    terms = log_prob - batch.behaviour_log_prob if config.divergence == "kl" else log_prob
    if config.divergence_steps == "one":
        return terms
    assert config.divergence in ("kl", "entropy")
    result = np.zeros((B, T))
    for run, _ in traces(batch):
        for start, index in enumerate(run):
            for j in range(start, len(run)):
                product = np.prod(
                    [min(config.c_bar_divergence, ratio[run[k]]) for k in range(start + config.product_start, j)]
                )
                rho = min(config.rho_bar_divergence, ratio[run[j]]) if j > start else 1.0
                result[index] += config.gamma ** (j - start) * product * rho * terms[run[j]]
    return result


def log_softmax(x):
    return x - np.log(np.sum(np.exp(x), axis=-1, keepdims=True))


def derivatives(current, behaviour, action):
    """Of log pi(a|s), entropy, KL(pi || pi_t) and KL(pi_t || pi): values `[B, T]` and closed-form gradients."""
    if isinstance(current, Categorical):
        log_p, log_q = log_softmax(current.logits), log_softmax(behaviour.logits)
        p, q = np.exp(log_p), np.exp(log_q)
        entropy, kl = -np.sum(p * log_p, -1), np.sum(p * (log_p - log_q), -1)
        return {
            "log_prob": (np.take_along_axis(log_p, action[..., None], -1)[..., 0], (np.eye(A)[action] - p,)),
            "entropy": (entropy, (-p * (log_p + entropy[..., None]),)),
            "kl": (kl, (p * (log_p - log_q - kl[..., None]),)),
            "reverse_kl": (np.sum(q * (log_q - log_p), -1), (p - q,)),
        }
    (m, s), (n, u) = (tuple(map(np.asarray, d)) for d in (current, behaviour))
    z = (action - m) / np.exp(s)
    ratio_of_variances = np.exp(2 * (s - u))
    shift = m - n
    kl = u - s + 0.5 * (ratio_of_variances + shift**2 * np.exp(-2 * u)) - 0.5
    reverse = s - u + 0.5 * (1 / ratio_of_variances + shift**2 * np.exp(-2 * s)) - 0.5
    return {
        "log_prob": (np.sum(-0.5 * z**2 - s - 0.5 * np.log(2 * np.pi), -1), (z / np.exp(s), z**2 - 1)),
        "entropy": (np.sum(s + 0.5 * np.log(2 * np.pi * np.e), -1), (0 * m, 0 * m + 1)),
        "kl": (np.sum(kl, -1), (shift * np.exp(-2 * u), ratio_of_variances - 1)),
        "reverse_kl": (
            np.sum(reverse, -1),
            (shift * np.exp(-2 * s), 1 - 1 / ratio_of_variances - shift**2 * np.exp(-2 * s)),
        ),
    }


def reference_loss(config, batch, current, published, value):
    """Loss and gradients by hand; nothing but log pi, the exact penalty, the entropy and V is differentiated."""
    batch, current, published, value = jax.tree.map(np.asarray, (batch, current, published, value))
    known = derivatives(current, batch.behaviour_parameters, batch.action)
    log_prob, score = known["log_prob"]
    ratio = np.exp(log_prob - batch.behaviour_log_prob)
    mask = batch.valid
    n = mask.sum()
    target, advantage = reference_targets(config, batch, value, ratio)
    if config.advantage_normalisation == "rms":
        advantage = advantage / (np.sqrt(np.mean(advantage[mask] ** 2)) + 1e-4)
    elif config.advantage_normalisation == "standard":
        advantage = (advantage - advantage[mask].mean()) / (advantage[mask].std() + 1e-8)
    augmented = advantage - config.divergence_coefficient * reference_divergence(config, batch, log_prob, ratio)
    ess = ratio[mask].sum() ** 2 / (n * np.sum(ratio[mask] ** 2))

    # Per sample: contribution to the policy loss, and its derivative in log pi.
    element, slope = np.zeros((B, T)), np.zeros((B, T))
    gradient_duals = dict.fromkeys(DUALS, 0.0)
    dual_loss = 0.0
    temperature = np.exp(DUALS["log_temperature"])
    if config.weight == "exponential":
        order = sorted(augmented[mask], reverse=True)[: n // 2]
        chosen = mask & (augmented >= order[-1])
        psi = np.where(chosen, np.exp(augmented / temperature), 0.0)
        psi = psi / psi.sum()
        element, slope = -n * psi * log_prob, -n * psi
        log_mean_exp = np.log(np.mean(np.exp(np.array(order) / temperature)))
        dual_loss += temperature * (config.temperature_target + log_mean_exp)
        gradient_duals["log_temperature"] = temperature * (
            config.temperature_target + log_mean_exp - np.sum(psi * augmented) / temperature
        )
    for i in zip(*np.nonzero(mask), strict=True):
        r, a = ratio[i], augmented[i]
        if config.weight == "identity":
            element[i] = slope[i] = -r * a
        elif config.weight in ("clip", "centred_clip"):
            centre = 1.0
            if config.weight == "centred_clip":
                there = derivatives(published, batch.behaviour_parameters, batch.action)["log_prob"][0]
                centre = np.exp(there[i] - batch.behaviour_log_prob[i])
            low, high = centre - config.clip_epsilon, centre + config.clip_epsilon
            element[i] = max(-r * a, -min(max(r, low), high) * a)
            held = (a > 0 and r > high) or (a < 0 and r < low)
            slope[i] = 0.0 if held else -r * a
        elif config.weight in ("truncate", "effective_sample_size"):
            cap = config.weight_cap if config.weight == "truncate" else ess
            slope[i] = -min(cap, r) * a
            element[i] = slope[i] * log_prob[i]
        elif config.weight == "acer":
            c = config.weight_cap
            slope[i] = -a * min(r, c) - a * max(0.0, (r - c) / r)
            element[i] = slope[i] * log_prob[i]
    policy_loss = element[mask].sum() / n

    penalty_loss, penalty_slope = 0.0, 0.0
    if config.penalty != "none":
        exact = known[config.penalty][0][mask].mean()
        factor = {
            "constant": config.penalty_coefficient,
            "adaptive": PENALTY,
            "one_minus_effective_sample_size": config.penalty_coefficient * (1 - ess),
            "mirror_descent": config.penalty_coefficient / (1 - PUBLISHED_AT / TOTAL_UPDATES),
            "learned": np.exp(DUALS["log_penalty"]),
        }[config.penalty_schedule]
        penalty_loss, penalty_slope = factor * exact, factor
        if config.penalty_schedule == "learned":
            dual_loss += factor * (config.penalty_target - exact)
            gradient_duals["log_penalty"] = factor * (config.penalty_target - exact)

    error = value - target
    squared, value_slope = error**2, error
    if config.value_loss == "weighted":
        weight = np.minimum(ratio, config.value_weight_cap)
        squared, value_slope = weight * squared, weight * value_slope
    elif config.value_loss == "clipped":
        e = config.clip_epsilon
        near = np.clip(value, batch.behaviour_value - e, batch.behaviour_value + e)
        far = (near - target) ** 2 > squared
        squared = np.where(far, (near - target) ** 2, squared)
        value_slope = np.where(far & (near != value), 0.0, value_slope)
    value_loss = 0.5 * squared[mask].mean()

    total = policy_loss + penalty_loss + dual_loss + config.value_coefficient * value_loss
    total -= config.entropy_coefficient * known["entropy"][0][mask].mean()
    share = (mask / n)[..., None]
    gradient = [
        share * (slope[..., None] * d - config.entropy_coefficient * known["entropy"][1][k])
        + share * penalty_slope * (known[config.penalty][1][k] if config.penalty != "none" else 0.0)
        for k, d in enumerate(score)
    ]
    return total, (type(current)(*gradient), config.value_coefficient * value_slope * mask / n, gradient_duals)


MEMBERS = {name: {} for name in PRESETS} | {
    "printed equation 12": dict(product_start=0),
    "constant penalty": dict(penalty="reverse_kl", penalty_coefficient=0.25),
    "mixed": dict(
        weight="identity", advantage="gae_current", advantage_normalisation="standard", penalty="kl", value_loss="plain"
    ),
}
TUNED = dict(
    gamma=0.9,
    lambda_=0.8,
    clip_epsilon=0.3,
    divergence_coefficient=0.7,
    value_coefficient=0.4,
    entropy_coefficient=0.05,
    rho_bar_value=1.2,
    c_bar_value=0.9,
    rho_bar_divergence=1.1,
    c_bar_divergence=0.6,
    weight_cap=1.1,
    value_weight_cap=1.5,
)


def member(name, **overrides):
    return preset(name if name in PRESETS else "ppo_da", **{**MEMBERS[name], **TUNED, **overrides})


@pytest.mark.parametrize("continuous", [False, True], ids=["discrete", "continuous"])
@pytest.mark.parametrize("name", MEMBERS)
def test_loss_and_gradient_equal_numpy(name, continuous):
    """All that differs between members, and every stop-gradient: the reference differentiates nothing else."""
    config = member(name)
    batch, current, published, value = make_batch(3, continuous)
    total, metrics, gradients = loss_of(config, batch, current, published, value)
    expected, expected_gradients = reference_loss(config, batch, current, published, value)
    assert total.dtype == jnp.float64
    np.testing.assert_allclose(total, expected, **EXACT)
    same(gradients, expected_gradients, **EXACT)
    assert all(np.isfinite(number) for number in metrics.values())


def test_the_batch_reaches_every_branch():
    """The comparison above means little if no ratio is clipped."""
    batch, current, published, value = make_batch(3)
    ratio = np.exp(current.log_prob(batch.action) - batch.behaviour_log_prob)[np.asarray(batch.valid)]
    assert (ratio > 1.5).sum() >= 2
    assert (ratio < 0.7).sum() >= 2
    for name in ("ppo", "geppo"):
        _, metrics, _ = loss_of(member(name), batch, current, published, value)
        assert 0.1 < float(metrics["clip_fraction"]) < 0.9
    config = member("ppo_gae")
    free, _, _ = loss_of(config.replace(value_loss="plain"), batch, current, published, value)
    held, _, _ = loss_of(config, batch, current, published, value)
    assert held > free


# Golden numbers -------------------------------------------------------------------------------------------------------


def golden_loss(case, scale=1.0, valid=None, **fields):
    """Metrics on the roll-out of section 7.1, of which rewards and values may be scaled."""
    ratios, terminated = np.array(GOLDEN["ratios"]), np.array(GOLDEN["cases"][case]["terminated"])
    logits = jnp.log(jnp.array([[[0.2, 0.8], [0.5, 0.5], [0.7, 0.3], [0.4, 0.6]]]))
    action = jnp.array([[1, 0, 0, 1]])
    value = jnp.array([GOLDEN["values"]]) * scale
    no = jnp.zeros((1, 4), bool)
    batch = Rollout(
        observation=jnp.zeros((1, 4, 1)),
        action=action,
        reward=jnp.array([GOLDEN["rewards"]]) * scale,
        terminated=jnp.array([terminated]),
        truncated=no,
        valid=jnp.ones((1, 4), bool) if valid is None else jnp.array([valid]),
        first=no,
        behaviour_log_prob=Categorical(logits).log_prob(action) - jnp.log(ratios),
        behaviour_value=value,
        final_value=jnp.zeros((1, 4)),
        behaviour_parameters=(),
        advantage=jnp.zeros((1, 4)),
        lambda_return=jnp.zeros((1, 4)),
        tail_value=jnp.array([GOLDEN["bootstrap_value"] * scale]),
        core_state=(),
        policy_version=jnp.zeros(1, jnp.int32),
    )
    config = preset("ppo_da", gamma=GOLDEN["gamma"], **fields)
    return family_loss(config, {}, make_state(), batch, Categorical(logits), value, None, TOTAL_UPDATES)


@pytest.mark.parametrize("case", ["no_done", "done_at_1"])
def test_golden_means(case):
    expected = GOLDEN["cases"][case]
    total, metrics = golden_loss(case)
    np.testing.assert_allclose(metrics["policy_loss"], expected["ppo_da_mean"], rtol=0, atol=ROUNDING)
    np.testing.assert_allclose(metrics["value_loss"], expected["value_loss"], rtol=0, atol=ROUNDING)
    np.testing.assert_allclose(total, expected["ppo_da_mean"] + 0.5 * expected["value_loss"], rtol=0, atol=1e-10)
    mean_divergence = np.mean(expected["divergence"]["k1_c0.5"])
    np.testing.assert_allclose(metrics["divergence"], mean_divergence, rtol=0, atol=ROUNDING)
    _, metrics = golden_loss(case, divergence="none")
    np.testing.assert_allclose(metrics["policy_loss"], expected["ppo_mean"], rtol=0, atol=ROUNDING)
    _, metrics = golden_loss(case, advantage_normalisation="none")
    np.testing.assert_allclose(metrics["policy_loss"], expected["ppo_da_unnormalised_mean"], rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("case", ["no_done", "done_at_1"])
@pytest.mark.parametrize("divergence", ["kl", "none"])
def test_golden_elements(case, divergence):
    """One sample at a time through the mask; rewards and values scaled instead of advantages normalised."""
    expected = GOLDEN["cases"][case]
    scale = expected["normalised_advantages"][3] / expected["advantages"][3]
    for i, element in enumerate(expected["ppo_da_elements" if divergence == "kl" else "ppo_elements"]):
        _, metrics = golden_loss(case, scale, np.arange(4) == i, advantage_normalisation="none", divergence=divergence)
        np.testing.assert_allclose(metrics["policy_loss"], element, rtol=0, atol=4 * ROUNDING)


@pytest.mark.parametrize("case", ["no_done", "done_at_1"])
@pytest.mark.parametrize(
    ("form", "fields"),
    [
        ("k1_c1", dict(c_bar_divergence=1.0)),
        ("k1_c0", dict(c_bar_divergence=0.0)),
        ("k0_c0.5", dict(product_start=0)),
        ("k0_c0", dict(divergence_steps="one")),
        ("released_c0.5", dict(released_code=True)),
    ],
)
def test_golden_divergence_options_reach_the_trace(case, form, fields):
    _, metrics = golden_loss(case, **fields)
    expected = np.mean(GOLDEN["cases"][case]["divergence"][form])
    np.testing.assert_allclose(metrics["divergence"], expected, rtol=0, atol=ROUNDING)


def test_the_value_weight_is_capped_at_three():
    batch, current, published, value = make_batch(1)
    batch = batch._replace(behaviour_log_prob=current.log_prob(batch.action) - jnp.log(5.0))
    plain = member("ppo_da", value_loss="plain")
    _, loose, _ = loss_of(plain, batch, current, published, value)
    _, capped, _ = loss_of(member("ppo_da", value_weight_cap=3.0), batch, current, published, value)
    np.testing.assert_allclose(capped["value_loss"], 3.0 * loose["value_loss"], **EXACT)


# Identities between members -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("continuous", [False, True], ids=["discrete", "continuous"])
@pytest.mark.parametrize(
    ("left", "right"),
    [
        (member("ppo_da", divergence_coefficient=0.0), member("ppo")),
        (member("dapo", divergence_coefficient=0.0), member("importance_weighted")),
        (member("acer_da", divergence_coefficient=0.0), member("acer")),
        (member("ppo_da_one_step"), member("ppo_da", product_start=0, c_bar_divergence=0.0)),
        (member("ppo_da", gamma=0.0), member("ppo_da_one_step", gamma=0.0)),
        (member("ppo").replace(clip_epsilon=1e9), member("importance_weighted")),
    ],
    ids=["ppo", "importance_weighted", "acer", "one_step", "gamma_0", "no_clip"],
)
def test_special_cases(left, right, continuous):
    batch, current, published, value = make_batch(5, continuous)
    first = loss_of(left, batch, current, published, value)
    second = loss_of(right, batch, current, published, value)
    assert float(first[0]) == float(second[0])
    same(first[2], second[2])


def test_the_divergence_acts_like_a_reward():
    """V-trace is linear in the reward: with equal bars, A(r) - D / eta = A(r - f / eta)."""
    shared = dict(
        advantage_normalisation="none",
        c_bar_value=0.6,
        c_bar_divergence=0.6,
        rho_bar_value=1.1,
        rho_bar_divergence=1.1,
        value_coefficient=0.0,
    )
    for name in ("ppo_da", "dapo", "acer_da"):
        config = member(name, **shared)
        batch, current, published, value = make_batch(7)
        term = current.log_prob(batch.action) - batch.behaviour_log_prob
        shaped = batch._replace(reward=batch.reward - config.divergence_coefficient * term)
        augmented = loss_of(config, batch, current, published, value)
        rewarded = loss_of(config.replace(divergence="none"), shaped, current, published, value)
        np.testing.assert_allclose(augmented[0], rewarded[0], **EXACT)
        same(augmented[2], rewarded[2], **EXACT)


def test_importance_weighting_with_small_ratios_is_impala():
    """Where no ratio exceeds 1, ratio * grad log pi = min(1, ratio) * grad log pi."""
    batch, current, published, value = make_batch(11)
    log_prob = current.log_prob(batch.action)
    behaviour = jnp.maximum(batch.behaviour_log_prob, log_prob + 0.01)
    batch = batch._replace(behaviour_log_prob=behaviour)
    settings = dict(weight_cap=1.0, advantage_normalisation="none", value_loss="plain", rho_bar_value=1.0)
    _, _, weighted = loss_of(member("importance_weighted", **settings), batch, current, published, value)
    _, _, truncated = loss_of(member("vtrace", **settings), batch, current, published, value)
    same(weighted, truncated, **EXACT)
    # and with larger ratios they differ
    batch = batch._replace(behaviour_log_prob=log_prob - 0.5)
    _, _, weighted = loss_of(member("importance_weighted", **settings), batch, current, published, value)
    _, _, truncated = loss_of(member("vtrace", **settings), batch, current, published, value)
    assert not np.allclose(weighted[0].logits, truncated[0].logits)


@pytest.mark.parametrize("continuous", [False, True], ids=["discrete", "continuous"])
def test_fresh_data(continuous):
    """Ratio 1: nothing is clipped, nothing diverges, and every weighting is the on-policy actor-critic."""
    batch, current, published, value = make_batch(13, continuous, fresh=True)
    settings = dict(
        advantage_normalisation="none",
        entropy_coefficient=0.0,
        value_loss="plain",
        rho_bar_value=1.0,
        c_bar_value=1.0,
        rho_bar_divergence=1.0,
        c_bar_divergence=1.0,
        weight_cap=1.0,
        trace_lambda=1.0,
    )
    host, mask = jax.tree.map(np.asarray, batch), np.asarray(batch.valid)
    advantage = np.zeros((B, T))
    for run, after in traces(host):
        for start, index in enumerate(run):
            rewards = [host.reward[i] for i in run[start:]]
            n_step = sum(0.9**k * r for k, r in enumerate(rewards)) + 0.9 ** len(rewards) * after
            advantage[index] = n_step - float(value[index])
    score = derivatives(jax.tree.map(np.asarray, current), host.behaviour_parameters, host.action)["log_prob"][1]
    expected = [-(advantage * mask / mask.sum())[..., None] * d for d in score]
    for name in ("ppo_da", "ppo_da_one_step", "dapo", "importance_weighted", "vtrace", "acer", "acer_da", "geppo"):
        _, metrics, gradients = loss_of(member(name, **settings), batch, current, published, value)
        same(gradients[0], type(current)(*expected), **EXACT)
        np.testing.assert_allclose(gradients[1], -0.4 * advantage * mask / mask.sum(), **EXACT)
        for zero in ("divergence", "clip_fraction", "kl_to_behaviour", "half_squared_log_ratio", "total_variation"):
            assert abs(float(metrics[zero])) < 1e-15, zero
        np.testing.assert_allclose(metrics["effective_sample_size"], 1.0, rtol=1e-15)


def test_fresh_p3o_has_no_penalty():
    batch, current, published, value = make_batch(13, fresh=True)
    _, metrics, _ = loss_of(member("p3o"), batch, current, published, value)
    np.testing.assert_allclose(metrics["effective_sample_size"], 1.0, rtol=1e-15)
    assert float(metrics["penalty_loss"]) == 0.0
    batch, current, published, value = make_batch(13)
    _, metrics, _ = loss_of(member("p3o"), batch, current, published, value)
    expected = (1.0 - metrics["effective_sample_size"]) * metrics["penalty_kl"]
    np.testing.assert_allclose(metrics["penalty_loss"], expected, **EXACT)
    assert float(metrics["penalty_loss"]) > 0.01


def test_acer_has_the_two_terms_of_the_released_code():
    """`-A sg(min(ratio, c)) log pi - A sg(max(0, (ratio - c) / ratio)) log pi`."""
    batch, current, published, value = make_batch(17)
    config = member("acer", entropy_coefficient=0.0, value_coefficient=0.0, weight_cap=1.3)
    _, _, gradients = loss_of(config, batch, current, published, value)
    ratio = np.exp(current.log_prob(batch.action) - batch.behaviour_log_prob)
    _, advantage = reference_targets(config, *jax.tree.map(np.asarray, (batch, value)), ratio)
    mask = np.asarray(batch.valid)
    advantage = advantage / (np.sqrt(np.mean(advantage[mask] ** 2)) + 1e-4)

    def released(distribution):
        log_prob = distribution.log_prob(batch.action)
        ratio = jnp.exp(log_prob - batch.behaviour_log_prob)
        stop = jax.lax.stop_gradient
        loss = -advantage * stop(jnp.minimum(ratio, 1.3)) * log_prob
        loss = loss - advantage * stop(jnp.maximum(0.0, (ratio - 1.3) / ratio)) * log_prob
        return jnp.sum(jnp.where(mask, loss, 0.0)) / mask.sum()

    same(gradients[0], jax.grad(released)(current), **EXACT)


@jax.disable_jit(False)
def test_the_mirror_descent_step_solves_the_bandit():
    """With expectations taken exactly, the gradient of eq. 13 vanishes at pi proportional to pi_t exp(eta r)."""
    counts, rewards, eta = np.array([3, 2, 1, 2]), np.array([1.0, -0.5, 2.0, 0.3]), 1.5
    action = np.repeat(np.arange(4), counts)[:, None]
    behaviour = np.log(counts / counts.sum())
    solution = jnp.asarray(behaviour + eta * rewards)
    n = len(action)
    no = jnp.zeros((n, 1), bool)
    batch = make_batch(0)[0]._replace(
        action=jnp.asarray(action),
        reward=jnp.asarray(rewards[action]),
        terminated=~no,
        truncated=no,
        valid=~no,
        behaviour_log_prob=jnp.asarray(behaviour[action]),
        behaviour_value=jnp.zeros((n, 1)),
        final_value=jnp.zeros((n, 1)),
        tail_value=jnp.zeros(n),
    )
    config = preset("dapo", divergence_coefficient=1.0 / eta, advantage_normalisation="none", value_coefficient=0.0)

    def loss(logits):
        distribution = Categorical(jnp.broadcast_to(logits, (n, 1, 4)))
        return family_loss(config, {}, make_state(), batch, distribution, jnp.zeros((n, 1)), None, 10)[0]

    gradient = jax.jit(jax.grad(loss), compiler_options=QUICK)
    np.testing.assert_allclose(gradient(solution), 0.0, atol=1e-14)
    assert np.abs(gradient(solution + jnp.array([0.0, 0.1, 0.0, 0.0]))).max() > 1e-3
    assert np.abs(gradient(jnp.asarray(behaviour))).max() > 1e-2


# Penalties ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("published_at", "factor"), [(0, 1.0), (5, 2.0), (8, 5.0), (10, 100.0), (12, 100.0)])
def test_mirror_descent_penalty_grows(published_at, factor):
    """1 / t_k with t_k = 1 - k / K, at most 100."""
    batch, current, published, value = make_batch(19)
    config = member("mdpo", penalty_coefficient=0.5)
    _, metrics, _ = loss_of(config, batch, current, published, value, make_state(published_at))
    np.testing.assert_allclose(metrics["penalty_loss"], 0.5 * factor * metrics["penalty_kl"], **EXACT)


def test_vmpo_equals_rlax():
    rlax = pytest.importorskip("rlax")
    batch, current, published, value = make_batch(23)
    # skewed advantages, so that the better half is not what lies above the mean
    batch = batch._replace(valid=jnp.ones((B, T), bool), advantage=jnp.exp(2.0 * batch.advantage))
    plain = dict(advantage="gae", advantage_normalisation="none", value_coefficient=0.0, entropy_coefficient=0.0)
    config = member("vmpo", **plain)
    total, _, gradients = loss_of(config, batch, current, published, value)

    def reference(distribution, duals):
        temperature = rlax.LagrangePenalty(
            jnp.exp(duals["log_temperature"]), jnp.asarray(config.temperature_target), False
        )
        alpha = rlax.LagrangePenalty(jnp.exp(duals["log_penalty"]), jnp.asarray(config.penalty_target), False)
        loss, _ = rlax.vmpo_loss(
            distribution.log_prob(batch.action).ravel(),
            batch.advantage.ravel(),
            temperature,
            [(batch.behaviour_parameters.kl(distribution).ravel(), alpha)],
        )
        return jnp.mean(loss)

    duals = {name: jnp.asarray(number) for name, number in DUALS.items()}
    with jax.disable_jit(False):
        expected, expected_gradients = jax.jit(jax.value_and_grad(reference, argnums=(0, 1)))(current, duals)
    np.testing.assert_allclose(total, expected, rtol=1e-7)  # rlax adds 1e-10 to its sums
    same((gradients[0], gradients[2]), expected_gradients, rtol=1e-7, atol=1e-9)


def test_geppo_clips_around_the_published_policy():
    """At the published policy nothing is clipped, however far the behaviour policy is."""
    batch, _, published, value = make_batch(29, log_ratio_scale=2.0)
    ratio = np.exp(published.log_prob(batch.action) - batch.behaviour_log_prob)
    assert np.abs(ratio - 1.0)[np.asarray(batch.valid)].max() > 0.5
    _, metrics, gradients = loss_of(member("geppo"), batch, published, published, value)
    assert float(metrics["clip_fraction"]) == 0.0
    assert float(metrics["total_variation"]) == 0.0
    _, _, unclipped = loss_of(member("geppo", weight="identity"), batch, published, published, value)
    same(gradients, unclipped)
    _, metrics, _ = loss_of(member("ppo"), batch, published, published, value)
    assert float(metrics["clip_fraction"]) > 0.3


# Fake samples and edges -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_fake_samples_carry_nothing(name):
    """Whatever a fake step holds, loss and gradients stay the same to the last bit, and its own gradient is zero."""
    config = member(name)
    batch, current, published, value = make_batch(31)
    fake = ~np.asarray(batch.valid)
    before = loss_of(config, batch, current, published, value)
    for leaf in jax.tree.leaves(before[2][:2]):
        assert np.all(np.asarray(leaf)[fake] == 0.0)
        assert np.any(np.asarray(leaf)[~fake] != 0.0)

    rng = np.random.default_rng(0)

    def disturb(leaf):
        leaf = np.array(leaf)
        if leaf.shape[:2] == (B, T) and leaf.dtype == np.float64:
            leaf[fake] = 50.0 * rng.normal(size=leaf[fake].shape)
        return jnp.asarray(leaf)

    disturbed, current, published, value = jax.tree.map(disturb, (batch, current, published, value))
    disturbed = disturbed._replace(action=jnp.where(batch.valid, batch.action, (batch.action + 1) % A))
    after = loss_of(config, disturbed, current, published, value)
    assert float(before[0]) == float(after[0])
    for metric, number in before[1].items():
        assert float(after[1][metric]) == float(number), metric
    same(before[2], after[2])


@pytest.mark.parametrize("name", PRESETS)
def test_extreme_ratios_stay_finite(name):
    batch, current, published, value = make_batch(37)
    log_ratio = np.zeros((B, T))
    log_ratio[0, 0], log_ratio[1, 2] = 200.0, -200.0
    batch = batch._replace(behaviour_log_prob=batch.behaviour_log_prob - log_ratio)
    total, metrics, gradients = loss_of(member(name), batch, current, published, value)
    for leaf in jax.tree.leaves((total, metrics, gradients)):
        assert np.all(np.isfinite(leaf))


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "vmpo"])  # which has no better half then
def test_a_batch_of_fake_samples_is_finite(name):
    batch, current, published, value = make_batch(41)
    batch = batch._replace(valid=jnp.zeros((B, T), bool))
    total, _, gradients = loss_of(member(name), batch, current, published, value)
    assert np.isfinite(total)
    for leaf in jax.tree.leaves(gradients[:2]):
        np.testing.assert_array_equal(leaf, 0.0)


def test_jit_changes_nothing():
    batch, current, published, value = make_batch(43)
    config = member("ppo_da")
    plain = loss_of(config, batch, current, published, value)
    with jax.disable_jit(False):
        compiled = jax.jit(loss_of)(config, batch, current, published, value)
    same(plain, compiled, **EXACT)


# One optimiser step ---------------------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnums=1, compiler_options=QUICK)
def initialise(config, spec):
    return make(config, spec, total_updates=TOTAL_UPDATES).init(jax.random.key(0))


@functools.partial(jax.jit, static_argnums=1, compiler_options=QUICK)
def updated(config, spec, state, batch):
    return make(config, spec, total_updates=TOTAL_UPDATES).update(state, jax.random.key(1), batch)


@functools.partial(jax.jit, static_argnums=1, compiler_options=QUICK)
def own_batch(config, spec, state, shift):
    """Random data of the agent's policy, whose first behaviour parameter is shifted."""
    key = jax.random.key(1)
    batch = jax.tree.map(float32, make_batch(47)[0])
    observation = jax.random.normal(key, (B, T, 2), jnp.float32)
    network = build_network(config, spec)
    distribution, value, _ = network.apply({"params": state.params["network"]}, observation, (), batch.first)
    behaviour = jax.tree.map(lambda leaf: leaf.at[..., 0].add(shift), distribution)
    action = behaviour.sample(key)
    return batch._replace(
        observation=observation,
        action=action,
        behaviour_log_prob=behaviour.log_prob(action),
        behaviour_parameters=behaviour if config.needs_behaviour_parameters else (),
        behaviour_value=value,
    )


def float32(leaf):
    return jnp.asarray(leaf, jnp.float32) if leaf.dtype == jnp.float64 else jnp.asarray(leaf)


def one_update(config, spec=DISCRETE, shift=0.0, updates=0, mutate=None, repeat=1):
    """Update a fresh agent on data of its own, in float32; the states before and after the last step, and metrics."""
    with jax.disable_jit(False), jax.enable_x64(False):
        state = initialise(config, spec)._replace(updates=jnp.asarray(updates, jnp.int32))
        batch = own_batch(config, spec, state, shift)
        if mutate is not None:
            batch = mutate(batch)
        for _ in range(repeat):
            before = state
            state, metrics = updated(config, spec, state, batch)
    return before, state, metrics


@pytest.mark.parametrize("spec", [DISCRETE, CONTINUOUS], ids=["discrete", "continuous"])
def test_an_update_on_fresh_data(spec):
    before, state, metrics = one_update(preset("ppo_da", sizes=(8,)), spec)
    for zero in ("divergence", "clip_fraction", "kl_to_behaviour", "staleness_mean", "staleness_max", "nonfinite"):
        assert abs(float(metrics[zero])) < 1e-6, zero
    np.testing.assert_allclose(metrics["effective_sample_size"], 1.0, rtol=1e-6)
    assert int(state.updates) == 1
    same(state.actor_params, before.params)  # the actors keep what was published
    assert not np.array_equal(
        state.params["network"]["value_head"]["kernel"], before.params["network"]["value_head"]["kernel"]
    )


def test_the_learning_rate_falls_linearly():
    config = preset("ppo_da", sizes=(8,), learning_rate=0.01, final_learning_rate_fraction=0.2)
    for updates, expected in [(0, 0.01), (5, 0.006), (10, 0.002), (15, 0.002)]:
        before, after, metrics = one_update(config, updates=updates)
        np.testing.assert_allclose(metrics["learning_rate"], expected, rtol=1e-6)
        # Adam's first step has unit length in every coordinate, whatever the gradient's scale
        move = jax.tree.map(lambda new, old: jnp.max(jnp.abs(new - old)), after.params, before.params)
        np.testing.assert_allclose(max(jax.tree.leaves(move)), expected, rtol=0.05)


def test_staleness_counts_updates_since_the_policy_that_acted():
    _, _, metrics = one_update(
        preset("ppo_da", sizes=(8,)),
        updates=9,
        mutate=lambda batch: batch._replace(policy_version=jnp.array([1, 2, 4, 9], jnp.int32)),
    )
    assert float(metrics["staleness_mean"]) == 5.0
    assert float(metrics["staleness_max"]) == 8.0


def test_adaptive_penalty_doubles_and_halves():
    config = preset("trpo_penalty", sizes=(8,), penalty_coefficient=3.0, learning_rate=0.0)
    _, state, metrics = one_update(config, shift=0.0)
    assert float(metrics["penalty_kl"]) < 1e-6
    assert float(state.duals.penalty) == 1.5
    _, state, metrics = one_update(config, shift=1.0)
    observed = float(metrics["penalty_kl"])
    assert observed > 0.05
    assert float(state.duals.penalty) == 6.0
    np.testing.assert_allclose(metrics["penalty_loss"], 3.0 * observed, rtol=1e-6)
    for target, expected in [
        (observed * 1.4, 3.0),
        (observed / 1.4, 3.0),
        (observed * 1.6, 1.5),
        (observed / 1.6, 6.0),
    ]:
        _, state, _ = one_update(config.replace(penalty_target=target), shift=1.0)
        assert float(state.duals.penalty) == expected, target / observed
    _, state, _ = one_update(config, shift=1.0, repeat=20)
    np.testing.assert_allclose(state.duals.penalty, 1e4)


def test_geppo_lowers_the_learning_rate_when_far():
    """TV is taken to the published policy, which `one_update` leaves at the initial parameters."""
    config = preset("geppo", sizes=(8,), learning_rate=0.3, max_grad_norm=1e9)
    _, state, metrics = one_update(config)
    assert float(metrics["total_variation"]) == 0.0
    assert float(state.duals.learning_rate_scale) == 1.0
    _, state, metrics = one_update(config, repeat=2)
    assert float(metrics["total_variation"]) > 0.5 * config.clip_epsilon
    np.testing.assert_allclose(state.duals.learning_rate_scale, 1 / 1.03, rtol=1e-6)
    _, _, metrics = one_update(config, repeat=3)
    np.testing.assert_allclose(metrics["learning_rate"], 0.3 * (1 - 2 / TOTAL_UPDATES) / 1.03, rtol=1e-6)
    _, state, _ = one_update(preset("ppo", sizes=(8,), learning_rate=0.3), repeat=2)
    assert float(state.duals.learning_rate_scale) == 1.0


def test_vmpo_learns_its_duals():
    config = preset("vmpo", sizes=(8,), penalty_coefficient=0.5)
    before, state, _ = one_update(config, shift=1.0)  # KL above the target: the penalty must rise
    np.testing.assert_allclose(before.params["log_penalty"], np.log(0.5), rtol=1e-6)
    assert float(state.params["log_penalty"]) > np.log(0.5) + 1e-4
    _, state, _ = one_update(config, shift=0.0)
    assert float(state.params["log_penalty"]) < np.log(0.5) - 1e-4
    assert float(state.params["log_temperature"]) != 0.0


def test_gradients_are_clipped_by_their_norm():
    """With RMSProp's and Adam's scale invariance the clip shows in the second moments of the optimiser."""
    for optimiser, decay in (("adam", 0.999), ("rmsprop", 0.99)):
        config = preset("ppo_da", sizes=(8,), max_grad_norm=1e-3, optimiser=optimiser)
        _, state, metrics = one_update(config)
        assert float(metrics["gradient_norm"]) > 1e-2
        moments = [leaf for leaf in jax.tree.leaves(state.optimiser[1].nu)]
        norm = np.sqrt(sum(float(jnp.sum(leaf)) for leaf in moments) / (1 - decay))
        np.testing.assert_allclose(norm, 1e-3, rtol=1e-3)


def test_a_nan_is_reported():
    for poison in ("reward", "behaviour_log_prob"):
        _, _, metrics = one_update(
            preset("ppo_da", sizes=(8,)),
            mutate=lambda batch, name=poison: batch._replace(**{name: getattr(batch, name).at[0, 0].set(jnp.nan)}),
        )
        assert float(metrics["nonfinite"]) == 1.0
    _, _, metrics = one_update(preset("ppo_da", sizes=(8,)))
    assert float(metrics["nonfinite"]) == 0.0
