"""On-policy agents: one actor, one update a rollout, and the algorithms as short functions.

An algorithm is a function from what the network says at a rollout's T + 1 states, and the rollout,
to per-step losses [T, N]. Policy gradient and soft Q-learning differ in one name:

    a2c      jaxsoft.actor_critic(v, log π, a, …)
    soft_q   jaxsoft.tied_soft_q(v, log π, a, …)

The natural-gradient algorithms of `agents.natural` are not gradients of a loss; they are functions
from parameters to a direction. Either kind can be a function of your own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

import jaxsoft
from jaxsoft import _actions, boltzmann
from jaxsoft.agents import _reuse, temperature
from jaxsoft.agents._descent import Trained, descend, mean_loss
from jaxsoft.agents.base import Agent, Metrics, NetworkFn, Params, Rollout, mean

__all__ = [
    "Acted",
    "Direction",
    "Head",
    "Heads",
    "Objective",
    "State",
    "StepLoss",
    "a2c",
    "a2c_naive",
    "actor_critic_head",
    "agent",
    "agent_along",
    "direction_of",
    "nstep_soft_q",
    "pcl",
    "pgq",
    "q_head",
    "soft_q",
    "soft_targets",
    "starts_of",
]


class Objective(NamedTuple):
    """What is maximised, E Σ γᵗ(r − τKL[π‖π̄]), and how its gradient is estimated.

    Attributes:
      tau: τ, a number; to `agent` also a schedule or a `temperature.Temperature`.
      discount: γ.
      n: steps to the bootstrap; any n ≥ T is the whole rollout.
      value_coef: c, the weight of the value loss.
      log_prior: log π̄; `None` is uniform (a KL penalty), `0.0` counting (an entropy bonus), or
        [A], the same in every state.
    """

    tau: Any = 0.01
    discount: ArrayLike = 0.99
    n: int = 5
    value_coef: ArrayLike = 0.5
    log_prior: ArrayLike | None = None

    def on(self, rollout: Rollout) -> dict[str, Any]:
        """The arguments that the library's algorithms share, of a rollout."""
        return {
            "discount_t": self.discount * rollout.discount,
            "tau": self.tau,
            "n": self.n,
            "log_prior": self.log_prior,
            "cut_t": rollout.cut,
        }


class Heads(NamedTuple):
    """Value, policy and action values at the same states, tied by (57).

    Attributes:
      v: [..., N].
      log_pi: [..., N, A].
      q: [..., N, A].
    """

    v: Array
    log_pi: Array
    q: Array


Head = Callable[[Any, Objective], Heads]
"""(a network's output, objective) -> what it means."""

StepLoss = Callable[[Heads, Rollout, Objective], Array]
"""(heads at the T + 1 states, rollout, objective) -> losses [T, N]."""


def actor_critic_head(out: tuple[Array, Array], objective: Objective) -> Heads:
    """Of a network (v [...], log_pi [..., A]): Q = V + τ log(π/π̄)."""
    v, log_pi = out
    return Heads(v, log_pi, jaxsoft.q_from_policy(v, log_pi, objective.tau, objective.log_prior))


def q_head(out: Array, objective: Objective) -> Heads:
    """Of a network q [..., A]: its soft value and its Boltzmann policy."""
    tau, log_prior = objective.tau, objective.log_prior
    return Heads(
        jaxsoft.soft_value(out, tau, log_prior), jaxsoft.log_policy(out, tau, log_prior), out
    )


def soft_targets(at: Heads, kl_tm1: Array, rollout: Rollout, objective: Objective) -> Array:
    """n-step soft Q targets y [T, N], (47), of the KL at the T starts."""
    given = objective.on(rollout)
    del given["log_prior"]
    return jaxsoft.n_step_soft_q_targets(at.v, kl_tm1, rollout.reward, **given)


def a2c(at: Heads, rollout: Rollout, objective: Objective) -> Array:
    """Advantage actor-critic with the entropy in the return, (80), (84)-(86)."""
    return _of_value_and_policy(jaxsoft.actor_critic, at, rollout, objective)


def soft_q(at: Heads, rollout: Rollout, objective: Objective) -> Array:
    """Soft Q-learning on Q = V + τ log(π/π̄), scaled as A2C is, §6.3."""
    return _of_value_and_policy(jaxsoft.tied_soft_q, at, rollout, objective)


