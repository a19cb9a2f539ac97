"""The loops: two drivers, any number of seeds and calls, one result."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsoft
from jaxsoft import losses
from jaxsoft.agents import off_policy, on_policy
from jaxsoft.agents.base import Agent, Rollout
from jaxsoft.environments import EnvPool, HostEnvPool, about
from jaxsoft.training.graph import GraphLoop
from jaxsoft.training.host import HostLoop
from jaxsoft.training.loop import initial, split
from tests.support import worlds
from tests.support.trees import structure

LENGTH, ENVS = 6, 4


def linear(params, observation):
    """(v, log π), or action values, linear in observations [N, ...] of any kind."""
    lead = observation.ndim - params["ndim"].ndim
    x = observation.reshape(*observation.shape[:lead], -1).astype(jnp.float32)
    out = x @ params["w"]
    return out[..., 0], jax.nn.log_softmax(out[..., 1:])


def linear_agent(game, rate=0.05):
    what = about(game)
    size = int(np.prod(what.observation.shape))

    def init(key):
        w = jax.random.normal(key, (size, 1 + what.action.categories), jnp.float32) / size**0.5
        return {"w": w, "ndim": jnp.zeros((1,) * len(what.observation.shape), jnp.float32)}

    return on_policy.agent(
        linear,
        init,
        on_policy.a2c,
        head=on_policy.actor_critic_head,
        optimiser=optax.sgd(rate, momentum=0.9),
        objective=on_policy.Objective(tau=0.05, n=3),
    )


class Watched(NamedTuple):
    state: Any
    rollout: Any  # the last one
    bits: Any  # from the key of the last update


def watched(agent, game, envs):
    """Keeps its last rollout, and what it would have drawn."""
    what = about(game)

    def zeros(*shape, dtype=bool):
        return jnp.zeros(shape, dtype)

    numbers = zeros(LENGTH, envs, dtype=jnp.float32)
    nothing = Rollout(
        observation=zeros(LENGTH + 1, envs, *what.observation.shape, dtype=what.observation.dtype),
        action=zeros(LENGTH, envs, dtype=jnp.int32),
        reward=numbers,
        discount=numbers,
        cut=zeros(LENGTH, envs),
        weight=numbers,
        first=zeros(LENGTH + 1, envs),
        extras=on_policy.Acted(numbers, []),
    )

    def init(key):
        return Watched(agent.init(key), nothing, jnp.zeros((), jnp.uint32))

    def act(state, carry, observation, keys):
        return agent.act(state.state, carry, observation, keys)

    def update(state, rollout, key):
        trained, metrics = agent.update(state.state, rollout, key)
        kept = jax.tree.map(lambda x, like: x.astype(like.dtype), rollout, nothing)
        return Watched(trained, kept, jax.random.bits(key, dtype=jnp.uint32)), metrics

    return Agent(init, act, update)


class Run(NamedTuple):
    """What each call came to, in NumPy, and how much it compiled."""

    states: list[Any]
    reports: list[Any]
    compiled: list[int]

    @property
    def total(self):
        return summed(self.reports)

    @property
    def rollouts(self):
        return [state.agent.rollout for state in self.states]


def summed(reports):
    return jax.tree.map(lambda *x: sum(x), *reports)


compilations: list[str] = []


def note_compilation(event: str, duration_secs: float, **_: str | int) -> None:
    if "backend_compile" in event:
        compilations.append(event)


jax.monitoring.register_event_duration_secs_listener(note_compilation)


def plain(tree):
    """A copy in NumPy, keys and all; a view would show what is later written in its place."""

    def one(x):
        return np.array(jax.random.key_data(x) if _is_key(x) else x)

    return jax.tree.map(one, tree)


def _is_key(x):
    return isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def make(driver, game, agent, seeds=(3,), length=LENGTH, envs=ENVS, in_turn=False):
    if driver == "graph":
        pool = EnvPool(game, num_envs=envs, seeds=seeds, num_threads=1)
        return GraphLoop(pool, agent, length=length, in_turn=in_turn)
    parts = {"host": [(0, envs)], "halves": [(0, 1), (1, envs)]}[driver]
    pools = [
        HostEnvPool(game, num_envs=envs, seeds=seeds, part=part, num_threads=1) for part in parts
    ]
    return HostLoop(pools, agent, length=length, in_turn=in_turn)


@functools.cache
def loop_for(driver, game, seeds, in_turn):
    return make(driver, game, watched(linear_agent(game), game, ENVS), seeds, in_turn=in_turn)


def ran(driver, game, calls, seeds=(3,), in_turn=False):
    """A run from the start; each is made once."""
    return _ran(driver, game, calls, seeds, in_turn)


@functools.cache
def _ran(driver, game, calls, seeds, in_turn):
    loop = loop_for(driver, game, seeds, in_turn)
    if driver == "graph":  # A second reset of a pool would begin other games.
        assert not hasattr(loop, "begun")
        loop.begun = True
    else:  # What is compiled knows nothing of the emulators.
        loop.pools = make(driver, game, None, seeds).pools
    state, actors, run = initial(loop.agent, seeds), loop.start(), Run([], [], [])
    for updates in calls:
        before = len(compilations)
        then, after, report = loop.run(state, actors, updates)
        run.compiled.append(len(compilations) - before)
        if not run.states:  # What NumPy has looked at is not given away on a CPU.
            # Nor is the rollout kept, which was never read.
            given = (state.agent.state, state.key, state.updates)
            assert all(x.is_deleted() for x in jax.tree.leaves(given))
        left = [x for x in jax.tree.leaves(actors) if isinstance(x, jax.Array)]
        assert not any(x.is_deleted() for x in left)
        state, actors = then, after
        run.states.append(plain(state))
        run.reports.append(plain(report))
    return run


def assert_same(a, b, rtol=0.0):
    """Exactly, or parameters and what follows from them to a tolerance."""
    assert structure(a) == structure(b)
    for (path, x), (_, y) in zip(
        jax.tree_util.tree_leaves_with_path(a), jax.tree_util.tree_leaves_with_path(b), strict=True
    ):
        name = jax.tree_util.keystr(path)
        assert (x.dtype, x.shape) == (y.dtype, y.shape), name
        exact = any(word in name for word in ("rollout", "finished", "key", "bits", "updates"))
        exact &= "extras" not in name
        tolerance = 0 if exact else rtol
        np.testing.assert_allclose(x, y, err_msg=name, rtol=tolerance, atol=tolerance)


ONES, CALLS = (1,) * 5, (1, 2, 1, 3)


def assert_same_run(a, b, rtol=3e-6):
    """The same rollouts, scores and keys; parameters and losses to a float32's rounding."""
    assert_same(a.states, b.states, rtol)
    assert_same(a.reports, b.reports, rtol)


