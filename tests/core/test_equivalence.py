"""The equivalence as a tool: zero where the theorem applies, and the right alarm where not."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

import jaxsoft

T, B, A, TAU, GAMMA = 6, 4, 3, 0.3, 0.95
INPUTS, HIDDEN = 5, 7
RNG = np.random.default_rng(0)
OBSERVATIONS = jnp.asarray(RNG.normal(size=(T + 1, B, INPUTS)))
LOG_PRIOR = jnp.log(jnp.asarray(RNG.dirichlet(np.ones(A), size=(T + 1, B))))
REWARDS = jnp.asarray(RNG.normal(size=(T, B)))
Params = dict[str, Array]
PARAMS: Params = {
    "trunk": jnp.asarray(RNG.normal(size=(INPUTS, HIDDEN))),
    "heads": jnp.asarray(RNG.normal(size=(HIDDEN, 1 + A))),
}


def tied(params: Params, x: Array) -> tuple[Array, Array]:
    out = jnp.tanh(x @ params["trunk"]) @ params["heads"]
    return out[..., 0], jax.nn.log_softmax(out[..., 1:])


def q_head(params: Params, x: Array) -> Array:
    return (jnp.tanh(x @ params["trunk"]) @ params["heads"])[..., 1:]


def moving_value(params: Params) -> Array:
    return REWARDS + GAMMA * tied(params, OBSERVATIONS)[0][1:]


def huber(error: Array) -> Array:
    return jnp.where(jnp.abs(error) < 0.5, error**2 / 2, 0.5 * (jnp.abs(error) - 0.25))


def policy(network: Callable[..., Any], log_prior: Any = LOG_PRIOR) -> Array:
    if network is q_head:
        return jaxsoft.log_policy(q_head(PARAMS, OBSERVATIONS), TAU, log_prior)[:-1]
    return tied(PARAMS, OBSERVATIONS)[1][:-1]


def check(network: Callable[..., Any] = tied, **changes: Any) -> jaxsoft.Equivalence:
    settings: dict[str, Any] = {"n": 3, "log_prior": LOG_PRIOR} | changes
    acting = changes.get("behaviour_log_pi", policy(network, settings["log_prior"]))
    actions = jaxsoft.sample_actions(jax.random.key(1), acting)
    return jax.jit(
        lambda p: jaxsoft.check_equivalence(
            network, p, OBSERVATIONS, actions, r_t=REWARDS, discount_t=GAMMA, tau=TAU, **settings
        )
    )(PARAMS)


UNIFORM = jnp.full((T, B, A), -np.log(A))
GREEDY = jnp.log(0.9 * jnp.exp(policy(tied)) + 0.1 / A)
BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "uniform": ({"behaviour_log_pi": UNIFORM}, "acting"),
    "ε-greedy": ({"behaviour_log_pi": GREEDY}, "acting"),
    "hotter": ({"behaviour_log_pi": jax.nn.log_softmax(policy(tied) / 2)}, "acting"),
    "moving target": ({"target": moving_value}, "target"),
    "moving value target": ({"value_target": moving_value}, "value_target"),
    "Huber": ({"error_loss": huber}, "squared"),
    "moving prior": (
        {"log_prior": lambda p: jax.nn.log_softmax(OBSERVATIONS @ p["trunk"][:, :A])},
        "prior",
    ),
}


@pytest.mark.parametrize("network", [tied, q_head])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"n": 1},
        {"target": REWARDS},
        {"log_prior": None},
        {"log_prior": 0.0},
        {"weight": jnp.asarray(RNG.uniform(size=(T, B)))},
    ],
    ids=["n = 3", "n = 1", "any target", "uniform", "entropy", "weights"],
)
def test_zero_where_the_theorem_applies(
    network: Callable[..., Any], changes: dict[str, Any]
) -> None:
    report = check(network, **changes)
    assert report.expected_difference < 1e-12
    assert report.reweighted_difference < 1e-12
    assert report.difference > 1e-6
    assert 0 < report.cosine <= 1
    assert not report.broken()


@pytest.mark.parametrize("name", BROKEN)
def test_each_broken_precondition_is_measured_and_named(name: str) -> None:
    changes, precondition = BROKEN[name]
    report = check(**changes)
    assert set(report.broken()) == {precondition}
    assert report.expected_difference > 1e-3
    # π/μ at the first step repairs the acting policy, and nothing else.
    assert (report.reweighted_difference < 1e-12) == (precondition == "acting")
    assert precondition in str(report)


def test_the_sampled_gradients_are_those_of_the_losses() -> None:
    report = check()
    v, log_pi = tied(PARAMS, OBSERVATIONS)
    actions = jaxsoft.sample_actions(jax.random.key(1), log_pi[:-1])
    kl = jaxsoft.kl_to_prior(log_pi, LOG_PRIOR)
    delta = jaxsoft.td_errors(v[:-1], REWARDS, GAMMA, v_t=v[1:], kl_tm1=kl[:-1], tau=TAU)
    advantage = jaxsoft.n_step_advantages(delta, GAMMA, n=3)
    target = jaxsoft.soft_q_targets(advantage, v[:-1], kl[:-1], tau=TAU)

    def soft_q(p: Params) -> Array:
        q = jaxsoft.q_from_policy(*tied(p, OBSERVATIONS), TAU, LOG_PRIOR)
        return jaxsoft.soft_q_loss(q[:-1], actions, target).mean()

    def actor_critic(p: Params) -> Array:
        v, log_pi = tied(p, OBSERVATIONS)
        each = jaxsoft.a2c_loss(
            v[:-1],
            log_pi[:-1],
            actions,
            target_t=target,
            tau=TAU,
            value_coef=1 / TAU,
            log_prior=LOG_PRIOR[:-1],
        )
        return TAU * each.mean()

    for given, loss in ((report.soft_q_gradient, soft_q), (report.policy_gradient, actor_critic)):
        for name, gradient in jax.grad(loss)(PARAMS).items():
            np.testing.assert_allclose(given[name], gradient, rtol=1e-10, atol=1e-13)


def test_improbable_actions_are_noticed() -> None:
    worst = jnp.argmin(policy(tied), axis=-1)
    report = jaxsoft.check_equivalence(
        tied,
        PARAMS,
        OBSERVATIONS,
        worst,
        r_t=REWARDS,
        discount_t=GAMMA,
        tau=TAU,
        log_prior=LOG_PRIOR,
    )
    assert set(report.broken()) == {"surprise"}


def test_an_unnormalised_policy_is_noticed() -> None:
    def unnormalised(p: Params, x: Array) -> tuple[Array, Array]:
        v, log_pi = tied(p, x)
        return v, log_pi + 0.1

    assert set(check(unnormalised).broken()) == {"normalised"}


def test_masked_actions() -> None:
    log_prior = LOG_PRIOR.at[:, ::2, 1].set(-jnp.inf)
    log_pi = jaxsoft.log_policy(q_head(PARAMS, OBSERVATIONS), TAU, log_prior)
    actions = jaxsoft.sample_actions(jax.random.key(2), log_pi[:-1])
    report = jaxsoft.check_equivalence(
        q_head,
        PARAMS,
        OBSERVATIONS,
        actions,
        r_t=REWARDS,
        discount_t=GAMMA,
        tau=TAU,
        log_prior=log_prior,
    )
    assert report.expected_difference < 1e-12
    assert not report.broken()


@pytest.mark.parametrize("network", [tied, q_head])
def test_a_moving_target_beside_masked_actions(network: Callable[..., Any]) -> None:
    masked = LOG_PRIOR.at[..., 1].set(-jnp.inf)

    def masking(params: Params, x: Array) -> tuple[Array, Array]:
        v, log_pi = tied(params, x)
        return v, jax.nn.log_softmax(jnp.where(masked > -jnp.inf, log_pi, -jnp.inf))

    log_pi = jaxsoft.log_policy(q_head(PARAMS, OBSERVATIONS), TAU, masked)
    if network is tied:
        network, log_pi = masking, masking(PARAMS, OBSERVATIONS)[1]
    report = check(network, log_prior=masked, target=moving_value, behaviour_log_pi=log_pi[:-1])
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(report))
    assert list(report.broken()) == ["target"]
    assert report.expected_difference > 1e-3


def test_a_step_that_does_not_count_may_have_an_impossible_action() -> None:
    masked = LOG_PRIOR.at[2, 1].set(jnp.asarray([0.0, -jnp.inf, 0.0]))

    def masking(params: Params, x: Array) -> tuple[Array, Array]:
        v, log_pi = tied(params, x)
        return v, jax.nn.log_softmax(jnp.where(masked > -jnp.inf, log_pi, -jnp.inf))

    weight = jnp.ones((T, B)).at[2, 1].set(0)
    log_pi = masking(PARAMS, OBSERVATIONS)[1][:-1]
    a = jaxsoft.sample_actions(jax.random.key(1), log_pi)
    for network, target in ((masking, None), (masking, moving_value)):
        reports = [
            jaxsoft.check_equivalence(
                network,
                PARAMS,
                OBSERVATIONS,
                a.at[2, 1].set(action),
                r_t=REWARDS,
                discount_t=GAMMA,
                tau=TAU,
                log_prior=masked,
                weight=weight,
                target=target,
            )
            for action in (0, 1)
        ]
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(reports[1]))
        for x, y in zip(*map(jax.tree.leaves, reports), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-10)


def test_float32_is_judged_by_its_own_rounding() -> None:
    cast = jax.tree.map(lambda x: x.astype(jnp.float32), (PARAMS, OBSERVATIONS, REWARDS, LOG_PRIOR))
    params, observations, rewards, log_prior = cast
    actions = jaxsoft.sample_actions(jax.random.key(1), policy(tied))
    report = jaxsoft.check_equivalence(
        tied,
        params,
        observations,
        actions,
        r_t=rewards,
        discount_t=GAMMA,
        tau=TAU,
        log_prior=log_prior,
    )
    assert report.cosine.dtype == jnp.float32
    assert report.expected_difference < 1e-5
    assert not report.broken()
    assert "All preconditions hold" in str(report)


def test_a_network_gives_q_or_a_value_and_a_policy() -> None:
    observations = jnp.zeros((3, 2))
    network: Any = lambda params, seen: (seen @ params, seen @ params, seen @ params)  # noqa: E731
    with pytest.raises(ValueError, match=r"q, or \(v, log_pi\), got 3 arrays"):
        jaxsoft.check_equivalence(
            network,
            jnp.ones((2, 4)),
            observations,
            jnp.zeros((2,), int),
            r_t=jnp.zeros((2,)),
            discount_t=0.9,
            tau=0.5,
        )
