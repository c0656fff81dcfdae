"""STAR against golden numbers, its identities, loops in NumPy, and a known decision process."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_off.estimators.trajectory.reward_processes import star as module
from jaxrl_off.estimators.trajectory.reward_processes.star import abstract_reward_process, star, star_values
from jaxrl_off.estimators.trajectory.weights import importance as weighted
from jaxrl_off.types import Trajectories

GOLDEN = json.loads((Path(__file__).parents[3] / "golden" / "star.json").read_text())
PARTITIONS = {"const": np.array([0, 0, 0]), "two": np.array([0, 1, 1]), "identity": np.array([0, 1, 2])}
FACTORED = dict(termination="factored", horizon_exit=False, discounted_counts=False)


def golden():
    """Trajectories, log ratios, states and what followed the last ones; padding is made worthless."""
    mask, states = np.array(GOLDEN["valid"], bool), np.array(GOLDEN["s"])
    hole = np.where(mask, 0.0, np.nan)
    done = np.array(GOLDEN["done"], bool) & mask
    data = Trajectories(None, None, np.array(GOLDEN["r"]) + hole, hole, mask, done, done & False, None)
    final = np.array(GOLDEN["next_s"])[np.arange(5), mask.sum(1) - 1]
    return data, np.log(GOLDEN["rho"]) + hole, states, final


def simulated(seed=0, n=12, horizon=6, size=4, zeros=0.1):
    """Random trajectories of many lengths, of which some ratios are 0 and some ends are cuts; worthless padding."""
    random = np.random.default_rng(seed)
    mask = np.arange(horizon) < random.integers(1, horizon + 1, size=n)[:, None]
    mask[0] = True
    hole = np.where(mask, 0.0, np.nan)
    log_ratio = np.where(random.random(mask.shape) < zeros, -np.inf, random.normal(0, 0.7, mask.shape))
    last = mask & ~np.pad(mask[:, 1:], [(0, 0), (0, 1)])
    terminated = last & (random.random((n, 1)) < 0.7)
    states = random.integers(0, size, mask.shape)
    rewards = random.normal(1, 1, mask.shape)
    data = Trajectories(None, None, rewards + hole, 0 * log_ratio.clip(-1) + hole, mask, terminated, terminated, None)
    final = random.integers(0, size, n)
    return data, log_ratio + hole, np.where(mask, states, -7), final


def written_out(data, log_ratio, states, size, final, *, discount=1.0, window=None, plain=False, counts=None, **form):
    """The formulas of the module, by loops."""
    n, horizon = data.mask.shape
    counts = np.ones(n) if counts is None else counts
    factored = form.get("termination") == "factored"
    eta, reward, total, leaving = np.zeros(size), np.zeros(size), np.zeros(size), np.zeros(size)
    table = np.zeros((size, size))
    for i in range(n):
        length = int(data.mask[i].sum())
        eta[states[i, 0]] += counts[i] / counts.sum()
        for t in range(length):
            oldest = 0 if window is None else max(0, t - window + 1)
            ratios = np.exp(log_ratio[i, oldest : t + 1])
            weight = counts[i] * np.prod(ratios) * (1.0 if plain else discount**t)
            before = counts[i] * np.prod(ratios[:-1]) * (1.0 if plain else discount**t)
            z, last = states[i, t], t == length - 1
            total[z] += before if form.get("normalisation") == "horvitz_thompson" else weight
            reward[z] += weight * data.rewards[i, t]
            leaves = last and (form.get("horizon_exit", True) or data.terminated[i, t])
            leaving[z] += weight * leaves
            if factored or not leaves:
                table[z, final[i] if last else states[i, t + 1]] += weight
    safe = np.where(total > 0, total, 1.0)
    transition, reward, leaving = table / safe[:, None], reward / safe, leaving / safe
    if factored:
        transition *= (1 - leaving)[:, None]
    return eta @ np.linalg.solve(np.eye(size) - discount * transition, reward), eta, transition, reward


def test_golden_numbers():
    data, log_ratio, states, final = golden()
    grid, estimates = np.stack([phi[states] for phi in PARTITIONS.values()]), GOLDEN["estimates"]
    found = star_values(data, log_ratio, grid, 3, (0, 1, 2, None), discount=0.9)
    expected = [[estimates[f"STAR phi={name} c={c}"] for c in ("0", "1", "2", "inf")] for name in PARTITIONS]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    found = star_values(data, log_ratio, grid, 3, (0, 1, 2, None))[:, 1]
    expected = [estimates[f"STAR phi={name} c=1 gamma=1"] for name in PARTITIONS]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    last = np.stack([phi[final] for phi in PARTITIONS.values()])
    found = star_values(data, log_ratio, grid, 3, (1,), final_states=last, **FACTORED)[:, 0]
    expected = [estimates[f"STAR_repo_variant phi={name} c=1 gamma=1"] for name in PARTITIONS]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_golden_process():
    data, log_ratio, states, _ = golden()
    found = abstract_reward_process(data, log_ratio, PARTITIONS["two"][states], 2, discount=0.9, window=1)
    expected = GOLDEN["ARP_two_c1"]
    np.testing.assert_allclose(found.initial, expected["eta"], rtol=1e-12)
    np.testing.assert_allclose(found.transition, expected["P_continue"], rtol=1e-12)
    np.testing.assert_allclose(found.reward, expected["R"], rtol=1e-12)
    np.testing.assert_allclose(found.exit, 1.0 - np.sum(expected["P_continue"], axis=1), rtol=1e-12)
    weights = np.where(data.mask, np.exp(log_ratio) * 0.9 ** np.arange(4), 0.0)
    share = weights[states == 0].sum() / weights.sum()
    np.testing.assert_allclose(found.visits, [share, 1 - share], rtol=1e-12)


def test_golden_estimated_behaviour_policy_is_the_tabular_model():
    """I7: phi = s, c = 1, plain counts, pi_b as counted: fitted Q evaluation, the tabular model and DICE."""
    data, _, states, _ = golden()
    actions, mask = np.array(GOLDEN["a"]), data.mask
    chosen = np.zeros((3, 2))
    np.add.at(chosen, (states[mask], actions[mask]), 1.0)
    behaviour = np.log(chosen / chosen.sum(1, keepdims=True))[states, actions]
    target = np.log(GOLDEN["policy_e"])[states, actions]
    data, estimates = data._replace(behaviour_log_prob=behaviour), GOLDEN["estimates"]
    found = star(data, target, states, 3, discount=0.9, window=1, discounted_counts=False)
    for name in ("FQE_tabular", "MB_tabular", "MWL/DICE_tabular rho_pi"):
        assert float(found.value) == pytest.approx(estimates[name], rel=1e-12)
    found = star_values(data, target, np.stack([states] * 3), 3, (0, 1, 2, None), discount=0.9)
    name = "STAR identity c=1 with estimated pi_b (gamma^t counts)"
    assert float(found[0, 1]) == pytest.approx(estimates[name], rel=1e-12)


FORMS = [
    dict(),
    dict(discounted_counts=False),
    dict(normalisation="horvitz_thompson"),
    dict(horizon_exit=False),
    dict(horizon_exit=False, normalisation="horvitz_thompson"),
    dict(termination="factored"),
    FACTORED,
]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: "-".join(map(str, form.values())) or "default")
def test_the_formulas_written_out(form):
    options = {name: value for name, value in form.items() if name != "discounted_counts"}
    options["plain"] = not form.get("discounted_counts", True)
    windows = (1, None, 0, 3, 9)
    for seed in range(4):
        data, log_ratio, states, final = simulated(seed)
        counts = np.random.default_rng(seed).integers(0, 3, 12) + (np.arange(12) == 0.0)
        settings = dict(discount=0.8, counts=counts)
        needed = "termination" in form or "horizon_exit" in form
        of_grid, of_one = (dict(final_states=x) if needed else {} for x in (final[None], final))
        values = star_values(data, log_ratio, states[None], 5, windows, **of_grid, **settings, **form)
        for window, value in zip(windows, values[0], strict=True):
            expected = written_out(data, log_ratio, states, 5, final, window=window, **settings, **options)
            assert float(value) == pytest.approx(expected[0], rel=1e-11)
        found = abstract_reward_process(data, log_ratio, states, 5, window=windows[-1], **of_one, **settings, **form)
        for one, other in zip(found[:3], expected[1:], strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("discount", [1.0, 0.7])
def test_identities(seed, discount):
    """I1, I2, I3, I6 of the specification, for any partition and lengths, cuts and zero ratios included."""
    data, log_ratio, states, _ = simulated(seed, zeros=0.05)
    grid, windows = np.stack([states, 0 * states.clip(0)]), (None, 0, 2, 6, 7)
    returns = float(weighted.naive(data, discount=discount).value)
    found = star_values(data, log_ratio, grid, 4, windows, discount=discount)
    np.testing.assert_allclose(found[:, 1], returns, rtol=1e-12)
    np.testing.assert_allclose(found[:, 3:], found[:, [0, 0]], rtol=1e-14)
    np.testing.assert_allclose(
        star_values(data, 0 * data.behaviour_log_prob, grid, 4, windows, discount=discount), returns, rtol=1e-12
    )
    pdis = float(weighted.pdis(data, log_ratio, discount=discount).value)
    each = star_values(data, log_ratio, grid, 4, windows, discount=discount, normalisation="horvitz_thompson")
    np.testing.assert_allclose(each[:, 0], pdis, rtol=1e-10)
    np.testing.assert_allclose(each[:, 1], returns, rtol=1e-12)
    mask, gamma = data.mask, discount ** np.arange(6)
    weights = np.exp(np.cumsum(np.where(mask, log_ratio, 0.0), axis=1)) * mask
    going_on = weights * np.pad(mask[:, 1:], [(0, 0), (0, 1)])
    denominator = np.sum(gamma * weights) - discount * np.sum(gamma * going_on)
    assert float(found[1, 0]) == pytest.approx(12 * pdis / denominator, rel=1e-11)
    if discount == 1.0:
        final = weights[np.arange(12), mask.sum(1) - 1]
        assert float(found[1, 0]) == pytest.approx(pdis / final.mean(), rel=1e-11)


@pytest.mark.parametrize("seed", range(3))
def test_identities_of_time_cells(seed):
    """I4 and I5: CWPDIS, WIS and IS as STAR of phi = t on trajectories padded by steps without reward."""
    data, log_ratio, *_ = simulated(seed, zeros=0.05)
    mask = np.ones_like(data.mask)
    times = np.broadcast_to(np.arange(6), mask.shape)
    rewards, ratios = (np.where(data.mask, x, 0.0) for x in (data.rewards, log_ratio))
    padded = data._replace(rewards=rewards, mask=mask, behaviour_log_prob=0.0 * rewards)
    found = star(padded, ratios, times, 6, discount=0.8)
    expected = weighted.cwpdis(data, log_ratio, discount=0.8)
    assert float(found.value) == pytest.approx(float(expected.value), rel=1e-12)
    assert float(found.standard_error) == pytest.approx(float(expected.standard_error), rel=1e-10)
    late = padded._replace(rewards=np.where(times == 5, rewards.sum(1, keepdims=True), 0.0))
    assert float(star(late, ratios, times, 6).value) == pytest.approx(float(weighted.wis(data, log_ratio).value))
    found = float(star_values(late, ratios, times[None], 6, (None,), normalisation="horvitz_thompson")[0, 0])
    assert found == pytest.approx(float(weighted.trajectory_is(data, log_ratio).value), rel=1e-11)


def test_marginalised_importance_sampling_is_a_member():
    """phi = (s, t), c = 1, counts as denominators: the recursion over marginals of Xie, Ma and Wang 2019."""
    data, log_ratio, states, _ = simulated(7, n=60, zeros=0.1)
    ratios, states = np.where(data.mask, np.exp(log_ratio), 0.0), states.clip(0)
    marginal, value = np.bincount(states[:, 0], minlength=4) / 60.0, 0.0
    for t in range(6):
        here = np.eye(4)[states[:, t]] * data.mask[:, [t]]
        visits = np.maximum(here.sum(0), 1.0)
        weighted_here = here * ratios[:, [t]]
        value += 0.9**t * marginal @ (np.where(data.mask[:, t], data.rewards[:, t], 0.0) @ weighted_here / visits)
        if t < 5:
            marginal = marginal @ (
                (weighted_here.T @ (np.eye(4)[states[:, t + 1]] * data.mask[:, [t + 1]])) / visits[:, None]
            )
    cells = states + 4 * np.arange(6)
    found = star_values(data, log_ratio, cells[None], 24, (1,), discount=0.9, normalisation="horvitz_thompson")
    assert float(found[0, 0]) == pytest.approx(value, rel=1e-12)


def test_only_ratios_of_weights_matter():
    """A factor of all weights cancels; neither empty cells nor the order of cells matter."""
    data, log_ratio, states, _ = simulated(1)
    shared = dict(discount=0.9, level=0.9)
    expected = star(data, log_ratio, states, 40, **shared)
    shifted = np.where(np.arange(6) == 0, log_ratio + 500.0, log_ratio)
    found = star(data, shifted, states, 40, **shared)
    np.testing.assert_allclose(found[:4], expected[:4], rtol=1e-9)
    moved = star(data, log_ratio, 30 - 3 * states, 40, **shared)
    np.testing.assert_allclose(moved[:4], expected[:4], rtol=1e-9)
    assert float(moved.diagnostics["visited_states"]) == 4.0


def test_long_horizons_do_not_overflow():
    """Weights up to e^(+-15,000): as exact as `cwpdis` where cells are times, and finite where they are not."""
    random, mask = np.random.default_rng(0), np.ones((20, 1000), bool)
    rewards = random.random(mask.shape)
    log_ratio = random.choice([-3.0, 3.0], size=(20, 1)) + random.normal(size=mask.shape)
    data = Trajectories(None, None, rewards, 0.0 * rewards, mask, ~mask, ~mask, None)
    times = np.broadcast_to(np.arange(1000), mask.shape)
    for ratios in (log_ratio, -log_ratio, 5.0 * log_ratio):
        expected = weighted.cwpdis(data, ratios)
        found = star_values(data, ratios, times[None], 1000, (None,))
        assert float(found[0, 0]) == pytest.approx(float(expected.value), rel=1e-9)
        coarse = star(data, ratios, times // 100, 10)
        assert np.isfinite([float(coarse.value), float(coarse.standard_error)]).all()
        assert float(coarse.diagnostics["visited_states"]) == 10.0


def test_standard_error_is_that_of_the_jackknife_and_of_the_bootstrap():
    data, log_ratio, states, final = simulated(3, n=60, zeros=0.0)
    settings = dict(discount=0.9, window=2)
    found = star(data, log_ratio, states, 4, level=0.9, interval="bootstrap", **settings)
    ones = np.ones(60)

    def value(counts):
        return written_out(data, log_ratio, states, 4, final, counts=counts, **settings)[0]

    influence = np.array([(value(ones + 1e-5 * row) - value(ones - 1e-5 * row)) * 60 / 2e-5 for row in np.eye(60)])
    assert float(found.standard_error) == pytest.approx(influence.std(ddof=1) / np.sqrt(60), rel=1e-6)
    random = np.random.default_rng(0)
    draws = [value(np.bincount(random.integers(0, 60, 60), minlength=60)) for _ in range(200)]
    assert float(found.standard_error) == pytest.approx(np.std(draws), rel=0.2)
    expected = np.quantile(draws, [0.05, 0.95])
    np.testing.assert_allclose([found.lower, found.upper], expected, atol=0.1 * np.ptp(draws))


def repeated(states, log_ratio, rewards):
    """Few short trajectories, each so often that there are 12, padded to 6 steps."""
    rows, width = 12 // len(states), 6 - len(states[0])
    mask = np.pad(np.ones_like(states, bool), [(0, 0), (0, width)]).repeat(rows, axis=0)
    states, log_ratio, rewards = (
        np.pad(x, [(0, 0), (0, width)]).repeat(rows, axis=0) for x in (states, log_ratio, rewards)
    )
    return Trajectories(None, None, rewards, np.zeros(mask.shape), mask, ~mask, ~mask, None), log_ratio, states


def test_zero_ratios_and_cells_without_weight():
    """Where the target goes, but no weight does, nothing is NaN, and how often that is so is told."""
    data, log_ratio, states, _ = simulated(2)
    nothing = star(data, np.where(data.mask, -np.inf, 0.0), states, 4, level=0.9)
    assert float(nothing.value) == 0.0
    assert float(nothing.diagnostics["unsupported_mass"]) == pytest.approx(1.0)
    assert float(nothing.diagnostics["visited_states"]) == 0.0
    cells, ratios = np.array([[0, 1], [0, 2]]), np.array([[0.0, -np.inf], [0.0, 0.0]])
    data, log_ratio, states = repeated(cells, ratios, np.array([[1.0, 5.0], [2.0, 7.0]]))
    found = star(data, log_ratio, states, 4, level=0.9)
    assert float(found.value) == pytest.approx(1.5 + 0.5 * 7.0)
    assert float(found.diagnostics["unsupported_mass"]) == pytest.approx(0.5)
    assert float(found.diagnostics["smallest_visit"]) == pytest.approx(6.0)
    assert float(found.diagnostics["visited_states"]) == 2.0


def test_processes_that_never_end_are_flagged():
    cells, steps = np.array([[0, 1, 1], [0, 1, 1], [0, 2, 2]]), np.arange(3)
    # those in cell 1 have no weight when they leave it
    ratios = np.where((cells == 1) & (steps == 2), -np.inf, 0.0)
    data, log_ratio, states = repeated(cells, ratios, np.ones((3, 3)))
    found = star(data, log_ratio, states, 4, level=0.9)
    assert np.isnan(float(found.value))
    assert (float(found.lower), float(found.upper)) == (-np.inf, np.inf)
    assert [float(found.diagnostics[x]) for x in ("finite", "condition", "exit_zero")] == [0.0, 0.0, 1.0]
    np.testing.assert_array_equal(star_values(data, log_ratio, states[None], 4, (None, 0, 1))[0, :2], [np.inf, 3.0])
    # smoothing, a discount, no reward there, or no way there mend it
    smoothed = star(data, log_ratio, states, 4, smoothing=2.0, level=0.9)
    chance, stay, rest = 3 / 3.5, 4 / 4.5, 2 / 2.5
    value = 1 + chance * (2 / 3 / (1 - stay) + (1 + rest / 2 / (1 - rest / 2)) / 3)
    assert float(smoothed.value) == pytest.approx(value, rel=1e-12)
    assert float(smoothed.diagnostics["exit_zero"]) == 0.0
    assert 0.0 < float(smoothed.diagnostics["condition"]) < 1.0
    discounted = star(data, log_ratio, states, 4, discount=0.5, level=0.9)
    assert float(discounted.diagnostics["finite"]) == 1.0
    assert float(discounted.diagnostics["exit_zero"]) == 1.0
    idle = data._replace(rewards=np.where(states == 1, 0.0, 1.0))
    assert float(star(idle, log_ratio, states, 4, level=0.9).value) == pytest.approx(1 + 2 / 3)
    elsewhere = repeated(cells, np.where((steps == 0) & (cells[:, [1]] == 1), -np.inf, ratios), np.ones((3, 3)))[1]
    values = star_values(data, elsewhere, states[None], 4, (None, 0, 1))
    assert float(values[0, 2]) == pytest.approx(3.0)


def test_what_cells_tell():
    """Shares of weight, effective steps and mass without weight by hand, under multiplicities and a discount."""
    data, log_ratio, states, final = simulated(6, zeros=0.25)
    counts = np.random.default_rng(6).integers(1, 4, 12).astype(float)
    settings = dict(discount=0.8, window=1, counts=counts)
    found = star(data, log_ratio, states, 5, **settings).diagnostics
    weights = np.where(data.mask, np.exp(log_ratio), 0.0) * 0.8 ** np.arange(6)
    cells = [states == cell for cell in range(5)]
    total = np.array([(counts[:, None] * weights)[here].sum() for here in cells])
    squares = np.array([(counts[:, None] * weights**2)[here].sum() for here in cells])
    process = abstract_reward_process(data, log_ratio, states, 5, **settings)
    np.testing.assert_allclose(process.visits, total / total.sum(), rtol=1e-12)
    assert float(found["smallest_visit"]) == pytest.approx(np.min(total[:4] ** 2 / squares[:4]), rel=1e-12)
    assert float(found["visited_states"]) == 4.0
    # cell 0 loses all its weight, and is got into from others
    empty = np.where(states == 0, -np.inf, log_ratio)
    lost = star(data, empty, states, 5, **settings).diagnostics
    _, eta, transition, _ = written_out(data, empty, states, 5, final, **settings)
    visits = np.linalg.solve(np.eye(5) - 0.8 * transition.T, eta)
    assert float(lost["unsupported_mass"]) == pytest.approx(visits[0], rel=1e-12)
    assert visits[0] > eta[0] + 0.01


def test_condition_is_that_of_the_system():
    data, log_ratio, states, final = simulated(5, zeros=0.0)
    found = star(data, log_ratio, states, 4, discount=0.9, level=0.9)
    matrix = np.eye(4) - 0.9 * written_out(data, log_ratio, states, 4, final, discount=0.9)[2]
    assert float(found.diagnostics["condition"]) == pytest.approx(1.0 / np.linalg.cond(matrix, 1), rel=1e-10)


def test_transformations():
    """vmap over data sets is a loop, jit changes nothing, no second compilation."""
    sets = [simulated(seed, zeros=0.0)[:3] for seed in range(3)]
    data, log_ratio, states = jax.tree.map(lambda *x: np.stack(x), *sets)
    states = states.clip(0)
    settings = dict(discount=0.9, level=0.9)

    def both(data, log_ratio, states):
        grid = star_values(data, log_ratio, jnp.stack([0 * states, states]), 4, (0, 1, None), discount=0.9)
        return star(data, log_ratio, states, 4, window=2, **settings), grid

    with jax.enable_x64(True):
        arguments = jax.tree.map(jnp.asarray, (data, log_ratio, states))
        together = jax.jit(jax.vmap(both))(*arguments)
    for i, (one, ratios, _) in enumerate(sets):
        cells = states[i]
        estimate, grid = both(one, ratios, cells)
        np.testing.assert_allclose([x[i] for x in together[0][:4]], estimate[:4], rtol=1e-9)
        np.testing.assert_allclose(together[1][i], grid, rtol=1e-11)
        for k, phi in enumerate((0 * cells, cells)):
            for j, window in enumerate((0, 1, None)):
                value = written_out(one, ratios, phi, 4, None, window=window, discount=0.9)[0]
                assert float(grid[k, j]) == pytest.approx(value, rel=1e-12)
        value = written_out(one, ratios, cells, 4, None, window=2, discount=0.9)[0]
        assert float(estimate.value) == pytest.approx(value, rel=1e-12)
    one, ratios, cells = sets[0]
    star(one, ratios, cells, 4, window=2, **settings)
    sizes = module._run._cache_size(), module._run_grid._cache_size()
    star(sets[1][0], sets[1][1], sets[1][2], 4, window=2, discount=0.3, level=0.9)
    grid = np.stack([0 * states[1], states[1]])
    star_values(sets[1][0], sets[1][1], grid, 4, (0, 1, None), discount=0.2)
    assert (module._run._cache_size(), module._run_grid._cache_size()) == sizes
    with pytest.raises(ValueError, match="enable_x64"):
        jax.vmap(both)(data, log_ratio, states)


def test_zero_ratios_have_finite_derivatives():
    data, log_ratio, states, _ = simulated(4, zeros=0.2)

    def value(rewards, discount, log_ratio):
        one = data._replace(rewards=rewards)
        return star_values(one, log_ratio, states[None], 6, (None,), discount=discount)[0, 0]

    with jax.enable_x64(True):
        derivatives = jax.jit(jax.grad(value, argnums=(0, 1, 2)))
        slopes, at_zero = (derivatives(*map(jnp.asarray, (data.rewards, x, log_ratio))) for x in (0.9, 0.0))
    assert np.isfinite(np.asarray(slopes[0])).all()
    assert np.isfinite([float(slopes[1]), float(at_zero[1])]).all()
    assert np.isfinite(np.asarray(slopes[2])[data.mask]).all()
    ends = [float(value(data.rewards, 0.9 + sign, log_ratio)) for sign in (1e-6, -1e-6)]
    assert float(slopes[1]) == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-5)
    bump = 1e-6 * ((np.arange(6) == 0) & (np.arange(12)[:, None] == 1))
    ends = [float(value(data.rewards, 0.9, log_ratio + sign * bump)) for sign in (1, -1)]
    assert float(slopes[2][1, 0]) == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-5)


def chain(n, seed):
    """Three states of which two are one cell, ends that depend on what follows; and the target's value."""
    random = np.random.default_rng(seed)
    chance = np.array(
        [[[0.1, 0.6, 0.3], [0.2, 0.1, 0.7]], [[0.5, 0.4, 0.1], [0.1, 0.1, 0.8]], [[0.6, 0.3, 0.1], [0.3, 0.3, 0.4]]]
    )
    reward, stop, target = np.array([1.0, -3.0, 3.0]), np.array([0.0, 0.4, 0.9]), np.array([0.3, 0.7])
    horizon = 5
    states, actions, mask, terminated = (np.zeros((n, horizon), int) for _ in range(4))
    state, alive = random.choice(3, size=n, p=[0.6, 0.4, 0.0]), np.ones(n, bool)
    for t in range(horizon):
        action = random.integers(0, 2, n)
        states[:, t], actions[:, t], mask[:, t] = state, action, alive
        state = (random.random((n, 1)) > np.cumsum(chance[state, action], axis=1)).sum(1).clip(max=2)
        # the state that is come to decides whether the trajectory ends
        ends = random.random(n) < stop[state]
        terminated[:, t], alive = alive & ends, alive & ~ends
    data = Trajectories(
        states,
        actions,
        reward[states] * mask,
        np.full(mask.shape, np.log(0.5)),
        mask > 0,
        terminated > 0,
        mask < 0,
        None,
    )
    visits, truth = np.array([0.6, 0.4, 0.0]), 0.0
    for t in range(horizon):
        truth += 0.9**t * visits @ reward
        visits = (visits @ np.einsum("sap,a->sp", chance, target)) * (1 - stop)
    return data, np.log(target)[actions], state, truth


