"""Flax networks from observations to action values, or to state values and policies.

Every network takes observations with any leading axes and returns float32 (or wider) outputs,
whatever `dtype` it computes in: q [..., A], or (v [...], log_pi [..., A]). Initialisation is
orthogonal, with the gains of the A2C that the paper used: √2 in the torso, 0.01 for the policy, 1
for state values; and 0.01 for action values, so that their Boltzmann policy starts near the prior.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxsoft import _checks
from jaxsoft._convolution import convolve

__all__ = [
    "ACTIVATIONS",
    "LOG_STD",
    "MLP",
    "ActorCritic",
    "Conv",
    "NatureCNN",
    "QNetwork",
    "SamplingActorCritic",
    "SoftActorCritic",
    "torso_for",
]

orthogonal = nn.initializers.orthogonal

LOG_STD = (-5.0, 2.0)
"""Bounds of log σ."""
_FROM_ONE = float(np.log(5 / 2))  # where log σ = 0

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "tanh": nn.tanh,
    "relu": nn.relu,
    "silu": nn.silu,
}


class Conv(nn.Module):
    """A convolution without padding, channels last, [N, H, W, C] -> [N, H', W', features].

    In a program that is compiled for a CPU, it and its gradients take the one form that XLA
    computes well there, inside loops as outside (`jaxsoft._convolution`). For all else it is the
    native convolution. The kernel is [k, k, C, features] either way, so that parameters move
    between devices.

    Attributes:
      features: output channels.
      kernel: k.
      stride: s; must divide k.
      native: whether to use the native convolution on a CPU as well.
    """

    features: int
    kernel: int
    stride: int = 1
    dtype: Any = jnp.float32
    native: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Convolves."""
        k, s = self.kernel, self.stride
        size = x.shape[1:3]
        if min(size) < k or k % s:
            raise _checks.fail(
                "networks.Conv",
                f"images of {size[0]} x {size[1]} for kernel {k}, stride {s}",
                "images no smaller than the kernel, and a kernel that the stride divides",
                "Use a torso made for this size (networks.MLP, or your own module).",
            )
        shape = (k, k, x.shape[-1], self.features)
        w = self.param("kernel", orthogonal(np.sqrt(2)), shape, jnp.float32)
        b = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        x, w, b = x.astype(self.dtype), w.astype(self.dtype), b.astype(self.dtype)
        if self.native:
            numbers = ("NHWC", "HWIO", "NHWC")
            y = jax.lax.conv_general_dilated(x, w, (s, s), "VALID", dimension_numbers=numbers)
        else:
            y = convolve(x, w, s)
        return y + b[None, None, None]


class NatureCNN(nn.Module):
    """The network of the Nature DQN, from uint8 images [N, C, H, W] as EnvPool gives them.

    Convolutions 32 × 8/4, 64 × 4/2, 64 × 3/1 and a layer of 512, rectified: features [N, 512].

    Attributes:
      dtype: to compute in.
      native: whether to use XLA's convolutions on a CPU as well.
      centred: whether to subtract each image's mean. What moves is a few pixels on a bright
        ground, whose constant share of every gradient slows learning down.
      layer_norm: whether each layer is normalised before it is rectified.

    Reference: Mnih et al. (2015), *Human-level control through deep reinforcement learning*.
    """

    dtype: Any = jnp.float32
    native: bool = False
    centred: bool = False
    layer_norm: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Features of a batch of images."""
        if self.centred:
            x = x.astype(jnp.promote_types(self.dtype, jnp.float32))
            x = x - jnp.mean(x, axis=(1, 2, 3), keepdims=True)
        x = x.transpose(0, 2, 3, 1).astype(self.dtype) / 255
        for features, kernel, stride in ((32, 8, 4), (64, 4, 2), (64, 3, 1)):
            x = Conv(features, kernel, stride, self.dtype, self.native)(x)
            x = nn.relu(_normalised(x) if self.layer_norm else x)
        x = _dense(512, np.sqrt(2), self.dtype)(x.reshape(x.shape[0], -1))
        return nn.relu(_normalised(x) if self.layer_norm else x)


class MLP(nn.Module):
    """Layers on flattened observations [N, ...]: features [N, hidden[-1]].

    Attributes:
      hidden: sizes of the layers.
      dtype: to compute in.
      activation: `"tanh"`, `"relu"` or `"silu"`.
      layer_norm: whether each layer is normalised before it is activated.
    """

    hidden: Sequence[int] = (64, 64)
    dtype: Any = jnp.float32
    activation: str = "tanh"
    layer_norm: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Features of a batch of vectors."""
        x = x.reshape(x.shape[0], -1).astype(self.dtype)
        for size in self.hidden:
            x = _dense(size, np.sqrt(2), self.dtype)(x)
            x = ACTIVATIONS[self.activation](_normalised(x) if self.layer_norm else x)
        return x


