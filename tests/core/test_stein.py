"""Stein steps: the slope of a divergence, a fixed point, and the fixed point that is not meant."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsoft
from jaxsoft import stein_direction

M, N, D = 4, 7, 3


def points(seed, *batch):
    rng = np.random.default_rng(seed)
    at, particles, score = (rng.normal(size=(*batch, n, D)) for n in (M, N, N))
    return at, 0.5 + 1.3 * particles, score


def loops(at, particles, score, h):
    out = np.zeros_like(at)
    for j, x in enumerate(at):
        for u, s in zip(particles, score, strict=True):
            kernel = np.exp(-np.sum((u - x) ** 2) / (2 * h**2))
            gradient = -(u - x) / h**2 * kernel
            out[j] += (kernel * s + gradient) / len(particles)
    return out


@pytest.mark.parametrize("h", [0.3, 1.0, 4.0])
def test_against_loops(h):
    at, particles, score = points(0)
    given = stein_direction(at, particles, score, bandwidth=h)
    np.testing.assert_allclose(given, loops(at, particles, score, h), rtol=1e-12)


def test_the_bandwidth_of_the_median():
    """2h² = the median squared distance of `at` from `particles` over log(N + 1), per entry."""
    at, particles, score = points(1, 2, 3)
    whole = stein_direction(at, particles, score)
    for i in np.ndindex(2, 3):
        squares = [np.sum((u - x) ** 2) for u in particles[i] for x in at[i]]
        h = np.sqrt(np.median(squares) / np.log(N + 1) / 2)
        np.testing.assert_allclose(
            whole[i], loops(at[i], particles[i], score[i], h), rtol=1e-12, atol=1e-14
        )


@pytest.mark.parametrize("unit", [0.01, 100.0])
def test_it_has_no_unit_and_no_origin(unit):
    at, particles, score = points(2)
    whole = stein_direction(at, particles, score)
    moved = stein_direction(5 + unit * at, 5 + unit * particles, score / unit)
    np.testing.assert_allclose(unit * moved, whole, rtol=1e-9)


def test_one_particle_ascends_the_density():
    particle, score = np.array([[0.3, -1.0]]), np.array([[2.0, 0.7]])
    for bandwidth in (None, 0.1, 3.0):
        given = stein_direction(particle, particle, score, bandwidth=bandwidth)
        np.testing.assert_array_equal(given, score)


def log_target(u):
    """Unnormalised, in two dimensions, and no product."""
    return -0.4 * u[0] ** 2 - 0.3 * (u[1] - jnp.sin(u[0])) ** 2 + jnp.cos(u[0] * u[1])


def test_the_slope_of_the_divergence_is_minus_its_square():
    """The distribution that moves is a smooth map of angles, so that a grid's mean is exact."""
    angle = 2 * np.pi * (np.arange(20) + 0.5) / 20
    one, two = (x.ravel() for x in np.meshgrid(angle, angle))
    particles = jnp.asarray(np.stack([0.6 + np.sin(one), 0.7 * np.cos(two) - 0.2], axis=-1))
    score, h = jax.vmap(jax.grad(log_target))(particles), 0.8

    def phi(x):
        return stein_direction(x[None], particles, score, bandwidth=h)[0]

    directions = jax.vmap(phi)(particles)
    slopes = jax.vmap(jax.jacobian(phi))(particles)

    def divergence(epsilon):
        """KL of the moved distribution to the target, up to a constant: it takes no density."""
        moved = particles + epsilon * directions
        volumes = jnp.linalg.det(jnp.eye(2)[None] + epsilon * slopes)
        return -jnp.mean(jax.vmap(log_target)(moved) + jnp.log(volumes))

    step = 1e-4
    slope = (divergence(step) - divergence(-step)) / (2 * step)

    u, s = np.asarray(particles), np.asarray(score)
    difference = u[:, None] - u[None]
    kernel = np.exp(-np.sum(difference**2, -1) / (2 * h**2))
    along = np.sum(difference * (s[:, None] - s[None]), -1) / h**2
    curvature = 2 / h**2 - np.sum(difference**2, -1) / h**4
    square = np.mean(kernel * (s @ s.T + along + curvature))
    assert square > 0.1
    np.testing.assert_allclose(slope, -square, rtol=1e-6)


