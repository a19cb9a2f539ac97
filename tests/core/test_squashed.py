"""Squashed Gaussians, against quadrature over actions in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

import jaxsoft
from jaxsoft import squashed

TAU = 0.5
# In u the integrands decay like Gaussians: the trapezoid rule is exact to rounding.
GRID, STEP = np.linspace(-14, 14, 5601, retstep=True)
# In ε, for expectations under a Gaussian.
NODES = np.linspace(-9, 9, 721)
SHARES = np.exp(-0.5 * NODES**2) / np.exp(-0.5 * NODES**2).sum()
policies = pytest.mark.parametrize(("mean", "std"), [(-0.9, 0.4), (0.3, 1.3), (2.0, 0.7)])


def normal(u, mean, std):
    return np.exp(-0.5 * ((u - mean) / std) ** 2) / (std * np.sqrt(2 * np.pi))


def base(u):
    """Density in u of an action that is uniform on its box."""
    return 0.5 / np.cosh(u) ** 2


def ratio(u, mean, std):
    """ℓ, from densities."""
    return np.log(normal(u, mean, std) / base(u))


def given(u, mean, std):
    """The library's, of one dimension."""
    u = jnp.asarray(u)[..., None]
    parameters = (jnp.broadcast_to(jnp.asarray(x), u.shape) for x in (mean, jnp.log(std)))
    return squashed.log_ratio(u, *parameters)


def divergence(mean, std):
    density = normal(GRID, mean, std)
    inside = density > 1e-300
    return STEP * np.sum(density[inside] * ratio(GRID[inside], mean, std))


@policies
def test_densities_integrate_to_one(mean, std):
    np.testing.assert_allclose(STEP * np.sum(base(GRID)), 1, rtol=1e-11)
    np.testing.assert_allclose(np.sum(np.exp(given(GRID, mean, std)) * base(GRID)) * STEP, 1)


@policies
@pytest.mark.parametrize(("low", "high"), [(-1, 1), (0, 1), (-3.0, 0.5)])
def test_the_log_determinant_and_the_box_cancel(mean, std, low, high):
    """Densities of actions, by the change of variables in full."""
    u = np.linspace(-4, 4, 33)
    a = 0.5 * (low + high) + 0.5 * (high - low) * np.tanh(u)
    slope = 0.5 * (high - low) / np.cosh(u) ** 2
    log_density = np.log(normal(u, mean, std) / slope)
    np.testing.assert_allclose(given(u, mean, std), log_density + np.log(high - low), atol=1e-12)
    acted = squashed.action(u[:, None], low, high)[:, 0]
    np.testing.assert_allclose(acted, a, rtol=1e-12, atol=1e-12)


@policies
def test_dimensions_add_up(mean, std):
    u = np.random.default_rng(0).normal(size=(4, 3))
    several = squashed.log_ratio(u, *(jnp.full((1, 3), x) for x in (mean, np.log(std))))
    np.testing.assert_allclose(several, ratio(u, mean, std).sum(-1), rtol=1e-11)


@policies
def test_its_mean_is_the_divergence_and_scaling_moves_only_the_entropy(mean, std):
    kl = SHARES @ np.asarray(given(mean + std * NODES, mean, std))
    np.testing.assert_allclose(kl, divergence(mean, std), rtol=1e-10)
    entropies = []
    for half in (0.5, 1.0, 3.0):  # of boxes (−half, half)
        density = normal(GRID, mean, std)
        inside = density > 1e-300
        of_action = density[inside] * np.cosh(GRID[inside]) ** 2 / half
        entropies.append(-STEP * np.sum(density[inside] * np.log(of_action)))
        np.testing.assert_allclose(entropies[-1], np.log(2 * half) - kl, rtol=1e-10, atol=1e-8)
    np.testing.assert_allclose(np.diff(entropies), np.log([2, 3]), rtol=1e-10)


@pytest.mark.parametrize(("width", "per_dimension"), [(2.0, 1 + np.log(2)), (1.0, 1.0)])
def test_the_usual_target_entropy_as_a_divergence(width, per_dimension):
    """H̄ = −d is κ = d(1 + log 2) on (−1, 1)^d and κ = d on (0, 1)^d."""
    low, high = 0.01, 1.0
    for _ in range(80):  # the entropy rises with σ in this range
        std = 0.5 * (low + high)
        entropy = np.log(width) - divergence(0.4, std)
        low, high = (low, std) if entropy > -1 else (std, high)
    d = 3
    u = 0.4 + std * NODES
    kl = d * (SHARES @ np.asarray(given(u, 0.4, std)))
    np.testing.assert_allclose(kl, d * per_dimension, rtol=1e-9)


def critic(u):
    a = jnp.tanh(u)
    return 1.3 * a - 2 * a**2 + 0.7 * jnp.sin(3 * a)


