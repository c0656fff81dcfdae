"""Networks: two forms of one convolution, recurrent resets, gradients that must and must not flow, shapes, scales."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jaxrl_off.distributions import Categorical, DiagonalNormal
from jaxrl_off.networks import (
    ACTIVATIONS,
    MLP,
    ActorCritic,
    Convolution,
    ImpalaTorso,
    LSTMCore,
    MinAtarTorso,
    NatureTorso,
    as_float,
)

KEY = jax.random.key(0)


def normal(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def init(module, *inputs, seed=1):
    """Random parameters of the right shapes: no bias is zero, and nothing orthogonal is to be compiled."""
    leaves, structure = jax.tree.flatten(jax.eval_shape(module.init, KEY, *inputs))
    rng = np.random.default_rng(seed)
    return structure.unflatten(
        [(rng.normal(size=x.shape) / np.sqrt(max(1, np.prod(x.shape[:-1])))).astype(np.float32) for x in leaves]
    )


def assert_orthogonal(kernel, scale):
    """Columns, or rows where there are fewer of them, are orthogonal with norm `scale`."""
    matrix = np.asarray(kernel, np.float64).reshape(-1, kernel.shape[-1])
    gram = matrix.T @ matrix if matrix.shape[0] >= matrix.shape[1] else matrix @ matrix.T
    np.testing.assert_allclose(gram, scale**2 * np.eye(len(gram)), atol=1e-5 * scale**2)


# Convolution --------------------------------------------------------------------------------------------------------


def reference_convolution(x, kernel, bias, stride, padding):
    """Valid cross-correlation by loops, float64."""
    x = np.pad(np.asarray(x, np.float64), [(0, 0), (padding, padding), (padding, padding), (0, 0)])
    size = kernel.shape[0]
    rows, columns = (x.shape[1] - size) // stride + 1, (x.shape[2] - size) // stride + 1
    result = np.empty((x.shape[0], rows, columns, kernel.shape[-1]))
    for i in range(rows):
        for j in range(columns):
            window = x[:, i * stride : i * stride + size, j * stride : j * stride + size]
            result[:, i, j] = np.einsum("nijc,ijcf->nf", window, np.asarray(kernel, np.float64))
    return result + np.asarray(bias, np.float64)


@settings(max_examples=3, deadline=None, derandomize=True, database=None)
@given(
    kernel=st.integers(1, 5),
    stride=st.integers(1, 4),
    padding=st.integers(0, 2),
    extra=st.tuples(st.integers(0, 6), st.integers(0, 6)),
    channels=st.integers(1, 3),
    features=st.integers(1, 4),
)
# Folded (the kernel a multiple of the stride) with and without left-over rows, one block, one pixel, stride > kernel.
@example(kernel=4, stride=2, padding=0, extra=(3, 4), channels=2, features=3)
@example(kernel=4, stride=2, padding=1, extra=(0, 1), channels=1, features=2)
@example(kernel=3, stride=3, padding=0, extra=(5, 4), channels=3, features=2)
@example(kernel=1, stride=1, padding=0, extra=(2, 3), channels=2, features=1)
@example(kernel=2, stride=3, padding=0, extra=(5, 6), channels=2, features=2)
@example(kernel=5, stride=2, padding=2, extra=(4, 1), channels=1, features=3)
def test_both_forms_of_the_convolution_agree(kernel, stride, padding, extra, channels, features):
    x = normal((2, kernel + extra[0], kernel + extra[1], channels))
    forms = {form: Convolution(features, kernel, stride, padding, form=form) for form in ("patches", "lax")}
    variables = init(forms["lax"], x)
    expected = reference_convolution(x, *(variables["params"][k] for k in ("kernel", "bias")), stride, padding)
    # A loss whose gradient differs from output to output.
    weights = normal(expected.shape, seed=2)
    gradients = {}
    for name, form in forms.items():

        def loss(variables, x, form=form):
            y = form.apply(variables, x)
            return jnp.sum(weights * y), y

        (_, y), gradients[name] = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(variables, x)
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4, err_msg=name)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), *gradients.values())


def test_the_forms_are_initialised_alike_and_auto_is_one_of_them():
    x = normal((1, 8, 8, 2))
    one, two, auto = (Convolution(4, 4, 2, form=form) for form in ("patches", "lax", "auto"))
    variables = one.init(KEY, x)
    assert_orthogonal(variables["params"]["kernel"], np.sqrt(2))
    np.testing.assert_array_equal(variables["params"]["bias"], np.zeros(4))
    for other in (two, auto):
        jax.tree.map(np.testing.assert_array_equal, variables, other.init(KEY, x))
    np.testing.assert_allclose(auto.apply(variables, x), two.apply(variables, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", ["patches", "lax"])
def test_leading_axes_of_a_convolution_are_batch_axes(form):
    module = Convolution(3, 4, 2, 1, form=form)
    x = normal((2, 3, 7, 6, 2))
    variables = init(module, x)
    y = module.apply(variables, x)
    assert y.shape == (2, 3, 3, 3, 3)
    np.testing.assert_allclose(module.apply(variables, x[1, 2]), y[1, 2], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        module.apply(variables, x.reshape(6, 7, 6, 2)), y.reshape(6, 3, 3, 3), rtol=1e-4, atol=1e-5
    )


def test_both_forms_agree_when_vmapped_over_parameters():
    x = normal((2, 3, 6, 6, 2))
    outputs = []
    for form in ("patches", "lax"):
        module = Convolution(3, 4, 2, form=form)
        variables = jax.vmap(module.init)(jax.random.split(KEY, 2), x)
        outputs.append(jax.vmap(module.apply)(variables, x))
        assert np.abs(outputs[-1][0] - outputs[-1][1]).max() > 0.1
    np.testing.assert_allclose(*outputs, rtol=1e-4, atol=1e-5)


# Observations -------------------------------------------------------------------------------------------------------


def test_observations_become_floats():
    pixels = np.array([0, 51, 255], np.uint8)
    got = as_float(jnp.asarray(pixels))
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, [0.0, 0.2, 1.0], rtol=1e-6)
    flags = as_float(jnp.array([True, False]))
    assert flags.dtype == jnp.float32
    np.testing.assert_array_equal(flags, [1.0, 0.0])
    np.testing.assert_array_equal(as_float(jnp.array([-3.5, 300.0])), [-3.5, 300.0])


@pytest.mark.parametrize("kind", [np.uint8, np.bool_])
@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (ActorCritic((), 3, "mlp", (8,)), (4,)),
        (MinAtarTorso((8,)), (10, 10, 2)),
        (NatureTorso((8,)), (36, 36, 1)),
        (ImpalaTorso((2,), (8,)), (4, 4, 1)),
    ],
    ids=["mlp", "minatar", "nature", "impala"],
)
def test_torsos_convert_their_observations(module, shape, kind):
    """Pixels, and a bool image, mean the same as the floats that they stand for."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 1, *shape))
    observation, scale = (pixels.astype(np.uint8), 255.0) if kind == np.uint8 else (pixels > 100, 1.0)
    rest = ((), np.zeros((2, 1), bool)) if isinstance(module, ActorCritic) else ()
    variables = init(module, observation, *rest)
    one = jax.jit(module.apply)(variables, observation, *rest)
    other = jax.jit(module.apply)(variables, (observation / scale).astype(np.float32), *rest)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), one, other)


