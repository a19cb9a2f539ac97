"""Forward passes made once: what is kept, and that with it everything is as without."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxsoft import _convolution
from jaxsoft.agents import _reuse, on_policy
from jaxsoft.agents.base import Rollout
from jaxsoft.agents.networks import MLP, ActorCritic, NatureCNN
from jaxsoft.agents.on_policy import Objective, direction_of
from jaxsoft.environments import EnvPool, HostEnvPool
from jaxsoft.training.graph import GraphLoop
from jaxsoft.training.host import HostLoop
from jaxsoft.training.loop import initial
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


def images(params, x):
    """Convolutions of both kinds, then dense layers; the last one's result is all they are told."""
    first, second, dense, out = params
    h = jax.nn.relu(_convolution.convolve(x, first, 2))
    h = jax.lax.conv_general_dilated(h, second, (1, 1), "SAME", dimension_numbers=AXES)
    h = jnp.tanh(jnp.tanh(h).reshape(h.shape[0], -1) @ dense)
    return h @ out, h[:, 0] * jnp.sum(dense)


def around(params, x):
    """Something goes around the last convolution."""
    first, second, dense, out = params
    h = jax.nn.relu(_convolution.convolve(x, first, 2))
    h += jax.lax.conv_general_dilated(h, second, (1, 1), "SAME", dimension_numbers=AXES)
    h = jnp.tanh(h.reshape(h.shape[0], -1) @ dense)
    return h @ out, h[:, 0] * jnp.sum(second)


AXES = ("NHWC", "HWIO", "NHWC")
IMAGE_PARAMS = tuple(
    normal(5 + i, *sizes)
    for i, sizes in enumerate([(4, 4, 8, 16), (3, 3, 16, 16), (144, WIDE), (WIDE, 2)])
)
IMAGES = normal(9, T, N, 8, 8, 8)


@pytest.mark.parametrize("block", [1, 2**15, 2**16, 2**40])
@pytest.mark.parametrize(
    ("network", "params", "data"),
    [(mixed, PARAMS, DATA), (images, IMAGE_PARAMS, IMAGES), (around, IMAGE_PARAMS, IMAGES)],
)
def test_pulling_back_is_differentiating(network, params, data, block, monkeypatch):
    monkeypatch.setattr(_reuse, "_BLOCK", block)
    _, products = kept_at_each_time(network, params, data)
    out, pull = _reuse.pullback(network, params, data, products)
    # A branch is taken for each time, as when it was kept.
    expected, transpose = jax.vjp(lambda p: jax.lax.map(lambda x: network(p, x), data), params)
    assert_trees_close(out, expected)
    cotangents = jax.tree.map(jnp.cos, expected)
    assert_trees_close(pull(cotangents), transpose(cotangents))
    on_cuda = jax.export.export(jax.jit(pull), platforms=["cuda"])(cotangents)
    assert "while" not in on_cuda.mlir_module() or network is mixed


def lengths(network, params, data, room, monkeypatch):
    """Of the loop over blocks, if there is one, with room for the products of so many times."""
    _, products = kept_at_each_time(network, params, data)
    upto = sum(x.nbytes for x in products[:2])
    monkeypatch.setattr(_reuse, "_BLOCK", int(room * upto / T))
    out, pull = _reuse.pullback(network, params, data, products)
    [choice] = [eqn for eqn in jax.make_jaxpr(pull)(out).eqns if eqn.primitive.name == "cond"]
    branches = [{e.primitive.name: e.params for e in b.eqns} for b in choice.params["branches"]]
    assert sum("scan" in branch for branch in branches) <= 1
    return [branch["scan"]["length"] for branch in branches if "scan" in branch]