def a2c_naive(at: Heads, rollout: Rollout, objective: Objective) -> Array:
    """Advantage actor-critic with an entropy bonus outside the return, (79)."""
    return _of_value_and_policy(jaxsoft.naive_actor_critic, at, rollout, objective)


def _of_value_and_policy(
    algorithm: Callable[..., Array], at: Heads, rollout: Rollout, objective: Objective
) -> Array:
    return algorithm(
        at.v,
        at.log_pi,
        rollout.action,
        r_t=rollout.reward,
        value_coef=objective.value_coef,
        **objective.on(rollout),
    )


def nstep_soft_q(at: Heads, rollout: Rollout, objective: Objective) -> Array:
    """n-step soft Q-learning on plain action values, acting by their policy, (44)-(47)."""
    return jaxsoft.n_step_soft_q(at.q, rollout.action, rollout.reward, **objective.on(rollout))


def pcl(at: Heads, rollout: Rollout, objective: Objective) -> Array:
    """Path consistency learning, (90)."""
    return jaxsoft.path_consistency_loss(
        at.v[:-1],
        at.log_pi[:-1],
        rollout.action,
        r_t=rollout.reward,
        v_t=at.v[1:],
        **objective.on(rollout),
    )


def pgq(at: Heads, rollout: Rollout, objective: Objective) -> Array:
    """Half policy gradient on n-step returns, half Q-learning on r + γ max Q̃, (87)."""
    # XLA's compiler for GPUs fails on all that is said of states put together as one kernel.
    at = Heads(*_actions.kept(*at))
    kl = jaxsoft.kl_to_prior(at.log_pi, objective.log_prior)
    target = soft_targets(at, kl[:-1], rollout, objective)
    centred = at.q - objective.tau * kl[..., None]
    return jaxsoft.pgq_loss(
        at.v[:-1],
        at.log_pi[:-1],
        rollout.action,
        return_t=target - objective.tau * kl[:-1],
        backup_t=jaxsoft.one_step_targets(
            rollout.reward, objective.discount * rollout.discount, centred[1:], tau=0.0
        ),
        tau=objective.tau,
        value_coef=objective.value_coef,
        log_prior=objective.log_prior,
    )


class Direction(NamedTuple):
    """How parameters change in an update.

    Attributes:
      of: (network, head, params, rollout, objective) -> (a tree to descend along, means for the
        metrics, heads at the T starts). The rollout's `extras` are an `Acted`.
      recalls: whether it uses the products that acting kept.
    """

    of: Callable[
        [NetworkFn, Head, Params, Rollout, Objective], tuple[Params, dict[str, Array], Heads]
    ]
    recalls: bool = False


def direction_of(step_loss: StepLoss, *, differentiates_target: bool = True) -> Direction:
    """The gradient of a loss's mean over the transitions that count.

    Args:
      step_loss: (heads, rollout, objective) -> losses [T, N].
      differentiates_target: whether it has a gradient into the heads of the last state, which
        most losses only bootstrap from. Without, the network is not differentiated there, 1/(T +
        1) of it, and what it computed to act is not computed again.
    """

    def of(
        network: NetworkFn, head: Head, params: Params, rollout: Rollout, objective: Objective
    ) -> tuple[Params, dict[str, Array], Heads]:
        observation = rollout.observation
        ends: tuple[Heads, ...] = ()
        if not differentiates_target:
            ends = (head(network(params, observation[-1:]), objective),)
            observation = observation[:-1]
        acted = rollout.extras
        products = [] if differentiates_target or acted is None else acted.products
        if products:
            out, pull = _reuse.pullback(network, params, observation, products)
        else:
            out, pull = jax.vjp(lambda p: network(p, observation), params)

        def loss(out: Any) -> tuple[Array, Heads]:
            parts = head(out, objective), *ends
            at = Heads(*(jnp.concatenate(states) for states in zip(*parts, strict=True)))
            losses = step_loss(at, rollout, objective)
            return mean_loss("step_loss", losses, rollout.weight), starts_of(at)

        (value, at), cotangents = jax.value_and_grad(loss, has_aux=True)(out)
        [gradients] = pull(cotangents)
        return gradients, {"loss": value}, at

    return Direction(of, recalls=not differentiates_target)


class State(NamedTuple):
    """All that an on-policy agent knows.

    Attributes:
      params: of the network.
      optimiser: its state.
      temperature: the state of a `temperature.Temperature`.
    """

    params: Params
    optimiser: Any
    temperature: Any


