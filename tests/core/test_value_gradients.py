"""Value gradients, against derivatives of returns that are written out."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsoft
from jaxsoft import squashed, value_gradients

T, S, A = 6, 3, 2
GAMMA, TAU = 0.9, 0.4
RNG = np.random.default_rng(0)
THETA = jnp.asarray(0.5 * RNG.normal(size=(A, S)))
DRIFT, PUSH = (jnp.asarray(0.5 * RNG.normal(size=(S, n))) for n in (S, A))
LOG_STD = jnp.full((A,), -0.7)


def dynamics(s, u):
    return jnp.sin(DRIFT @ s) + PUSH @ jnp.tanh(u)


def reward(s, u):
    return jnp.cos(s).sum() - 0.3 * jnp.sum(u**2) + s[0] * u[1]


def step_with(theta, of=lambda s: s):
    """One step of one state, with the regularised reward; the policy sees `of(s)`."""

    def step(s, noise):
        mean = jnp.tanh(theta @ of(s))
        u = mean + jnp.exp(LOG_STD) * noise
        return dynamics(s, u), reward(s, u) - TAU * squashed.log_ratio(u, mean, LOG_STD)

    return step


def value(s):
    return jnp.sin(s).sum() + 0.5 * s[0] * s[2]


def rollout(start, noise):
    _, ends = jax.lax.scan(lambda s, e: (step_with(THETA)(s, e)[0],) * 2, start, noise)
    return jnp.concatenate([start[None], ends])


NOISE = jnp.asarray(RNG.normal(size=(T, A)))
STATES = rollout(jnp.asarray(RNG.normal(size=S)), NOISE)
GRADIENTS = jax.vmap(jax.grad(value))(STATES[1:])
DISCOUNT = GAMMA * jnp.asarray([1.0, 1.0, 1.0, 0.0, 1.0, 1.0])
CUT = jnp.asarray([0, 1, 0, 0, 0, 0])
LAMBDAS = jnp.linspace(0.2, 0.9, T)


def one(step=None, states=None, noise=None, gradients=None, **how):
    options: dict[str, Any] = {"discount_t": DISCOUNT, "lambda_": 0.7, "cut_t": CUT} | how
    states = STATES[:-1] if states is None else states
    noise = NOISE if noise is None else noise
    gradients = GRADIENTS if gradients is None else gradients
    step = step or step_with(THETA)

    @jax.jit
    def compiled(*args):
        return value_gradients.targets(step, *args, **options)

    return compiled(states, noise, gradients)


def lambda_return(s, t, discount, lambda_, cut):
    """Of the path from s at time t, by recursion, with every value evaluated along it."""
    end, r = step_with(THETA)(s, NOISE[t])
    decay = 0.0 if t == T - 1 or cut[t] else lambda_[t]
    following = (1 - decay) * value(end)
    if decay:
        following += decay * lambda_return(end, t + 1, discount, lambda_, cut)
    return r + discount[t] * following


@pytest.mark.parametrize("lambda_", [0.0, 0.7, 1.0, LAMBDAS], ids=["0", "0.7", "1", "per step"])
def test_they_are_gradients_of_the_lambda_return(lambda_):
    given = one(lambda_=lambda_)
    per_step = np.broadcast_to(lambda_, T)
    gradient = jax.jit(
        lambda s, t: jax.grad(lambda_return)(s, t, DISCOUNT, per_step, np.asarray(CUT)),
        static_argnums=1,
    )
    for t in range(T):
        wanted = gradient(STATES[t], t)
        np.testing.assert_allclose(given[t], wanted, rtol=1e-11, atol=1e-13)


def test_at_zero_they_are_those_of_one_backup():
    def backup(s, noise, discount):
        end, r = step_with(THETA)(s, noise)
        return r + discount * value(end)

    wanted = jax.vmap(jax.grad(backup))(STATES[:-1], NOISE, DISCOUNT)
    np.testing.assert_allclose(one(lambda_=0.0), wanted, rtol=1e-12)


def test_a_truncation_bootstraps_and_a_termination_does_not():
    given = one(lambda_=1.0)
    own = jax.jit(jax.jacrev(step_with(THETA)))
    # Truncated after 1: ∇V of its end alone. Terminated after 3: no end at all.
    slope, paid = own(STATES[1], NOISE[1])
    np.testing.assert_allclose(given[1], paid + GAMMA * slope.T @ GRADIENTS[1], rtol=1e-12)
    np.testing.assert_allclose(given[3], own(STATES[3], NOISE[3])[1], rtol=1e-12)
    spoilt = GRADIENTS.at[0].set(1e3).at[3].set(1e3)
    np.testing.assert_allclose(one(lambda_=1.0, gradients=spoilt), given, rtol=1e-12)


@pytest.mark.parametrize("bootstrap", [False, True])
def test_the_actor_is_backpropagation_through_time(bootstrap):
    end = float(bootstrap)

    def whole(theta):
        s, total = STATES[0], 0.0
        for t in range(T):
            s, r = step_with(theta)(s, NOISE[t])
            total += GAMMA**t * r
        return total + GAMMA**T * end * value(s)

    gradients = end * GRADIENTS
    given = one(discount_t=GAMMA, lambda_=1.0, cut_t=None, gradients=gradients)
    following = jnp.concatenate([given[1:], gradients[-1:]])

    def actor(theta):
        ends, r = jax.vmap(step_with(theta))(STATES[:-1], NOISE)
        surrogate = r + GAMMA * jnp.sum(following * ends, -1)
        return jnp.sum(GAMMA ** jnp.arange(T) * surrogate)

    np.testing.assert_allclose(
        jax.jit(jax.grad(actor))(THETA), jax.jit(jax.grad(whole))(THETA), rtol=1e-11
    )


def test_the_derivative_is_along_the_policy():
    """The trap: the same with ∂, the policy's own derivative left out, is something else."""
    partial = one(step_with(THETA, jax.lax.stop_gradient), lambda_=1.0)
    total = one(lambda_=1.0)
    assert np.linalg.norm(partial - total) > 0.2 * np.linalg.norm(total)


