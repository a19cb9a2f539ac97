"""Off-policy agent: path consistency with a trust region, Trust-PCL.

The penalty for leaving the prior, τKL[π‖π̄], and that for leaving a policy of a while ago, λKL[π‖π̃],
are one penalty: of temperature τ + λ, to the mixed prior (π̄^τ π̃^λ)^{1/(τ+λ)} (`mix_priors`). So
this is path consistency learning with that pair, on windows from a replay. Path consistency asks
nothing of what acted: no weights are needed.

Reference: Nachum et al. (2018), *Trust-PCL*. There λ is found from a bound on the divergence of
episodes; here it is a number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

import jaxsoft
from jaxsoft import _checks
from jaxsoft.agents import temperature
from jaxsoft.agents._descent import Trained, descend, mean_loss
from jaxsoft.agents._replaying import State, agent_with_replay, averaged
from jaxsoft.agents.base import Agent, NetworkFn, Params, Rollout, mean

__all__ = ["agent"]


def agent(
    network: NetworkFn,
    init_params: Callable[[Array], Params],
    *,
    optimiser: optax.GradientTransformation,
    num_envs: int,
    observation: Any,
    stack: int = 1,
    capacity: int = 100_000,
    batch_size: int = 32,
    discount: ArrayLike = 0.99,
    tau: Any = 0.01,
    trust: ArrayLike = 0.1,
    log_prior: ArrayLike | None = None,
    n: int = 10,
    learning_starts: int = 1_000,
    steps_per_gradient: int = 4,
    averaging: float = 0.01,
) -> Agent:
    """An agent that acts by its policy and learns consistency on windows from its replay.

        ½(V(s_0) − γⁿV(s_n) − Σ_{0≤d<n} γ^d (r_d − τℓ_d − λℓ̃_d))²   (90), both penalties in it

    Args:
      network: (params, observations [..., *O]) -> (v [...], log π [..., A]).
      init_params: key -> params.
      optimiser: any of Optax.
      num_envs: N.
      observation: anything with the shape and dtype of one.
      stack: C, where observations are stacks of frames; see `replay.init`.
      capacity: transitions in the replay.
      batch_size: B, windows a gradient step.
      discount: γ.
      tau: temperature τ ≥ 0, a number, a schedule or a `temperature.Temperature`.
      trust: λ ≥ 0, the weight of the KL to the lagged policy.
      log_prior: log π̄, broadcasting against log π; `None` is uniform, `0.0` counting.
      n: steps of a window.
      learning_starts: transitions in the replay before the first gradient step.
      steps_per_gradient: environment steps for each gradient step.
      averaging: ρ, by which the lagged policy's parameters follow in each gradient step.

    Returns:
      An `Agent`, whose state is a `State`; its target network is the lagged policy.
    """
    name = "trust_pcl.agent"
    _checks.arguments(name, discount=discount)

    def gradient_step(
        trained: Trained, target_params: Params, now: ArrayLike, window: Rollout, key: Array
    ) -> tuple[Trained, Array, dict[str, Array]]:
        del key
        _, lagged = network(target_params, window.observation[:-1])
        both, mixed = jaxsoft.mix_priors((now, log_prior), (trust, jax.lax.stop_gradient(lagged)))
        weight = window.weight[0]

        def objective(params: Params) -> tuple[Array, tuple[Array, Array]]:
            v, log_pi = network(params, window.observation)
            consistency = jaxsoft.path_consistency_loss(
                v[:-1],
                log_pi[:-1],
                window.action,
                r_t=window.reward,
                discount_t=discount * window.discount,
                v_t=v[1:],
                tau=both,
                n=n,
                log_prior=mixed,
                cut_t=window.cut,
            )[0]
            return mean_loss(name, consistency, weight), (v[0], log_pi[0])

        differentiated = jax.value_and_grad(objective, has_aux=True)
        (value, (v, log_pi)), gradients = differentiated(trained.params)
        trained, step = descend(optimiser, trained, gradients)
        told = {
            "value": v,
            "entropy": -jaxsoft.kl_to_prior(log_pi, 0.0),
            "kl": jaxsoft.kl_to_prior(log_pi),
            "kl_to_lagged": jaxsoft.kl_to_prior(log_pi, lagged[0]),
        }
        means = {"loss": value} | {key: mean(x, weight) for key, x in told.items()} | step
        return trained, mean(jaxsoft.kl_to_prior(log_pi, log_prior), weight), means

    def act(state: State, carry: Any, observation: Array, key: Array) -> tuple[Array, Any, None]:
        _, log_pi = network(state.params, observation)
        return jaxsoft.sample_actions(key, log_pi), carry, None

    def greedy(state: State, carry: Any, observation: Array, key: Array) -> tuple[Array, Any, None]:
        del key
        _, log_pi = network(state.params, observation)
        return jnp.argmax(log_pi, axis=-1).astype(jnp.int32), carry, None

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
        action=jax.ShapeDtypeStruct((), jnp.int32),
        stack=stack,
        capacity=capacity,
        batch_size=batch_size,
        n=n,
        learning_starts=learning_starts,
        steps_per_gradient=steps_per_gradient,
    )
