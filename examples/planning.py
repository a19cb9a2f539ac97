"""The value of a position in a game of a million cells, from calls of a model alone.

Two players take turns to move a token on a ring, where a wind may carry it one cell on. Each cell
pays something on arrival; one player wants much, the other little. So, in each state,

    V(s) = ±τ log Σ_a π̄(a) exp(±Q(s,a)/τ),    Q(s,a) = E[r + γV(s')],    − at the other's turn

`jaxsoft.planning.estimate_value` estimates V of one state to within ε. It calls a model of the game
and knows nothing else of it. What to see: errors are below ε, at a price that depends on ε, and
steeply, but not on the number of cells. Value iteration, here to know the truth, visits them all.

To move, plan from where each action leads. The policy of estimated action values loses no more than
the square of their error, V − V_π̂ ≤ max|Q̂ − Q|²/2τ: rough plans make good moves.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxsoft import log_policy, planning, policy_value, soft_value

CELLS, GAMMA, TAU, WIND = 1_000_000, 0.4, 0.3, 0.2
MOVES = np.array([-1, 0, 1])
LOG_PRIOR = np.log(np.array([0.25, 0.5, 0.25], np.float32))
STARTS, EPSILONS, DRAWS, ROUGH = 100, (0.5, 0.3, 0.2), (5, 20, 80), 0.5


def model(pays):
    """A step of the game for a batch of states: all that is given to the planner."""

    def step(key, states, actions):
        wind = jax.random.bernoulli(key, WIND, actions.shape)
        cells = (states["cell"] + jnp.asarray(MOVES)[actions] + wind) % len(pays)
        return pays[cells], {"cell": cells, "turn": 1 - states["turn"]}

    return step


def planner(step, epsilon):
    """(state, key) -> V."""

    def value(state, key):
        return planning.estimate_value(
            step,
            state,
            key,
            TAU,
            epsilon=epsilon,
            discount=GAMMA,
            samples=lambda epsilon: math.ceil(0.5 / epsilon**2),
            log_prior=LOG_PRIOR,
            player=lambda states: states["turn"] == 1,
        )

    return value


def action_values(step, value, draws):
    """(state, key) -> Q, by planning from where draws of each action lead."""

    def q(state, key):
        for_step, for_value = jax.random.split(key)
        actions = jnp.repeat(jnp.arange(len(MOVES)), draws)
        states = jax.tree.map(lambda x: jnp.full(actions.shape, x), state)
        rewards, following = step(for_step, states, actions)
        v = jax.vmap(value)(following, jax.random.split(for_value, len(actions)))
        return jnp.mean((rewards + GAMMA * v).reshape(len(MOVES), draws), axis=1)

    return q


@jax.jit
def solve(pays):
    """The truth: Q [turns, cells, actions] by value iteration."""
    sign = jnp.array([1.0, -1.0])[:, None]

    def back_up(_, q):
        v = sign * soft_value(sign[..., None] * q, TAU, LOG_PRIOR)
        arrived = pays + GAMMA * v[::-1]  # where it is the other's turn
        moved = jnp.stack([jnp.roll(arrived, -move, axis=1) for move in MOVES], axis=-1)
        return (1 - WIND) * moved + WIND * jnp.roll(moved, -1, axis=1)

    return jax.lax.fori_loop(0, 25, back_up, jnp.zeros([2, len(pays), len(MOVES)]))


def game(cells=CELLS):
    """A model, states to start from, the sign of who moves there, and the true Q."""
    for_pays, for_starts = jax.random.split(jax.random.key(0))
    pays = jax.random.uniform(for_pays, [cells])
    turn = jnp.arange(STARTS) % 2
    starts = {"cell": jax.random.randint(for_starts, [STARTS], 0, cells), "turn": turn}
    return model(pays), starts, 1.0 - 2.0 * turn[:, None], solve(pays)[turn, starts["cell"]]


def at_each(starts, function):
    keys = jax.random.split(jax.random.key(1), STARTS)
    return jax.jit(lambda *each: jax.lax.map(lambda one: function(*one), each))(starts, keys)


def errors(step, starts, sign, q, epsilon):
    """Of the estimates at all starts, and how often one of them calls the model."""
    calls = []

    def counted(key, states, actions):
        calls.append(actions.size)  # as it is traced
        return step(key, states, actions)

    estimates = at_each(starts, planner(counted, epsilon))
    return estimates - sign[:, 0] * soft_value(sign * q, TAU, LOG_PRIOR), sum(calls)


def losses(sign, q, planned):
    """What moving by planned action values loses at each start, and the bound on that."""
    log_pi = log_policy(sign * planned, TAU, LOG_PRIOR)
    own = policy_value(sign * q, log_pi, TAU, LOG_PRIOR)
    bound = jnp.max(jnp.abs(planned - q), axis=1) ** 2 / (2 * TAU)
    return soft_value(sign * q, TAU, LOG_PRIOR) - own, bound


def main():
    step, starts, sign, q = game()
    print(f"values of {STARTS} states         calls each    error (rms)    largest error")
    for epsilon in EPSILONS:
        error, calls = errors(step, starts, sign, q, epsilon)
        rms, largest = jnp.sqrt(jnp.mean(error**2)), jnp.max(jnp.abs(error))
        print(f"ε = {epsilon:<20}{calls:17,}{rms:15.3f}{largest:17.3f}")
    print("\nmoves by                       value lost        at most")
    for draws in (0, *DRAWS):
        q_of = action_values(step, planner(step, ROUGH), draws)
        loss, bound = losses(sign, q, at_each(starts, q_of) if draws else jnp.zeros_like(q))
        name = f"plans, {draws} draws an action" if draws else "the prior"
        print(f"{name:<28}{jnp.mean(loss):13.4f}{jnp.mean(bound):15.4f}")


if __name__ == "__main__":
    main()
