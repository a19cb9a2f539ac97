"""Two skills in one: compose soft Q-functions, and learn the error that is left.

Let Q₁ and Q₂ be the soft optima of rewards r₁ and r₂, at the same γ, τ and prior π̄. Then, for any
weights w, negative ones included,

    Q*[Σ wᵢrᵢ] = Σ wᵢQᵢ + X,    X the soft optimum of reward 0 under the measure π̄ Π (πᵢ/π̄)^wᵢ

so X is learned as the skills were, from transitions without rewards. If the weights are a mean
(w ≥ 0, Σw = 1), then −U ≤ X ≤ 0, with U known from the policies' overlap.

Fine-tuning needs no correction: with the soft optimum of r₁ at τ₁ as the prior, the soft optimum of
r₂ at τ₂ is that of r₂ + (τ₂/τ₁) r₁ under the old prior.

The world is a windy grid. One skill is to be in its right column, the other in its top row, and one
random walk is all that is known of it. What to see: Σ wQ misses the optimum; Σ wQ + X is the one
that the same walk teaches from scratch, to rounding; and acting by it loses far less in the world.
"""

import jax
import jax.numpy as jnp
import numpy as np

import jaxsoft

SIZE, MOVES = 5, np.array([[0, 1], [0, -1], [1, 0], [-1, 0]])
GAMMA, TAU, TUNING_TAU, WIND = 0.9, 0.3, 0.6, 0.2
STEPS, UPDATES = 10_000, 300
CELLS = np.arange(SIZE**2)
RIGHT, TOP = np.float64(CELLS % SIZE == SIZE - 1), np.float64(CELLS < SIZE)  # paid on arrival
UNIFORM = np.full([SIZE**2, len(MOVES)], -np.log(len(MOVES)))
WEIGHTS = {
    "mean": (0.5, 0.5),
    "mostly right": (0.8, 0.2),
    "sum": (1.0, 1.0),
    "right, not top": (1.0, -1.0),
}


def world():
    """P(s'|s,a): a move, or with probability WIND any of them."""
    places = np.stack(np.divmod(CELLS, SIZE), axis=-1)
    row, column = np.moveaxis(np.clip(places[:, None] + MOVES, 0, SIZE - 1), -1, 0)
    moved = np.eye(SIZE**2)[SIZE * row + column]
    return jnp.asarray((1 - WIND) * moved + WIND * moved.mean(1, keepdims=True))


def walk(key):
    """The data: (s, a, s') of each step."""
    log_p = jnp.log(world())

    def step(s, key):
        for_action, for_end = jax.random.split(key)
        a = jax.random.randint(for_action, [], 0, len(MOVES))
        end = jax.random.categorical(for_end, log_p[s, a])
        return end, (s, a, end)

    return jax.lax.scan(step, jnp.asarray(0), jax.random.split(key, STEPS))[1]


@jax.jit
def learn(data, reward, tau, log_prior):
    """Soft Q from the walk alone: gradient steps on squared errors, all (s, a) counting alike."""
    s, a, end = data
    weight = 1 / jnp.zeros(UNIFORM.shape).at[s, a].add(1)[s, a]

    def loss(q):
        y = jaxsoft.one_step_targets(reward[end], GAMMA, q[end], tau=tau, log_prior=log_prior[end])
        return jnp.sum(weight * jaxsoft.soft_q_loss(q[s], a, y))

    return jax.lax.fori_loop(0, UPDATES, lambda _, q: q - jax.grad(loss)(q), 0 * UNIFORM)


def compose(data, qs, weights):
    log_ratios = [jaxsoft.log_policy(q, TAU) - UNIFORM for q in qs]
    composed, log_ratio, reward = (
        weights[0] * one + weights[1] * other for one, other in (qs, log_ratios, (RIGHT, TOP))
    )
    x = learn(data, 0 * TOP, TAU, UNIFORM + log_ratio)
    scratch = learn(data, reward, TAU, UNIFORM)
    result = {
        "error": jnp.max(jnp.abs(scratch - composed)),
        "with X": jnp.max(jnp.abs(scratch - (composed + x))),
        "min X": jnp.min(x),
        "max X": jnp.max(x),
        "loses": lost(composed, reward),
        "X loses": lost(composed + x, reward),
    }
    if min(weights) >= 0 and sum(weights) == 1:
        overlap = jax.nn.logsumexp(UNIFORM + log_ratio, axis=-1)
        result["bound"] = -jnp.max(learn(data, -GAMMA * TAU * overlap, 0.0, UNIFORM))
    return result


@jax.jit
def lost(q, reward):
    """What the policy of `q` is short of the optimum in the world itself, a mean over cells."""
    log_pi, p = jaxsoft.log_policy(q, TAU), world()

    def back_up(_, values):
        best, own = (p @ (reward + GAMMA * v) for v in values)
        return jaxsoft.soft_value(best, TAU), jaxsoft.policy_value(own, log_pi, TAU)

    best, own = jax.lax.fori_loop(0, UPDATES, back_up, (jnp.zeros(SIZE**2),) * 2)
    return jnp.mean(best - own)


def fine_tune(data, q):
    """How far log π, tuned from right to top, is from that of sums of the rewards."""
    log_old = jaxsoft.log_policy(q, TAU)
    tuned = learn(data, TOP, TUNING_TAU, log_old)
    log_pi = jaxsoft.log_policy(tuned, TUNING_TAU, log_old)

    def distance(share):
        both = learn(data, TOP + share * RIGHT, TUNING_TAU, UNIFORM)
        return jnp.max(jnp.abs(log_pi - jaxsoft.log_policy(both, TUNING_TAU)))

    return {share: distance(share) for share in (1.0, TUNING_TAU / TAU)}


def main():
    data = walk(jax.random.key(0))
    qs = [learn(data, reward, TAU, UNIFORM) for reward in (RIGHT, TOP)]
    print("                                  error of                X               value lost by")
    print("weights of right, top         Σ wQ  Σ wQ + X    from     to  bound      Σ wQ  Σ wQ + X")
    for name, weights in WEIGHTS.items():
        r = compose(data, qs, weights)
        bound = f"{r['bound']:.2f}" if "bound" in r else "–"
        print(
            f"{weights[0]:+.1f}, {weights[1]:+.1f}  {name:<16}{r['error']:8.2f}{r['with X']:10.1e}"
            f"{r['min X']:8.2f}{r['max X']:7.2f}{bound:>7}{r['loses']:10.3f}{r['X loses']:10.3f}"
        )
    print(f"\nTop at τ = {TUNING_TAU}, from right at τ = {TAU} as the prior     distance in log π")
    for share, distance in fine_tune(data, qs[0]).items():
        print(f"to the optimum of top + {share:.0f} · right {distance:33.1e}")


if __name__ == "__main__":
    with jax.enable_x64(True):
        main()
