"""flax modules: torsos, a recurrent core with reset, and the actor-critic that joins them.

Initialisation follows the authors' code of Divergence-Augmented Policy Optimization: orthogonal, sqrt(2) in torsos, 1 in the
recurrent core, 0.01 for the policy head, 1 for the value head, zero biases (no forget bias).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.initializers import orthogonal

from jaxrl_off.distributions import Categorical, DiagonalNormal, TanhNormal
from jaxrl_off.types import Array, PyTree

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": nn.relu,
    "tanh": nn.tanh,
    "swish": nn.swish,
    "gelu": nn.gelu,
}
_SQRT_2 = math.sqrt(2.0)
_SMALLEST_IMAGES = {"minatar": 3, "nature": 36, "impala": 1}  # sides that leave every convolution a pixel


def check_image(shape: tuple[int, ...], torso: str) -> None:
    """Refuse observations that a convolutional torso would take for something else.

    Args:
        shape: of one observation.
        torso: `"minatar"`, `"nature"` or `"impala"`.

    Raises:
        ValueError: for anything but `(height, width, channels)`, channels in front, or an image that is too small.
    """
    remedy = "or set torso='mlp', which flattens observations."
    if len(shape) != 3:
        raise ValueError(
            f"torso={torso!r} reads images of shape (height, width, channels), and observations have shape {shape}; use an "
            f"environment with images, {remedy}"
        )
    if shape[0] < min(shape[1:]):
        raise ValueError(
            f"observations of shape {shape} look like (channels, height, width), and torso={torso!r} reads (height, width, "
            f"channels); move the channels last, to {(*shape[1:], shape[0])}, {remedy}"
        )
    smallest = _SMALLEST_IMAGES[torso]
    if min(shape[:2]) < smallest:
        raise ValueError(
            f"observations of shape {shape} are too small for torso={torso!r}, which needs a height and a width of at least "
            f"{smallest}; enlarge the images, choose another torso, {remedy}"
        )


def float32_zeros(key: Array, shape: tuple[int, ...]) -> Array:
    """Zeros in float32, also where `jax_enable_x64` is set."""
    del key
    return jnp.zeros(shape, jnp.float32)


def _dense(size: int, scale: float = _SQRT_2, name: str | None = None) -> nn.Dense:
    return nn.Dense(size, kernel_init=orthogonal(scale), name=name)


def as_float(observation: Array) -> Array:
    """`float32` view of an observation: `uint8` is divided by 255, `bool` becomes 0/1, other types are cast."""
    if observation.dtype == jnp.uint8:
        return observation.astype(jnp.float32) * (1.0 / 255.0)
    return observation.astype(jnp.float32)


class Convolution(nn.Module):
    """Square 2-D convolution, channels last, valid padding, in the form that is fast on the backend at hand.

    XLA's CPU backend runs convolutions well below its matrix products, and very slowly when `vmap` over parameters turns
    them into grouped convolutions. There the layer is written as patches (slices of the image, concatenated) times a
    matrix; with a kernel that is a multiple of the stride the image is first folded (`stride x stride` pixels become
    channels), which leaves `(kernel / stride)^2` slices. Parameters and results are the same in both forms.

    Attributes:
        features: output channels.
        kernel: side of the kernel.
        stride: step in both directions.
        padding: zeros added on every side.
        form: `"auto"` (patches on CPU, else `lax`), `"patches"` or `"lax"`.
    """

    features: int
    kernel: int
    stride: int = 1
    padding: int = 0
    form: str = "auto"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map `float[..., H, W, C]` to `float[..., H', W', features]`."""
        kernel = self.param("kernel", orthogonal(_SQRT_2), (self.kernel, self.kernel, x.shape[-1], self.features))
        bias = self.param("bias", float32_zeros, (self.features,))
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 3) + [(self.padding, self.padding)] * 2 + [(0, 0)])
        on_cpu = jax.default_backend() == "cpu"
        if self.form == "patches" or (self.form == "auto" and on_cpu):
            return _convolve_patches(x, kernel, self.stride) + bias
        batch = x.shape[:-3]
        x = x.reshape(-1, *x.shape[-3:])
        strides = (self.stride, self.stride)
        y = jax.lax.conv_general_dilated(x, kernel, strides, "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return y.reshape(*batch, *y.shape[1:]) + bias


def _convolve_patches(x: Array, kernel: Array, stride: int) -> Array:
    """Convolution of `float[..., H, W, C]` with `float[k, k, C, F]` as one matrix product."""
    size, _, channels, features = kernel.shape
    *batch, height, width, _ = x.shape
    out_height, out_width = (height - size) // stride + 1, (width - size) // stride + 1
    if stride > 1 and size % stride == 0:
        blocks = size // stride
        rows, columns = out_height + blocks - 1, out_width + blocks - 1
        x = x[..., : rows * stride, : columns * stride, :]
        x = x.reshape(*batch, rows, stride, columns, stride, channels)
        x = jnp.moveaxis(x, -4, -3).reshape(*batch, rows, columns, stride * stride * channels)
        kernel = kernel.reshape(blocks, stride, blocks, stride, channels, features)
        kernel = kernel.transpose(0, 2, 1, 3, 4, 5).reshape(blocks, blocks, stride * stride * channels, features)
        size, stride = blocks, 1
    slices = [
        x[..., i : i + stride * (out_height - 1) + 1 : stride, j : j + stride * (out_width - 1) + 1 : stride, :]
        for i in range(size)
        for j in range(size)
    ]
    # One row per output pixel: the gradient of a product with several contracted axes is much slower.
    patches = jnp.concatenate(slices, axis=-1).reshape(-1, size * size * kernel.shape[2])
    return (patches @ kernel.reshape(-1, features)).reshape(*batch, out_height, out_width, features)


class MLP(nn.Module):
    """Dense layers with an activation after each.

    Attributes:
        sizes: width of each layer.
        activation: key of `ACTIVATIONS`.
    """

    sizes: Sequence[int]
    activation: str = "tanh"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map `float[..., D]` to `float[..., sizes[-1]]`."""
        for size in self.sizes:
            x = ACTIVATIONS[self.activation](_dense(size)(x))
        return x


class MinAtarTorso(nn.Module):
    """MinAtar's network: a 3x3 convolution with 16 channels, then dense layers, all ReLU.

    Reference: Young and Tian, "MinAtar", 2019 (one dense layer of 128).
    """

    sizes: Sequence[int] = (128,)

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map `[..., 10, 10, C]` to `float[..., sizes[-1]]`."""
        x = nn.relu(Convolution(16, kernel=3)(as_float(x)))
        return MLP(self.sizes, "relu")(x.reshape(*x.shape[:-3], -1))


class NatureTorso(nn.Module):
    """The Nature DQN convolutions (32x8x8/4, 64x4x4/2, 64x3x3/1) and dense layers, all ReLU; input `[..., 84, 84, C]`.

    Reference: Mnih et al., Nature 2015; Divergence-Augmented Policy Optimization, appendix A.2 (one dense layer of 512).
    """

    sizes: Sequence[int] = (512,)

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map `[..., 84, 84, C]` to `float[..., sizes[-1]]`."""
        x = as_float(x)
        for features, kernel, stride in ((32, 8, 4), (64, 4, 2), (64, 3, 1)):
            x = nn.relu(Convolution(features, kernel, stride)(x))
        return MLP(self.sizes, "relu")(x.reshape(*x.shape[:-3], -1))


class ImpalaTorso(nn.Module):
    """The IMPALA residual network: three sections of convolution, max-pool and two residual blocks.

    Reference: Espeholt et al., "IMPALA", ICML 2018, figure 3 (channels 16, 32, 32; one dense layer of 256).
    """

    channels: Sequence[int] = (16, 32, 32)
    sizes: Sequence[int] = (256,)

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map `[..., H, W, C]` to `float[..., sizes[-1]]`."""
        x = as_float(x)
        for channels in self.channels:
            x = Convolution(channels, 3, padding=1)(x)
            batch = x.shape[:-3]
            x = nn.max_pool(x.reshape(-1, *x.shape[-3:]), (3, 3), (2, 2), padding="SAME")
            x = x.reshape(*batch, *x.shape[1:])
            for _ in range(2):
                y = Convolution(channels, 3, padding=1)(nn.relu(x))
                x = x + Convolution(channels, 3, padding=1)(nn.relu(y))
        return MLP(self.sizes, "relu")(nn.relu(x).reshape(*x.shape[:-3], -1))


class LSTMCore(nn.Module):
    """LSTM over time whose state is set to zero before every step that starts a trace.

    Attributes:
        size: number of cells.
    """

    size: int

    @nn.compact
    def __call__(self, state: PyTree, inputs: Array, first: Array) -> tuple[PyTree, Array, PyTree]:
        """Unroll over a trajectory.

        Args:
            state: pair of `float[B, size]`, before the first step; gets no gradient.
            inputs: `float[T, B, D]`.
            first: `bool[T, B]`, whether a step starts a trace.

        Returns:
            State after the last step, outputs `float[T, B, size]`, and the states after every step `[T, B, ...]`.
        """
        cell = nn.OptimizedLSTMCell(self.size, kernel_init=orthogonal(1.0), recurrent_kernel_init=orthogonal(1.0))

        def step(cell: nn.Module, carry: PyTree, step_inputs: tuple[Array, Array]) -> tuple[PyTree, PyTree]:
            x, start = step_inputs
            carry = jax.tree.map(lambda leaf: jnp.where(start[:, None], 0.0, leaf), carry)
            carry, y = cell(carry, x)
            return carry, (y, carry)

        scan = nn.scan(step, variable_broadcast="params", split_rngs={"params": False})
        state, (outputs, states) = scan(cell, jax.lax.stop_gradient(state), (inputs, first))
        return state, outputs, states


class ActorCritic(nn.Module):
    """Policy and value of an observation, feed-forward or recurrent.

    Attributes:
        action_shape: `()` for discrete actions, else the shape of a continuous action.
        num_actions: number of discrete actions (unused for continuous ones).
        torso: `"mlp"`, `"minatar"`, `"nature"` or `"impala"`.
        sizes: widths of the dense layers of the torso.
        activation: of the MLP torso.
        core_size: number of LSTM cells; 0 for a feed-forward network.
        separate_critic: whether the value has a torso of its own (feed-forward only).
    """

    action_shape: tuple[int, ...]
    num_actions: int
    torso: str
    sizes: Sequence[int]
    activation: str = "tanh"
    core_size: int = 0
    separate_critic: bool = False

    def setup(self) -> None:
        """Build the parts; see the class."""
        self.actor_torso = self._make_torso()
        if self.separate_critic:
            self.critic_torso = self._make_torso()
        if self.core_size:
            self.core = LSTMCore(self.core_size)
        self.policy_head = _dense(math.prod(self.action_shape) if self.action_shape else self.num_actions, 0.01)
        self.value_head = _dense(1, 1.0)
        if self.action_shape:
            self.log_std = self.param("log_std", float32_zeros, (math.prod(self.action_shape),))

    def _make_torso(self) -> nn.Module:
        if self.torso == "mlp":
            return _FlatMLP(self.sizes, self.activation, 2 if self.core_size else 1)
        return {"minatar": MinAtarTorso, "nature": NatureTorso, "impala": ImpalaTorso}[self.torso](sizes=self.sizes)

    def initial_core(self, batch: int) -> PyTree:
        """Zero recurrent state for `batch` lanes; `()` for a feed-forward network."""
        zeros = jnp.zeros((batch, self.core_size), jnp.float32)
        return (zeros, zeros) if self.core_size else ()

    def __call__(self, observation: Array, core: PyTree, first: Array) -> tuple[PyTree, Array, PyTree]:
        """Evaluate trajectories.

        Args:
            observation: `[T, B, ...]`.
            core: recurrent state before the first step, `[B, ...]`, or `()`.
            first: `bool[T, B]`; ignored by a feed-forward network.

        Returns:
            The action distribution `[T, B]`, the value `float[T, B]` and the recurrent states after every step
            `[T, B, ...]` (or `()`).
        """
        leading = first.shape
        if not self.core_size:
            # One batch axis: with two, the gradient of every matrix product transposes its operands first.
            observation = observation.reshape(-1, *observation.shape[2:])
        features = self.actor_torso(observation)
        states: PyTree = ()
        if self.core_size:
            _, features, states = self.core(core, features, first)
        critic_features = self.critic_torso(observation) if self.separate_critic else features
        value = self.value_head(critic_features).reshape(leading)
        head = self.policy_head(features)
        head = head.reshape(*leading, head.shape[-1])
        if self.action_shape:
            distribution: Categorical | DiagonalNormal = DiagonalNormal(
                head, jnp.broadcast_to(self.log_std, head.shape)
            )
        else:
            distribution = Categorical(head)
        return distribution, value, states


class _FlatMLP(nn.Module):
    """An MLP on flattened observations with `batch_axes` leading axes."""

    sizes: Sequence[int]
    activation: str
    batch_axes: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return MLP(self.sizes, self.activation)(as_float(x).reshape(*x.shape[: self.batch_axes], -1))


def _uniform(bound: float) -> Callable[..., Array]:
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


class _HiddenLayers(nn.Module):
    """ReLU layers: weights U(+-1/sqrt(number of inputs)), biases 0.1.

    The released code of N-PPAC (rlkit) means the same, but takes the number of outputs for that of inputs. A wide first layer
    then hardly sees a narrow observation: SAC with 64 units fails on Pendulum for half of the seeds.
    """

    sizes: Sequence[int]
    layer_norm: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for size in self.sizes:
            kernel_init = _uniform(x.shape[-1] ** -0.5)
            x = nn.Dense(size, kernel_init=kernel_init, bias_init=nn.initializers.constant(0.1))(x)
            x = nn.relu(nn.LayerNorm()(x) if self.layer_norm else x)
        return x


class GaussianPolicy(nn.Module):
    """Gaussian policy with state-dependent standard deviation over actions in [-1, 1]^D.

    Attributes:
        action_size: D.
        sizes: widths of the hidden layers (ReLU).
        squash: True squashes samples (`TanhNormal`); False squashes only the mean (`DiagonalNormal`; samples may leave the
            box and the environment clips them).
        log_std_range: clip of the log standard deviation.
    """

    action_size: int
    sizes: Sequence[int] = (256, 256)
    squash: bool = True
    log_std_range: tuple[float, float] = (-20.0, 2.0)

    @nn.compact
    def __call__(self, observation: Array) -> TanhNormal | DiagonalNormal:
        """Map `[..., O]` to the distribution of actions, batch shape `[...]`."""
        x = _HiddenLayers(self.sizes)(as_float(observation))
        heads = [
            nn.Dense(self.action_size, kernel_init=_uniform(1e-3), bias_init=_uniform(1e-3), name=name)
            for name in ("mean", "log_std")
        ]
        mean, log_std = heads[0](x), jnp.clip(heads[1](x), *self.log_std_range)
        return TanhNormal(mean, log_std) if self.squash else DiagonalNormal(jnp.tanh(mean), log_std)


class CriticEnsemble(nn.Module):
    """`members` independent networks of an observation and an action.

    Attributes:
        members: number of critics K.
        sizes: widths of the hidden layers (ReLU).
        layer_norm: LayerNorm before each activation.
    """

    members: int = 2
    sizes: Sequence[int] = (256, 256)
    layer_norm: bool = False

    @nn.compact
    def __call__(self, observation: Array, action: Array) -> Array:
        """Map `[..., O]` and `[..., D]` to action values `float[K, ...]`."""
        ensemble = nn.vmap(
            _Critic, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=None, axis_size=self.members
        )
        return ensemble(self.sizes, self.layer_norm)(jnp.concatenate([as_float(observation), action], axis=-1))


class _Critic(nn.Module):
    sizes: Sequence[int]
    layer_norm: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = _HiddenLayers(self.sizes, self.layer_norm)(x)
        return nn.Dense(1, kernel_init=_uniform(3e-3), bias_init=_uniform(3e-3))(x)[..., 0]
