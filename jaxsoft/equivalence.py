"""The paper's main theorem as a tool: is soft Q-learning a policy gradient in *your* program?

For Q = V + τ log(π/π̄), any fixed target y and actions drawn from π itself,

    E[∇½(Q − y)²] = τ E[−∇log π Δ + τ∇KL] + E[∇½(V − V̂)²]                           (58)-(65)
    Δ = y − V − τKL,   V̂ = y − τKL,   both fixed

holds per state, in expectation over the first action alone. It does not need on-policy states or
later actions, nor a target network equal to the current one, nor any particular target. It does
need what `Preconditions` lists, and `check_equivalence` measures each of these on the inputs given.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxsoft import _checks, _trees, boltzmann, losses, returns
from jaxsoft._typing import Float, Integer, Scalar, Shaped

__all__ = ["Equivalence", "Preconditions", "check_equivalence"]

Params = Any
NetworkFn = Callable[[Params, Any], Array | tuple[Array, Array]]
Moving = ArrayLike | Callable[[Params], Array]


class Preconditions(NamedTuple):
    """How far the inputs are from each precondition of the theorem; 0 is fulfilled.

    Attributes:
      acting: largest total variation, over states, between the policy that acted and π.
      surprise: |z| of the actions' mean log-probability under the policy given as the one that
        acted; above 4 they can hardly have been drawn from it.
      normalised: largest |log Σ_a π(a|s)|.
      target: size of ∂y/∂θ against that of ∂Q/∂θ.
      value_target: size of ∂V̂/∂θ against that of ∂Q/∂θ.
      prior: size of ∂log π̄/∂θ against that of ∂log π/∂θ.
      squared: largest relative deviation of the error loss's derivative from the error.
    """

    acting: Array
    surprise: Array
    normalised: Array
    target: Array
    value_target: Array
    prior: Array
    squared: Array


_FIXES = {
    "acting": (
        "actions come from another policy than π: ε-greedy, another τ, old parameters",
        "act by log_policy(q, tau), or weigh both losses' first step by π/μ",
    ),
    "surprise": (
        "the actions are improbable under the policy given as the one that acted",
        "check that actions, observations and parameters belong together",
    ),
    "normalised": ("π does not sum to one", "normalise the policy head: jax.nn.log_softmax"),
    "target": ("the target y is differentiated", "hold it fixed: jax.lax.stop_gradient(y)"),
    "value_target": ("the value target is differentiated", "hold it fixed"),
    "prior": ("the prior depends on the parameters", "hold it fixed: stop_gradient(log_prior)"),
    "squared": ("the Q error is not squared (Huber, clipping)", "use ½(Q − y)²"),
}


class Equivalence(NamedTuple):
    """Soft-Q's and policy gradient's gradients, side by side; `print` it for a summary.

    Attributes:
      cosine: of the two sampled gradients.
      norm_ratio: ‖soft Q‖ / ‖policy gradient‖, sampled.
      difference: ‖soft Q − policy gradient‖ / ‖soft Q‖, sampled: noise of zero mean.
      expected_difference: the same with every state's sum over all actions, weighted as they
        were acted, instead of the sample: zero to rounding where the theorem applies.
      reweighted_difference: the same weighted by π, which is what π/μ in front of both losses
        makes of it: zero to rounding if the acting policy is all that is wrong.
      soft_q_gradient: sampled gradient of ½(Q − y)², like the parameters.
      policy_gradient: sampled gradient of τ(−log πΔ + τKL) + ½(V − V̂)².
      preconditions: a `Preconditions`.
      epsilon: the precision of the numbers compared.
    """

    cosine: Array
    norm_ratio: Array
    difference: Array
    expected_difference: Array
    reweighted_difference: Array
    soft_q_gradient: Params
    policy_gradient: Params
    preconditions: Preconditions
    epsilon: Array

    def broken(self) -> dict[str, float]:
        """The preconditions that the inputs break, and how far."""
        rounding = 1e3 * float(self.epsilon)
        sizes = {name: float(size) for name, size in self.preconditions._asdict().items()}
        allowed = dict.fromkeys(sizes, rounding) | {"surprise": 4.0}
        return {name: size for name, size in sizes.items() if not size <= allowed[name]}

    def __str__(self) -> str:
        rows = [
            ("cosine of the sampled gradients", self.cosine),
            ("ratio of their norms, soft Q / policy gradient", self.norm_ratio),
            ("their relative difference", self.difference),
            ("  … in expectation over actions, as acted", self.expected_difference),
            ("  … in expectation over actions, under π", self.reweighted_difference),
        ]
        lines = [f"{label:<50}{float(value):12.4g}" for label, value in rows]
        broken = self.broken()
        if broken:
            lines.append("Preconditions that do not hold:")
            for name, size in broken.items():
                what, fix = _FIXES[name]
                lines += [f"  {name:<14}{size:8.2g}   {what}", f"{'→ ':>27}{fix}"]
        else:
            lines.append("All preconditions hold: soft Q-learning is a policy gradient here.")
        return "\n".join(lines)


def check_equivalence(
    network_fn: NetworkFn,
    params: Params,
    observations: Any,
    a_tm1: Integer[ArrayLike, "T *#B"],
    *,
    r_t: Float[ArrayLike, "T *#B"],
    discount_t: Float[ArrayLike, "T *#B"] | Scalar,
    tau: Scalar,
    n: int = 5,
    log_prior: Moving | None = None,
    cut_t: Shaped[ArrayLike, "T *#B"] | None = None,
    weight: Float[ArrayLike, "T *#B"] | None = None,
    behaviour_log_pi: Float[ArrayLike, "T *#B A"] | None = None,
    target: Moving | None = None,
    value_target: Moving | None = None,
    error_loss: Callable[[Array], Array] | None = None,
) -> Equivalence:
    """Compares soft-Q's and policy gradient's gradients on a network and rollout of yours.

    By default everything is as the theorem requires. Pass in whatever your program does
    differently, and its effect is measured: the policy that acted, a target or prior that depends
    on the parameters (as a function of them), another error loss. Works under `jit`.

    Args:
      network_fn: (params, observations) -> q [T+1, ..., A], or (v [T+1, ...], log_pi [T+1, ..., A])
        from which Q = V + τ log(π/π̄) is then made.
      params: a tree of floating arrays.
      observations: at the T + 1 states of the rollout, in whatever form `network_fn` takes.
      a_tm1: actions [T, ...].
      r_t: rewards [T, ...].
      discount_t: γ, or 0 at a termination, [T, ...] or a scalar.
      tau: temperature τ > 0, a scalar.
      n: steps of the soft Q target.
      log_prior: log π̄, broadcasting against `q`, or a function of the parameters.
      cut_t: 1 or True where sums stop after that transition, [T, ...].
      weight: weights of the steps, 0 for those that do not count, [T, ...].
      behaviour_log_pi: log μ of the policy that acted [T, ..., A]; `None` is π.
      target: y [T, ...], or a function of the parameters; `None` is n-step soft Q, held fixed.
      value_target: V̂ [T, ...], or a function of the parameters; `None` is y − τKL, held fixed.
      error_loss: of Q − y, elementwise; `None` is half the square.

    Returns:
      An `Equivalence`.
    """
    name = "check_equivalence"
    _checks.callable_(name, "network_fn", network_fn, "(params, observations) -> q or (v, log_pi)")
    _checks.arguments(name, r_t=r_t, discount_t=discount_t, n=n, cut_t=cut_t, weight=weight)
    if not callable(log_prior):
        _checks.arguments(name, log_prior=log_prior)
    tau = _checks.scalar(name, "tau", tau, positive="At tau = 0 no policy gradient exists.")

    def heads(p: Params) -> _Heads:
        prior = log_prior(p) if callable(log_prior) else log_prior
        out = jax.tree.leaves(network_fn(p, observations))
        out = [_checks.floating(name, "network_fn(params, observations)", x) for x in out]
        if out:
            boltzmann.pair(name, "network_fn(params, observations)", out[-1], prior)
        match out:
            case [q]:
                v, log_pi = boltzmann.soft_value(q, tau, prior), boltzmann.log_policy(q, tau, prior)
            case [v, log_pi]:
                q = boltzmann.q_from_policy(v, log_pi, tau, prior)
            case arrays:
                raise _checks.fail(
                    name,
                    f"{len(arrays)} arrays from network_fn(params, observations)",
                    "q, or (v, log_pi)",
                    "Wrap the network: lambda params, observations: (v, log_pi).",
                )
        _checks.states(name, "network_fn(params, observations)", log_pi, a_tm1=a_tm1, r_t=r_t)
        prior = _checks.floating(name, "log_prior", boltzmann.log_prior_of(prior, log_pi.shape[-1]))
        prior = jnp.broadcast_to(prior, log_pi.shape)
        return _Heads(v, log_pi, q, boltzmann.kl_to_prior(log_pi, prior), prior)

    now = jax.lax.stop_gradient(heads(params))
    a_tm1 = _checks.actions(
        name, "a_tm1", a_tm1, "network_fn(params, observations)[:-1]", now.log_pi[:-1]
    )
    soft_target = returns.n_step_soft_q_targets(
        now.v, now.kl[:-1], r_t, discount_t=discount_t, tau=tau, n=n, cut_t=cut_t
    )

    def per_step(what: str, x: ArrayLike) -> Array:
        array = _checks.floating(name, what, x)
        return _checks.same_shape(name, what, array, "a_tm1", a_tm1.shape)

    def moving(what: str, x: Moving) -> Callable[[Params], Array]:
        """As a function of the parameters; an array is one that does not depend on them."""
        if callable(x):
            return lambda p: per_step(f"{what}(params)", x(p))
        held = jax.lax.stop_gradient(per_step(what, x))
        return lambda _: held

    target_of = moving("target", soft_target if target is None else target)
    tau_kl = tau * now.kl[:-1]
    value_target_of = moving(
        "value_target", target_of(params) - tau_kl if value_target is None else value_target
    )
    if error_loss is not None:
        _checks.callable_(name, "error_loss", error_loss, "errors -> losses")
    error_of = _half_square if error_loss is None else error_loss
    share = jnp.ones(a_tm1.shape, now.q.dtype)
    if weight is not None:
        share = _checks.same_shape(name, "weight", weight, "a_tm1", a_tm1.shape)
        share = share.astype(now.q.dtype)
    if weight is not None and _checks.concrete(weight) and not np.any(np.asarray(weight)):
        raise _checks.fail(
            name, "0 everywhere", "weight above 0 at some step", "Check which steps count."
        )
    share = share / jnp.sum(share)
    # What does not count must not be infinite, or it would count after all: 0 · ∞ is NaN.
    likely = jnp.argmax(now.log_pi[:-1], axis=-1).astype(a_tm1.dtype)
    taken = jnp.where(share > 0, a_tm1, likely)

    def soft_q(p: Params, a: Array) -> Array:
        errors = losses.take_action(heads(p).q[:-1], a) - target_of(p)
        return per_step("error_loss(errors)", error_of(errors))

    def policy_gradient(p: Params, a: Array) -> Array:
        at = heads(p)
        delta = target_of(p) - now.v[:-1] - tau_kl
        policy = losses.policy_gradient_loss(
            at.log_pi[:-1], a, delta, tau=tau, log_prior=at.log_prior[:-1]
        )
        return tau * policy + 0.5 * jnp.square(at.v[:-1] - value_target_of(p))

    def sampled(loss: _Loss) -> Params:
        return jax.grad(lambda p: jnp.sum(share * loss(p, taken)))(params)

    def enumerated(loss: _Loss, log_mu: Array) -> Params:
        """The gradient with each state's mean over all actions instead of its sample."""
        mu = jnp.exp(log_mu)
        every = jnp.arange(now.q.shape[-1], dtype=jnp.int32)
        possible = jnp.where(mu > 0, every, likely[..., None])

        def mean(p: Params) -> Array:
            each = jax.vmap(lambda a: loss(p, a), in_axes=-1, out_axes=-1)(possible)
            return jnp.sum(share[..., None] * mu * each)

        return jax.grad(mean)(params)

    log_mu = now.log_pi[:-1]
    if behaviour_log_pi is not None:
        log_mu = _checks.floating(name, "behaviour_log_pi", behaviour_log_pi)
    if log_mu.shape != now.log_pi[:-1].shape:
        raise _checks.fail(
            name,
            str(list(log_mu.shape)),
            f"behaviour_log_pi {list(now.log_pi[:-1].shape)}, log μ of every action",
            "Keep the whole vector of log-probabilities when acting, not the taken one's alone.",
        )
    sampled_q, sampled_pg = sampled(soft_q), sampled(policy_gradient)
    acted_q, acted_pg = enumerated(soft_q, log_mu), enumerated(policy_gradient, log_mu)
    under_pi = now.log_pi[:-1]
    pi_q, pi_pg = (
        (acted_q, acted_pg)
        if behaviour_log_pi is None
        else (enumerated(soft_q, under_pi), enumerated(policy_gradient, under_pi))
    )

    size_q, size_log_pi = (
        _sensitivity(lambda p: heads(p).q[:-1], params),
        _sensitivity(lambda p: heads(p).log_pi, params),
    )
    errors = losses.take_action(now.q[:-1], taken) - target_of(params)
    slope = jax.vmap(jax.grad(error_of))(jnp.ravel(errors))
    preconditions = Preconditions(
        acting=0.5 * jnp.max(jnp.sum(jnp.abs(jnp.exp(log_mu) - jnp.exp(under_pi)), axis=-1)),
        surprise=_surprise(log_mu, taken, share),
        normalised=jnp.max(jnp.abs(jax.nn.logsumexp(now.log_pi, axis=-1))),
        target=_ratio(_sensitivity(target_of, params), size_q),
        value_target=_ratio(_sensitivity(value_target_of, params), size_q),
        prior=_ratio(_sensitivity(lambda p: heads(p).log_prior, params), size_log_pi),
        squared=_ratio(jnp.max(jnp.abs(slope - jnp.ravel(errors))), jnp.max(jnp.abs(errors))),
    )
    return Equivalence(
        cosine=_ratio(
            _trees.dot(sampled_q, sampled_pg), _trees.norm(sampled_q) * _trees.norm(sampled_pg)
        ),
        norm_ratio=_ratio(_trees.norm(sampled_q), _trees.norm(sampled_pg)),
        difference=_relative(sampled_q, sampled_pg),
        expected_difference=_relative(acted_q, acted_pg),
        reweighted_difference=_relative(pi_q, pi_pg),
        soft_q_gradient=sampled_q,
        policy_gradient=sampled_pg,
        preconditions=preconditions,
        epsilon=jnp.asarray(jnp.finfo(now.q.dtype).eps),
    )


