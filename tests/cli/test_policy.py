"""What was trained acts in other programs as it did in its own."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import envpool
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsoft
from jaxsoft.cli import assembly, evaluate, train
from jaxsoft.cli.config import complete, to_json
from jaxsoft.cli.policy import Policy
from jaxsoft.training.loop import initial

ROOT = Path(__file__).parents[2]
SEEDS = (0, 3)
SMALL = ["--num-envs", "2", "--rollout-length", "4", "--hidden", "8", "--seeds", "0", "3"]
RING = ["--capacity", "16", "--learning-starts", "8", "--batch-size", "2", "--epsilon", "0.4"]
ALGORITHMS = {"a2c": [], "soft_dqn_kl": [*RING, "--epsilon-share", "0"]}


def trained(out, game, algorithm, *words):
    given = ["--game", game, "--algorithm", algorithm, *SMALL, *words, "--out", str(out)]
    assert train.main(given) == 0
    return out


@pytest.fixture(scope="module", params=ALGORITHMS)
def run(request, tmp_path_factory):
    """A run of one update, for an algorithm with and one without a replay."""
    out = tmp_path_factory.mktemp("run") / request.param
    return trained(out, "Catch-v0", request.param, "--steps", "8", *ALGORITHMS[request.param])


@pytest.fixture(scope="module")
def observations():
    """Sixty of Catch, as EnvPool gives them [6, 10, *O]."""
    pool = envpool.make("Catch-v0", env_type="gymnasium", num_envs=6, seed=5)
    seen = [pool.reset()[0]]
    random = np.random.default_rng(0)
    while len(seen) < 10:
        seen.append(pool.step(random.integers(0, 3, 6, dtype=np.int32))[0])
    return np.stack(seen, axis=1)


@pytest.mark.parametrize("seed", [None, *SEEDS])
def test_greedy_is_the_agents_best_action(seed, run, observations):
    policy = jaxsoft.load_policy(run, seed=seed, how="greedy")
    whole = evaluate.load(run)
    i = SEEDS.index(seed or 0)
    state = jax.tree.map(lambda x: x[i], whole.state.agent)
    flat = observations.reshape(-1, *observations.shape[2:])
    keys = jax.random.split(jax.random.key(0), len(flat))
    assert whole.agent.greedy is not None
    expected, _, _ = whole.agent.greedy(state, None, jnp.asarray(flat), keys)
    action = policy(observations)
    assert (action.shape, action.dtype) == ((6, 10), jnp.int32)
    np.testing.assert_array_equal(action.ravel(), expected)
    assert len(np.unique(action)) > 1
    np.testing.assert_array_equal(policy.act(observations, jax.random.key(1)), action)


def test_one_observation_is_a_batch_of_one(run, observations):
    greedy = jaxsoft.load_policy(run, how="greedy")
    batch = greedy(observations[0])
    for one, expected in zip(observations[0], batch, strict=True):
        action = greedy(one)
        assert (action.shape, action.dtype) == ((), jnp.int32)
        assert action == expected
    sampled = jaxsoft.load_policy(run)
    for number in range(20):
        key, one = jax.random.key(number), observations[number % 6, number % 10]
        assert (
            sampled(one, key) == sampled(one[None], key)[0] == sampled(one[None, None], key)[0, 0]
        )
        assert sampled.act(one, key) == sampled(jnp.asarray(one), key)


def probabilities(run, one):
    """Of the first seed's actions: its policy, or ε-greedy around its best action."""
    whole = evaluate.load(run)
    state = jax.tree.map(lambda x: x[0], whole.state.agent)
    if whole.config.algorithm == "a2c":
        network = assembly.network(whole.config)
        return np.exp(network.apply(state.params, one[None])[1][0])
    assert whole.agent.greedy is not None
    key = jax.random.split(jax.random.key(0), 1)
    best, _, _ = whole.agent.greedy(state, None, jnp.asarray(one[None]), key)
    return 0.4 / 3 + 0.6 * np.eye(3)[best[0]]


def test_draws_have_the_policys_frequencies(run, observations):
    policy, one, count = jaxsoft.load_policy(run), observations[2, 3], 20_000
    expected = probabilities(run, one)
    batch = policy(np.broadcast_to(one, (count, *one.shape)), jax.random.key(0))
    apart = jax.vmap(lambda key: policy(one, key))(jax.random.split(jax.random.key(1), count))
    for drawn in (batch, apart):
        seen = np.bincount(drawn, minlength=3) / count
        np.testing.assert_allclose(seen, expected, atol=5 * (0.25 / count) ** 0.5)
    # The draws of a batch are apart: they are not those of its first key, one after another.
    assert (np.asarray(batch) != np.asarray(apart)).any()


def test_it_plays_a_game_as_evaluation_does(run):
    """With EnvPool alone, as in another program."""
    score, _ = evaluate.play(evaluate.load(run), 8, policy=evaluate.load(run).agent.greedy, seed=50)
    for i, seed in enumerate(SEEDS):
        policy = jaxsoft.load_policy(run, how="greedy", seed=seed)
        seeds = [(50 + seed) * 8 + j for j in range(8)]
        pool = envpool.make("Catch-v0", env_type="gymnasium", num_envs=8, seed=seeds)
        observation, _ = pool.reset()
        total = 0
        for _ in range(9):
            observation, reward, *_ = pool.step(np.asarray(policy(observation)))
            total += reward
        np.testing.assert_array_equal(score[i], total)


