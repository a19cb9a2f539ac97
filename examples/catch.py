"""Your own environment, your own network, your own loop, and one loss of jaxsoft."""

import functools

import jax
import jax.numpy as jnp

import jaxsoft

ROWS, COLUMNS, ACTIONS, HIDDEN = 10, 5, 3, 64
GAMES, TAU, GAMMA, STEP_SIZE, UPDATES = 64, 0.03, 0.99, 0.5, 600


def network(params, observations):
    """Any function from observations to state values and log-probabilities."""
    hidden = jnp.tanh(observations @ params["trunk"])
    out = hidden @ params["heads"]
    return out[..., 0], jax.nn.log_softmax(out[..., 1:])


def play(params, key):
    """A game of catch per column: a ball falls, a paddle moves left, stays or moves right."""

    def observe(ball, row, paddle):
        return jnp.concatenate(
            [
                jax.nn.one_hot(ball, COLUMNS),
                jax.nn.one_hot(row, ROWS),
                jax.nn.one_hot(paddle, COLUMNS),
            ],
            axis=-1,
        )

    def step(paddle, inputs):
        row, key = inputs
        observation = observe(ball, jnp.full(GAMES, row), paddle)
        action = jaxsoft.sample_actions(key, network(params, observation)[1])
        return jnp.clip(paddle + action - 1, 0, COLUMNS - 1), (observation, action)

    start_key, step_key = jax.random.split(key)
    ball = jax.random.randint(start_key, [GAMES], 0, COLUMNS)
    start = jnp.full(GAMES, COLUMNS // 2)
    rows, keys = jnp.arange(ROWS - 1), jax.random.split(step_key, ROWS - 1)
    paddle, (observations, actions) = jax.lax.scan(step, start, (rows, keys))
    last = observe(ball, jnp.full(GAMES, ROWS - 1), paddle)
    rewards = jnp.zeros([ROWS - 1, GAMES]).at[-1].set(jnp.where(paddle == ball, 1.0, -1.0))
    discounts = jnp.full([ROWS - 1, GAMES], GAMMA).at[-1].set(0.0)  # the game ends there
    return jnp.concatenate([observations, last[None]]), actions, rewards, discounts


def loss(params, observations, actions, rewards, discounts, step_loss):
    v, log_pi = network(params, observations)  # at T + 1 states
    targets = jaxsoft.n_step_soft_q_targets(
        v, jaxsoft.kl_to_prior(log_pi[:-1]), rewards, discount_t=discounts, tau=TAU, n=5
    )
    return step_loss(v[:-1], log_pi[:-1], actions, target_t=targets, tau=TAU).mean()


@functools.partial(jax.jit, static_argnames="step_loss")
def update(params, key, step_loss):
    rollout = play(params, key)
    gradients = jax.grad(loss)(params, *rollout, step_loss)
    params = jax.tree.map(lambda p, g: p - STEP_SIZE * g, params, gradients)
    return params, rollout[2].sum(0).mean()


def initial(seed=0):
    trunk_key, heads_key = jax.random.split(jax.random.key(seed))
    return {
        "trunk": 0.5 * jax.random.normal(trunk_key, [2 * COLUMNS + ROWS, HIDDEN]),
        "heads": 0.1 * jax.random.normal(heads_key, [HIDDEN, 1 + ACTIONS]),
    }


def train(step_loss, seed=1):
    params = initial()
    for i, key in enumerate(jax.random.split(jax.random.key(seed), UPDATES), start=1):
        params, mean_return = update(params, key, step_loss)
        if i % 100 == 0:
            print(f"update {i:4}   mean return {mean_return:+.2f}")
    return params, mean_return


if __name__ == "__main__":
    print("Soft Q-learning on Q = V + τ log(π/π̄):")
    train(jaxsoft.tied_soft_q_loss)
    print("Advantage actor-critic, by another line:")
    train(jaxsoft.a2c_loss)
