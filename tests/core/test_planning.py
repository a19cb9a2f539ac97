"""SmoothCruiser, against value iteration on small MDPs and games."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsoft import planning
from tests.support import oracles

TAU, GAMMA = 0.5, 0.4
STATES, ACTIONS = 4, 3


def world(seed=0, game=False):
    """Rewards in [0, 1] and transition [S, A, S], prior [A], the opponent's states [S], V, Q."""
    rng = np.random.default_rng(seed)
    transition = rng.dirichlet(np.ones(STATES), size=(STATES, ACTIONS))
    rewards = rng.random((STATES, ACTIONS, STATES))
    prior = rng.dirichlet(2 * np.ones(ACTIONS))
    sign = np.where(game & (np.arange(STATES) % 2 == 1), -1, 1)
    q = np.zeros((STATES, ACTIONS))
    for _ in range(200):
        v = sign * oracles.soft_value(sign[:, None] * q, TAU, np.broadcast_to(prior, q.shape))
        q = np.sum(transition * (rewards + GAMMA * v), -1)
    return rewards, transition, prior, sign == -1, v, q


def model_of(rewards, transition, calls=None):
    log_transition = jnp.log(jnp.asarray(transition))

    def model(key, states, actions):
        if calls is not None:
            calls.append(len(actions))
        ends = jax.random.categorical(key, log_transition[states, actions])
        return jnp.asarray(rewards)[states, actions, ends], ends

    return model


def samples(epsilon):
    return math.ceil(0.3 / epsilon**2)


def test_the_value_is_smooth():
    """0 ≤ V(q + u) − V(q) − π_q·u ≤ max|u|²/(2τ), and the bound is nearly met."""
    rng = np.random.default_rng(0)
    used = []
    for tau, scale in itertools.product((0.1, 0.5, 1.7), (0.03, 0.3, 3.0)):
        q, u = rng.normal(size=(2, 400, ACTIONS))
        u = scale * np.sign(u)
        # Two actions of like weight, of which one rises and one falls, come nearest.
        q[:100] *= 0.01
        prior = np.broadcast_to([0.5, 0.49, 0.01], q.shape)
        pi = oracles.boltzmann(q, tau, prior)
        gap = oracles.soft_value(q + u, tau, prior) - oracles.soft_value(q, tau, prior)
        gap -= np.sum(pi * u, -1)
        assert gap.min() > -1e-12
        assert (gap <= scale**2 / (2 * tau) + 1e-12).all()
        used.append((gap / (scale**2 / (2 * tau))).max())
    assert max(used) > 0.9


@pytest.mark.parametrize("game", [False, True])
def test_its_draws_are_within_epsilon_on_average(game, monkeypatch):
    """With q̂ at the corners of the cube √(kε) around Q, the worst that may be."""
    rewards, transition, prior, opponents, v, q = world(1, game)
    corners = jnp.asarray(list(itertools.product([-1.0, 1.0], repeat=ACTIONS)))
    draws, epsilon = 4000, 0.1
    plan = planning._Plan(
        "planning.estimate_value",
        model_of(rewards, transition),
        lambda states: jnp.broadcast_to(jnp.log(prior), (len(states), ACTIONS)),
        (lambda states: jnp.asarray(opponents)[states]) if game else None,
        samples,
        TAU,
        GAMMA,
    )
    states = jnp.repeat(jnp.arange(STATES), draws)

    @jax.jit
    def draw(corner):
        def estimate_q(self, key, states, epsilon):
            return jnp.asarray(q)[states] + epsilon * corner[None]

        monkeypatch.setattr(planning._Plan, "estimate_q", estimate_q)
        return plan.sample_value(jax.random.key(0), states, epsilon)

    worst = []
    for corner in corners:
        drawn = np.asarray(draw(corner)).reshape(STATES, draws)
        error = 4 * drawn.std(-1) / np.sqrt(draws)
        bias = np.abs(drawn.mean(-1) - v)
        assert (bias <= epsilon + error).all()
        worst.append(bias.max())
    assert max(worst) > 0.2 * epsilon  # the corners are no easy case