# Torsos -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "shape", "size"),
    [
        (MLP((5, 6)), (7,), 6),
        (MinAtarTorso(), (10, 10, 4), 128),
        (MinAtarTorso((32, 16)), (10, 10, 7), 16),
        (NatureTorso(), (84, 84, 4), 512),
        (ImpalaTorso(), (20, 20, 3), 256),
        (ImpalaTorso((4, 8), (16,)), (9, 11, 2), 16),
    ],
    ids=str,
)
def test_torsos_map_any_leading_axes_to_features(module, shape, size):
    x = normal((2, 3, *shape))
    variables = jax.eval_shape(module.init, KEY, x)
    for leading in ((2, 3), (4,), ()):
        got = jax.eval_shape(module.apply, variables, jax.ShapeDtypeStruct((*leading, *shape), jnp.float32))
        assert got.shape == (*leading, size)
        assert got.dtype == jnp.float32


def count(module, shape):
    variables = jax.eval_shape(module.init, KEY, jax.ShapeDtypeStruct(shape, jnp.float32))
    return sum(leaf.size for leaf in jax.tree.leaves(variables))


def test_torsos_have_the_published_sizes():
    """Numbers of parameters, from the layers that the papers list."""
    assert count(MinAtarTorso(), (1, 10, 10, 4)) == (9 * 4 + 1) * 16 + (8 * 8 * 16 + 1) * 128
    convolutions = (64 * 4 + 1) * 32 + (16 * 32 + 1) * 64 + (9 * 64 + 1) * 64
    assert count(NatureTorso(), (1, 84, 84, 4)) == convolutions + (7 * 7 * 64 + 1) * 512
    sections = sum((9 * a + 1) * b + 4 * (9 * b + 1) * b for a, b in ((3, 16), (16, 32), (32, 32)))
    assert count(ImpalaTorso(), (1, 84, 84, 3)) == sections + (11 * 11 * 32 + 1) * 256


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_mlp_agrees_with_numpy(activation):
    module = MLP((4, 3), activation)
    x = normal((5, 2))
    variables = init(module, x)
    function = {
        "relu": lambda z: np.maximum(z, 0.0),
        "tanh": np.tanh,
        "swish": lambda z: z / (1 + np.exp(-z)),
        "gelu": lambda z: 0.5 * z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3))),
    }[activation]
    y = x
    for layer in ("Dense_0", "Dense_1"):
        y = function(
            y @ np.asarray(variables["params"][layer]["kernel"]) + np.asarray(variables["params"][layer]["bias"])
        )
    np.testing.assert_allclose(module.apply(variables, x), y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("module", [MinAtarTorso((8,)), ImpalaTorso((2,), (8,))], ids=["minatar", "impala"])
def test_rows_of_a_batch_do_not_mix(module):
    x = normal((2, 3, 10, 10, 2))
    variables = init(module, x)
    y = module.apply(variables, x)
    changed = module.apply(
        variables, x.copy() * np.where(np.arange(3) == 1, 2.0, 1.0)[:, None, None, None].astype(np.float32)
    )
    np.testing.assert_allclose(changed[:, [0, 2]], y[:, [0, 2]], rtol=1e-5, atol=1e-6)
    assert np.abs(changed[:, 1] - y[:, 1]).max() > 1e-3


# Recurrent core -----------------------------------------------------------------------------------------------------

STEPS, LANES, INPUTS, CELLS = 7, 3, 4, 5


@pytest.fixture(scope="module")
def core():
    """Module, parameters, a stored state and inputs; `apply` is compiled."""
    module = LSTMCore(CELLS)
    state = tuple(jnp.asarray(normal((LANES, CELLS), seed)) for seed in (3, 4))
    x = jnp.asarray(normal((STEPS, LANES, INPUTS), 5))
    variables = init(module, state, x, jnp.zeros((STEPS, LANES), bool))
    return jax.jit(module.apply), variables, state, x


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def test_lstm_agrees_with_numpy(core):
    """The plain cell: gates i, f, g, o; no peepholes and no forget bias added."""
    apply, variables, state, x = core
    final, outputs, states = apply(variables, state, x, jnp.zeros((STEPS, LANES), bool))
    (cell,) = variables["params"].values()
    c, h = (np.asarray(leaf, np.float64) for leaf in state)
    for t in range(STEPS):
        gates = {
            gate: np.asarray(x[t]) @ np.asarray(cell[f"i{gate}"]["kernel"])
            + h @ np.asarray(cell[f"h{gate}"]["kernel"])
            + np.asarray(cell[f"h{gate}"]["bias"])
            for gate in "ifgo"
        }
        c = sigmoid(gates["f"]) * c + sigmoid(gates["i"]) * np.tanh(gates["g"])
        h = sigmoid(gates["o"]) * np.tanh(c)
        np.testing.assert_allclose(outputs[t], h, atol=1e-5)
        np.testing.assert_allclose(states[0][t], c, atol=1e-5)
        np.testing.assert_allclose(states[1][t], h, atol=1e-5)
    for one, all_of_them in zip(final, states, strict=True):
        np.testing.assert_array_equal(one, all_of_them[-1])


def test_lstm_reset_equals_separate_unrolls(core):
    """Lanes reset at different steps; each piece is what an unroll from zero gives."""
    apply, variables, state, x = core
    starts = {0: [3], 1: [0, 5], 2: []}
    first = np.zeros((STEPS, LANES), bool)
    for lane, steps in starts.items():
        first[steps, lane] = True
    _, outputs, states = apply(variables, state, x, jnp.asarray(first))
    for lane, steps in starts.items():
        lane_of = lambda tree, lane=lane: jax.tree.map(lambda leaf: leaf[lane : lane + 1], tree)  # noqa: E731
        bounds = sorted({0, STEPS, *steps})
        for begin, end in zip(bounds, bounds[1:], strict=False):
            initial = jax.tree.map(jnp.zeros_like, lane_of(state)) if begin in steps else lane_of(state)
            no = jnp.zeros((end - begin, 1), bool)
            _, expected, expected_states = apply(variables, initial, x[begin:end, lane : lane + 1], no)
            np.testing.assert_allclose(outputs[begin:end, lane], expected[:, 0], rtol=1e-5, atol=1e-6)
            for got, want in zip(states, expected_states, strict=True):
                np.testing.assert_allclose(got[begin:end, lane], want[:, 0], rtol=1e-5, atol=1e-6)


def test_lstm_unroll_continues_from_its_own_state(core):
    """States after every step are what a later unroll starts from (the released code is off by one here)."""
    apply, variables, state, x = core
    no = jnp.zeros((STEPS, LANES), bool)
    _, whole, states = apply(variables, state, x, no)
    halfway = jax.tree.map(lambda leaf: leaf[2], states)
    _, rest, _ = apply(variables, halfway, x[3:], no[3:])
    np.testing.assert_allclose(rest, whole[3:], rtol=1e-5, atol=1e-6)


def test_lstm_gives_no_gradient_to_the_stored_state(core):
    apply, variables, state, x = core
    no = jnp.zeros((STEPS, LANES), bool)

    def total(variables, state, x):
        final, outputs, states = apply(variables, state, x, no)
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves((final, outputs, states)))

    to_variables, to_state, to_inputs = jax.jit(jax.grad(total, argnums=(0, 1, 2)))(variables, state, x)
    for leaf in jax.tree.leaves(to_state):
        np.testing.assert_array_equal(leaf, np.zeros((LANES, CELLS)))
    # Through time, inputs and parameters the gradient flows; and the stored state does matter.
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(to_variables))
    assert np.abs(to_inputs[0]).max() > 0
    zero = jax.tree.map(jnp.zeros_like, state)
    assert np.abs(apply(variables, zero, x, no)[1] - apply(variables, state, x, no)[1]).max() > 1e-2