@pytest.mark.parametrize(("room", "expected"), [(0, 1), (1, 1), (2.5, 2), (5, 3), (6, 6), (99, 6)])
def test_blocks_are_the_largest_that_divide_and_fit(monkeypatch, room, expected):
    assert lengths(images, IMAGE_PARAMS, IMAGES, room, monkeypatch) == [T // expected]


def test_only_what_leads_to_the_last_convolution_is_pulled_back_in_blocks(monkeypatch):
    assert _reuse._waist(images, IMAGE_PARAMS, IMAGES[0]) == (1, [0, 1])
    for network in (mixed, around):
        params, data = (PARAMS, DATA) if network is mixed else (IMAGE_PARAMS, IMAGES)
        assert _reuse._waist(network, params, data[0]) == (None, [])
    # No loop of the pullback's own.
    assert lengths(around, IMAGE_PARAMS, IMAGES, 1, monkeypatch) == []


def test_nothing_dear_nothing_kept():
    network = ActorCritic(MLP((64, 64)), A, 1)
    x = jnp.ones((N, 50))
    assert _reuse.kept(network.apply, network.init(jax.random.key(0), x), x)[1] == []


def sideways(params, x):
    """Its first product has the batch last."""
    a, b, _ = params
    h = jnp.tanh(a.T @ x.T)
    return jnp.tanh(h.T @ b), h[0]


@pytest.mark.parametrize("features", [N, N + 1, WIDE])
def test_a_product_along_another_axis_is_not_kept(features):
    """Be there as many features as the batch is large, too."""
    params = normal(5, WIDE, features), normal(6, features, 2), normal(7, WIDE, WIDE)
    data = normal(8, T, N, WIDE)
    out, products = _reuse.kept(sideways, params, data[0])
    assert_trees_close(out, sideways(params, data[0]))
    expected = [jnp.tanh(data[0] @ params[0]) @ params[1]] if features == WIDE else []
    assert_trees_close(products, expected)
    _, products = kept_at_each_time(sideways, params, data)
    out, pull = _reuse.pullback(sideways, params, data, products)
    expected, transpose = jax.vjp(lambda p: jax.vmap(lambda x: sideways(p, x))(data), params)
    assert_trees_close(out, expected)
    cotangents = jax.tree.map(jnp.cos, expected)
    assert_trees_close(pull(cotangents), transpose(cotangents))


# ---- In agents -----------------------------------------------------------------------------------


def image_agent(step_loss, dtype=jnp.float64, **options):
    network = ActorCritic(NatureCNN(dtype, native=False), A, 3)

    def start(key):
        params = network.init(key, jnp.zeros((1, 2, 36, 40), jnp.uint8))
        return jax.tree.map(lambda x: x.astype(jnp.promote_types(dtype, jnp.float32)), params)

    return on_policy.agent(
        network.apply,
        start,
        step_loss,
        head=on_policy.actor_critic_head,
        optimiser=optax.sgd(1.0),
        objective=Objective(0.3, 0.9, 3, 0.7),
        **{"differentiates_target": False} | options,
    )


def image_rollout(seed=0):
    rng = np.random.default_rng(seed)
    terminated, truncated = rng.random((T, N)) < 0.2, rng.random((T, N)) < 0.1
    return Rollout(
        observation=jnp.asarray(rng.integers(0, 256, (T + 1, N, 2, 36, 40), np.uint8)),
        action=jnp.asarray(rng.integers(A, size=(T, N))),
        reward=jnp.asarray(rng.normal(size=(T, N))),
        discount=jnp.asarray(1.0 - terminated),
        cut=jnp.asarray(terminated | truncated),
        weight=jnp.asarray(rng.integers(0, 2, (T, N)), float),
        first=jnp.zeros((T + 1, N), bool),
    )


def acted(agent, state, rollout):
    """The rollout with what acting in it leaves."""

    def act(_, now):
        return None, agent.act(state, None, *now)[::2]

    keys = jax.random.split(jax.random.key(1), (T, N))
    _, extras = jax.lax.scan(act, None, (rollout.observation[:-1], keys))[1]
    return rollout._replace(extras=extras)


LOSSES = ("a2c", "soft_q", "a2c_naive", "pgq", "nstep_soft_q")


@pytest.mark.parametrize("name", LOSSES)
def test_an_update_is_the_same_with_what_was_kept(name):
    agent, rollout = image_agent(getattr(on_policy, name)), image_rollout()
    state = jax.jit(agent.init)(jax.random.key(0))
    kept = acted(agent, state, rollout)
    assert len(kept.extras.products) == 5  # not the dense layer: 64 features, once
    update = jax.jit(agent.update)
    key = jax.random.key(2)
    assert_trees_close(update(state, kept, key), update(state, rollout, key))
    none = rollout._replace(extras=kept.extras._replace(products=[]))
    assert_trees_close(update(state, none, key), update(state, rollout, key))


def test_products_are_taken_as_given():
    """Whatever they are: what is learned follows from them, and so they are used."""
    agent, rollout = image_agent(on_policy.a2c), image_rollout()
    state = jax.jit(agent.init)(jax.random.key(0))
    kept = acted(agent, state, rollout)
    *others, last = kept.extras.products
    spoilt = kept._replace(extras=kept.extras._replace(products=[*others, 100 * last]))
    update = jax.jit(agent.update)
    params = [update(state, x, jax.random.key(2))[0].params for x in (kept, spoilt)]
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), *params)
    assert max(jax.tree.leaves(moved)) > 1e-3