def objective(mean, log_std):
    """E[τℓ − Q] by quadrature over a fixed grid, differentiable through the density alone."""
    log_density = -0.5 * ((GRID - mean) * jnp.exp(-log_std)) ** 2 - log_std
    density = jnp.exp(log_density - 0.5 * np.log(2 * np.pi))
    log_base = np.log(0.5) - 2 * (np.logaddexp(GRID, -GRID) - np.log(2))
    ell = log_density - 0.5 * np.log(2 * np.pi) - log_base
    return STEP * jnp.sum(density * (TAU * ell - critic(GRID)))


@policies
def test_three_gradients_of_the_actor_agree(mean, std):
    """By reparametrisation, by the score, and by the path with ℓ's own parameters held fixed."""
    parameters = (jnp.asarray(mean), jnp.log(std))
    wanted = jax.grad(objective, (0, 1))(*parameters)

    def sampled(parameters, inner):
        mean, log_std = parameters
        u = mean + jnp.exp(log_std) * NODES
        held = [jnp.full((len(u), 1), x) for x in inner(parameters)]
        ell = squashed.log_ratio(u[:, None], *held)
        return SHARES @ (TAU * ell - critic(u))

    by_reparametrisation = jax.grad(lambda p: sampled(p, lambda p: p))(parameters)
    by_path = jax.grad(lambda p: sampled(p, jax.lax.stop_gradient))(parameters)

    def by_score_of(parameters):
        u = mean + std * NODES
        mean_, log_std = (jnp.full((len(u), 1), x) for x in parameters)
        ell = squashed.log_ratio(u[:, None], mean_, log_std)
        cost = jax.lax.stop_gradient(TAU * ell - critic(u))
        return SHARES @ (ell * cost)

    for gradient in (by_reparametrisation, by_path, jax.grad(by_score_of)(parameters)):
        np.testing.assert_allclose(gradient, wanted, rtol=1e-9, atol=1e-11)


@policies
def test_the_path_has_no_variance_at_the_boltzmann_policy(mean, std):
    """There Q − τℓ is V_Q whatever the action; elsewhere its mean is the policy's value."""
    value = 0.8

    def q(u):
        return value + TAU * ratio(u, mean, std)

    soft_value = TAU * np.log(STEP * np.sum(base(GRID) * np.exp(q(GRID) / TAU)))
    np.testing.assert_allclose(soft_value, value, rtol=1e-10)
    u = np.random.default_rng(0).normal(size=50)
    np.testing.assert_allclose(q(u) - TAU * given(u, mean, std), value, rtol=1e-10)

    def path(u):
        own_q = value + TAU * given(u, mean, std)
        held = jax.lax.stop_gradient
        return own_q - TAU * given(u, held(jnp.asarray(mean)), held(jnp.asarray(std)))

    np.testing.assert_array_equal(jax.vmap(jax.grad(path))(jnp.asarray(u)), 0)

    other = (mean + 0.3, 0.8 * std)
    draws = other[0] + other[1] * NODES
    backups = q(draws) - TAU * given(draws, *other)
    density = normal(GRID, *other)
    inside = density > 1e-300
    inner = np.log(density[inside] / normal(GRID[inside], mean, std))
    kl = STEP * np.sum(density[inside] * inner)
    np.testing.assert_allclose(SHARES @ np.asarray(backups), value - TAU * kl, rtol=1e-10)


@policies
@pytest.mark.parametrize("kl_is_sampled", [False, True])
def test_the_main_theorem_holds_with_densities(mean, std, kl_is_sampled):
    """Soft Q's gradient = τ · policy gradient + value gradient, for any target y of the action."""
    theta = jnp.asarray([mean, np.log(std), 0.6])
    u = mean + std * NODES
    target = np.cos(2 * np.tanh(u)) + 0.4 * u
    held = jax.lax.stop_gradient

    def network(theta):
        """V, and ℓ of the actions, which are the policy's and not moved by θ."""
        mean, log_std, v = theta
        ell = squashed.log_ratio(u[:, None], *(jnp.full((len(u), 1), x) for x in (mean, log_std)))
        return v + 0.5 * mean, ell  # a shared parameter

    def exact_kl(theta):
        mean, log_std, _ = theta
        draws = mean + jnp.exp(log_std) * NODES
        return SHARES @ given(draws, mean, jnp.exp(log_std))

    def soft_q(theta):
        v, ell = network(theta)
        return SHARES @ (0.5 * (v + TAU * ell - target) ** 2)

    def actor_critic(theta):
        v, ell = network(theta)
        kl = held(ell) if kl_is_sampled else exact_kl(theta)
        value_target = held(target - TAU * kl)
        # The sampled ℓ in the advantage is E[∇log π ℓ], and that is ∇KL.
        policy = -ell * (value_target - held(v)) + (0 if kl_is_sampled else TAU * kl)
        return SHARES @ (TAU * policy + 0.5 * (v - value_target) ** 2)

    np.testing.assert_allclose(
        jax.grad(soft_q)(theta), jax.grad(actor_critic)(theta), rtol=1e-9, atol=1e-11
    )