def test_lstm_gradient_does_not_cross_a_reset(core):
    apply, variables, state, x = core
    first = jnp.zeros((STEPS, LANES), bool).at[4].set(True)
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(apply(variables, state, x, first)[1][4:] ** 2)))(x)
    np.testing.assert_array_equal(gradient[:4], np.zeros((4, LANES, INPUTS)))
    assert np.abs(gradient[4:]).min(axis=(1, 2)).max() > 0


def test_lstm_reset_clears_even_a_state_that_is_not_finite(core):
    apply, variables, state, x = core
    broken = jax.tree.map(lambda leaf: leaf.at[1].set(jnp.nan), state)
    first = jnp.zeros((STEPS, LANES), bool).at[0].set(True)
    np.testing.assert_array_equal(apply(variables, broken, x, first)[1], apply(variables, state, x, first)[1])
    gradient = jax.jit(jax.grad(lambda v: jnp.sum(apply(v, broken, x, first)[1])))(variables)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


# Actor-critic -------------------------------------------------------------------------------------------------------


def build(**options):
    network = ActorCritic(**{"action_shape": (), "num_actions": 4, "torso": "mlp", "sizes": (8,)} | options)
    observation = normal((STEPS, LANES, 2, 3))
    first = np.zeros((STEPS, LANES), bool)
    carry = network.initial_core(LANES)
    return network, init(network, observation, carry, first), observation, carry, first