@pytest.mark.parametrize(
    ("driver", "game", "calls"),
    [("host", "CartPole-v1", ONES), ("halves", "Catch-v0", CALLS)],
    ids=["one pool", "two pools"],
)
def test_both_loops_give_the_same_results(driver, game, calls):
    graph = ran("graph", game, calls)
    assert_same_run(graph, ran(driver, game, calls))
    assert np.sum(graph.total.finished.games) > 0
    assert all(len(np.unique(rollout.action)) > 1 for rollout in graph.rollouts)


def test_the_number_of_updates_compiles_nothing_again():
    first, *then = ran("graph", "Catch-v0", CALLS).compiled
    assert first > 0
    assert then == [0, 0, 0]
    # The first sum of two reports is another program than one report.
    first, _, *then = ran("halves", "Catch-v0", CALLS).compiled
    assert first > 0
    assert then == [0, 0]


def test_rollouts_follow_on_each_other():
    run = ran("graph", "CartPole-v1", ONES, (3, 5))
    for before, after in zip(run.rollouts, run.rollouts[1:], strict=False):
        np.testing.assert_array_equal(before.observation[:, -1], after.observation[:, 0])
        np.testing.assert_array_equal(before.first[:, -1], after.first[:, 0])
    assert run.states[-1].updates == len(ONES)
    np.testing.assert_array_equal(run.total.metrics.updates, len(ONES))


