"""Natural gradients against dense algebra; what a solve reports when it goes wrong."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import Array

import jaxsoft
from jaxsoft import SolveStatus
from jaxsoft.natural import solve
from tests.support.trees import structure

N, INPUTS, HIDDEN, A = 12, 5, 6, 4
Params = dict[str, Array]


def problem(
    dtype: jnp.dtype = jnp.float64, seed: int = 0
) -> tuple[Callable[[Params], Array], Params, Array]:
    """An MLP policy: log π(a_t|s_t) of N samples, its parameters, an advantage."""
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.normal(size=(N, INPUTS)), dtype)
    a = rng.integers(0, A, size=N)
    params = {
        "b": jnp.asarray(rng.normal(size=HIDDEN), dtype),
        "w1": jnp.asarray(rng.normal(size=(INPUTS, HIDDEN)), dtype),
        "w2": jnp.asarray(rng.normal(size=(HIDDEN, A)), dtype),
    }

    def log_prob_fn(p: Params) -> Array:
        hidden = jnp.tanh(x @ p["w1"] + p["b"][None])
        return jax.nn.log_softmax(hidden @ p["w2"])[jnp.arange(N), a]

    return log_prob_fn, params, jnp.asarray(rng.normal(size=N), dtype)


def flat(tree: optax.Params) -> np.ndarray:
    return np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)])


def dense(
    log_prob_fn: Callable[[Params], Array],
    params: Params,
    advantage: Array,
    damping: float,
    weight: np.ndarray | None = None,
) -> np.ndarray:
    """(ΨᵀWΨ/ΣW + λI)⁻¹ ΨᵀWΔ/ΣW with everything formed; of least norm where it is singular."""
    psi = np.stack([flat(jax.grad(lambda p: log_prob_fn(p)[i])(params)) for i in range(N)])  # noqa: B023
    weight = np.ones(N) if weight is None else weight / weight.mean()
    f = psi.T @ (weight[:, None] * psi) / N + damping * np.eye(psi.shape[1])
    return np.linalg.lstsq(f, psi.T @ (weight * np.asarray(advantage)) / N, rcond=1e-11)[0]


solvers = pytest.mark.parametrize("solver", ["cg", "gram"])
as_on_a_tpu_too = pytest.mark.parametrize("solver", ["cg", "gram", "gram on a TPU"], indirect=True)


@pytest.fixture
def solver(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    name: str = request.param
    if name == "gram on a TPU":
        monkeypatch.setattr(
            solve, "_solve_gram", lambda *args: solve._without_eigenvalues(args[3], *args[:3])
        )
    return name.split(maxsplit=1)[0]


@solvers
@pytest.mark.parametrize("damping", [0.0, 1e-4, 1e-2, 1.0])
def test_against_the_dense_solution(solver: str, damping: float) -> None:
    log_prob_fn, params, advantage = problem()
    w, info = jax.jit(
        lambda p, lam: jaxsoft.natural_gradient(
            log_prob_fn, p, advantage, damping=lam, solver=solver, tolerance=1e-13
        )
    )(params, damping)
    expected = dense(log_prob_fn, params, advantage, damping)
    np.testing.assert_allclose(flat(w), expected, rtol=1e-7, atol=1e-9 * np.abs(expected).max())
    assert info.status == SolveStatus.CONVERGED
    assert info.residual < 1e-12
    assert (info.iterations == 0) == (solver == "gram")


@solvers
def test_default_tolerance_suits_float32(solver: str) -> None:
    log_prob_fn, params, advantage = problem(jnp.float32)
    w, info = jaxsoft.natural_gradient(log_prob_fn, params, advantage, solver=solver)
    expected = dense(*problem(), 1e-3)
    assert info.status == SolveStatus.CONVERGED
    assert info.residual.dtype == jnp.float32
    np.testing.assert_allclose(flat(w), expected, atol=1e-3 * np.abs(expected).max())


@solvers
def test_half_precision_parameters_are_solved_in_float32(solver: str) -> None:
    log_prob_fn, params, advantage = problem(jnp.bfloat16)
    w, info = jaxsoft.natural_gradient(log_prob_fn, params, advantage, damping=1.0, solver=solver)
    assert all(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(w))
    assert info.residual.dtype == jnp.float32
    expected = dense(*problem(), 1.0)
    np.testing.assert_allclose(flat(w), expected, atol=0.05 * np.abs(expected).max())


@solvers
def test_half_precision_parameters_of_a_network_in_single_precision(solver: str) -> None:
    """Tangents must not be rounded to the dtype that the parameters are kept in."""
    log_prob_fn, params, advantage = problem(jnp.float32)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    kept = jax.tree.map(lambda x: x.astype(jnp.float32), half)

    def mixed(p: Params) -> Array:
        return log_prob_fn(jax.tree.map(lambda x: x.astype(jnp.float32), p))

    options: dict[str, Any] = {"damping": 1e-2, "solver": solver}
    direction, info = jaxsoft.natural_gradient(mixed, half, advantage, **options)
    assert info.status == SolveStatus.CONVERGED
    wanted, _ = jaxsoft.natural_gradient(log_prob_fn, kept, advantage, **options)
    np.testing.assert_allclose(flat(direction), flat(wanted), rtol=2**-8)


def test_a_network_may_insist_on_the_dtype_of_its_parameters() -> None:
    x = jnp.ones((3, 2), jnp.bfloat16)

    def log_prob_fn(p: Params) -> Array:
        def layer(carry: Array, _: None) -> tuple[Array, None]:
            return jnp.tanh(carry @ p["w"]), None

        return jax.lax.scan(layer, x, None, length=2)[0].astype(jnp.float32).sum(1)

    params = {"w": jnp.full((2, 2), 0.25, jnp.bfloat16)}
    direction, info = jaxsoft.natural_gradient(log_prob_fn, params, jnp.ones(3), damping=1.0)
    assert direction["w"].dtype == jnp.bfloat16
    assert info.status != SolveStatus.NON_FINITE


@solvers
def test_samples_that_do_not_count_may_be_impossible(solver: str) -> None:
    log_prob_fn, params, advantage = problem()
    weight = np.ones(N + 1)
    weight[3] = weight[N] = 0

    def with_one_more(p: Params) -> Array:
        log_probs = jnp.where(jnp.arange(N) == 3, -jnp.inf, log_prob_fn(p))
        return jnp.append(log_probs, -jnp.inf)

    options: dict[str, Any] = {"damping": 1e-2, "solver": solver}
    direction, info = jaxsoft.natural_gradient(
        with_one_more, params, jnp.append(advantage, jnp.nan), weight=weight, **options
    )
    assert info.status == SolveStatus.CONVERGED
    wanted, _ = jaxsoft.natural_gradient(
        log_prob_fn, params, advantage, weight=weight[:N], **options
    )
    np.testing.assert_allclose(flat(direction), flat(wanted), rtol=1e-7, atol=1e-9)


@solvers
def test_where_nothing_counts_there_is_no_step(solver: str) -> None:
    log_prob_fn, params, advantage = problem()
    direction, info = jaxsoft.natural_gradient(
        log_prob_fn, params, advantage, weight=np.zeros(N), solver=solver
    )
    assert info.status == SolveStatus.CONVERGED
    assert info.residual == 0
    assert not flat(direction).any()


@solvers
def test_weights_are_repetitions(solver: str) -> None:
    log_prob_fn, params, advantage = problem()
    weight = np.arange(N) % 3.0
    given, _ = jaxsoft.natural_gradient(
        log_prob_fn, params, advantage, damping=1e-2, solver=solver, weight=weight
    )
    times = np.repeat(np.arange(N), weight.astype(int))
    repeated, _ = jaxsoft.natural_gradient(
        lambda p: log_prob_fn(p)[times], params, advantage[times], damping=1e-2, solver=solver
    )
    np.testing.assert_allclose(flat(given), flat(repeated), rtol=1e-6, atol=1e-8)
    expected = dense(log_prob_fn, params, advantage, 1e-2, weight)
    np.testing.assert_allclose(flat(given), expected, rtol=1e-6, atol=1e-8)


@as_on_a_tpu_too
def test_equal_samples_without_damping(solver: str) -> None:
    """K is singular; the least-squares solution of least norm is still found."""
    log_prob_fn, params, advantage = problem()
    twice = np.repeat(np.arange(N), 2)
    given, info = jaxsoft.natural_gradient(
        lambda p: log_prob_fn(p)[twice],
        params,
        jnp.tile(advantage, 2),
        damping=0.0,
        solver=solver,
    )
    pairs = jnp.tile(advantage, 2).reshape(N, 2).mean(-1)
    expected = dense(log_prob_fn, params, pairs, 0.0)
    np.testing.assert_allclose(flat(given), expected, atol=1e-5 * np.abs(expected).max())
    assert info.status == SolveStatus.CONVERGED


@as_on_a_tpu_too
@pytest.mark.parametrize("damping", [0.0, 1e-12, 1e-8, 1e-4])
def test_more_samples_than_parameters(solver: str, damping: float) -> None:
    """Δ is then outside the range of K; the residual reported must be the true one."""
    rng = np.random.default_rng(0)
    x, a = jnp.asarray(rng.normal(size=(40, 3))), rng.integers(0, 2, size=40)
    theta, advantage = jnp.asarray(rng.normal(size=3)), jnp.asarray(rng.normal(size=40))

    def log_prob_fn(theta: Array) -> Array:
        logits = jnp.stack([x @ theta, jnp.zeros(40)], axis=-1)
        return jax.nn.log_softmax(logits)[jnp.arange(40), a]

    w, info = jaxsoft.natural_gradient(
        log_prob_fn, theta, advantage, damping=damping, solver=solver
    )
    psi = np.asarray(jax.jacobian(log_prob_fn)(theta))
    f, g = psi.T @ psi / 40 + damping * np.eye(3), psi.T @ np.asarray(advantage) / 40
    np.testing.assert_allclose(w, np.linalg.solve(f, g), rtol=1e-7)
    true = np.linalg.norm(f @ np.asarray(w) - g) / np.linalg.norm(g)
    assert info.status == SolveStatus.CONVERGED
    assert abs(info.residual - true) < 1e-12


@solvers
def test_batch_axes_vmap_and_scan(solver: str) -> None:
    log_prob_fn, params, advantage = problem()

    def solve(lam: Array) -> tuple[Params, jaxsoft.SolveInfo]:
        return jaxsoft.natural_gradient(
            log_prob_fn, params, advantage, damping=lam, solver=solver, tolerance=1e-12
        )

    def shaped(lam: Array) -> tuple[Params, jaxsoft.SolveInfo]:
        return jaxsoft.natural_gradient(
            lambda p: log_prob_fn(p).reshape(3, 4),
            params,
            advantage.reshape(3, 4),
            damping=lam,
            solver=solver,
            tolerance=1e-12,
        )

    dampings = jnp.asarray([1e-3, 1.0])
    many, infos = jax.vmap(solve)(dampings)
    _, scanned = jax.lax.scan(lambda c, lam: (c, shaped(lam)[0]), None, dampings)
    assert (infos.status == SolveStatus.CONVERGED).all()
    for i, lam in enumerate(dampings):
        expected = flat(solve(lam)[0])
        for tree in (many, scanned):
            one = flat(jax.tree.map(lambda x: x[i], tree))  # noqa: B023
            np.testing.assert_allclose(one, expected, rtol=1e-6, atol=1e-8)


def test_non_convergence_is_reported_and_the_best_iterate_returned() -> None:
    log_prob_fn, params, advantage = problem()
    _, info = jaxsoft.natural_gradient(
        log_prob_fn, params, advantage, damping=1e-8, max_iterations=2
    )
    assert info.status == SolveStatus.NOT_CONVERGED
    assert info.iterations == 2
    assert 0 < info.residual <= 1
    residuals = [
        jaxsoft.natural_gradient(log_prob_fn, params, advantage, damping=1e-8, max_iterations=k)[
            1
        ].residual
        for k in (1, 2, 4, 8)
    ]
    assert (np.diff(residuals) <= 0).all()


def test_iterates_that_run_away_are_not_returned() -> None:
    """Undamped, through a network in bfloat16, conjugate gradients diverge: w = 0 is better."""
    log_prob_fn, params, advantage = problem(jnp.bfloat16)

    def rounding(p: Params) -> Array:
        return log_prob_fn(jax.tree.map(lambda x: x.astype(jnp.bfloat16), p))

    _, info = jaxsoft.natural_gradient(rounding, params, advantage, damping=0.0)
    assert info.status == SolveStatus.NOT_CONVERGED
    assert info.residual <= 1.01


@solvers
@pytest.mark.parametrize("bad", ["advantage", "log-probability", "parameter"])
def test_non_finite_input_is_reported(solver: str, bad: str) -> None:
    log_prob_fn, params, advantage = problem()
    fn = log_prob_fn
    if bad == "advantage":
        advantage = advantage.at[3].set(jnp.nan)
    elif bad == "parameter":
        params = params | {"b": params["b"].at[0].set(jnp.inf)}
        params = params | {"w2": params["w2"].at[0].set(jnp.nan)}
    else:
        fn = lambda p: log_prob_fn(p).at[2].set(-jnp.inf)  # noqa: E731
    _, info = jax.jit(lambda p, d: jaxsoft.natural_gradient(fn, p, d, damping=1e-2, solver=solver))(
        params, advantage
    )
    assert info.status == SolveStatus.NON_FINITE


@solvers
def test_a_zero_gradient_has_a_zero_step(solver: str) -> None:
    log_prob_fn, params, advantage = problem()
    w, info = jaxsoft.natural_gradient(log_prob_fn, params, 0 * advantage, solver=solver)
    assert info.status == SolveStatus.CONVERGED
    np.testing.assert_array_equal(flat(w), 0)


def test_the_gram_solution_of_mixed_samples_is_mended() -> None:
    """Batch normalisation breaks what the structure read off the program supposes."""
    _, params, advantage = problem()
    rng = np.random.default_rng(0)
    x, a = jnp.asarray(rng.normal(size=(N, INPUTS))), rng.integers(0, A, size=N)

    def log_prob_fn(p: Params) -> Array:
        hidden = x @ p["w1"]
        hidden = (hidden - hidden.mean(0, keepdims=True)) / hidden.std(0, keepdims=True)
        return jax.nn.log_softmax(jnp.tanh(hidden + p["b"][None]) @ p["w2"])[jnp.arange(N), a]

    w, info = jaxsoft.natural_gradient(
        log_prob_fn, params, advantage, damping=1e-2, solver="gram", max_iterations=200
    )
    assert info.iterations > 0
    assert info.status == SolveStatus.CONVERGED
    expected = dense(log_prob_fn, params, advantage, 1e-2)
    np.testing.assert_allclose(flat(w), expected, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("damping", [0.0, 1e-3])
def test_the_gram_solution_of_samples_that_only_interact_is_mended(damping: float) -> None:
    """No sample depends on its own row of the data: K, as read off, is 0, and so would w be."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(N, INPUTS)))
    advantage = jnp.asarray(np.random.default_rng(1).normal(size=N))

    def log_prob_fn(p: Params) -> Array:
        z = x @ p["w"]
        return jnp.roll(z, 1) - jnp.roll(z, -1)

    params = {"w": jnp.zeros(INPUTS)}
    direction, info = jaxsoft.natural_gradient(
        log_prob_fn, params, advantage, damping=damping, solver="gram"
    )
    assert info.status == SolveStatus.CONVERGED
    np.testing.assert_allclose(
        flat(direction), dense(log_prob_fn, params, advantage, damping), rtol=1e-6
    )


