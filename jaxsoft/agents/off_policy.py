"""Off-policy agent: Q-learning from replay, hard or soft, one step or n.

The three lines of the paper's §6.2 differ in τ and π̄ alone:

    hard (81)            tau=0.0
    KL penalty (82)      tau=0.1, log_prior=None
    entropy bonus (83)   tau=0.1, log_prior=0.0

They are n-step, or corrected for what acted, as `targets` has it (`jaxsoft.agents.windows`).
Everything else, ε-greedy behaviour included, is DQN. All counts are of environment steps, those of
all environments together, so that they mean the same for any number of environments.

Reference: Mnih et al. (2015), *Human-level control through deep reinforcement learning*; defaults
are those of openai/baselines' DQN for Atari in 2017.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from jaxsoft import _checks, boltzmann, losses
from jaxsoft.agents import temperature
from jaxsoft.agents._descent import Trained, descend, mean_loss
from jaxsoft.agents._replaying import State, agent_with_replay, copied
from jaxsoft.agents.base import Agent, NetworkFn, Params, Rollout, mean
from jaxsoft.agents.windows import Targets, n_step_targets

__all__ = ["State", "agent", "log_behaviour"]

Keep = Callable[[Array, Array, Array], Any]
"""(q [N, A], actions [N], ε) -> extras, a tree of [N, ...]."""


def log_behaviour(q: Array, action: Array, epsilon: Array) -> Array:
    """What ε-greedy behaviour says of its actions, to be kept for `windows.retrace_targets`.

        log μ(a) = log(ε/|A| + (1 − ε) [a is the first best action])

    Args:
      q: action values, of the network that acted, [N, A].
      action: [N].
      epsilon: ε.

    Returns:
      [N].
    """
    greedy = action == jnp.argmax(q, axis=-1)
    return jnp.log(epsilon / q.shape[-1] + jnp.where(greedy, 1 - epsilon, 0)).astype(q.dtype)


def agent(
    network: NetworkFn,
    init_params: Callable[[Array], Params],
    *,
    optimiser: optax.GradientTransformation,
    epsilon: Callable[[Array], ArrayLike],
    num_envs: int,
    observation: Any,
    stack: int = 1,
    capacity: int = 1_000_000,
    batch_size: int = 32,
    discount: ArrayLike = 0.99,
    tau: Any = 0.1,
    log_prior: ArrayLike | None = None,
    n: int = 1,
    learning_starts: int = 10_000,
    steps_per_gradient: int = 4,
    target_period: int = 10_000,
    loss: Callable[[Array, Array, Array], Array] = losses.soft_q_loss,
    targets: Targets = n_step_targets,
    keep: Keep | None = None,
) -> Agent:
    """An agent that acts ε-greedily and takes gradient steps on samples from its replay.

    A rollout of T steps brings T·N / `steps_per_gradient` gradient steps, the k-th of them at
    environment step k · `steps_per_gradient` of the rollout. ε goes by the steps of finished
    rollouts, the beginning of learning by the transitions in the replay: a run that is resumed
    with an empty one fills it first.

    Args:
      network: (params, observations [..., *O]) -> q [..., A].
      init_params: key -> params.
      optimiser: any of Optax; the reference's is `optax.adam(1e-4)`.
      epsilon: environment steps -> ε, such as Optax's schedules; the reference's goes linearly
        from 1 to 0.01 over the first tenth of the steps. Masks in `log_prior` do not bind it.
      num_envs: N.
      observation: anything with the shape and dtype of one, such as a `jax.ShapeDtypeStruct`.
      stack: C, where observations are stacks of frames; see `replay.init`.
      capacity: transitions in the replay.
      batch_size: B, windows a gradient step.
      discount: γ.
      tau: temperature τ ≥ 0, a number, a schedule or a `temperature.Temperature`.
      log_prior: log π̄, broadcasting against q; `None` is uniform, `0.0` counting.
      n: steps of a window. What is made of those after the first is up to `targets`.
      learning_starts: transitions in the replay before the first gradient step; at most as many
        as it holds.
      steps_per_gradient: environment steps for each gradient step.
      target_period: environment steps between refreshments of the target network; it takes over
        the parameters when the count of steps meets, or has just passed, a multiple.
      loss: (q [B, A], actions [B], targets [B]) -> [B].
      targets: what the first actions of windows are worth. By default an n-step return, whose
        later actions are not corrected for being off-policy.
      keep: what is stored with each action and comes back as the `extras` of windows, such as
        `log_behaviour`; by default nothing.

    Returns:
      An `Agent`, whose state is a `State`. Beyond 2³² environment steps the count starts again.
    """
    name = "off_policy.agent"
    target_period = _checks.count(name, "target_period", target_period)
    _checks.arguments(name, discount=discount)

    def epsilon_at(steps: Array) -> Array:
        # Schedules subtract: they are given a signed count.
        return jnp.asarray(epsilon(jnp.minimum(steps, 2**31 - 1).astype(jnp.int32)))

    def kept_of_nothing(params: Params) -> Any:
        if keep is None:
            return None
        q = network(params, jnp.zeros((1, *observation.shape), observation.dtype))
        return keep(q, jnp.zeros(1, jnp.int32), epsilon_at(jnp.zeros((), jnp.uint32)))

    def best(state: State, observation: Array) -> tuple[Array, Array]:
        q = network(state.params, observation)
        return jnp.argmax(q, axis=-1).astype(jnp.int32), q

    def act(state: State, carry: Any, observation: Array, key: Array) -> tuple[Array, Any, Any]:
        greedy_action, q = best(state, observation)
        rate, num_actions = epsilon_at(state.steps), q.shape[-1]

        def choose(key: Array, greedy_action: Array) -> Array:
            coin, die = jax.random.split(key)
            random = jax.random.randint(die, (), 0, num_actions, jnp.int32)
            return jnp.where(jax.random.uniform(coin) < rate, random, greedy_action)

        action = jax.vmap(choose)(key, greedy_action)
        return action, carry, None if keep is None else keep(q, action, rate)

    def greedy(state: State, carry: Any, observation: Array, key: Array) -> tuple[Array, Any, None]:
        del key
        return best(state, observation)[0], carry, None

    def gradient_step(
        trained: Trained, target_params: Params, now: ArrayLike, window: Rollout, key: Array
    ) -> tuple[Trained, Array, dict[str, Array]]:
        del key
        # Two calls: the first is not computed where the targets do not ask for it.
        q_0, q_t = (
            network(target_params, x) for x in (window.observation[:1], window.observation[1:])
        )
        q_tm1 = jnp.concatenate([q_0, q_t[:-1]])
        target = targets(q_tm1, q_t, window, discount=discount, tau=now, log_prior=log_prior)
        action, weight = window.action[0], window.weight[0]

        def objective(params: Params) -> tuple[Array, Array]:
            q = network(params, window.observation[0])
            return mean_loss("loss", loss(q, action, target), weight), q

        (value, q), gradients = jax.value_and_grad(objective, has_aux=True)(trained.params)
        trained, step = descend(optimiser, trained, gradients)
        taken, log_pi = losses.take_action(q, action), boltzmann.log_policy(q, now, log_prior)
        per_window = {
            "td_error": jnp.abs(target - taken),
            "q": taken,
            "value": boltzmann.soft_value(q, now, log_prior),
            "entropy": -boltzmann.kl_to_prior(log_pi, 0.0),
            "kl": boltzmann.kl_to_prior(log_pi),
        }
        means = {"loss": value} | {k: mean(x, weight) for k, x in per_window.items()} | step
        return trained, mean(boltzmann.kl_to_prior(log_pi, log_prior), weight), means

    return agent_with_replay(
        name,
        gradient_step,
        act=act,
        greedy=greedy,
        init_params=init_params,
        optimiser=optimiser,
        source=temperature.of(tau, name),
        refresh=copied(target_period, steps_per_gradient),
        num_envs=num_envs,
        observation=observation,
        action=jax.ShapeDtypeStruct((), jnp.int32),
        extras_of=kept_of_nothing,
        stack=stack,
        capacity=capacity,
        batch_size=batch_size,
        n=n,
        learning_starts=learning_starts,
        steps_per_gradient=steps_per_gradient,
        of_state=lambda state: {"epsilon": epsilon_at(state.steps)},
    )