SLOPE, COUNT = 0.8, 3000
SHARES = (np.arange(COUNT) + 0.5) / COUNT
# Quantiles of e^{Q/τ}/2 = (1 + SLOPE a)/2 on the box, and of (1 − a²)3/4, for which Q is 0.
LINEAR = (np.sqrt(1 - 2 * SLOPE * (1 - SLOPE / 2 - 2 * SHARES)) - 1) / SLOPE
ROUND = 2 * np.sin(np.arcsin(2 * SHARES - 1) / 3)


def test_the_boltzmann_policy_is_the_fixed_point_before_the_squash():
    a = LINEAR
    score = SLOPE / (1 + SLOPE * a) * (1 - a**2) - 2 * a
    at = np.linspace(-1.2, 1.2, 9)[:, None]
    particles = np.arctanh(a)[:, None]
    phi = stein_direction(at, particles, score[:, None], bandwidth=0.4)
    np.testing.assert_allclose(phi, 0, atol=1e-9)
    # Without the log-determinant it is none.
    bare = stein_direction(at, particles, (score + 2 * a)[:, None], bandwidth=0.4)
    assert np.abs(bare).max() > 0.1


def test_on_the_open_box_a_boundary_term_is_left():
    at, h = np.linspace(-0.9, 0.9, 7), 0.4
    score = SLOPE / (1 + SLOPE * LINEAR)
    phi = stein_direction(at[:, None], LINEAR[:, None], score[:, None], bandwidth=h)[:, 0]

    def end(a):
        return 0.5 * (1 + SLOPE * a) * np.exp(-((a - at) ** 2) / (2 * h**2))

    np.testing.assert_allclose(phi, end(1) - end(-1), atol=1e-5)
    assert np.abs(phi).max() > 0.5


def test_moving_in_the_box_by_the_other_score_has_another_fixed_point():
    """The trap: the score with log(1 − a²), differentiated by a and moved in a."""
    at = np.linspace(-0.8, 0.8, 7)[:, None]

    def in_the_box(a):
        score = -2 * a / (1 - a**2)
        return np.abs(stein_direction(at, a[:, None], score[:, None], bandwidth=0.4)).max()

    def before_the_squash(a):
        u = np.arctanh(a)[:, None]
        return np.abs(stein_direction(np.arctanh(at), u, -2 * a[:, None], bandwidth=0.4)).max()

    uniform = 2 * SHARES - 1
    # Where the score has a pole the quantiles converge by their square root only.
    assert in_the_box(ROUND) < 0.02
    assert in_the_box(uniform) > 0.1
    assert before_the_squash(uniform) < 1e-9
    assert before_the_squash(ROUND) > 0.1


def test_particles_reach_the_boltzmann_policy():
    """A flow of particles: the mean of a = tanh u becomes that of (1 + SLOPE a)/2, SLOPE/3."""

    def log_density(u):
        return jnp.log(1 + SLOPE * jnp.tanh(u)) - 2 * jnp.logaddexp(u, -u)

    def move(u, _):
        score = jax.vmap(jax.grad(log_density))(u[:, 0])[:, None]
        return u + 0.5 * stein_direction(u, u, score, bandwidth=0.3), None

    start = jnp.linspace(-0.1, 0.1, 60)[:, None]
    end, _ = jax.lax.scan(move, start, length=800)
    a = np.tanh(np.asarray(end))
    np.testing.assert_allclose(a.mean(), SLOPE / 3, atol=0.01)
    np.testing.assert_allclose((a**2).mean(), 1 / 3, atol=0.02)


def test_batches_traced_bandwidths_and_single_precision():
    at, particles, score = points(3, 2, 1)
    whole = jax.jit(lambda h: stein_direction(at, particles, score, bandwidth=h))(0.7)
    one = stein_direction(at[1, 0], particles[1, 0], score[1, 0], bandwidth=0.7)
    np.testing.assert_allclose(whole[1, 0], one, rtol=1e-12)
    shared = jaxsoft.stein_direction(at, particles[:1], score[:1], bandwidth=0.7)
    np.testing.assert_allclose(shared[0], whole[0], rtol=1e-12)
    low = jaxsoft.stein_direction(*(np.float32(x) for x in (at, particles, score)))
    assert low.dtype == np.float32
    np.testing.assert_allclose(low, stein_direction(at, particles, score), atol=1e-5)
