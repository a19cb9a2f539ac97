"""Value gradients: targets for ∇V from a differentiable model, and the loss that fits them.

The derivative of a return by the state it starts in says how to act better there, without trying:
along a trajectory of which G is right, r_a + γf_aᵀG' = 0 is stationarity of the return. That is
local optimality only; contacts and clips have derivatives of no use, and emulators have none.

Reference: Fairbank and Alonso (2012), *Value-Gradient Learning*; Heess et al. (2015), *Learning
Continuous Control Policies by Stochastic Value Gradients*.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxsoft import _checks
from jaxsoft._typing import Float, Scalar, Shaped

__all__ = ["targets", "value_gradient_loss"]

Noise = Any


def targets(
    step: Callable[[Array, Noise], tuple[Array, Array]],
    states: Float[ArrayLike, "T *#B D"],
    noise: Noise,
    v_gradient: Float[ArrayLike, "T *#B D"],
    *,
    discount_t: Float[ArrayLike, "T *#B"] | Scalar,
    lambda_: Float[ArrayLike, "T *#B"] | Scalar,
    cut_t: Shaped[ArrayLike, "T *#B"] | None = None,
) -> Float[Array, "T *B D"]:
    """Gradients of the λ-returns by the states that they start in.

        G'_t = Dr_t + γ (Df_t)ᵀ (λ G'_{t+1} + (1−λ) ∇V(s_{t+1})),   (f, r) = step(s, noise)

    D is the derivative along the policy, which acts inside `step`; the noise is held fixed, and
    for a regularised return the reward is r − τℓ, with ℓ's own derivative. λ = 0 is the gradient
    of one backup. At λ = 1, Σγᵗ ∂_θ(r + G'·γf) of the policy's parameters θ is backpropagation
    through time. A step's model is pulled back once; no Jacobian is formed.

        def step(state, noise):
            u = mean(state) + jnp.exp(log_std) * noise
            log_ratio = squashed.log_ratio(u, mean(state), log_std)
            return dynamics(state, u), reward(state, u) - tau * log_ratio

    Args:
      step: (states [..., n], noise) -> (next states [..., n], rewards [...]) of a batch, whose
        entries do not depend on each other; differentiable.
      states: the transitions' starts [T, ..., n].
      noise: a tree of arrays [T, ...] with which `step` gives the transitions' ends again.
      v_gradient: ∇V at the transitions' ends, of the shape of `states`.
      discount_t: γ, or 0 at a termination, [T, ...] or a scalar.
      lambda_: λ, a scalar or [T, ...].
      cut_t: 1 or True where a trajectory ends after that transition, [T, ...]: there, as at the
        end of the arrays, ∇V alone follows.

    Returns:
      G' [T, ..., n], in the dtype of `states`. Nothing is held fixed.
    """
    name = "value_gradients.targets"
    _checks.callable_(name, "step", step, "(states, noise) -> (next states, rewards)")
    both = _checks.sequences(name, states=states, v_gradient=v_gradient)
    starts, gradients = both.arrays
    if starts.ndim < 2:
        raise _checks.fail(
            name,
            str(list(starts.shape)),
            "states to be [T, ..., n], whose last axis is the state's",
            "Add the missing axis: x[:, None].",
        )
    _checks.same_shape(
        name,
        "v_gradient",
        gradients,
        "states",
        starts.shape,
        "Of T + 1 states pass states[:-1] and the gradients at states[1:].",
    )
    extra = {} if cut_t is None else {"cut_t": _checks.real(name, "cut_t", cut_t)}
    steps = {"discount_t": discount_t, "lambda_": lambda_}
    given = {key: _checks.floating(name, key, x).astype(starts.dtype) for key, x in steps.items()}
    given |= {key: x.astype(starts.dtype) for key, x in extra.items()}
    _checks.common_shape(name, **given, **{"states[..., 0]": starts[..., 0]})
    shape = starts.shape[:-1]
    discount, decay = (jnp.broadcast_to(given[key], shape)[..., None] for key in steps)
    if cut_t is not None:
        decay = decay * (1 - jnp.broadcast_to(given["cut_t"], shape)[..., None])
    # Behind the last transition nothing is known but ∇V.
    decay = jnp.concatenate([decay[:-1], jnp.zeros_like(decay[-1:])])
    _check_noise(name, noise, shape[0])
    if not shape[0]:
        return jnp.zeros(starts.shape, both.dtype)
    _check_step(name, step, starts, noise)

    def backward(following: Array, at: tuple[Array, Noise, Array, Array, Array]) -> Any:
        state, noise, gradient, discount, decay = at
        (ends, rewards), pull = jax.vjp(lambda s: step(s, noise), state)
        following = discount * (decay * following + (1 - decay) * gradient)
        (here,) = pull((following.astype(ends.dtype), jnp.ones_like(rewards)))
        return here, here

    start = jnp.zeros(starts.shape[1:], starts.dtype)
    inputs = (starts, noise, gradients, discount, decay)
    result: Array = jax.lax.scan(backward, start, inputs, reverse=True)[1]
    return result.astype(both.dtype)


def value_gradient_loss(
    g_tm1: Float[ArrayLike, "T *#B D"],
    target_t: Float[ArrayLike, "T *#B D"],
    *,
    metric: Float[ArrayLike, "T *#B D D"] | None = None,
) -> Float[Array, "T *B"]:
    """Squared error of a value's gradient, in any metric.

        L_t = ½ (G_t − G'_t)ᵀ Ω_t (G_t − G'_t)

    A critic alone controls by a = argmax r + γV(f), and then Ω_t = −γ f_a Q_aa⁻¹ f_aᵀ of the
    transition *into* s_t, with λ = 1 and weights γᵗ, makes the descent on this loss the ascent on
    the return, exactly. ✎ Which γ stands in Ω depends on what is called Q; here Q = r + γV(f).

    Args:
      g_tm1: G, the gradient of the value or a network's in its place, [T, ..., n].
      target_t: G' (`value_gradients.targets`), held fixed, [T, ..., n].
      metric: Ω, symmetric, held fixed, [T, ..., n, n]; `None` is the identity.

    Returns:
      [T, ...].
    """
    name = "value_gradient_loss"
    _checks.arguments(name, g_tm1=g_tm1, target_t=target_t)
    args = _checks.vectors(name, g_tm1=g_tm1, target_t=target_t)
    g, target = args.arrays
    if g.ndim < 2:
        raise _checks.fail(
            name,
            str(list(g.shape)),
            "g_tm1 to be [T, ..., n], where axis 0 is time and the last axis is the state's",
            "Add the missing axis: x[:, None].",
        )
    error = g - jax.lax.stop_gradient(target)
    if metric is None:
        return (0.5 * jnp.sum(jnp.square(error), axis=-1)).astype(args.dtype)
    omega = _checks.floating(name, "metric", metric)
    n = args.shape[-1]
    if (
        omega.ndim != len(args.shape) + 1
        or omega.shape[-2:] != (n, n)
        or any(m not in (1, k) for m, k in zip(omega.shape[:-2], args.shape[:-1], strict=True))
    ):
        raise _checks.fail(
            name,
            f"{list(omega.shape)} for {list(args.shape)}",
            "metric to be [T, ..., n, n] for g_tm1 [T, ..., n], with any axis of the batch 1",
            "Add the axes that are missing in front: metric[None].",
        )
    omega = jax.lax.stop_gradient(omega.astype(error.dtype))
    along = jnp.sum(omega * error[..., None, :], axis=-1)
    return (0.5 * jnp.sum(error * along, axis=-1)).astype(args.dtype)


def _check_noise(function: str, noise: Noise, length: int) -> None:
    for x in jax.tree.leaves(noise):
        shape = np.shape(x)
        if not shape or shape[0] != length:
            raise _checks.fail(
                function,
                f"{list(shape)} for {length} states",
                "noise to hold arrays [T, ...] of the length of states",
                "Pass the noise of each transition; None where there is none.",
            )


def _check_step(function: str, step: Callable[..., Any], states: Array, noise: Noise) -> None:
    def check(state: Array, noise: Noise) -> None:
        out: Any = step(state, noise)
        try:
            ends, rewards = out
            given = f"{list(ends.shape)} and {list(rewards.shape)}"
            right = ends.shape == state.shape and rewards.shape == state.shape[:-1]
        except (AttributeError, TypeError, ValueError):
            given, right = f"a {type(out).__name__}", False
        if not right:
            raise _checks.fail(
                function,
                f"{given} for states {list(state.shape)}",
                "step(states, noise) to be (next states [..., n], rewards [...])",
                "It is given the whole batch: use jax.vmap(step) for a model of one state.",
            )

    jax.eval_shape(check, *jax.tree.map(lambda x: jnp.asarray(x)[0], (states, noise)))