def test_scores_are_of_the_games_of_all_rollouts():
    run = ran("graph", "CartPole-v1", ONES, (3, 5))
    steps = jax.tree.map(lambda *x: np.concatenate(x, axis=1), *run.rollouts)
    games, length = np.zeros(2), np.zeros(2)
    for s, n in np.ndindex(2, ENVS):
        ends = np.flatnonzero(steps.discount[s, :, n] == 0)
        games[s] += len(ends)
        length[s] += np.sum(steps.weight[s, : ends[-1] + 1, n]) if len(ends) else 0
    np.testing.assert_array_equal(run.total.finished.games, games)
    np.testing.assert_array_equal(run.total.finished.length, length)
    np.testing.assert_array_equal(run.total.finished.score, length)
    assert games.sum() > 4


def test_calls_add_up_from_the_host():
    """Three updates, then four, are seven: in state to the bit, in sums to a float32's rounding."""
    apart, whole = ran("halves", "Catch-v0", (3, 4)), ran("halves", "Catch-v0", CALLS)
    assert_same(apart.states, whole.states[1::2])
    assert_same(apart.total, whole.total, rtol=1e-6)


@pytest.mark.parametrize("in_turn", [False, True])
def test_a_seed_beside_another_is_as_alone(in_turn):
    both = ran("graph", "CartPole-v1", ONES, (3, 5), in_turn)
    for i, seed in enumerate((3, 5)):
        one = jax.tree.map(lambda x, i=i: x[i : i + 1] if np.ndim(x) else x, both)
        assert_same_run(one, ran("graph", "CartPole-v1", ONES, (seed,)))


def test_seeds_side_by_side_from_the_host():
    games = ("CartPole-v1", ONES, (3, 5))
    assert_same_run(ran("halves", *games), ran("graph", *games))


def test_seeds_differ():
    run = ran("graph", "CartPole-v1", ONES, (3, 5))
    for rollout in run.rollouts:
        assert np.any(rollout.action[0] != rollout.action[1])
        assert np.any(rollout.observation[0] != rollout.observation[1])


def test_keys_are_used_once():
    """A key that is split is no other update's, nor one that acts or learns."""
    run = ran("graph", "CartPole-v1", ONES, (3, 5))
    before = initial(linear_agent("CartPole-v1"), (3, 5)).key
    used = []
    for state in run.states:
        keys = split(before)
        np.testing.assert_array_equal(
            jax.vmap(lambda k: jax.random.bits(k, dtype=jnp.uint32))(keys.learn), state.agent.bits
        )
        used += [before, keys.act, keys.learn]
        before = jax.random.wrap_key_data(state.key)
    data = np.concatenate([jax.random.key_data(key) for key in used])
    assert len(np.unique(data, axis=0)) == len(data) == 6 * len(ONES)


def test_environments_draw_apart():
    """In the same place all draw from the same policy, and not all draw the same."""
    run = ran("graph", "Catch-v0", CALLS)
    action = np.concatenate([rollout.action[0] for rollout in run.rollouts])
    assert not any(np.all(action[:, 0] == action[:, n]) for n in range(1, ENVS))
    # Nor does a step draw what the last one drew.
    assert np.any(action[1:] != action[:-1], axis=0).all()


def test_the_start_of_a_seed_is_its_own():
    agent = linear_agent("Catch-v0")
    beside, alone = initial(agent, (3, 4, 5)), initial(agent, (5,))
    assert_same(jax.tree.map(lambda x: x[-1:] if x.ndim else x, plain(beside)), plain(alone))
    assert beside.key.shape == (3,)
    assert beside.updates.shape == ()
    assert len(np.unique(plain(beside).agent.params["w"], axis=0)) == 3


def table(params, observation):
    return params[observation]


def table_agent(update=lambda rollout: rollout, rate=3.0):
    """One-step soft Q-learning on a table by random play; a rollout may be spoilt first."""

    def init(key):
        return jax.random.normal(key, (worlds.PLACES, worlds.ACTIONS))

    def q_loss(at, rollout, objective):
        kl = jaxsoft.kl_to_prior(at.log_pi[:-1], objective.log_prior)
        target = on_policy.soft_targets(at, kl, rollout, objective)
        return losses.soft_q_loss(at.q[:-1], rollout.action, target)

    agent = on_policy.agent(
        table,
        init,
        q_loss,
        head=on_policy.q_head,
        optimiser=optax.sgd(rate),
        objective=on_policy.Objective(tau=worlds.TAU, discount=worlds.GAMMA, n=1),
    )

    def wander(_, carry, place, keys):
        action = jax.vmap(lambda k: jax.random.randint(k, (), 0, 2, jnp.int32))(keys)
        return action, carry, None

    return agent._replace(
        act=wander, update=lambda state, rollout, key: agent.update(state, update(rollout), key)
    )