class _Heads(NamedTuple):
    """What the network says at the T + 1 states."""

    v: Array
    log_pi: Array
    q: Array
    kl: Array
    log_prior: Array


_Loss = Callable[[Params, Array], Array]


def _half_square(error: Array) -> Array:
    return 0.5 * jnp.square(error)


def _sensitivity(f: Callable[[Params], Array], params: Params) -> Array:
    """Size of a Jacobian: the norm of one random combination of its rows."""
    out, pull = jax.vjp(f, params)
    finite = jnp.isfinite(out)
    signs = jax.random.rademacher(jax.random.key(0), out.shape, out.dtype)
    return _trees.norm(pull(jnp.where(finite, signs, 0))[0])


def _surprise(log_mu: Array, a: Array, share: Array) -> Array:
    """|z| of the mean of log μ(a_t|s_t) under a_t ∼ μ."""
    mu = jnp.exp(log_mu)
    safe = jnp.where(mu > 0, log_mu, 0)
    mean = jnp.sum(mu * safe, axis=-1)
    variance = jnp.sum(mu * jnp.square(safe - mean[..., None]), axis=-1)
    gap = jnp.sum(jnp.where(share > 0, share * (losses.take_action(log_mu, a) - mean), 0))
    # Under a uniform μ nothing is surprising: neither side has more than rounding to show.
    rounding = jnp.finfo(gap.dtype).eps * jnp.max(jnp.abs(mean))
    return jnp.abs(gap) / (jnp.sqrt(jnp.sum(jnp.square(share) * variance)) + 10 * rounding)


def _relative(x: Params, y: Params) -> Array:
    return _ratio(_trees.norm(jax.tree.map(jnp.subtract, x, y)), _trees.norm(x))


def _ratio(x: Array, y: Array) -> Array:
    """x/y, and 0 for 0/0: two zero gradients do not differ."""
    return jnp.where(x == 0, 0, x / jnp.where(x == 0, 1, y))
