"""Forward passes made once: what is kept, and that with it everything is as without."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxsoft.agents import _reuse, on_policy
from jaxsoft.agents.networks import MLP, ActorCritic, NatureCNN
from jaxsoft.agents.on_policy import Objective
from jaxsoft.environments import EnvPool
from jaxsoft.training.collect import Rollout
from jaxsoft.training.loop import GraphLoop, initial
from tests.support.bridge import assert_trees_close

T, N, A, WIDE = 6, 3, 4, 128


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape) / np.sqrt(shape[0]))


def mixed(params, x):
    """Wide products and narrow ones, in calls, branches and loops, and some of parameters alone."""
    a, b, c, loop = params
    h = jax.nn.relu(x @ a)
    h = jax.jit(lambda h: jnp.tanh(h @ (b @ b)))(h)
    h, _ = jax.lax.scan(lambda h, w: (jnp.sin(h @ w), None), h, loop)
    h = jax.lax.cond(jnp.sum(h) > 0, lambda h: 2 * h @ b, lambda h: h @ b, h)
    h = jax.checkpoint(lambda h: jnp.sin(h @ b))(h)
    return (h @ c)[..., :2] @ c[:2, :2], h[..., 0]


PARAMS = normal(0, 5, WIDE), normal(1, WIDE, WIDE), normal(2, WIDE, 3), normal(3, 2, WIDE, WIDE)
DATA = normal(4, T, N, 5)


def kept_at_each_time(network, params, data):
    return jax.lax.scan(lambda _, x: (None, _reuse.kept(network, params, x)), None, data)[1]


def test_what_is_kept_are_the_dear_products_of_data():
    out, products = _reuse.kept(mixed, PARAMS, DATA[0])
    assert_trees_close(out, mixed(PARAMS, DATA[0]))
    a, b, c, loop = PARAMS
    first = jax.nn.relu(DATA[0] @ a) @ (b @ b)
    h = jnp.tanh(first)
    for w in loop:
        h = jnp.sin(h @ w)
    h = (2 if h.sum() > 0 else 1) * h @ b
    assert_trees_close(products, [first, h @ b, jnp.sin(h @ b) @ c])


def test_recalled_is_the_network_but_for_the_values_given():
    _, products = _reuse.kept(mixed, PARAMS, DATA[0])
    recalled = _reuse.recalled(mixed, PARAMS, DATA[0], products)
    assert_trees_close(recalled, mixed(PARAMS, DATA[0]))
    # It is from the values, not from what they would have been.
    out, _ = _reuse.recalled(mixed, PARAMS, DATA[0], [*products[:2], products[2] + 1])
    assert_trees_close(out, (products[2] + 1)[..., :2] @ PARAMS[2][:2, :2])


@pytest.mark.parametrize("block", [1, 2**13, 2**14, 2**40])
def test_pulling_back_is_differentiating(monkeypatch, block):
    monkeypatch.setattr(_reuse, "_BLOCK", block)
    _, products = kept_at_each_time(mixed, PARAMS, DATA)
    out, pull = _reuse.pullback(mixed, PARAMS, DATA, products)
    # A branch is taken for each time, as when it was kept.
    expected, transpose = jax.vjp(lambda p: jax.lax.map(lambda x: mixed(p, x), DATA), PARAMS)
    assert_trees_close(out, expected)
    cotangents = jax.tree.map(jnp.cos, expected)
    assert_trees_close(pull(cotangents), transpose(cotangents))


def blocks_of(block, monkeypatch):
    monkeypatch.setattr(_reuse, "_BLOCK", block)
    _, products = kept_at_each_time(mixed, PARAMS, DATA)
    one = sum(x.nbytes for x in products) / T
    program = jax.make_jaxpr(_reuse.pullback(mixed, PARAMS, DATA, products)[1])(mixed(PARAMS, DATA))
    [loop] = [eqn for eqn in program.eqns if eqn.primitive.name == "scan"][-1:]
    return one, T // loop.params["length"]


@pytest.mark.parametrize(("room", "expected"), [(0, 1), (1, 1), (2.5, 2), (5, 3), (6, 6), (99, 6)])
def test_blocks_are_the_largest_that_divide_and_fit(monkeypatch, room, expected):
    one, _ = blocks_of(1, monkeypatch)
    assert blocks_of(int(room * one), monkeypatch)[1] == expected


def test_nothing_dear_nothing_kept():
    network = ActorCritic(MLP((64, 64)), A, 1)
    x = jnp.ones((N, 50))
    assert _reuse.kept(network.apply, network.init(jax.random.key(0), x), x)[1] == []


# ---- In learners ---------------------------------------------------------------------------------


def image_learner(algorithm, dtype=jnp.float64):
    network = ActorCritic(NatureCNN(dtype, native=False), A, 3)

    def start(key):
        params = network.init(key, jnp.zeros((1, 2, 36, 40), jnp.uint8))
        return jax.tree.map(lambda x: x.astype(jnp.promote_types(dtype, jnp.float32)), params)

    return on_policy.learner(
        network.apply,
        start,
        algorithm,
        optimiser=optax.sgd(1.0),
        objective=Objective(0.3, 0.9, 3, 0.7),
    )


def image_rollout(seed=0):
    rng = np.random.default_rng(seed)
    return Rollout(
        observation=jnp.asarray(rng.integers(0, 256, (T + 1, N, 2, 36, 40), np.uint8)),
        action=jnp.asarray(rng.integers(A, size=(T, N))),
        reward=jnp.asarray(rng.normal(size=(T, N))),
        terminated=jnp.asarray(rng.random((T, N)) < 0.2),
        truncated=jnp.asarray(rng.random((T, N)) < 0.1),
        weight=jnp.asarray(rng.integers(0, 2, (T, N)), float),
        reset=jnp.zeros((T + 1, N), bool),
    )


def acted(learner, state, rollout):
    """The rollout with what acting in it keeps."""

    def act(_, now):
        observation, keys = now
        return None, learner.act_and_keep(state, observation, keys)

    keys = jax.vmap(lambda key: jax.random.split(key, N))(jax.random.split(jax.random.key(1), T))
    action, kept = jax.lax.scan(act, None, (rollout.observation[:-1], keys))[1]
    without = jax.vmap(learner.act, (None, 0, 0))(state, rollout.observation[:-1], keys)
    np.testing.assert_array_equal(action, without)
    return rollout._replace(kept=kept)


@pytest.mark.parametrize("name", ["a2c", "soft_q", "a2c_naive", "pgq", "nstep_soft_q"])
def test_an_update_is_the_same_with_what_was_kept(name):
    learner, rollout = image_learner(on_policy.ALGORITHMS[name]), image_rollout()
    state = jax.jit(learner.init)(jax.random.key(0))
    kept = acted(learner, state, rollout)
    assert len(kept.kept) == 5  # not the dense layer: 64 features, once
    update = jax.jit(learner.update)
    key = jax.random.key(2)
    assert_trees_close(update(state, kept, key), update(state, rollout, key))


def test_half_precision():
    learner, rollout = image_learner(on_policy.a2c, jnp.bfloat16), image_rollout()
    state = jax.jit(learner.init)(jax.random.key(0))
    kept = acted(learner, state, rollout)
    assert {x.dtype for x in kept.kept[:4]} == {jnp.dtype(jnp.bfloat16)}
    update = jax.jit(learner.update)
    (one, m), (other, n) = (update(state, x, jax.random.key(2)) for x in (kept, rollout))
    assert abs(m["gradient_norm"] / n["gradient_norm"] - 1) < 0.05
    gradients = (jax.tree.map(jnp.subtract, x.params, state.params) for x in (one, other))
    a, b = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(g)]) for g in gradients)
    assert a @ b > 0.99 * np.linalg.norm(a) * np.linalg.norm(b)


def test_the_forward_products_are_not_computed_again():
    learner, rollout = image_learner(on_policy.a2c, jnp.float32), image_rollout()
    rollout = jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == float else x, rollout)
    state = jax.jit(learner.init)(jax.random.key(0))

    def convolutions(rollout):
        program = jax.jit(learner.update).lower(state, rollout, jax.random.key(0)).compile()
        return program.as_text().count(" convolution(")

    # Forward 3 and backward 5, of which the first kernel's is one; 3 for the last state.
    assert convolutions(rollout) == 3 + 3 + 5
    assert convolutions(acted(learner, state, rollout)) == 3 + 5


@pytest.mark.parametrize("name", ["pcl", "natural_pg", "own"])
def test_who_cannot_use_it_keeps_nothing(name):
    def own(at, rollout, objective):
        return at.v[1:] + on_policy.a2c(at, rollout, objective)

    if name == "natural_pg":
        learner = on_policy.learner(
            lambda p, x: p,
            lambda key: 0.0,
            gradient=on_policy.natural_pg(),
            optimiser=optax.sgd(1.0),
            objective=Objective(),
        )
    else:
        learner = image_learner(own if name == "own" else on_policy.pcl)
    assert learner.act_and_keep is None


@pytest.mark.parametrize("seeds", [(3,), (3, 5)])
def test_training_is_the_same_as_without(seeds):
    def trained(keep):
        pool = EnvPool("CartPole-v1", num_envs=4, seeds=seeds)
        network = ActorCritic(MLP((WIDE, WIDE)), pool.num_actions, 1)
        learner = on_policy.learner(
            network.apply,
            lambda key: network.init(key, jnp.zeros((1, 4))),
            on_policy.soft_q,
            optimiser=optax.sgd(0.1),
            objective=Objective(0.1, n=5),
        )
        if not keep:
            learner = learner._replace(act_and_keep=None)
        loop = GraphLoop(pool, learner, length=5)
        state, _, report = loop.run(initial(learner, seeds), loop.start(), 8)
        return jax.tree.map(np.asarray, (state.learner.params, report))

    assert_trees_close(trained(True), trained(False), tolerance=2e-4)