def test_the_joint_form_is_consistent_for_cells_that_are_not_markov():
    data, target, final, truth = chain(100_000, 0)
    phi = np.array([0, 1, 1])
    cells = phi[data.observations]
    joint = star(data, target, cells, 2, discount=0.9)
    assert abs(float(joint.value) - truth) < 4.0 * float(joint.standard_error) < 0.05
    factored = star(data, target, cells, 2, discount=0.9, termination="factored", final_states=phi[final])
    assert abs(float(factored.value) - truth) > 10.0 * float(factored.standard_error)
    # nor is it with short windows
    short = star(data, target, cells, 2, discount=0.9, window=1)
    assert abs(float(short.value) - truth) > 8.0 * float(short.standard_error)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(states=np.zeros((5, 3), int)), "integers of shape"),
        (dict(states=np.zeros((5, 4))), "integers of shape"),
        (dict(states=np.full((5, 4), 3)), r"in \[0, 3\), got 3 at \(0, 0\)"),
        (dict(states=np.full((5, 4), -1)), "give that of"),
        (dict(num_states=0), "num_states must be at least 1"),
        (dict(num_states=50_000), "make the abstraction coarser"),
        (dict(window=-1), "window must be"),
        (dict(normalisation="ht"), "normalisation must be one of self"),
        (dict(termination="early"), "termination must be one of joint"),
        (dict(termination="factored"), "need final_states"),
        (dict(final_states=np.zeros(5, int)), "final_states would be ignored"),
        (dict(horizon_exit=False), "need final_states"),
        (dict(horizon_exit=False, final_states=np.zeros(4, int)), "final_states must be integers"),
        (dict(horizon_exit=False, final_states=np.full(5, 3)), r"final_states must be in \[0, 3\)"),
        (dict(termination="factored", normalisation="horvitz_thompson"), "no probability"),
        (dict(smoothing=-1.0), "smoothing must be"),
        (dict(clip=0.0), "clip must be positive"),
        (dict(discount=2.0), "discount must be in"),
        (dict(level=95), "level must be"),
        (dict(target_log_prob=np.zeros((5, 3))), "target_log_prob has shape"),
    ],
)
def test_what_cannot_be_meant(change, message):
    data, log_ratio, states, _ = golden()
    arguments = dict(target_log_prob=log_ratio, states=states, num_states=3) | change
    with pytest.raises(ValueError, match=message):
        star(data, **arguments)


def test_grids_that_cannot_be_meant():
    data, log_ratio, states, _ = golden()
    with pytest.raises(ValueError, match="at least one window"):
        star_values(data, log_ratio, states[None], 3, ())
    with pytest.raises(ValueError, match="window must be"):
        star_values(data, log_ratio, states[None], 3, (1, -1))
    with pytest.raises(ValueError, match="integers of shape"):
        star_values(data, log_ratio, states, 3, (1,))
    with pytest.raises(ValueError, match="terminated has shape"):
        star(data._replace(terminated=data.mask[:2]), log_ratio, states, 3, horizon_exit=False)