@pytest.mark.parametrize("u", [-10.0, -3.0, 0.0, 3.0, 10.0, 80.0])
def test_exact_in_single_precision(u):
    """log(1 − tanh²u) is −18.61 at u = ±10, where 1 − tanh²u is 0 in single precision."""
    single = np.full((1,), u, np.float32)
    ell = squashed.log_ratio(single, single, np.zeros(1, np.float32))
    assert ell.dtype == np.float32
    log_slope = -0.5 * np.log(2 * np.pi) + np.log(2) - float(ell)
    exact = 2 * (np.log(2) - np.logaddexp(u, -u))
    np.testing.assert_allclose(log_slope, exact, rtol=3e-7, atol=3e-7)
    if abs(u) == 10:
        assert round(log_slope, 2) == -18.61
        assert 1 - np.tanh(single[0]) ** 2 == 0
        assert abs(np.tanh(single[0])) == 1


@pytest.mark.parametrize("u", [-60.0, -10.0, -0.3, 0.0, 1e-3, 10.0, 60.0])
def test_derivatives_by_the_action(u):
    """Of −log(1 − tanh²u): 2 tanh u, and 2(1 − tanh²u), at 0 as well as far out."""

    def ell(u: Array) -> Array:
        return squashed.log_ratio(u[None], jax.lax.stop_gradient(u)[None], jnp.zeros(1))

    first, second = jax.grad(ell), jax.grad(jax.grad(ell))
    at = jnp.asarray(u)
    np.testing.assert_allclose(first(at), 2 * np.tanh(u), rtol=1e-12)
    # The Gaussian's own is −1.
    np.testing.assert_allclose(second(at), -1 + 2 / np.cosh(u) ** 2, rtol=1e-12)


def test_draws_are_the_policys():
    mean, log_std = np.array([[0.3, -1.0]]), np.array([[-0.5, 0.4]])
    many = [np.broadcast_to(x, (20_000, 2)) for x in (mean, log_std)]
    draws = np.asarray(squashed.sample(jax.random.key(0), *many))
    assert draws.shape == (20_000, 2)
    np.testing.assert_allclose(draws.mean(0), mean[0], atol=0.03)
    np.testing.assert_allclose(draws.std(0), np.exp(log_std[0]), rtol=0.02)
    assert abs(np.corrcoef(draws.T)[0, 1]) < 0.03
    direction = jax.jacobian(lambda s: squashed.sample(jax.random.key(1), mean, s))(log_std)
    u = squashed.sample(jax.random.key(1), mean, log_std)
    np.testing.assert_allclose(np.diag(direction[0, :, 0, :]), (u - mean)[0], rtol=1e-12)


def test_keys_are_one_or_one_per_state():
    mean, log_std = np.zeros((3, 2, 4)), np.zeros((3, 2, 4))
    keys = jax.random.split(jax.random.key(0), (3, 2))
    u = squashed.sample(keys, mean, log_std)
    alone = squashed.sample(keys[2, 1], mean[2, 1], log_std[2, 1])
    np.testing.assert_array_equal(u[2, 1], alone)
    raw = squashed.sample(jax.random.PRNGKey(0), mean, log_std)
    assert raw.shape == (3, 2, 4)


def test_actions_never_leave_the_box():
    rng = np.random.default_rng(0)
    low = rng.normal(size=200).astype(np.float32)
    high = low + rng.random(200).astype(np.float32) + np.float32(1e-3)
    for u in (np.full((1, 200), 30, np.float32), np.full((1, 200), -30, np.float32)):
        a = np.asarray(squashed.action(u, low, high))
        assert ((a >= low) & (a <= high)).all()
        np.testing.assert_allclose(a[0], high if u[0, 0] > 0 else low, atol=1e-6)
    inside = np.asarray(squashed.action(np.float32(rng.normal(size=(5, 200))), low, high))
    assert inside.dtype == np.float32
    assert ((inside > low) & (inside < high)).all()


def test_the_actor_is_moved_through_the_action_and_the_critic_is_not_stopped_there():
    """−sampled value: differentiated by u it is τ∂ℓ/∂u − ∂Q/∂u."""
    u, mean, log_std = (jnp.asarray([x]) for x in (0.4, 0.1, -0.3))

    def loss(u):
        return TAU * squashed.log_ratio(u, mean, log_std) - critic(u)[0]

    z = (u - mean) * jnp.exp(-2 * log_std)
    wanted = TAU * (-z + 2 * jnp.tanh(u)) - jax.grad(lambda u: critic(u)[0])(u)
    np.testing.assert_allclose(jax.grad(loss)(u), wanted, rtol=1e-12)
    assert jaxsoft.squashed is squashed