@pytest.mark.parametrize("core_size", [0, 5])
@pytest.mark.parametrize("action_shape", [(), (2,), (3, 2)])
def test_actor_critic_shapes(action_shape, core_size):
    network, variables, observation, carry, first = build(action_shape=action_shape, core_size=core_size)
    distribution, value, states = jax.eval_shape(network.apply, variables, observation, carry, first)
    assert value.shape == (STEPS, LANES)
    if action_shape:
        assert isinstance(distribution, DiagonalNormal)
        assert distribution.mean.shape == distribution.log_std.shape == (STEPS, LANES, np.prod(action_shape))
    else:
        assert isinstance(distribution, Categorical)
        assert distribution.logits.shape == (STEPS, LANES, 4)
    if core_size:
        assert [leaf.shape for leaf in carry] == [(LANES, core_size)] * 2
        assert [leaf.shape for leaf in states] == [(STEPS, LANES, core_size)] * 2
        np.testing.assert_array_equal(np.stack(carry), np.zeros((2, LANES, core_size)))
    else:
        assert carry == ()
        assert states == ()


def test_the_spread_is_one_parameter_for_all_states():
    network, variables, *inputs = build(action_shape=(3, 2))
    distribution, _, _ = network.apply(variables, *inputs)
    expected = np.broadcast_to(variables["params"]["log_std"], (STEPS, LANES, 6))
    np.testing.assert_array_equal(distribution.log_std, expected)
    assert np.ptp(np.asarray(distribution.mean), axis=(0, 1)).min() > 0


