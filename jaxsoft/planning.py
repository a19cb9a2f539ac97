"""Planning by sampling: the soft value of one state from a generative model, SmoothCruiser's way.

Soft values are smooth: V(q + u) exceeds V(q) + π_q·u by max|u|²/(2τ) at most. So where q is known
roughly, to √(kε), one more draw along π_q makes V known to ε: two nested estimates instead of a
tree, and a number of calls that is polynomial in 1/ε whatever the number of states.

Reference: Grill, Domingues, Ménard, Munos and Valko (2019), *Planning in Entropy-Regularized
Markov Decision Processes and Games*. Correction: k = 2τ(1 − √γ) suffices, where published code has
τ(1 − √γ)/|A|. ✎ Games are turn-based and zero-sum here; the prior is a distribution, so that values
lie in [0, 1/(1 − γ)] and log|A| leaves the constants.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxsoft import _checks, boltzmann
from jaxsoft._typing import Float, Key

__all__ = ["estimate_value"]

States = Any
Model = Callable[[Array, States, Array], tuple[Array, States]]

# Of the model: in all, and as parts of the program.
_CALLS, _BATCHES = 2**22, 2**12


def estimate_value(
    model: Model,
    state: States,
    key: Key[Array, ""],
    tau: float,
    *,
    epsilon: float,
    discount: float,
    samples: Callable[[float], int],
    log_prior: Float[ArrayLike, "..."] | Callable[[States], Array],
    player: Callable[[States], Array] | None = None,
) -> Float[Array, ""]:
    """Soft value of one state to within ε, by calls of a generative model alone.

        sample V(s, ε):   0                                             if ε ≥ 1/(1 − γ)
                          V(q̂),  q̂ = estimate Q(s, ε)                   if ε ≥ k = 2τ(1 − √γ)
                          V(q̂) − π_q̂·q̂ + r + γ sample V(s', ε/√γ)       otherwise,
                                 q̂ = estimate Q(s, √(kε)), a ∼ π_q̂
        estimate Q(s, ε): mean of N(ε) of r + γ sample V(s', ε/√γ), for each action

    and V(q̂) of estimate Q(s, ε) is returned. |E sample V − V| ≤ ε if each Q is within its ε. The
    recursion is unrolled, a level's states in one batch, so memory grows with the number of calls:
    a thousand at ε = 0.3, γ = 0.4 and three actions; more than four million are refused, which γ
    near 1 would take.

        value = planning.estimate_value(
            model, state, key, 0.5, epsilon=0.3, discount=0.4,
            samples=lambda epsilon: math.ceil(0.3 / epsilon**2), log_prior=log_prior)

    Args:
      model: (key, states [M, ...], actions [M]) -> (rewards [M] in [0, 1], states); a state that
        ends the game leads to itself for nothing.
      state: a tree of arrays, without the axis of the batch.
      key: a JAX random key, used once.
      tau: temperature τ > 0, static like the other numbers.
      epsilon: ε > 0.
      discount: γ in [0, 1).
      samples: ε -> N(ε). ✎ The paper's are 18(1 + τ log|A|)² log(2|A|/δ)/((1−γ)⁴(1−√γ)²ε²), which
        no computer reaches; in small problems some 0.3/ε² suffice.
      log_prior: log π̄ [A] of a distribution, or a function of states [M, ...] to [M, A].
      player: states [M, ...] -> [M], True where the opponent moves, who minimises:
        V = −V_{−Q}; `None` is no opponent.

    Returns:
      A scalar, in the dtype of the rewards.
    """
    name = "planning.estimate_value"
    _checks.callable_(name, "model", model, "(key, states, actions) -> (rewards, states)")
    _checks.callable_(name, "samples", samples, "epsilon -> N")
    if player is not None:
        _checks.callable_(name, "player", player, "states -> whether the opponent moves")
    temperature = _static(name, "tau", tau, "At tau = 0 values are not smooth.")
    precision = _static(name, "epsilon", epsilon, "Pass the error to allow, such as 0.3.")
    gamma = _static(name, "discount", discount)
    if gamma >= 1:
        raise _checks.fail(name, f"{gamma:g}", "discount < 1", "Without it values have no bound.")
    key = _checks.keys(name, "key", key)
    if key.shape:
        raise _checks.fail(
            name, str(list(key.shape)), "key to be one key", "Use vmap for several states."
        )
    prior = log_prior if callable(log_prior) else _of_every_state(name, log_prior)
    plan = _Plan(name, model, prior, player, samples, temperature, gamma)
    state = jax.tree.map(lambda x: jnp.asarray(x)[None], state)
    actions = int(_of_one_state(name, "log_prior", prior(state), "[1, A]").shape[-1])
    if player is not None:
        _of_one_state(name, "player", player(state), "[1]")
    calls = 0
    for number, size in enumerate(plan.calls(actions, 1, precision)):
        calls += size
        if calls > _CALLS or number > _BATCHES:
            raise _checks.fail(
                name,
                "one that needs more",
                f"an epsilon that {_CALLS:,} calls of the model are enough for",
                "Raise epsilon or tau; lower discount or samples.",
            )
    return plan.value(state, plan.estimate_q(key, state, precision))[0]


class _Plan(NamedTuple):
    """The recursion; states are trees of [M, ...]."""

    function: str
    model: Model
    log_prior: Callable[[States], Array]
    player: Callable[[States], Array] | None
    samples: Callable[[float], int]
    tau: float
    discount: float

    @property
    def largest(self) -> float:
        return 1 / (1 - self.discount)

    @property
    def smoothness(self) -> float:
        # k
        return 2 * self.tau * (1 - math.sqrt(self.discount))

    def sample_value(self, key: Array, states: States, epsilon: float) -> Array:
        """One draw of each state's value [M], of which the mean is within ε."""
        if epsilon >= self.largest:
            return jnp.zeros(len(self.log_prior(states)))
        if epsilon >= self.smoothness:
            return self.value(states, self.estimate_q(key, states, epsilon))
        for_q, for_action, for_model, for_rest = jax.random.split(key, 4)
        q = self.estimate_q(for_q, states, math.sqrt(self.smoothness * epsilon))
        log_pi = self.policy(states, q)
        actions = boltzmann.sample_actions(for_action, log_pi)
        rewards, following = self.call(for_model, states, actions)
        rest = self.sample_value(for_rest, following, self.coarser(epsilon))
        pi = jnp.exp(log_pi)
        known = self.value(states, q) - jnp.sum(pi * jnp.where(pi > 0, q, 0), axis=-1)
        return known + rewards + (self.discount * rest).astype(rewards.dtype)

    def estimate_q(self, key: Array, states: States, epsilon: float) -> Array:
        """Action values [M, A], each from N(ε) draws."""
        for_model, for_rest = jax.random.split(key)
        size, count = self.log_prior(states).shape
        draws = self.draws(epsilon)
        actions = jnp.tile(jnp.repeat(jnp.arange(count, dtype=jnp.int32), draws), size)
        repeated = jax.tree.map(lambda x: jnp.repeat(x, count * draws, axis=0), states)
        rewards, following = self.call(for_model, repeated, actions)
        rest = self.sample_value(for_rest, following, self.coarser(epsilon))
        rest = jnp.clip(rest, 0, self.largest).astype(rewards.dtype)
        return jnp.mean((rewards + self.discount * rest).reshape(size, count, draws), axis=-1)

    def calls(self, actions: int, size: int, epsilon: float) -> Iterator[int]:
        """Sizes of the batches that `estimate_q` of `size` states gives the model."""
        size *= actions * self.draws(epsilon)
        yield size
        epsilon = self.coarser(epsilon)
        while epsilon < self.smoothness and epsilon < self.largest:
            yield from self.calls(actions, size, math.sqrt(self.smoothness * epsilon))
            yield size
            epsilon = self.coarser(epsilon)
        if epsilon < self.largest:
            yield from self.calls(actions, size, epsilon)

    def draws(self, epsilon: float) -> int:
        return _checks.count(self.function, "samples(epsilon)", self.samples(epsilon))

    def coarser(self, epsilon: float) -> float:
        """The error that a step later counts as ε√γ."""
        return epsilon / math.sqrt(self.discount) if self.discount else math.inf

    def value(self, states: States, q: Array) -> Array:
        sign = self.sign(states, q)
        prior = self.log_prior(states)
        return sign[..., 0] * boltzmann.soft_value(sign * q, self.tau, prior)

    def policy(self, states: States, q: Array) -> Array:
        return boltzmann.log_policy(self.sign(states, q) * q, self.tau, self.log_prior(states))

    def sign(self, states: States, q: Array) -> Array:
        """[M, 1]: −1 where the opponent moves."""
        if self.player is None:
            return jnp.ones((len(q), 1), q.dtype)
        return jnp.where(self.player(states), -1, 1).astype(q.dtype)[:, None]

    def call(self, key: Array, states: States, actions: Array) -> tuple[Array, States]:
        out: Any = self.model(key, states, actions)
        try:
            rewards, following = out
            right = rewards.shape == actions.shape and jnp.issubdtype(rewards.dtype, jnp.floating)
        except (AttributeError, TypeError, ValueError):
            right = False
        if not right:
            raise _checks.fail(
                self.function,
                str(jax.tree.map(np.shape, out)),
                f"model(key, states, actions) of {actions.size} actions to be as many floating "
                "rewards and the states that follow",
                "It is given a whole batch: use jax.vmap for a model of one state.",
            )
        return rewards, following


def _static(function: str, name: str, x: Any, positive: str = "") -> float:
    if not _checks.concrete(x):
        raise TypeError(
            _checks.sentence(
                function,
                "a traced value",
                f"{name} to be a Python float, since it fixes the program's structure",
                f"Where the call is jitted, make it static: static_argnames={name!r}.",
            )
        )
    _checks.scalar(function, name, x, positive=positive)
    return float(np.asarray(x))


def _of_one_state(function: str, name: str, x: Any, axes: str) -> Array:
    """What a function says of a batch of one state."""
    array = _checks.real(function, f"{name}(states)", x)
    if array.ndim != axes.count(",") + 1 or array.shape[0] != 1 or not array.size:
        raise _checks.fail(
            function,
            str(list(array.shape)),
            f"{name}(states) of a batch of one state to be {axes}",
            "It is given a whole batch: use jax.vmap for a function of one state.",
        )
    return array


def _of_every_state(function: str, log_prior: ArrayLike) -> Callable[[States], Array]:
    prior = _checks.floating(function, "log_prior", log_prior)
    if prior.ndim != 1 or not prior.size:
        raise _checks.fail(
            function,
            str(list(prior.shape)),
            "log_prior to be [A]",
            "Uniform is jnp.full(A, -math.log(A)); pass a function for one per state.",
        )
    if _checks.concrete(log_prior):
        mass = float(np.sum(np.exp(np.asarray(log_prior, np.float64))))
        if not abs(mass - 1) < 1e-3:
            raise _checks.fail(
                function,
                f"one of mass {mass:g}",
                "log_prior to be a distribution, by which values are bounded",
                "Normalise it: jax.nn.log_softmax(log_prior).",
            )

    def of_every_state(states: States) -> Array:
        size = len(jax.tree.leaves(states)[0])
        return jnp.broadcast_to(prior, (size, len(prior)))

    return of_every_state