def test_batches_trees_of_noise_and_dtypes():
    states = jnp.stack([STATES[:-1], STATES[:-1] + 1, STATES[:-1] - 1], axis=1)
    noise = {"action": jnp.stack([NOISE, 2 * NOISE, -NOISE], axis=1)}
    gradients = jnp.stack([GRADIENTS, -GRADIENTS, 2 * GRADIENTS], axis=1)

    def step(s, noise):
        return jax.vmap(step_with(THETA))(s, noise["action"])

    how = {"discount_t": DISCOUNT[:, None], "lambda_": 0.7, "cut_t": CUT[:, None]}
    whole = one(step, states, noise, gradients, **how)
    for i in range(3):
        alone = one(None, states[:, i], noise["action"][:, i], gradients[:, i])
        np.testing.assert_allclose(whole[:, i], alone, rtol=1e-12)
    low = jnp.bfloat16
    half = one(step, states.astype(low), noise, gradients.astype(low), **how)
    assert half.dtype == low
    np.testing.assert_allclose(half.astype(float), whole, rtol=0.1, atol=0.1)
    nothing = jax.tree.map(lambda x: x[:0], (states, noise, gradients))
    empty = one(step, *nothing, discount_t=0.9, cut_t=None)
    assert empty.shape == (0, 3, S)


def test_no_jacobian_is_formed():
    """One pull-back per step: nothing in the program is of the size of a Jacobian."""
    n = 37

    def step(s, noise):
        return jnp.tanh(s + noise), jnp.sum(s**2, -1)

    args = [jnp.ones((T, n))] * 3

    def f(*args):
        return value_gradients.targets(step, *args, discount_t=0.9, lambda_=0.5)

    assert f"{n},{n}" not in str(jax.make_jaxpr(f)(*args))


# A critic alone, which acts greedily: a = argmax r + γV(f).
CRITIC = jnp.asarray(0.2 * RNG.normal(size=(S, S)))
COST = jnp.asarray([[1.0, 0.2], [0.2, 0.8]])


def critic_value(w, s):
    return jnp.sum(jnp.sin(s)) - 0.5 * jnp.sum(s**2) + s @ w @ jnp.tanh(s)


def backed_up(w, discount, s, a):
    end = jnp.sin(DRIFT @ s) + PUSH @ jnp.tanh(a)
    r = jnp.cos(s).sum() - 0.5 * a @ COST @ a + s[0] * a[1]
    return r + discount * critic_value(w, end), end, r


def greedy(w, discount, s):
    """By Newton's method, whose last step has the first derivatives of the solution."""

    def objective(a):
        return backed_up(w, discount, s, a)[0]

    def newton(a, _):
        return a - jnp.linalg.solve(jax.hessian(objective)(a), jax.grad(objective)(a)), None

    held = jax.lax.stop_gradient
    a = held(jax.lax.scan(newton, jnp.zeros(A), length=8)[0])
    return a - jnp.linalg.inv(held(jax.hessian(objective)(a))) @ jax.grad(objective)(a)


def greedy_return(w, start, discounts):
    def move(carry, discount):
        s, total, weight = carry
        _, s, r = backed_up(w, discount, s, greedy(w, discount, s))
        return (s, total + weight * r, weight * discount), None

    (_, total, _), _ = jax.lax.scan(move, (start, 0.0, 1.0), discounts)
    return total


