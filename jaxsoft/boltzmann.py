"""Boltzmann algebra: action values <-> policies, over the last axis.

Everything is relative to a prior π̄, which may be any non-negative measure over actions:

====================  ==============================  ==========================================
`log_prior`           measure                         regulariser
====================  ==============================  ==========================================
`None`                uniform, π̄(a) = 1/|A|           KL penalty against uniform, eq. (82)
`0.0`                 counting, π̄(a) = 1              entropy bonus: KL = −entropy, eq. (83)
an array              any, also per state             KL to that prior
`-inf` in an array    no measure on that action       the action is masked
====================  ==============================  ==========================================

and τ = 0 is the hard maximum over the allowed actions, eq. (81). So the soft and the hard, the
penalty and the bonus, the masked and the unmasked are one function each.

Half-precision inputs are computed in float32 and returned in their own dtype; scalars (τ) never
widen the result. At least one action must be allowed in each state.

Reference: Schulman, Chen and Abbeel (2017), *Equivalence Between Policy Gradients and Soft
Q-Learning*, sections 2 and 3.2; equation numbers throughout are the paper's.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxsoft import _boltzmann, _checks, _priors
from jaxsoft._typing import Float, Integer, Key

__all__ = [
    "kl_to_prior",
    "log_policy",
    "mix_priors",
    "policy_value",
    "q_from_policy",
    "sample_actions",
    "sampled_value",
    "soft_value",
]


def soft_value(
    q: Float[ArrayLike, "*#B A"],
    tau: Float[ArrayLike, "*#B"],
    log_prior: Float[ArrayLike, "..."] | None = None,
) -> Float[Array, "*B"]:
    """Soft state value: the log-partition function of the action values.

        V_Q(s) = τ log Σ_a π̄(a|s) exp(Q(s,a)/τ)                                  (29), (11), (55)

    Exact at τ = 0, where it is the maximum over the allowed actions. Its derivatives are
    ∂V/∂Q = π_Q and ∂V/∂τ = −KL[π_Q‖π̄], finite at every τ ≥ 0.

    Args:
      q: action values [..., A].
      tau: temperature τ ≥ 0, a scalar or one axis fewer than `q` (each equal or 1).
      log_prior: log π̄, broadcasting against `q`; `None` is uniform, `0.0` counting.

    Returns:
      [...], in the dtype of `q`.

    Correction: (11) prints exp(q)/τ where exp(q/τ) is meant; (55) is an expectation over π̄.
    """
    return value("soft_value", "q", q, tau, log_prior)


def log_policy(
    q: Float[ArrayLike, "*#B A"],
    tau: Float[ArrayLike, "*#B"],
    log_prior: Float[ArrayLike, "..."] | None = None,
) -> Float[Array, "*B A"]:
    """Log-probabilities of the Boltzmann policy.

        log π_Q(a|s) = log π̄(a|s) + (Q(s,a) − V_Q(s))/τ              (28), (30), (10), (12), (56)

    Masked actions get −inf. At τ = 0 the policy is π̄ restricted to the maximising actions and
    its derivative is zero, as it is almost everywhere.

    Args:
      q: action values [..., A].
      tau: temperature τ ≥ 0, a scalar or one axis fewer than `q` (each equal or 1).
      log_prior: log π̄, broadcasting against `q`; `None` is uniform, `0.0` counting.

    Returns:
      [..., A], in the dtype of `q`; exponentiated, it sums to one for any prior measure.
    """
    args, dtype = _enter("log_policy", q, tau, log_prior)
    return _boltzmann.log_policy(*args).astype(dtype)


def kl_to_prior(
    log_pi: Float[ArrayLike, "*#B A"], log_prior: Float[ArrayLike, "..."] | None = None
) -> Float[Array, "*B"]:
    """Divergence of a policy from the prior; minus the entropy when `log_prior` is `0.0`.

        KL(s) = Σ_a π(a|s) (log π(a|s) − log π̄(a|s))                                  (1), (26)

    An action with π(a) = 0 contributes nothing, also where it is masked; π(a) > 0 on a masked
    action gives +inf.

    Args:
      log_pi: log-probabilities [..., A].
      log_prior: log π̄, broadcasting against `log_pi`; `None` is uniform, `0.0` counting.

    Returns:
      [...], in the dtype of `log_pi`.
    """
    return kl("kl_to_prior", "log_pi", log_pi, log_prior)


def policy_value(
    q: Float[ArrayLike, "*#B A"],
    log_pi: Float[ArrayLike, "*#B A"],
    tau: Float[ArrayLike, "*#B"],
    log_prior: Float[ArrayLike, "..."] | None = None,
) -> Float[Array, "*B"]:
    """Soft state value of any policy, Boltzmann or not.

        V_π(s) = Σ_a π(a|s) Q(s,a) − τ KL[π‖π̄](s)                             (26), (33), (31)

    It is at most `soft_value`, with equality at the Boltzmann policy, (27). As the objective of
    a bandit with mean rewards `q` it is η(π) of (1).

    Args:
      q: action values [..., A]; those of actions with π(a) = 0 are not used.
      log_pi: log-probabilities, of the shape of `q`.
      tau: temperature τ ≥ 0, a scalar or one axis fewer than `q` (each equal or 1).
      log_prior: log π̄, broadcasting against `q`; `None` is uniform, `0.0` counting.

    Returns:
      [...], in the dtype of `q`.
    """
    (q, tau, _), dtype = _enter("policy_value", q, tau, log_prior)
    log_pi = _checks.floating("policy_value", "log_pi", log_pi)
    _checks.same_shape("policy_value", "log_pi", log_pi, "q", q.shape)
    pi = jnp.exp(log_pi.astype(q.dtype))
    expected_q = _boltzmann.expectation(pi, q)
    divergence = kl("policy_value", "log_pi", log_pi.astype(q.dtype), log_prior)[..., None]
    return (expected_q - tau * divergence)[..., 0].astype(dtype)


def q_from_policy(
    value: Float[ArrayLike, "*#B"],
    log_pi: Float[ArrayLike, "*#B A"],
    tau: Float[ArrayLike, "*#B"],
    log_prior: Float[ArrayLike, "..."] | None = None,
) -> Float[Array, "*B A"]:
    """Action values of which `value` is the soft value and `log_pi` the Boltzmann policy.

        Q(s,a) = V(s) + τ (log π(a|s) − log π̄(a|s))                                   (57), (14)

    The inverse of (`soft_value`, `log_policy`). An action with π(a) = 0 gets −inf.

    Args:
      value: state values [...].
      log_pi: log-probabilities [..., A].
      tau: temperature τ ≥ 0, a scalar or of the rank of `value` (axes equal or 1).
      log_prior: log π̄, broadcasting against `log_pi`; `None` is uniform, `0.0` counting.

    Returns:
      [..., A], in the dtype of `value` and `log_pi`.
    """
    value = _checks.floating("q_from_policy", "value", value)
    (log_pi, tau, log_prior), dtype = _enter("q_from_policy", log_pi, tau, log_prior, name="log_pi")
    if value.shape != log_pi.shape[:-1]:
        raise _checks.fail(
            "q_from_policy",
            f"{list(value.shape)} and {list(log_pi.shape)}",
            "value [...] to hold one number per state of log_pi [..., A]",
            "Drop a trailing axis of size one from the value head: value[..., 0].",
        )
    dtype = jnp.promote_types(value.dtype, dtype) if value.ndim else dtype
    taken, ratio = _boltzmann.log_ratio(log_pi, log_prior)
    q = value.astype(log_pi.dtype)[..., None] + tau * ratio
    return jnp.where(taken, q, -jnp.inf).astype(dtype)


def sample_actions(
    key: Key[Array, "*#B"], log_pi: Float[ArrayLike, "*#B A"]
) -> Integer[Array, "*B"]:
    """Actions drawn from a policy, one per state; those with π(a) = 0 are never drawn.

    Args:
      key: a JAX random key, used once; or one per state, [...].
      log_pi: log-probabilities [..., A] (of `log_policy`, say).

    Returns:
      int32 [...].
    """
    log_pi = _checks.floating("sample_actions", "log_pi", log_pi)
    _checks.action_values("sample_actions", "log_pi", log_pi, time=False)
    # Gumbel noise in half precision has too few values: it would bias the draws.
    logits = log_pi.astype(_checks.computing_dtype(log_pi.dtype))
    key = _checks.keys("sample_actions", "key", key)
    if key.shape not in ((), logits.shape[:-1]):
        raise _checks.fail(
            "sample_actions",
            f"{list(key.shape)} and {list(logits.shape)}",
            "key to be one key, or one per state of log_pi, without its last axis",
            "Split it: jax.random.split(key, log_pi.shape[:-1]).",
        )
    draw = jax.random.categorical
    for _ in key.shape:
        draw = jax.vmap(draw)
    return draw(key, logits).astype(jnp.int32)


def sampled_value(
    q_a: Float[ArrayLike, "*#B"], log_ratio: Float[ArrayLike, "*#B"], tau: Float[ArrayLike, "*#B"]
) -> Float[Array, "*B"]:
    """One draw of `policy_value`, of the action that was sampled.

        Q(s,a) − τ log(π/π̄)(a|s),   a ∼ π

    Its mean over π is `policy_value`; at the Boltzmann policy it is `soft_value` whatever the
    action. Continuous actions have densities: log π and log π̄ of one and the same variable, whose
    unit then cancels. Nothing is held fixed, for an actor learns through its action: as in

        actor = -jaxsoft.sampled_value(q_of(action), log_ratio, tau)
        target = r + gamma * jaxsoft.sampled_value(q_next, log_ratio_next, tau)

    a caller stops the critic's parameters in the one, and τ in both.

    Args:
      q_a: values of the actions [...].
      log_ratio: log π(a) − log π̄(a), of the shape of `q_a`.
      tau: temperature τ ≥ 0, a scalar or of the rank of `q_a` (each axis equal or 1).

    Returns:
      [...], in the dtype of `q_a` and `log_ratio`.

    Reference: Haarnoja et al. (2018), *Soft Actor-Critic*, where π̄ is the counting measure.
    """
    name = "sampled_value"
    q_a = _checks.floating(name, "q_a", q_a)
    ratio = _checks.floating(name, "log_ratio", log_ratio)
    _checks.same_shape(name, "log_ratio", ratio, "q_a", q_a.shape)
    dtype = _checks.result_dtype(q_a, ratio)
    compute = _checks.computing_dtype(dtype)
    temperature = _temperature(name, tau, "q_a", q_a.shape).astype(compute)
    return (q_a.astype(compute) - temperature * ratio.astype(compute)).astype(dtype)


def mix_priors(
    *pairs: tuple[Float[ArrayLike, "*#B"], Float[ArrayLike, "..."] | None],
) -> tuple[Float[Array, "*B"], Float[Array, "..."] | None]:
    """Several divergences as one: the temperature and the prior that stand for all of them.

        Σ_i τ_i KL[π‖π̄_i] = τ KL[π‖π̄],   τ = Σ_i τ_i,   log π̄ = Σ_i (τ_i/τ) log π̄_i

    π̄ is a measure, not normalised. With the policy of the last update as the second prior, held
    fixed, this is a trust region (Trust-PCL) or Munchausen's; with a reference and a teacher, both
    at once:

        tau, log_prior = jaxsoft.mix_priors((0.1, None), (0.3, log_pi_old))
        target = jaxsoft.one_step_targets(r, gamma, q, tau=tau, log_prior=log_prior)

    Args:
      *pairs: (τ_i, log π̄_i), with τ_i ≥ 0 a scalar or [...] and log π̄_i [..., A], or a scalar, or
        `None` for uniform. A mask binds where its τ_i > 0; if all τ_i are 0, priors count equally.

    Returns:
      (τ, log π̄), as other functions take them. log π̄ is `None` if all priors are.
    """
    return _priors.mixed("mix_priors", pairs)


def value(
    function: str, name: str, q: ArrayLike, tau: ArrayLike, log_prior: ArrayLike | None
) -> Array:
    """`soft_value`, of what another function calls `name`."""
    args, dtype = _enter(function, q, tau, log_prior, name=name)
    return _boltzmann.soft_value(*args)[..., 0].astype(dtype)


def kl(function: str, name: str, log_pi: ArrayLike, log_prior: ArrayLike | None) -> Array:
    """`kl_to_prior`, of what another function calls `name`."""
    log_pi, log_prior, dtype = pair(function, name, log_pi, log_prior)
    return _boltzmann.divergence(log_pi, log_prior)[..., 0].astype(dtype)


def value_and_kl(
    function: str, name: str, q: ArrayLike, tau: ArrayLike, log_prior: ArrayLike | None
) -> tuple[Array, ArrayLike]:
    """`soft_value`, and the Boltzmann policy's `kl_to_prior`, [...] each, from one exponential.

    Targets are made of these. The derivatives are those of the arithmetic, not exact at τ = 0,
    where a static τ gives a divergence of zero, since nothing depends on it.
    """
    args, dtype = _enter(function, q, tau, log_prior, name=name)
    if _checks.concrete(tau) and np.all(np.asarray(tau) == 0):
        return _boltzmann.top_of(args[0], args[2])[..., 0].astype(dtype), 0.0
    b = _boltzmann.statistics(*args)
    value, kl = _boltzmann.value(b, args[1]), _boltzmann.kl(b)
    return value[..., 0].astype(dtype), kl[..., 0].astype(dtype)


def log_ratio(log_pi: Array, log_prior: Array) -> Array:
    """Log π − log π̄, −inf where π(a) = 0."""
    taken, ratio = _boltzmann.log_ratio(log_pi, log_prior)
    return jnp.where(taken, ratio, -jnp.inf)


def log_prior_of(log_prior: ArrayLike | None, number_of_actions: int) -> ArrayLike:
    """The measure that `None` stands for, made explicit."""
    return -math.log(number_of_actions) if log_prior is None else log_prior


def _enter(
    function: str, q: ArrayLike, tau: ArrayLike, log_prior: ArrayLike | None, name: str = "q"
) -> tuple[tuple[Array, Array, Array], jnp.dtype]:
    """Checks and broadcasts; returns ((q [..., A], tau [..., 1] or [], log π̄), result dtype)."""
    q, log_prior, dtype = pair(function, name, q, log_prior)
    tau = _temperature(function, tau, name, q.shape, q.shape[:-1]).astype(q.dtype)
    return (q, tau[..., None] if tau.ndim else tau, log_prior), dtype


def _temperature(
    function: str,
    tau: ArrayLike,
    name: str,
    shape: tuple[int, ...],
    batch: tuple[int, ...] | None = None,
) -> Array:
    """τ, a scalar or of the rank of the states of what is called `name`: all its axes, or these."""
    tau, batch = _checks.floating(function, "tau", tau), shape if batch is None else batch
    fits = tau.ndim == len(batch) and all(
        n in (1, m) for n, m in zip(tau.shape, batch, strict=True)
    )
    if tau.ndim and not fits:
        raise _checks.fail(
            function,
            str(list(tau.shape)),
            f"tau to be a scalar, or {list(batch)} with any axis 1, for {name} {list(shape)}",
            "Reshape tau, or vmap over it.",
        )
    return tau


def pair(
    function: str, name: str, x: ArrayLike, log_prior: ArrayLike | None
) -> tuple[Array, Array, jnp.dtype]:
    """`x` [..., A] and log π̄, a scalar or of the rank of `x`, in the computing dtype."""
    array = _checks.floating(function, name, x)
    _checks.action_values(function, name, array, time=False)
    actions = array.shape[-1]
    prior = _checks.floating(function, "log_prior", log_prior_of(log_prior, actions))
    dtype = _checks.result_dtype(array, prior)
    compute = _checks.computing_dtype(dtype)
    array, prior = array.astype(compute), prior.astype(compute)
    if prior.ndim == 0:
        return array, prior, dtype
    try:
        shape = np.broadcast_shapes(array.shape, prior.shape)
    except ValueError:
        shape = ()
    if not shape or shape[-1] != actions:
        raise _checks.fail(
            function,
            str(list(prior.shape)),
            f"a log_prior that broadcasts against {name} {list(array.shape)}",
            f"Its last axis is actions, {actions} or 1; add batch axes in front of it.",
        )
    prior = prior.reshape((1,) * (len(shape) - prior.ndim) + prior.shape)
    return (
        jnp.broadcast_to(array, shape),
        jnp.broadcast_to(prior, (*prior.shape[:-1], actions)),
        dtype,
    )