def test_what_it_says_of_itself(run):
    policy = jaxsoft.load_policy(str(run))
    assert policy.step == 8
    assert policy.config == to_json(evaluate.load(run).config)
    assert (policy.observation.shape, policy.observation.dtype) == ((10, 5), np.dtype(np.float32))
    assert (policy.action.shape, policy.action.dtype) == ((), np.dtype(np.int32))
    assert policy.action.categories == 3
    assert repr(policy) == f"Policy(Catch-v0, {run.name}, step 8, sampled)"


def test_it_is_compiled_once_for_each_shape(run, observations):
    policy = jaxsoft.load_policy(run)
    for number in range(3):
        policy(observations[0], jax.random.key(number))
        policy(observations[1], jax.random.key(number))
    compiled: Any = policy._act
    assert compiled._cache_size() == 1


def test_a_checkpoint_before_the_last(tmp_path, observations):
    more = ["--steps", "400", "--checkpoint-steps", "200", "--learning-rate", "0.1"]
    out = trained(tmp_path / "run", "Catch-v0", "a2c", *more)
    policies = [jaxsoft.load_policy(out, step=step, how="greedy") for step in (0, 400, None)]
    assert [policy.step for policy in policies] == [0, 400, 400]
    first, last, newest = (policy(observations) for policy in policies)
    assert (first != last).any()
    np.testing.assert_array_equal(last, newest)
    with pytest.raises(FileNotFoundError, match=r"step 7 .* \[0, 200, 400\]"):
        jaxsoft.load_policy(out, step=7)


def test_categories_are_given_as_the_environment_counts_them(tmp_path):
    out = trained(tmp_path / "run", "FrozenLake-v1", "a2c", "--steps", "8")
    policy = jaxsoft.load_policy(out, how="greedy")
    assert (policy.observation.shape, policy.observation.categories) == ((), 16)
    action = policy(np.arange(16))
    assert [policy(i) for i in range(16)] == action.tolist()
    network, state = assembly.network(evaluate.load(out).config), policy._state
    _, log_pi = network.apply(state.params, jnp.eye(16, dtype=jnp.float32))
    np.testing.assert_array_equal(action, jnp.argmax(log_pi, axis=-1))


def test_images_are_uint8_stacks():
    config = complete({"game": "Pong-v5", "algorithm": "a2c", "steps": 100})
    agent = assembly.agent(config)
    policy = Policy(evaluate.Trained(config, agent, initial(agent, config.seeds), 0))
    assert (policy.observation.shape, policy.observation.dtype) == ((4, 84, 84), np.dtype(np.uint8))
    image = np.random.default_rng(0).integers(0, 256, (2, 4, 84, 84), np.uint8)
    assert policy(image, jax.random.key(0)).shape == (2,)
    with pytest.raises(TypeError, match=r"dtype uint8, as Pong-v5 gives them, got dtype float32"):
        policy(image.astype(np.float32), jax.random.key(0))


@pytest.mark.parametrize(
    ("seen", "key", "error", "message"),
    [
        (np.zeros((10, 4)), 0, ValueError, r"shape \[10, 5\], as Catch.*, got shape \[10, 4\]\."),
        (np.zeros(5), 0, ValueError, r"shape \[10, 5\], .*, got shape \[5\]\."),
        (
            np.zeros((10, 5), int),
            0,
            TypeError,
            "dtype float32, as Catch-v0 gives them, got dtype int64",
        ),
        (np.zeros((10, 5)), None, TypeError, r"got `key` = None\. Pass jax\.random\.key\(seed\)"),
        (np.zeros((10, 5)), 7, TypeError, "expected one JAX key, got `key` = 7"),
        (np.zeros((10, 5)), "two", ValueError, r"expected one key, got keys of shape \[2\]"),
    ],
)
def test_what_it_cannot_act_on_is_refused(seen, key, error, message, run):
    keys = {
        0: jax.random.key(0),
        "two": jax.random.split(jax.random.key(0)),
    }
    with pytest.raises(error, match=message):
        jaxsoft.load_policy(run)(seen, keys.get(key, key))


def test_keys_may_be_raw(run):
    policy, seen = jaxsoft.load_policy(run), np.zeros((32, 10, 5))
    np.testing.assert_array_equal(
        policy(seen, jax.random.PRNGKey(3)), policy(seen, jax.random.key(3))
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"how": "best"}, r"one of \['sampled', 'greedy'\], got `how` = 'best'"),
        ({"seed": 1}, r"one of the run's seeds \[0, 3\], got `seed` = 1"),
    ],
)
def test_what_there_is_no_policy_of_is_refused(given, message, run):
    with pytest.raises(ValueError, match=message):
        jaxsoft.load_policy(run, **given)


def test_an_agent_that_remembers_or_has_no_best_action_is_refused(run):
    whole = evaluate.load(run)
    recurrent = whole.agent._replace(initial_carry=jnp.zeros)
    with pytest.raises(ValueError, match="whose agent remembers its games"):
        Policy(whole._replace(agent=recurrent))
    drawn = whole._replace(agent=whole.agent._replace(greedy=None))
    with pytest.raises(ValueError, match=r"one of \['sampled'\], got `how` = 'greedy'"):
        Policy(drawn, how="greedy")


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no run"):
        jaxsoft.load_policy(tmp_path)


def test_without_the_training_extra_it_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['flax'] = None; import jaxsoft\n"
        "try: jaxsoft.load_policy('run')\n"
        "except ImportError as error: print(error)"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert "jaxsoft.load_policy needs flax" in said
    assert "pip install 'jaxsoft[train]'" in said