def test_greedy_control_climbs_the_return_in_the_metric_of_its_actions():
    """With Ω, λ = 1 and weights γᵗ descent on the loss is ascent on the return, exactly."""
    steps = 4
    discounts = jnp.asarray([GAMMA] * (steps - 1) + [0.0])
    start = 0.7 * STATES[0]

    def move(s, discount):
        a = greedy(CRITIC, discount, s)
        push = jax.jacobian(lambda a: backed_up(CRITIC, discount, s, a)[1])(a)
        curvature = jax.hessian(lambda a: backed_up(CRITIC, discount, s, a)[0])(a)
        end = backed_up(CRITIC, discount, s, a)[1]
        return end, (end, -discount * push @ jnp.linalg.solve(curvature, push.T))

    _, (ends, omegas) = jax.lax.scan(move, start, discounts)
    states = jnp.concatenate([start[None], ends])
    assert np.linalg.eigvalsh(omegas).min() > -1e-12

    def step(s, discount):
        return backed_up(CRITIC, discount, s, greedy(CRITIC, discount, s))[1:]

    gradient = jax.grad(critic_value, 1)
    target = value_gradients.targets(
        step,
        states[:-1],
        discounts,
        jax.vmap(gradient, (None, 0))(CRITIC, states[1:]),
        discount_t=discounts,
        lambda_=1.0,
    )

    def loss(w, metric):
        g = jax.vmap(gradient, (None, 0))(w, states[1:-1])
        losses = jaxsoft.value_gradient_loss(g, target[1:], metric=metric)
        return jnp.sum(GAMMA ** jnp.arange(1, steps) * losses)

    wanted = jax.jit(jax.grad(greedy_return))(CRITIC, start, discounts)
    given = -jax.jit(jax.grad(loss))(CRITIC, omegas[:-1])
    np.testing.assert_allclose(given, wanted, rtol=1e-8, atol=1e-11)
    plain = -jax.grad(loss)(CRITIC, None)
    cosine = jnp.sum(plain * wanted) / jnp.linalg.norm(plain) / jnp.linalg.norm(wanted)
    assert cosine < 0.99


def test_where_they_are_right_the_return_is_stationary():
    """The optimal linear-quadratic controller: ∇V = −Ps for any λ, and no action to improve."""
    rng = np.random.default_rng(1)
    drift, push = 0.6 * rng.normal(size=(S, S)), rng.normal(size=(S, A))
    cost, effort = np.eye(S), 0.5 * np.eye(A)
    p = np.zeros((S, S))
    for _ in range(2000):  # of the equation of Riccati
        gain = np.linalg.solve(effort + GAMMA * push.T @ p @ push, GAMMA * push.T @ p @ drift)
        p = cost + drift.T @ (GAMMA * p) @ (drift - push @ gain)
    path = [rng.normal(size=S)]
    for _ in range(T):
        path.append((drift - push @ gain) @ path[-1])
    states = np.stack(path)

    def model(s, a):
        return drift @ s + push @ a, -0.5 * (s @ cost @ s + a @ effort @ a)

    def step(s, noise):
        return model(s, -gain @ s)

    for lambda_ in (0.0, 0.5, 1.0):
        given = value_gradients.targets(
            step, states[:-1], None, -states[1:] @ p, discount_t=GAMMA, lambda_=lambda_
        )
        np.testing.assert_allclose(given, -states[:-1] @ p, rtol=1e-9, atol=1e-12)

    def improvement(a, s, following):
        end, r = model(s, a)
        return r + GAMMA * end @ following

    slope_of = jax.jit(jax.grad(improvement))
    for s, following in zip(states[:-2], np.asarray(given)[1:], strict=True):
        slope = slope_of(-gain @ s, s, following)
        np.testing.assert_allclose(slope, 0, atol=1e-12)


def test_the_loss_and_what_it_holds_fixed():
    g, target, metric = (RNG.normal(size=shape) for shape in [(T, 2, S)] * 2 + [(T, 1, S, S)])
    error = g - target
    wanted = 0.5 * np.einsum("tbi,tij,tbj->tb", error, metric[:, 0], error)
    given = jaxsoft.value_gradient_loss(g, target, metric=metric)
    np.testing.assert_allclose(given, wanted, rtol=1e-12)
    plain = jaxsoft.value_gradient_loss(g, target)
    np.testing.assert_allclose(plain, 0.5 * np.sum(error**2, -1), rtol=1e-12)

    def loss(g, target, metric):
        return jaxsoft.value_gradient_loss(g, target, metric=metric).sum()

    by_g, by_target, by_metric = jax.grad(loss, (0, 1, 2))(g, target, metric)
    symmetric = 0.5 * (metric + np.swapaxes(metric, -1, -2))[:, 0]
    np.testing.assert_allclose(by_g, np.einsum("tij,tbj->tbi", symmetric, error), rtol=1e-11)
    np.testing.assert_array_equal(by_target, 0)
    np.testing.assert_array_equal(by_metric, 0)