def touched(gradient):
    """Top-level parts whose gradient is not exactly zero."""
    return {name for name, part in gradient["params"].items() if any(np.any(leaf) for leaf in jax.tree.leaves(part))}


def losses(network, observation, carry, first):
    def policy(variables):
        distribution, _, _ = network.apply(variables, observation, carry, first)
        action = jnp.zeros(observation.shape[:2], jnp.int32)
        if isinstance(distribution, DiagonalNormal):
            action = jnp.ones_like(distribution.mean)
        return jnp.sum(distribution.log_prob(action))

    def value(variables):
        return jnp.sum(network.apply(variables, observation, carry, first)[1] ** 2)

    return jax.jit(jax.grad(policy)), jax.jit(jax.grad(value))


@pytest.mark.parametrize("action_shape", [(), (2,)])
def test_separate_critic_shares_nothing_with_the_actor(action_shape):
    network, variables, *inputs = build(separate_critic=True, action_shape=action_shape)
    policy, value = losses(network, *inputs)
    actor = {"actor_torso", "policy_head"} | ({"log_std"} if action_shape else set())
    assert touched(policy(variables)) == actor
    assert touched(value(variables)) == {"critic_torso", "value_head"}
    assert set(variables["params"]) == actor | {"critic_torso", "value_head"}