class Acted(NamedTuple):
    """What acting leaves for learning.

    Attributes:
      log_mu: log-probability of the action under the policy that drew it, [..., N].
      products: of the network's layers, as `_reuse.kept` gives them; empty where they are not
        used.
    """

    log_mu: Array
    products: Any


def agent(
    network: NetworkFn,
    init_params: Callable[[Array], Params],
    step_loss: StepLoss,
    *,
    head: Head,
    optimiser: optax.GradientTransformation,
    objective: Objective,
    differentiates_target: bool = True,
) -> Agent:
    """An agent that acts by its policy and takes one optimiser step a rollout.

    Args:
      network: (params, observations [..., *O]) -> what `head` takes.
      init_params: key -> params.
      step_loss: the algorithm: (heads at the T + 1 states, rollout, objective) -> losses [T, N].
      head: `actor_critic_head`, `q_head`, or your own.
      optimiser: any of Optax; clipping belongs into it.
      objective: handed to the algorithm, with τ a number.
      differentiates_target: `False` where the loss holds fixed whatever it bootstraps from.

    Returns:
      An `Agent`, whose state is a `State` and whose extras are an `Acted`.
    """
    direction = direction_of(step_loss, differentiates_target=differentiates_target)
    return agent_along(
        network, init_params, direction, head=head, optimiser=optimiser, objective=objective
    )


def agent_along(
    network: NetworkFn,
    init_params: Callable[[Array], Params],
    direction: Direction,
    *,
    head: Head,
    optimiser: optax.GradientTransformation,
    objective: Objective,
) -> Agent:
    """As `agent`, along any direction, such as a natural gradient's."""
    source = temperature.of(objective.tau)

    def now(state: State) -> Objective:
        return objective._replace(tau=source.value(state.temperature))

    def init(key: Array) -> State:
        params = init_params(key)
        return State(params, optimiser.init(params), source.init())

    def act(state: State, carry: Any, observation: Array, key: Array) -> tuple[Array, Any, Acted]:
        if direction.recalls:
            out, products = _reuse.kept(network, state.params, observation)
        else:
            out, products = network(state.params, observation), []
        log_pi = head(out, now(state)).log_pi
        action = jaxsoft.sample_actions(key, log_pi)
        return action, carry, Acted(jaxsoft.take_action(log_pi, action), products)

    def greedy(state: State, carry: Any, observation: Array, key: Array) -> tuple[Array, Any, None]:
        del key
        log_pi = head(network(state.params, observation), now(state)).log_pi
        return jnp.argmax(log_pi, axis=-1).astype(jnp.int32), carry, None

    def update(state: State, rollout: Rollout, key: Array) -> tuple[State, Metrics]:
        del key
        gradients, means, starts = direction.of(network, head, state.params, rollout, now(state))
        trained, step = descend(optimiser, Trained(state.params, state.optimiser), gradients)
        description, kl = _describe(starts, rollout, objective.log_prior)
        cooled = source.update(state.temperature, kl)
        # Of no transition there is nothing to tell: all sums are 0.
        count = jnp.where(jnp.any(rollout.weight > 0), 1.0, 0.0)
        tau = {k: count * x for k, x in temperature.told(source, state.temperature).items()}
        return State(*trained, cooled), Metrics(means | description | step | tau, count)

    return Agent(init, act, update, greedy)


def starts_of(at: Heads) -> Heads:
    """Without the last state, held fixed."""
    return jax.lax.stop_gradient(Heads(*(x[:-1] for x in at)))


def _describe(
    starts: Heads, rollout: Rollout, log_prior: ArrayLike | None
) -> tuple[dict[str, Array], Array]:
    """Means over the transitions that count, and that of the KL to the prior.

    The metrics' KL is the one to the uniform policy, whatever the prior is.
    """
    actions = starts.log_pi.shape[-1]
    kl = jaxsoft.kl_to_prior(starts.log_pi, log_prior)
    measure = boltzmann.log_prior_of(log_prior, actions)
    if jnp.ndim(measure):
        negative_entropy = jaxsoft.kl_to_prior(starts.log_pi, 0.0)
    else:
        negative_entropy = kl + measure
    means = {
        "value": mean(starts.v, rollout.weight),
        "entropy": mean(-negative_entropy, rollout.weight),
        "kl": mean(negative_entropy + math.log(actions), rollout.weight),
    }
    return means, mean(kl, rollout.weight)
