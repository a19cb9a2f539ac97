"""Off-policy agent: soft Q-learning of real numbers, with a sampler that learns by Stein steps.

    value    V̂(s) = τ log (1/M) Σ_i e^{Q(s,a_i)/τ},  a_i uniform on the box
    critic   ½(Q_k − y)²,  y = r + γV̂(s')               V̂ of the target network, Q the least of two
    sampler  −⟨φ(u), u⟩,  u = f(s, ξ),  a = tanh u       φ held fixed, of particles drawn apart

The Boltzmann policy π_Q ∝ e^{Q/τ} has no density that is known in full; the sampler moves its
actions towards it in the direction φ that lowers their divergence from it fastest
(`stein_direction`). That is done in u, before the squash, with the log-determinant in the score, so
that value and sampler have one prior, the uniform distribution on the box.

The value is from below: E V̂ ≤ V_Q, by about τ Var(e^{(Q−V)/τ})/(2M). Uniform actions find the
greatest Q of few numbers, not of many, and a small τ needs more of them.

Reference: Haarnoja et al. (2017), *Reinforcement Learning with Deep Energy-Based Policies*.
Corrections: published code takes φ in a = tanh u with the score of u, whose fixed point is
e^{Q/τ}(1 − a²), and the value of e^{Q/τ} by the volume of the box: two priors. ✎ One network of Q
there, copied every thousand steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.typing import ArrayLike

import jaxsoft
from jaxsoft import _checks
from jaxsoft.agents import _boxes, temperature
from jaxsoft.agents._descent import Trained, descend, mean_loss
from jaxsoft.agents._replaying import State, agent_with_replay, averaged, critics, one_step_target
from jaxsoft.agents.base import Agent, Params, Rollout, mean

__all__ = ["Sampler", "Values", "agent"]

Sampler = Callable[[Params, Array, Array], Array]
"""(params, observations [..., *O], noise [..., D]) -> u [..., D], actions before the squash."""

Values = Callable[[Params, Array, Array], Array]
"""(params, observations [..., *O], actions in (−1, 1) [..., D]) -> K Qs [K, ...]."""


def agent(
    sampler: Sampler,
    values: Values,
    init_params: Callable[[Array], Params],
    *,
    low: Any,
    high: Any,
    dtype: Any = np.float32,
    volume: bool = False,
    optimiser: optax.GradientTransformation,
    num_envs: int,
    observation: Any,
    stack: int = 1,
    capacity: int = 1_000_000,
    batch_size: int = 256,
    discount: ArrayLike = 0.99,
    tau: Any = 0.2,
    learning_starts: int = 10_000,
    steps_per_gradient: int = 1,
    averaging: float = 0.005,
    particles: int = 16,
    proposals: int = 16,
) -> Agent:
    """An agent that acts by its sampler and learns that and its action values from a replay.

    Actions are uniform until learning starts, then single draws of the sampler. The greedy action
    is, of as many draws as there are particles, always of the same noise, the one with the greatest
    Q. Sampler and action values have a gradient of their own each, and one optimiser: it must treat
    parameters apart, as Adam does.

    Args:
      sampler: of actions; noise is standard normal.
      values: action values of each of several networks.
      init_params: key -> params of both.
      low: least actions [*A], of which the D numbers are.
      high: greatest actions [*A].
      dtype: of an action.
      volume: whether the prior is the volume of (−1, 1)^D, which adds τ D log 2 to the value, and
        not the uniform distribution.
      optimiser: any of Optax.
      num_envs: N.
      observation: anything with the shape and dtype of one.
      stack: C, where observations are stacks of frames; see `replay.init`.
      capacity: transitions in the replay.
      batch_size: B.
      discount: γ.
      tau: temperature τ > 0, a number, a schedule or a `temperature.Temperature`, but none that is
        tuned by the KL: an action of the sampler does not say how likely it was.
      learning_starts: transitions in the replay before the first gradient step.
      steps_per_gradient: environment steps for each gradient step.
      averaging: ρ, the share of the parameters that the target network takes over in each gradient
        step.
      particles: actions of the sampler for each state in each of two sets: those of which the
        direction is the mean, and those that are moved.
      proposals: M.

    Returns:
      An `Agent`, whose state is a `State`.
    """
    name = "soft_q_svgd.agent"
    _checks.arguments(name, discount=discount)
    particles = _checks.count(name, "particles", particles)
    proposals = _checks.count(name, "proposals", proposals)
    box = _boxes.box(name, low, high, dtype)
    # The measure of one proposal.
    log_share = box.size * math.log(2) * volume - math.log(proposals)
    source = temperature.of(tau, name)
    if source.by_kl:
        raise _checks.fail(
            name,
            "a temperature that is tuned by the KL to the prior",
            "a number or a schedule",
            "The KL of a sampler without a density is not known. Choose τ, or soft_actor_critic.",
        )

    # Observations have no axis of particles: a torso that sees nothing else sees them once.
    draw = jax.vmap(sampler, (None, None, -2), -2)

    def least(params: Params, observation: Array, action: Array) -> Array:
        """Q [..., P] of actions [..., P, D]."""
        several = jax.vmap(values, (None, None, -2), -1)(params, observation, action)
        return jnp.min(several, axis=0)

    def gradient_step(
        trained: Trained, target_params: Params, tau: ArrayLike, window: Rollout, key: Array
    ) -> tuple[Trained, Array, dict[str, Array]]:
        of_value, of_score, of_moved = jax.random.split(key, 3)
        now, then = window.observation
        weight = window.weight[0]
        held = trained.params

        def of_sampler(params: Params, key: Array) -> Array:
            return draw(params, now, jax.random.normal(key, (*weight.shape, particles, box.size)))

        def log_target(u: Array) -> Array:
            log_slope = 2 * (math.log(2) - jnp.logaddexp(u, -u))
            return jnp.sum(least(held, now, jnp.tanh(u)) / tau) + jnp.sum(log_slope)

        proposed = jax.random.uniform(of_value, (*weight.shape, proposals, box.size), minval=-1)
        v_t = jaxsoft.soft_value(least(target_params, then, proposed), tau, log_share)
        target = one_step_target(window, v_t, discount)
        fixed = of_sampler(held, of_score)
        score = jax.grad(log_target)(fixed)

        def objective(params: Params) -> tuple[Array, dict[str, Array]]:
            q = values(params, now, box.inner(window.action[0]))
            critic, told = critics(q, target)
            u = of_sampler(params, of_moved)
            direction = jax.lax.stop_gradient(jaxsoft.stein_direction(u, fixed, score))
            moved = jnp.mean(jnp.sum(direction * u, axis=-1), axis=-1)
            told |= {
                "stein": jnp.mean(jnp.sum(jnp.square(direction), axis=-1), axis=-1),
                "spread": jnp.mean(jnp.std(jnp.tanh(u), axis=-2), axis=-1),
            }
            return mean_loss(name, critic - moved, weight), told

        (value, told), gradients = jax.value_and_grad(objective, has_aux=True)(held)
        trained, step = descend(optimiser, trained, gradients)
        means = {"loss": value} | {key: mean(x, weight) for key, x in told.items()} | step
        return trained, jnp.full((), jnp.nan), means

    def act(state: State, carry: Any, observation: Array, key: Array) -> tuple[Array, Any, None]:
        keys = jax.vmap(jax.random.split)(key)
        noise = jax.vmap(lambda key: jax.random.normal(key, (box.size,)))(keys[:, 0])
        drawn = box.outer(sampler(state.params, observation, noise))
        waits = state.steps < jnp.asarray(learning_starts, jnp.uint32)
        return jnp.where(waits, box.random(keys[:, 1]), drawn), carry, None

    def greedy(state: State, carry: Any, observation: Array, key: Array) -> tuple[Array, Any, None]:
        noise = jax.random.normal(jax.random.key(0), (particles, box.size))
        u = draw(state.params, observation, jnp.broadcast_to(noise, (len(key), *noise.shape)))
        best = jnp.argmax(least(state.params, observation, jnp.tanh(u)), axis=-1)
        chosen = jax.vmap(lambda u, i: u[i])(u, best)
        return box.outer(chosen), carry, None

    return agent_with_replay(
        name,
        gradient_step,
        act=act,
        greedy=greedy,
        init_params=init_params,
        optimiser=optimiser,
        source=source,
        refresh=averaged(name, averaging),
        num_envs=num_envs,
        observation=observation,
        action=box.one,
        stack=stack,
        capacity=capacity,
        batch_size=batch_size,
        n=1,
        learning_starts=learning_starts,
        steps_per_gradient=steps_per_gradient,
    )