@solvers
def test_the_optax_face_multiplies_any_gradient(solver: str) -> None:
    log_prob_fn, params, _advantage = problem()
    damping = 1e-2
    psi = np.stack([flat(jax.grad(lambda p: log_prob_fn(p)[i])(params)) for i in range(N)])  # noqa: B023
    gradient = jax.tree.map(
        lambda x: jnp.asarray(np.random.default_rng(1).normal(size=x.shape)), params
    )
    optimiser = optax.chain(
        optax.clip_by_global_norm(1.0),
        jaxsoft.scale_by_fisher(damping=damping, solver=solver),
        optax.sgd(0.5),
    )

    @jax.jit
    def update(params: Params, gradient: Params) -> tuple[optax.Updates, optax.OptState]:
        state = optimiser.init(params)
        return optimiser.update(gradient, state, params, log_prob_fn=log_prob_fn)

    updates, state = update(params, gradient)
    clipped = flat(gradient) / max(1, np.linalg.norm(flat(gradient)))
    f = psi.T @ psi / N + damping * np.eye(psi.shape[1])
    expected = -0.5 * np.linalg.solve(f, clipped)
    np.testing.assert_allclose(flat(updates), expected, rtol=1e-6, atol=1e-8)
    assert state[1].info.status == SolveStatus.CONVERGED
    # The state keeps its structure, as a scan over updates needs.
    assert structure(state) == structure(optimiser.init(params))
    for one, other in zip(
        jax.tree.leaves(state), jax.tree.leaves(optimiser.init(params)), strict=True
    ):
        assert jnp.asarray(one).dtype == jnp.asarray(other).dtype


