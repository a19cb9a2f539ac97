"""τ as a number, as a schedule and in the agent's state: the same objective, whichever holds it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsoft
from jaxsoft import algorithms
from jaxsoft.agents import off_policy, on_policy, temperature
from jaxsoft.agents.natural import damped_q
from jaxsoft.agents.on_policy import Objective, State
from jaxsoft.training.graph import GraphLoop
from jaxsoft.training.loop import initial
from tests.support.worlds import ACTIONS, PLACES, World

TAU, SEEDS = 0.3, (2, 7)
SOURCES = {
    "number": TAU,
    "array": np.float32(TAU),
    "constant": temperature.constant(TAU),
    "held": temperature.held(TAU),
    "scheduled": lambda count: TAU,
    "schedule": optax.constant_schedule(TAU),
}


def table(params, place):
    return params[place]


def init_table(key):
    return jax.random.normal(key, (PLACES, ACTIONS), jnp.float32)


def a2c(tau, **options):
    settings: dict[str, Any] = {
        "head": on_policy.q_head,
        "optimiser": optax.sgd(0.5, momentum=0.9),
        "objective": Objective(tau, 0.9, 3),
    }
    return on_policy.agent(table, init_table, on_policy.a2c, **settings | options)


def damped(tau):
    return on_policy.agent_along(
        table,
        init_table,
        damped_q(damping=0.1),
        head=on_policy.q_head,
        optimiser=optax.sgd(0.5),
        objective=Objective(tau, 0.9, 3),
    )


def dqn(tau):
    return off_policy.agent(
        table,
        init_table,
        optimiser=optax.sgd(0.5),
        epsilon=optax.constant_schedule(0.2),
        num_envs=4,
        observation=World.observation,
        capacity=400,
        batch_size=16,
        discount=0.9,
        tau=tau,
        learning_starts=20,
        steps_per_gradient=5,
        target_period=20,
    )


AGENTS = {"a2c": a2c, "damped_q": damped, "dqn": dqn}


def ran(agent, seeds=SEEDS, hyper=None, updates=8):
    """(params, sums of metrics) of a run in the small world, [S, ...]."""
    made = agent if hyper is None else agent(TAU)
    loop = GraphLoop(World(4, seeds), made, length=5)
    state, _, report = loop.run(initial(agent, seeds, hyper), loop.start(), updates)
    # Where it changes it is told.
    sums = {name: x for name, x in report.metrics.sums.items() if name != "tau"}
    return jax.tree.map(np.asarray, (state.agent.params, sums))


def assert_close(actual, expected, rtol=2e-5):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol), actual, expected
    )


@pytest.mark.parametrize(
    ("name", "kinds"),
    [("a2c", ("array", "held", "scheduled", "schedule")), ("dqn", ("held",))],
)
def test_whoever_holds_it_the_same_is_learned(name, kinds):
    with jax.enable_x64(False):
        expected = ran(AGENTS[name](TAU), (2,))
        for kind in kinds:
            assert_close(ran(AGENTS[name](SOURCES[kind]), (2,)), expected)
        # It is used: another τ learns something else.
        other, _ = ran(AGENTS[name](2 * TAU), (2,))
    assert np.abs(other - expected[0]).max() > 0.01


@pytest.mark.parametrize("name", ["a2c", "damped_q"])
def test_seeds_side_by_side_have_one_each(name):
    """As each learns alone, with its own as a number."""
    taus = jnp.array([0.1, 1.5])
    with jax.enable_x64(False):
        together = ran(lambda tau: AGENTS[name](temperature.held(tau)), hyper=taus)
        for i, (seed, tau) in enumerate(zip(SEEDS, taus.tolist(), strict=True)):
            alone = ran(AGENTS[name](tau), (seed,))
            assert_close(jax.tree.map(lambda x, i=i: x[i : i + 1], together), alone)


def test_hyperparameters_may_be_any_tree():
    def agent(own):
        return a2c(temperature.held(own["tau"]))._replace(
            init=lambda key: a2c(temperature.held(own["tau"])).init(key)._replace(
                params=jnp.full((PLACES, ACTIONS), own["start"][0])
            )
        )  # fmt: skip

    own = {"tau": jnp.array([0.5, 2.0]), "start": (jnp.array([3.0, 4.0]),)}
    state = initial(agent, (0, 1), own)
    np.testing.assert_array_equal(state.agent.temperature, [0.5, 2.0])
    np.testing.assert_array_equal(state.agent.params[:, 0, 0], [3, 4])


def test_each_gradient_step_has_its_own_of_a_schedule():
    """To act by and in the loss, from the first step on."""

    def shows(at, rollout, objective):
        return objective.tau + 0 * at.v[:-1]

    agent = on_policy.agent(
        table,
        init_table,
        shows,
        head=on_policy.q_head,
        optimiser=optax.sgd(0.1),
        objective=Objective(lambda count: 1.0 + count**2, 0.9, 3),
    )
    loop = GraphLoop(World(4), agent, length=5)
    state, actors = initial(agent, (0,)), loop.start()
    for count in range(4):
        tau = 1.0 + count**2
        assert state.agent.temperature == count
        _, rollout = loop.collect(state, actors)
        q = np.asarray(state.agent.params)[0][np.asarray(rollout.observation[:-1])]
        log_pi = jax.nn.log_softmax(q / tau)
        taken = np.take_along_axis(np.asarray(log_pi), np.asarray(rollout.action)[..., None], -1)
        np.testing.assert_allclose(rollout.extras.log_mu, taken[..., 0], rtol=1e-5)
        state, actors, report = loop.run(state, actors, 1)
        np.testing.assert_allclose(report.metrics.sums["loss"], tau, rtol=1e-6)


def test_a_source_is_told_the_kl_to_the_prior_of_each_batch():
    log_prior = np.log([0.8, 0.2])
    heard = temperature.Temperature(
        init=lambda: (jnp.float32(0.4), jnp.float32(0)),
        value=lambda state: state[0],
        update=lambda state, kl: (state[0] / 2, kl.astype(jnp.float32)),
    )
    agent = a2c(heard, objective=Objective(heard, 0.9, 3, log_prior=log_prior))
    loop = GraphLoop(World(4), agent, length=5)
    state, actors, tau = initial(agent, (0,)), loop.start(), 0.4
    for _ in range(3):
        _, rollout = loop.collect(state, actors)
        prior, q = np.exp(log_prior), np.asarray(state.agent.params)[0]
        policy = prior * np.exp(q / tau) / np.sum(prior * np.exp(q / tau), -1, keepdims=True)
        kl = np.sum(policy * np.log(policy / prior), -1)[np.asarray(rollout.observation[:-1])]
        state, actors, _ = loop.run(state, actors, 1)
        expected = np.average(kl, weights=rollout.weight)
        np.testing.assert_allclose(state.agent.temperature[1], [expected], rtol=1e-5)
        tau /= 2
        np.testing.assert_allclose(state.agent.temperature[0], [tau], rtol=1e-6)


def test_the_algorithms_arguments_are_the_objectives(monkeypatch):
    """A number is the program's constant, so that a plain 0 can be the hard maximum."""
    seen = []

    def spy(*args, **kwargs):
        seen.append(kwargs)
        return algorithms.actor_critic(*args, **kwargs)

    monkeypatch.setattr(jaxsoft, "actor_critic", spy)
    agent = a2c(0.25)
    state = agent.init(jax.random.key(0))
    assert isinstance(state, State)
    assert state.temperature == ()
    loop = GraphLoop(World(4), agent, length=5)
    loop.run(initial(agent, (0,)), loop.start(), 1)
    assert all(given["tau"] == 0.25 and isinstance(given["tau"], float) for given in seen)
    assert seen[0]["n"] == 3


def test_it_is_told_where_it_changes():
    constant, held = temperature.constant(TAU), temperature.held(TAU)
    assert temperature.told(constant, constant.init()) == {}
    assert temperature.told(held, held.init()) == {"tau": np.float32(TAU)}