def learned(spoil):
    loop = GraphLoop(worlds.World(16), table_agent(spoil), length=12)
    state, _, report = loop.run(initial(loop.agent, (0,)), loop.start(), 600)
    return np.asarray(state.agent.params[0]), report


def test_training_finds_the_exact_values():
    q, report = learned(lambda rollout: rollout)
    np.testing.assert_allclose(q, worlds.solve(), atol=1e-5)
    assert report.finished.games[0] > 5000


def test_training_finds_other_values_where_auto_resets_count():
    q, _ = learned(lambda rollout: rollout._replace(weight=jnp.ones_like(rollout.weight)))
    assert np.abs(q - worlds.solve()).max() > 0.1


def replay_agent():
    return off_policy.agent(
        table,
        lambda key: jax.random.normal(key, (worlds.PLACES, worlds.ACTIONS)),
        optimiser=optax.adam(0.1),
        epsilon=optax.constant_schedule(0.2),
        num_envs=4,
        observation=worlds.World.observation,
        capacity=200,
        batch_size=8,
        discount=0.9,
        learning_starts=20,
        steps_per_gradient=4,
        target_period=10,
    )


AGENTS = {"on policy": table_agent, "off policy": replay_agent}
CASES = {
    "side by side": ("on policy", (1, 4), False),
    "in turn": ("on policy", (1, 4), True),
    "with replay": ("off policy", (1,), False),
}


@functools.cache
def in_the_world(case):
    kind, seeds, in_turn = CASES[case]
    return GraphLoop(worlds.World(4, seeds), AGENTS[kind](), length=5, in_turn=in_turn)


def begun(case):
    loop = in_the_world(case)
    return initial(loop.agent, CASES[case][1]), loop.start()


def frozen(tree):
    """A copy in NumPy from which `thawed` makes the same arrays on the device."""

    def one(x):
        if _is_key(x):
            return (np.array(jax.random.key_data(x)), str(jax.random.key_impl(x)))
        return np.array(x)

    leaves, structure = jax.tree.flatten(tree)
    return [one(x) for x in leaves], structure


def thawed(held):
    leaves, structure = held
    arrays = [
        jax.random.wrap_key_data(x[0], impl=x[1]) if isinstance(x, tuple) else jnp.asarray(x)
        for x in leaves
    ]
    return jax.tree.unflatten(structure, arrays)


@pytest.mark.parametrize("case", CASES)
def test_a_run_continues_from_a_copy_as_if_nothing_had_happened(case):
    loop = in_the_world(case)
    state, actors, first = loop.run(*begun(case), 6)
    held, first = frozen((state, actors)), plain(first)
    state, actors, second = (plain(x) for x in loop.run(state, actors, 7))
    if case == "side by side":
        in_the_world.cache_clear()  # Nor does it matter whose program it is.
    again = [plain(x) for x in in_the_world(case).run(*thawed(held), 7)]
    assert_same(again, [state, actors, second])
    assert state.updates == 13
    # In one call it is the same, too.
    *whole, report = (plain(x) for x in loop.run(*begun(case), 13))
    assert_same(whole, [state, actors])
    assert_same(report, summed([first, second]), rtol=1e-6)


@pytest.mark.parametrize("case", ["in turn", "with replay"])
def test_the_state_is_used_up_and_the_actors_are_not(case):
    loop = in_the_world(case)
    state, actors = begun(case)
    _, _, report = loop.run(state, actors, 6)
    assert all(x.is_deleted() for x in jax.tree.leaves(state))
    assert not any(x.is_deleted() for x in jax.tree.leaves(actors))
    again = loop.run(begun(case)[0], actors, 6)
    assert_same(plain(again[2]), plain(report))
    loop.run(*again[:2], 1)
    assert all(x.is_deleted() for x in jax.tree.leaves(again[0]))
    assert not any(x.is_deleted() for x in jax.tree.leaves(again[1:]))


