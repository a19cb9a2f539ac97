"""Off-policy agent: soft actor-critic, for actions that are finitely many or real numbers.

One function, the value of a policy at a state, is the whole algorithm:

    v(s) = E_a[Q(s, a) − τℓ(a)],  ℓ = log(π/π̄),  Q the least of two
    critic   ½(Q_i − y)²,  y = r + γ v(s')        v of the target network and of fresh actions
    actor    −v(s)                                Q held fixed, but not its action

Of finitely many actions v is exact (`policy_value`); of real numbers it is one draw of that
(`sampled_value`), whose derivatives go through the action. Where the policy is the Boltzmann policy
of Q, y is soft Q-learning's target; elsewhere less by γτKL[π‖π_Q].

References: Haarnoja et al. (2018), *Soft Actor-Critic Algorithms and Applications*; Christodoulou
(2019), *Soft Actor-Critic for Discrete Action Settings*.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.typing import ArrayLike

import jaxsoft
from jaxsoft import _checks, squashed
from jaxsoft.agents import _boxes, temperature
from jaxsoft.agents._descent import Trained, descend, mean_loss
from jaxsoft.agents._replaying import State, agent_with_replay, averaged, critics, one_step_target
from jaxsoft.agents.base import Agent, Params, Rollout, mean

__all__ = ["Actions", "Policy", "Values", "agent", "box", "categories"]

Policy = Callable[[Params, Array], Any]
"""(params, observations [..., *O]) -> what the kind of actions makes sense of."""

Values = Callable[[Params, Array, Array | None], Array]
"""(params, observations, actions) -> K Qs [K, ...]; without actions, of all of them [K, ..., A]."""


class Actions(NamedTuple):
    """What an agent does with one kind of actions.

    Attributes:
      one: shape and dtype of an action.
      draw: (output of the policy [N, …], keys [N]) -> actions [N, *A].
      best: output of the policy -> its most likely actions.
      random: (keys [N]) -> actions of the prior.
      value: (output of the policy, values: actions or none -> Q, key, τ) -> (v, KL), or draws.
      taken: (values: actions or none -> Q, actions as the environment has them) -> Q of these.
    """

    one: jax.ShapeDtypeStruct
    draw: Callable[[Any, Array], Array]
    best: Callable[[Any], Array]
    random: Callable[[Array], Array]
    value: Callable[[Any, Callable[[Array | None], Array], Array, Any], tuple[Array, Array]]
    taken: Callable[[Callable[[Array | None], Array], Array], Array]


def categories(number: int, *, log_prior: ArrayLike | None = None) -> Actions:
    """Actions 0 … A − 1 of a policy that is log π [..., A]; `Values` answers for all of them.

    Args:
      number: A.
      log_prior: log π̄, broadcasting against log π; `None` is uniform, `0.0` counting.
    """
    number = _checks.count("soft_actor_critic.categories", "number", number)

    def value(
        log_pi: Array, values: Callable[[Array | None], Array], key: Array, tau: Any
    ) -> tuple[Array, Array]:
        del key
        q = jax.lax.stop_gradient(values(None))
        v = jaxsoft.policy_value(q, log_pi, tau, log_prior)
        return v, jaxsoft.kl_to_prior(log_pi, log_prior)

    def taken(values: Callable[[Array | None], Array], action: Array) -> Array:
        return jax.vmap(jaxsoft.take_action, (0, None))(values(None), action)

    return Actions(
        one=jax.ShapeDtypeStruct((), jnp.int32),
        draw=lambda log_pi, keys: jaxsoft.sample_actions(keys, log_pi),
        best=lambda log_pi: jnp.argmax(log_pi, axis=-1).astype(jnp.int32),
        random=jax.vmap(lambda key: jax.random.randint(key, (), 0, number, jnp.int32)),
        value=value,
        taken=taken,
    )


def box(low: Any, high: Any, dtype: Any = np.float32, *, volume: bool = False) -> Actions:
    """Actions within bounds of a squashed Gaussian, of which the policy is (mean, log σ) [..., D].

    Args:
      low: least actions [*A], of which the D numbers are.
      high: greatest actions [*A].
      dtype: of an action.
      volume: whether the prior is the volume of (−1, 1)^D, so that the KL is minus the usual
        entropy, and not the uniform distribution. Any other goes into the reward, as τ log π̄.
    """
    bounds = _boxes.box("soft_actor_critic.box", low, high, dtype)
    # log of the uniform density on (−1, 1)^D, by which the two measures differ.
    shift = -bounds.size * math.log(2) if volume else 0.0

    def value(
        out: tuple[Array, Array], values: Callable[[Array | None], Array], key: Array, tau: Any
    ) -> tuple[Array, Array]:
        u = squashed.sample(key, *out)
        log_ratio = squashed.log_ratio(u, *out) + shift
        return jaxsoft.sampled_value(values(jnp.tanh(u)), log_ratio, tau), log_ratio

    return Actions(
        one=bounds.one,
        draw=lambda out, keys: bounds.outer(squashed.sample(keys, *out)),
        best=lambda out: bounds.outer(out[0]),
        random=bounds.random,
        value=value,
        taken=lambda values, action: values(bounds.inner(action)),
    )


def agent(
    policy: Policy,
    values: Values,
    init_params: Callable[[Array], Params],
    actions: Actions,
    *,
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
) -> Agent:
    """An agent that acts by its policy and learns that and its action values from a replay.

    Actions are drawn from the prior until learning starts. Policy and action values have a gradient
    of their own each, and one optimiser: it must treat parameters apart, as Adam does.

    Args:
      policy: (params, observations) -> what `actions` makes sense of.
      values: (params, observations, actions or none) -> Q of each of several networks.
      init_params: key -> params of both.
      actions: `categories` or `box`.
      optimiser: any of Optax.
      num_envs: N.
      observation: anything with the shape and dtype of one.
      stack: C, where observations are stacks of frames; see `replay.init`.
      capacity: transitions in the replay.
      batch_size: B.
      discount: γ.
      tau: temperature τ > 0, a number, a schedule or a `temperature.Temperature`.
      learning_starts: transitions in the replay before the first gradient step.
      steps_per_gradient: environment steps for each gradient step.
      averaging: ρ, the share of the parameters that the target network takes over in each gradient
        step.

    Returns:
      An `Agent`, whose state is a `State`.
    """
    name = "soft_actor_critic.agent"
    _checks.arguments(name, discount=discount)

    def least(params: Params, observation: Array) -> Callable[[Array | None], Array]:
        return lambda action: jnp.min(values(params, observation, action), axis=0)

    def gradient_step(
        trained: Trained, target_params: Params, tau: ArrayLike, window: Rollout, key: Array
    ) -> tuple[Trained, Array, dict[str, Array]]:
        of_next, of_now = jax.random.split(key)
        now, then = window.observation
        weight = window.weight[0]
        held = trained.params
        v_t, _ = actions.value(policy(held, then), least(target_params, then), of_next, tau)
        target = one_step_target(window, v_t, discount)

        def objective(params: Params) -> tuple[Array, dict[str, Array]]:
            q = actions.taken(lambda action: values(params, now, action), window.action[0])
            critic, told = critics(q, target)
            v, kl = actions.value(policy(params, now), least(held, now), of_now, tau)
            return mean_loss(name, critic - v, weight), told | {"value": v, "kl": kl}

        (value, told), gradients = jax.value_and_grad(objective, has_aux=True)(held)
        trained, step = descend(optimiser, trained, gradients)
        means = {"loss": value} | {key: mean(x, weight) for key, x in told.items()} | step
        return trained, means["kl"], means

    def act(state: State, carry: Any, observation: Array, key: Array) -> tuple[Array, Any, None]:
        keys = jax.vmap(jax.random.split)(key)
        drawn = actions.draw(policy(state.params, observation), keys[:, 0])
        waits = state.steps < jnp.asarray(learning_starts, jnp.uint32)
        return jnp.where(waits, actions.random(keys[:, 1]), drawn), carry, None

    def greedy(state: State, carry: Any, observation: Array, key: Array) -> tuple[Array, Any, None]:
        del key
        return actions.best(policy(state.params, observation)), carry, None

    return agent_with_replay(
        name,
        gradient_step,
        act=act,
        greedy=greedy,
        init_params=init_params,
        optimiser=optimiser,
        source=temperature.of(tau, name),
        refresh=averaged(name, averaging),
        num_envs=num_envs,
        observation=observation,
        action=actions.one,
        stack=stack,
        capacity=capacity,
        batch_size=batch_size,
        n=1,
        learning_starts=learning_starts,
        steps_per_gradient=steps_per_gradient,
    )