@pytest.mark.parametrize("game", [False, True])
def test_values_are_within_epsilon(game):
    epsilon = 0.3
    rewards, transition, prior, opponents, v, _ = world(2, game)
    calls: list[int] = []

    def estimate(state, key):
        return planning.estimate_value(
            model_of(rewards, transition, calls),
            state,
            key,
            TAU,
            epsilon=epsilon,
            discount=GAMMA,
            samples=samples,
            log_prior=jnp.log(prior),
            player=(lambda states: jnp.asarray(opponents)[states]) if game else None,
        )

    keys = jax.random.split(jax.random.key(1), (STATES, 40))
    by_key = jax.vmap(estimate, (None, 0))
    given = np.asarray(jax.jit(jax.vmap(by_key))(jnp.arange(STATES), keys))
    error = np.sqrt(np.mean((given - v[:, None]) ** 2))
    assert error < epsilon / 3
    assert 500 < sum(calls) < 1000


def test_exact_where_nothing_is_random():
    """One step deep: V(q) of the rewards."""
    rewards = np.array([0.2, 0.9, 0.4])
    prior = np.log([0.5, 0.2, 0.3])

    def model(key, states, actions):
        return jnp.asarray(rewards)[actions], states

    estimate = functools.partial(
        planning.estimate_value,
        model,
        jnp.zeros(()),
        jax.random.key(0),
        TAU,
        discount=0.0,
        samples=lambda epsilon: 2,
        log_prior=prior,
    )
    wanted = oracles.soft_value(rewards, TAU, np.exp(prior))
    for epsilon in (0.5, 1e-9):
        np.testing.assert_allclose(estimate(epsilon=epsilon), wanted, rtol=1e-12)
    lost = estimate(epsilon=0.5, player=lambda states: jnp.ones(len(states), bool))
    worst = -oracles.soft_value(-rewards, TAU, np.exp(prior))
    np.testing.assert_allclose(lost, worst, rtol=1e-12)


def test_priors_per_state_mask_actions_and_states_are_trees():
    rewards, transition, prior, *_ = world(3)
    allowed = np.array([[1, 1, 0], [0, 1, 1], [1, 1, 1], [1, 0, 0]])
    masked = allowed * prior / np.sum(allowed * prior, -1, keepdims=True)
    q = np.zeros((STATES, ACTIONS))
    for _ in range(200):
        q = np.sum(transition * (rewards + GAMMA * oracles.soft_value(q, TAU, masked)), -1)
    with np.errstate(divide="ignore"):
        log_prior = jnp.log(jnp.asarray(masked))
    plain = model_of(rewards, transition)

    def model(key, states, actions):
        paid, ends = plain(key, states["place"], actions)
        return paid, {"place": ends, "clock": states["clock"] + 1}

    def estimate(key, place):
        return planning.estimate_value(
            model,
            {"place": place, "clock": jnp.zeros(2)},
            key,
            TAU,
            epsilon=0.3,
            discount=GAMMA,
            samples=samples,
            log_prior=lambda states: log_prior[states["place"]],
        )

    keys = jax.random.split(jax.random.key(2), 60)
    for place in (0, 3):
        given = jax.jit(jax.vmap(estimate, (0, None)))(keys, place)
        wanted = oracles.soft_value(q, TAU, masked)[place]
        np.testing.assert_allclose(given.mean(), wanted, atol=0.05)


def test_single_precision_is_kept():
    rewards, transition, prior, *_ = world(4)
    given = planning.estimate_value(
        model_of(rewards.astype(np.float32), transition),
        0,
        jax.random.key(0),
        TAU,
        epsilon=0.5,
        discount=GAMMA,
        samples=samples,
        log_prior=np.log(prior).astype(np.float32),
    )
    assert given.dtype == np.float32