def test_collecting_is_what_an_update_does_before_it_learns():
    loop = in_the_world("in turn")
    state, actors = begun("in turn")
    after, rollout = loop.collect(state, actors)
    np.testing.assert_array_equal(rollout.observation[0], actors.step.observation)
    np.testing.assert_array_equal(rollout.observation[-1], after.step.observation)
    _, then, _ = loop.run(state, actors, 1)
    assert_same(plain(after), plain(then))


@pytest.mark.parametrize("seeds", [(1,), (1, 4)])
def test_no_buffer_of_a_state_is_in_it_twice(seeds):
    """Or it could not be given away; the target network begins as a copy."""
    state = initial(replay_agent(), seeds)
    leaves = [jax.random.key_data(x) if _is_key(x) else x for x in jax.tree.leaves(state)]
    where = [x.unsafe_buffer_pointer() for x in leaves if x.size]
    assert len({*where}) == len(where)


def test_vectors_of_integers_train():
    game = "Blackjack-v1"
    loop = make("graph", game, linear_agent(game), seeds=(3, 5))
    state = initial(loop.agent, (3, 5))
    before = plain(state).agent.params["w"]
    state, _, report = loop.run(state, loop.start(), 3)
    after = plain(state).agent.params["w"]
    assert np.all(np.isfinite(after))
    assert np.all(np.any(after != before, axis=(1, 2)))
    np.testing.assert_array_equal(report.metrics.sums["skipped"], 0)
    assert np.sum(report.finished.games) > 0


def test_no_updates_are_refused():
    for driver in ("graph", "halves"):
        loop = make(driver, "Catch-v0", linear_agent("Catch-v0"))
        state = initial(loop.agent, (3,))
        with pytest.raises(ValueError, match="updates"):
            loop.run(state, loop.start(), 0)


def test_what_a_loop_is_made_of():
    loop = make("halves", "Catch-v0", linear_agent("Catch-v0"), seeds=(3, 5))
    assert loop.batch_shape == (2, ENVS)
    assert loop.steps_per_update == LENGTH * ENVS
    assert in_the_world("in turn").steps_per_update == 20
    one, two = (HostEnvPool("Catch-v0", num_envs=2, seeds=s) for s in ((1,), (1, 2)))
    for pools in ([], [one, two]):
        with pytest.raises(ValueError, match="the same number of seeds"):
            HostLoop(pools, linear_agent("Catch-v0"), length=3)
    agent = linear_agent("Catch-v0")
    with pytest.raises(ValueError, match="length"):
        GraphLoop(worlds.World(2), agent, length=0)
    with pytest.raises(ValueError, match="length"):
        HostLoop([one], agent, length=0)


@pytest.mark.parametrize("failing", ["recv", "send", "_learn"])
def test_after_an_error_in_the_middle_only_fresh_games_do(failing, monkeypatch):
    """The emulators are ahead then of what the caller has."""
    loop, agent = make("halves", "Catch-v0", linear_agent("Catch-v0")), linear_agent("Catch-v0")
    actors, calls = loop.start(), iter(range(100))
    owner: Any = loop if failing == "_learn" else HostEnvPool
    original = getattr(owner, failing)

    def fails(*args):
        if next(calls) == 3:
            raise RuntimeError("unplugged")
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(owner, failing, fails)
        with pytest.raises(RuntimeError, match="unplugged"):
            loop.run(initial(agent, (3,)), actors, 4)
    for go_on in (
        lambda: loop.run(initial(agent, (3,)), actors, 1),
        lambda: loop.collect(0, actors),
    ):
        with pytest.raises(ValueError, match=r"^HostLoop: .* middle of a rollout.*loop\.start\(\)"):
            go_on()
    fresh = loop.start()
    # Not the answer to a step that was still on its way: every ball is in the first row.
    assert (np.asarray(fresh.step.observation)[:, :, 0].sum(axis=-1) == 1).all()
    assert loop.run(initial(agent, (3,)), fresh, 1)[0].updates == 1