class ActorCritic(nn.Module):
    """State value and policy on one trunk: (v [...], log_pi [..., A]).

    The same network serves the tied action values Q = V + τ log(π/π̄) of §6.3.

    Attributes:
      torso: a module from [N, *O] to features [N, F].
      num_actions: A.
      observation_ndim: axes of one observation.
    """

    torso: nn.Module
    num_actions: int
    observation_ndim: int

    @nn.compact
    def __call__(self, observation: Array) -> tuple[Array, Array]:
        """Values and log-probabilities at observations [..., *O]."""
        leading, x = _features(self.torso, observation, self.observation_ndim)
        v = _dense(1, 1.0, x.dtype, name="value")(x)
        logits = _dense(self.num_actions, 0.01, x.dtype, name="policy")(x)
        v, logits = _wide(v), _wide(logits)
        log_pi = jax.nn.log_softmax(logits)
        return v.reshape(leading), log_pi.reshape(*leading, self.num_actions)


class QNetwork(nn.Module):
    """Action values q [..., A]; the attributes are those of `ActorCritic`."""

    torso: nn.Module
    num_actions: int
    observation_ndim: int

    @nn.compact
    def __call__(self, observation: Array) -> Array:
        """Action values at observations [..., *O]."""
        leading, x = _features(self.torso, observation, self.observation_ndim)
        q = _wide(_dense(self.num_actions, 0.01, x.dtype, name="action_values")(x))
        return q.reshape(*leading, self.num_actions)


class SoftActorCritic(nn.Module):
    """A policy, and K networks of action values, which share nothing: (policy, q [K, ...]).

    Of D real numbers the policy is (mean [..., D], log σ [..., D]) of a Gaussian before it is
    squashed, and actions [..., D] in (−1, 1) are part of the action values' input. Of A categories
    it is log π [..., A], and q is [K, ..., A].

    Attributes:
      torso: a module from [N, *O] to features [N, F].
      num_actions: A, or D.
      observation_ndim: axes of one observation.
      continuous: whether actions are real numbers.
      number: K.
    """

    torso: nn.Module
    num_actions: int
    observation_ndim: int
    continuous: bool
    number: int = 2

    def setup(self) -> None:
        """Makes the parts."""
        shared = (self.torso.clone(parent=None), self.num_actions, self.observation_ndim)
        self.actor = (_Gaussian if self.continuous else _Categorical)(*shared)
        one = (_ActionValue if self.continuous else QNetwork)(*shared, parent=None)
        self.critic = _Several(one, self.number)

    def __call__(self, observation: Array) -> tuple[Any, Array]:
        """Both, of some action, at observations [..., *O]."""
        leading = observation.shape[: observation.ndim - self.observation_ndim]
        action = jnp.zeros((*leading, self.num_actions)) if self.continuous else None
        return self.policy(observation), self.values(observation, action)

    def policy(self, observation: Array) -> Any:
        """The policy at observations [..., *O]."""
        return self.actor(observation)

    def values(self, observation: Array, action: Array | None = None) -> Array:
        """Action values [K, ...] of actions [..., D]; without them, of all: [K, ..., A]."""
        given = (observation,) if action is None else (observation, action)
        values: Array = self.critic(*given)
        return values


class SamplingActorCritic(nn.Module):
    """A sampler of D real numbers, and K networks of action values, which share nothing.

    The sampler turns noise into actions before they are squashed, u = ξ + f(observation, ξ), so
    that with standard normal noise it starts near the uniform distribution. Action values are
    those of `SoftActorCritic`.

    Attributes:
      torso: a module from [N, *O] to features [N, F].
      num_actions: D.
      observation_ndim: axes of one observation.
      number: K.
    """

    torso: nn.Module
    num_actions: int
    observation_ndim: int
    number: int = 2

    def setup(self) -> None:
        """Makes the parts."""
        shared = (self.torso.clone(parent=None), self.num_actions, self.observation_ndim)
        self.actor = _Sampler(*shared)
        self.critic = _Several(_ActionValue(*shared, parent=None), self.number)

    def __call__(self, observation: Array) -> tuple[Array, Array]:
        """Both, of the middle of noise and actions, at observations [..., *O]."""
        leading = observation.shape[: observation.ndim - self.observation_ndim]
        middle = jnp.zeros((*leading, self.num_actions))
        return self.sample(observation, middle), self.values(observation, middle)

    def sample(self, observation: Array, noise: Array) -> Array:
        """Actions before the squash [..., D], of noise [..., D] at observations [..., *O]."""
        u: Array = self.actor(observation, noise)
        return u

    def values(self, observation: Array, action: Array) -> Array:
        """Action values [K, ...] of actions [..., D]."""
        values: Array = self.critic(observation, action)
        return values