def test_shared_torso_gets_both_gradients():
    network, variables, *inputs = build(core_size=5)
    policy, value = losses(network, *inputs)
    assert touched(policy(variables)) == {"actor_torso", "core", "policy_head"}
    assert touched(value(variables)) == {"actor_torso", "core", "value_head"}


def test_feed_forward_network_ignores_first_and_mixes_no_steps():
    network, variables, observation, carry, first = build()
    distribution, value, _ = network.apply(variables, observation, carry, first)
    other, other_value, _ = network.apply(variables, observation, carry, ~first)
    np.testing.assert_array_equal(distribution.logits, other.logits)
    np.testing.assert_array_equal(value, other_value)
    one, one_value, _ = network.apply(variables, observation[2:3, 1:2], carry, first[2:3, 1:2])
    np.testing.assert_allclose(one.logits[0, 0], distribution.logits[2, 1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(one_value[0, 0], value[2, 1], rtol=1e-5, atol=1e-6)


def test_recurrent_network_step_by_step_equals_the_unroll():
    """What the actor does, one step at a time with a carried state, is what the learner sees."""
    network, variables, observation, carry, first = build(core_size=5)
    first[3, 0] = first[5, 1] = True
    apply = jax.jit(network.apply)
    carry = tuple(jnp.asarray(normal((LANES, 5), seed)) for seed in (6, 7))
    distribution, value, states = apply(variables, observation, carry, first)
    for t in range(STEPS):
        one, one_value, after = apply(variables, observation[t : t + 1], carry, first[t : t + 1])
        carry = jax.tree.map(lambda leaf: leaf[0], after)
        np.testing.assert_allclose(one.logits[0], distribution.logits[t], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(one_value[0], value[t], rtol=1e-4, atol=1e-5)
        jax.tree.map(lambda got, want, t=t: np.testing.assert_allclose(got, want[t], atol=1e-5), carry, states)


def test_recurrent_network_gives_no_gradient_to_the_stored_state():
    network, variables, observation, carry, first = build(core_size=5)
    carry = jax.tree.map(lambda leaf: leaf + 0.5, carry)

    def total(carry):
        distribution, value, _ = network.apply(variables, observation, carry, first)
        return jnp.sum(distribution.logits**2) + jnp.sum(value**2)

    for leaf in jax.tree.leaves(jax.jit(jax.grad(total))(carry)):
        np.testing.assert_array_equal(leaf, np.zeros((LANES, 5)))


# Initialisation -----------------------------------------------------------------------------------------------------


def test_initialisation_is_that_of_the_authors_code():
    network = ActorCritic((), 4, "mlp", (5,), core_size=5)
    observation = np.ones((1, 1, 5), np.float32)
    variables = jax.jit(network.init)(KEY, observation, network.initial_core(1), np.zeros((1, 1), bool))
    parameters = variables["params"]
    scales = {"policy_head": 0.01, "value_head": 1.0, "core": 1.0, "actor_torso": np.sqrt(2)}
    assert set(parameters) == set(scales)
    for part, scale in scales.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(parameters[part]):
            if "bias" in jax.tree_util.keystr(path):
                np.testing.assert_array_equal(leaf, np.zeros(leaf.shape))
            else:
                assert_orthogonal(leaf, scale)
    # So a fresh policy is nearly uniform, and a fresh Gaussian has unit spread.
    distribution, _, _ = network.apply(variables, observation, network.initial_core(1), np.zeros((1, 1), bool))
    np.testing.assert_allclose(distribution.entropy(), np.log(4), atol=1e-3)
    continuous = ActorCritic((2,), 0, "mlp", (8,))
    variables = continuous.init(KEY, np.zeros((1, 1, 3), np.float32), (), np.zeros((1, 1), bool))
    np.testing.assert_array_equal(variables["params"]["log_std"], np.zeros(2))