def test_the_optax_face_equals_the_function_on_a_policy_gradient() -> None:
    log_prob_fn, params, advantage = problem()
    descent = jax.grad(lambda p: -jnp.mean(log_prob_fn(p) * advantage))(params)
    optimiser = jaxsoft.scale_by_fisher(damping=1e-2)
    updates, _ = optimiser.update(descent, optimiser.init(params), params, log_prob_fn=log_prob_fn)
    direction, _ = jaxsoft.natural_gradient(log_prob_fn, params, advantage, damping=1e-2)
    np.testing.assert_allclose(flat(updates), -flat(direction), rtol=1e-6, atol=1e-9)


@solvers
def test_nothing_recompiles_for_new_values(solver: str) -> None:
    traces = 0
    log_prob_fn, _, _ = problem()

    @jax.jit
    def solve(params: Params, advantage: Array, damping: Array) -> Array:
        nonlocal traces
        traces += 1
        _, info = jaxsoft.natural_gradient(
            log_prob_fn, params, advantage, damping=damping, solver=solver
        )
        return info.residual

    for seed in range(3):
        _, params, advantage = problem(seed=seed)
        solve(params, advantage, 10.0**-seed)
    assert traces == 1


@solvers
def test_one_network_per_seed(solver: str) -> None:
    """Parameters with a leading axis, as when several seeds train side by side."""
    log_prob_fn, _, _ = problem()
    each = [problem(seed=seed) for seed in range(3)]
    params = jax.tree.map(lambda *x: jnp.stack(x), *[p for _, p, _ in each])
    advantage = jnp.stack([d for _, _, d in each])

    def solve(params: Params, advantage: Array) -> tuple[Params, jaxsoft.SolveInfo]:
        return jaxsoft.natural_gradient(
            log_prob_fn, params, advantage, damping=1e-2, solver=solver, tolerance=1e-12
        )

    many, info = jax.jit(jax.vmap(solve))(params, advantage)
    assert (info.status == SolveStatus.CONVERGED).all()
    for i, (_, one, delta) in enumerate(each):
        given = flat(jax.tree.map(lambda x: x[i], many))  # noqa: B023
        np.testing.assert_allclose(given, flat(solve(one, delta)[0]), rtol=1e-6, atol=1e-9)