class _Several(nn.Module):
    """So many networks that differ in their parameters alone, in one batch."""

    one: nn.Module
    number: int

    @nn.compact
    def __call__(self, *inputs: Array) -> Any:
        one = self.one.clone(parent=None)

        def init(key: Array) -> Any:
            # In turn: as a batch, their QR decompositions can wait for each other for ever
            # (jaxlib 0.10.2, on as many cores as there are of them at once).
            return jax.lax.map(
                lambda key: one.init(key, *inputs), jax.random.split(key, self.number)
            )

        params = self.param("several", init)
        outputs: Any = jax.vmap(lambda params: one.apply(params, *inputs))(params)
        return outputs


class _Categorical(nn.Module):
    torso: nn.Module
    num_actions: int
    observation_ndim: int

    @nn.compact
    def __call__(self, observation: Array) -> Array:
        leading, x = _features(self.torso, observation, self.observation_ndim)
        logits = _wide(_dense(self.num_actions, 0.01, x.dtype, name="policy")(x))
        return jax.nn.log_softmax(logits).reshape(*leading, self.num_actions)


class _Gaussian(nn.Module):
    torso: nn.Module
    num_actions: int
    observation_ndim: int

    @nn.compact
    def __call__(self, observation: Array) -> tuple[Array, Array]:
        leading, x = _features(self.torso, observation, self.observation_ndim)
        out = _wide(_dense(2 * self.num_actions, 0.01, x.dtype, name="policy")(x))
        mean, spread = jnp.split(out.reshape(*leading, -1), 2, axis=-1)
        low, high = LOG_STD
        # Bounded smoothly: a clip would leave no way back.
        return mean, low + (high - low) * nn.sigmoid(spread + _FROM_ONE)


class _ActionValue(nn.Module):
    torso: nn.Module
    num_actions: int
    observation_ndim: int

    @nn.compact
    def __call__(self, observation: Array, action: Array) -> Array:
        leading, x = _joint_features(self.torso, observation, action, self.observation_ndim)
        value: Array = _dense(1, 1.0, x.dtype, name="action_value")(x)
        return _wide(value).reshape(leading)


class _Sampler(nn.Module):
    torso: nn.Module
    num_actions: int
    observation_ndim: int

    @nn.compact
    def __call__(self, observation: Array, noise: Array) -> Array:
        leading, x = _joint_features(self.torso, observation, noise, self.observation_ndim)
        moved = _wide(_dense(self.num_actions, 0.01, x.dtype, name="sampler")(x))
        return noise + moved.reshape(*leading, self.num_actions)


def torso_for(
    observation_shape: Sequence[int],
    observation_dtype: Any,
    *,
    hidden: Sequence[int] = (64, 64),
    dtype: Any = jnp.float32,
    native: bool = False,
    centred: bool = False,
    activation: str = "tanh",
    layer_norm: bool = False,
) -> nn.Module:
    """The usual torso: `NatureCNN` for images of bytes [C, H, W], an `MLP` for all else."""
    if len(observation_shape) == 3 and jnp.dtype(observation_dtype) == jnp.uint8:
        return NatureCNN(dtype=dtype, native=native, centred=centred, layer_norm=layer_norm)
    return MLP(tuple(hidden), dtype=dtype, activation=activation, layer_norm=layer_norm)


def _normalised(x: Array) -> Array:
    y: Array = nn.LayerNorm(dtype=x.dtype)(x)
    return y


def _dense(size: int, gain: float, dtype: Any, name: str | None = None) -> nn.Dense:
    return nn.Dense(size, dtype=dtype, kernel_init=orthogonal(gain), name=name)


def _wide(x: Array) -> Array:
    return x.astype(_checks.computing_dtype(x.dtype))


def _features(
    torso: Callable[[Array], Array], observation: Array, ndim: int
) -> tuple[tuple[int, ...], Array]:
    if observation.ndim < ndim:
        raise _checks.fail(
            "networks",
            f"an observation {list(observation.shape)}",
            f"at least {ndim} axes, as one observation has",
            "Hand the network whole observations; leading axes are optional.",
        )
    leading = observation.shape[: observation.ndim - ndim]
    return leading, torso(observation.reshape(-1, *observation.shape[observation.ndim - ndim :]))


def _joint_features(
    torso: Callable[[Array], Array], observation: Array, numbers: Array, ndim: int
) -> tuple[tuple[int, ...], Array]:
    """Of an observation [..., *O] and numbers [..., D] beside it."""
    if ndim == 1:
        return _features(
            torso, jnp.concatenate([observation.astype(numbers.dtype), numbers], axis=-1), 1
        )
    leading, seen = _features(torso, observation, ndim)
    joint = jnp.concatenate([seen, numbers.reshape(len(seen), -1).astype(seen.dtype)], -1)
    return leading, nn.relu(_dense(256, np.sqrt(2), seen.dtype)(joint))
