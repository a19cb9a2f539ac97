"""Off-policy learner: Q-learning from replay, hard or soft, one step or n.

The three lines of the paper's §6.2 differ in τ and π̄ alone:

    hard (81)            tau=0.0
    KL penalty (82)      tau=0.1, log_prior=None
    entropy bonus (83)   tau=0.1, log_prior=0.0

Everything else, ε-greedy behaviour included, is DQN. All counts are of environment steps, those of
all environments together, so that they mean the same for any number of environments.

Reference: Mnih et al. (2015), *Human-level control through deep reinforcement learning*; defaults
are those of openai/baselines' DQN for Atari in 2017.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from jaxsoft import _checks, boltzmann, losses, returns
from jaxsoft.agents import replay
from jaxsoft.agents.base import Learner, Metrics, NetworkFn, Params, Trained, descend
from jaxsoft.training.collect import Rollout

__all__ = ["State", "learner", "n_step_targets"]


class State(NamedTuple):
    """All that an off-policy learner knows.

    Attributes:
      trained: parameters and their optimiser's state.
      target_params: parameters of the target network.
      replay: the ring.
      steps: environment steps so far, uint32 [].
    """

    trained: Trained
    target_params: Params
    replay: replay.Replay
    steps: Array


def n_step_targets(
    q_t: Array,
    window: Rollout,
    *,
    discount: ArrayLike,
    tau: ArrayLike,
    log_prior: ArrayLike | None = None,
) -> Array:
    """Targets for the first actions of windows.

        y_0 = r_0 + Σ_{0<d<n} γ^d (r_d − τKL_d) + γⁿV(s_n)                     (47), (81)-(83)

    shorter where an episode ends within. n = 1 is `one_step_targets`. V(s_0) and KL(s_0) cancel in
    (47), so the network is not asked about s_0.

    Args:
      q_t: action values, of the target network, at states 1 … n [n, B, A].
      window: n steps of B windows.
      discount: γ.
      tau: temperature τ ≥ 0.
      log_prior: log π̄, broadcasting against `q_t`; `None` is uniform, `0.0` counting.

    Returns:
      [B].
    """
    v = boltzmann.soft_value(q_t, tau, log_prior)
    kl = boltzmann.kl_to_prior(boltzmann.log_policy(q_t, tau, log_prior), log_prior)

    def starts(x: Array) -> Array:
        return jnp.concatenate([jnp.zeros_like(x[:1]), x[:-1]])

    gamma = window.discount(discount)
    delta = returns.td_errors(starts(v), window.reward, gamma, v_t=v, kl_tm1=starts(kl), tau=tau)
    return returns.n_step_advantages(delta, gamma, n=len(delta), cut_t=window.cut)[0]


def learner(
    network: NetworkFn,
    init_params: Callable[[Array], Params],
    *,
    optimiser: optax.GradientTransformation,
    epsilon: Callable[[Array], ArrayLike],
    num_envs: int,
    observation_shape: Sequence[int],
    observation_dtype: Any,
    stack: int = 1,
    capacity: int = 1_000_000,
    batch_size: int = 32,
    discount: ArrayLike = 0.99,
    tau: ArrayLike = 0.1,
    log_prior: ArrayLike | None = None,
    n: int = 1,
    learning_starts: int = 10_000,
    steps_per_update: int = 4,
    target_period: int = 10_000,
    loss: Callable[[Array, Array, Array], Array] = losses.soft_q_loss,
) -> Learner:
    """A learner that acts ε-greedily and takes gradient steps on samples from its replay.

    A rollout of T steps brings T·N / `steps_per_update` gradient steps, the k-th of them at
    environment step k · `steps_per_update` of the rollout. ε goes by the steps of finished
    rollouts, the beginning of learning by the transitions in the replay: a run that is resumed
    with an empty one fills it first.

    Args:
      network: (params, observations [..., *O]) -> q [..., A].
      init_params: key -> params.
      optimiser: any of Optax; the reference's is `optax.adam(1e-4)`.
      epsilon: environment steps -> ε, such as Optax's schedules; the reference's goes linearly
        from 1 to 0.01 over the first tenth of the steps. Masks in `log_prior` do not bind it.
      num_envs: N.
      observation_shape: of one observation, *O.
      observation_dtype: of observations.
      stack: C, where observations are stacks of frames; see `replay.init`.
      capacity: transitions in the replay.
      batch_size: B, windows a gradient step.
      discount: γ.
      tau: temperature τ ≥ 0.
      log_prior: log π̄, broadcasting against q; `None` is uniform, `0.0` counting.
      n: steps to the bootstrap. Actions within it are not corrected for being off-policy.
      learning_starts: transitions in the replay before the first gradient step; at most as many
        as it holds.
      steps_per_update: environment steps a gradient step.
      target_period: environment steps between refreshments of the target network; it takes over
        the parameters when the count of steps meets, or has just passed, a multiple.
      loss: (q [B, A], actions [B], targets [B]) -> [B].

    Returns:
      A `Learner`. Beyond 2³² environment steps the count starts again.
    """
    name = "off_policy.learner"
    n = _checks.count(name, "n", n)
    batch_size = _checks.count(name, "batch_size", batch_size)
    steps_per_update = _checks.count(name, "steps_per_update", steps_per_update)
    target_period = _checks.count(name, "target_period", target_period)
    _checks.at_least(name, "tau", tau, 0.0)
    _checks.at_least(name, "learning_starts", learning_starts, 0)

    def epsilon_at(steps: Array) -> Array:
        # Schedules subtract: they are given a signed count.
        return jnp.asarray(epsilon(jnp.minimum(steps, 2**31 - 1).astype(jnp.int32)))

    def init(key: Array) -> State:
        params = init_params(key)
        ring = replay.init(capacity, num_envs, observation_shape, observation_dtype, stack=stack)
        return State(
            trained=Trained(params, optimiser.init(params)),
            # A copy, since the state is to be donated and no buffer can be twice.
            target_params=jax.tree.map(jnp.copy, params),
            replay=ring,
            steps=jnp.zeros((), jnp.uint32),
        )

    def act(state: State, observation: Array, keys: Array) -> Array:
        q = network(state.trained.params, observation)
        rate = epsilon_at(state.steps)

        def choose(key: Array, greedy: Array) -> Array:
            coin, die = jax.random.split(key)
            random = jax.random.randint(die, (), 0, q.shape[-1], jnp.int32)
            return jnp.where(jax.random.uniform(coin) < rate, random, greedy)

        return jax.vmap(choose)(keys, jnp.argmax(q, axis=-1).astype(jnp.int32))

    def gradient_step(trained: Trained, target_params: Params, window: Rollout) -> Any:
        q_t = network(target_params, window.observation[1:])
        target = n_step_targets(q_t, window, discount=discount, tau=tau, log_prior=log_prior)
        action, weight = window.action[0], window.weight[0]

        def mean(x: Array) -> Array:
            return jnp.sum(weight * x) / jnp.maximum(jnp.sum(weight), 1)

        def mean_loss(params: Params) -> tuple[Array, Array]:
            q = network(params, window.observation[0])
            return mean(loss(q, action, target)), q

        (value, q), gradients = jax.value_and_grad(mean_loss, has_aux=True)(trained.params)
        trained, step = descend(optimiser, trained, gradients)
        taken, log_pi = losses.take_action(q, action), boltzmann.log_policy(q, tau, log_prior)
        metrics = {
            "td_error": jnp.abs(target - taken),
            "q": taken,
            "value": boltzmann.soft_value(q, tau, log_prior),
            "entropy": -boltzmann.kl_to_prior(log_pi, 0.0),
            "kl": boltzmann.kl_to_prior(log_pi),
        }
        return trained, {"loss": value} | {k: mean(x) for k, x in metrics.items()} | step

    def update(state: State, rollout: Rollout, key: Array) -> tuple[State, Metrics]:
        ring = replay.add(state.replay, rollout)
        updates = _updates(rollout, steps_per_update)
        offsets = steps_per_update * jnp.arange(1, updates + 1, dtype=jnp.uint32)
        steps = state.steps + offsets[-1]

        def learn_once(carry: tuple[Trained, Params], now: tuple[Array, Array]) -> Any:
            (trained, target_params), (key, step) = carry, now
            window = replay.sample(ring, key, batch_size, n, stack=stack)
            trained, metrics = gradient_step(trained, target_params, window)
            due = step % target_period < steps_per_update
            target_params = jax.tree.map(
                lambda new, old: jnp.where(due, new, old), trained.params, target_params
            )
            return (trained, target_params), metrics

        def learn(carry: tuple[Trained, Params]) -> tuple[tuple[Trained, Params], Metrics]:
            keys = jax.random.split(key, updates)
            carry, metrics = jax.lax.scan(learn_once, carry, (keys, state.steps + offsets))
            return carry, jax.tree.map(lambda x: jnp.mean(x, axis=0), metrics)

        def wait(carry: tuple[Trained, Params]) -> tuple[tuple[Trained, Params], Metrics]:
            shapes = jax.eval_shape(learn, carry)[1]
            return carry, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

        # The ring only goes in: under `vmap` both branches are taken and what comes out selected.
        held = ring.filled * num_envs >= min(learning_starts, capacity // num_envs * num_envs)
        ready = held & (replay.num_starts(ring, n, stack=stack) > 0)
        (trained, target_params), metrics = jax.lax.cond(
            ready, learn, wait, (state.trained, state.target_params)
        )
        metrics |= {"epsilon": epsilon_at(state.steps), "updates": jnp.where(ready, updates, 0.0)}
        return State(trained, target_params, ring, steps), metrics

    return Learner(init, act, update)


def _updates(rollout: Rollout, steps_per_update: int) -> int:
    length, num_envs = rollout.action.shape
    updates, rest = divmod(length * num_envs, steps_per_update)
    if rest or not updates:
        raise _checks.fail(
            "off_policy.learner",
            f"rollouts of {length} x {num_envs} steps, {steps_per_update} to a gradient step",
            "a whole number of gradient steps a rollout",
            f"Choose T so that `steps_per_update` divides T * {num_envs}, or change the former.",
        )
    return updates