def test_half_precision():
    agent, rollout = image_agent(on_policy.a2c, jnp.bfloat16), image_rollout()
    state = jax.jit(agent.init)(jax.random.key(0))
    kept = acted(agent, state, rollout)
    assert {x.dtype for x in kept.extras.products[:4]} == {jnp.dtype(jnp.bfloat16)}
    update = jax.jit(agent.update)
    (one, m), (other, n) = (update(state, x, jax.random.key(2)) for x in (kept, rollout))
    assert abs(m.sums["gradient_norm"] / n.sums["gradient_norm"] - 1) < 0.05
    gradients = (jax.tree.map(jnp.subtract, x.params, state.params) for x in (one, other))
    a, b = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(g)]) for g in gradients)
    assert a @ b > 0.99 * np.linalg.norm(a) * np.linalg.norm(b)


def test_the_forward_products_are_not_computed_again():
    agent, rollout = image_agent(on_policy.a2c, jnp.float32), image_rollout()
    rollout = jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == float else x, rollout)
    state = jax.jit(agent.init)(jax.random.key(0))

    def convolutions(rollout):
        program = jax.jit(agent.update).lower(state, rollout, jax.random.key(0)).compile()
        text = program.as_text()
        assert text is not None
        return text.count(" convolution(")

    # Forward 3 and backward 5, of which the first kernel's is one; 3 for the last state.
    assert convolutions(rollout) == 3 + 3 + 5
    assert convolutions(acted(agent, state, rollout)) == 3 + 5


def test_who_cannot_use_it_keeps_nothing():
    """Of a loss of one's own nothing is known; it may differentiate what it bootstraps from."""

    def own(at, rollout, objective):
        return at.v[1:] + on_policy.a2c(at, rollout, objective)

    agent, rollout = image_agent(own, differentiates_target=True), image_rollout()
    state = jax.jit(agent.init)(jax.random.key(0))
    kept = acted(agent, state, rollout)
    assert kept.extras.products == []
    assert kept.extras.log_mu.shape == (T, N)
    # Nor does it use what another has kept.
    other = acted(image_agent(on_policy.a2c), state, rollout)
    update = jax.jit(agent.update)
    key = jax.random.key(2)
    assert_trees_close(update(state, other, key), update(state, rollout, key), 1e-12)


def dense(params, observation):
    """(v, log π) of CartPole through a product whose batch axis is last, and two others."""
    a, b, c, d = params
    lead = observation.shape[:-1]
    h = jnp.tanh(observation.reshape(-1, 4) @ a)
    h = jnp.tanh((b @ h.T).T)
    out = jnp.tanh(h @ c) @ d
    return out[:, 0].reshape(lead), jax.nn.log_softmax(out[:, 1:]).reshape(*lead, 2)


def init_dense(key):
    shapes = (4, WIDE), (WIDE, WIDE), (WIDE, WIDE), (WIDE, 3)
    keys = jax.random.split(key, len(shapes))
    return [
        jax.random.normal(k, shape, jnp.float32) / shape[0] ** 0.5
        for k, shape in zip(keys, shapes, strict=True)
    ]


def perceptron():
    network = ActorCritic(MLP((WIDE, WIDE)), 2, 1)
    return network.apply, lambda key: network.init(key, jnp.zeros((1, 4)))


@pytest.mark.parametrize(
    ("network", "products", "seeds", "parts"),
    [
        (perceptron(), 3, (3,), None),
        (perceptron(), 3, (3, 5), None),
        # From the host, the products of two pools are joined.
        ((dense, init_dense), 2, (3, 5), [(0, 1), (1, 4)]),
    ],
    ids=["one seed", "two seeds", "batch axis last"],
)
def test_training_is_the_same_as_without(network, products, seeds, parts):
    network_fn, init_params = network

    def agent(keep):
        direction = direction_of(on_policy.soft_q, differentiates_target=False)
        return on_policy.agent_along(
            network_fn,
            init_params,
            direction._replace(recalls=keep),
            head=on_policy.actor_critic_head,
            optimiser=optax.sgd(0.1),
            objective=Objective(0.1, n=5),
        )

    def trained(keep):
        shared: dict[str, Any] = {"num_envs": 4, "seeds": seeds}
        loop: GraphLoop | HostLoop
        if parts and keep:
            pools = [HostEnvPool("CartPole-v1", part=part, **shared) for part in parts]
            loop = HostLoop(pools, agent(keep), length=5)
        else:
            loop = GraphLoop(EnvPool("CartPole-v1", **shared), agent(keep), length=5)
        state, _, report = loop.run(initial(loop.agent, seeds), loop.start(), 8)
        return jax.tree.map(np.asarray, (state.agent.params, report))

    state = agent(True).init(jax.random.key(0))
    seen, keys = jnp.zeros((3, 4), jnp.float32), jax.random.split(jax.random.key(0), 3)
    assert len(agent(True).act(state, None, seen, keys)[2].products) == products
    assert agent(False).act(state, None, seen, keys)[2].products == []
    assert_trees_close(trained(True), trained(False), tolerance=2e-4)
