"""K = ΨΨᵀ from the structure of the program, against the dense Jacobian."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxsoft._convolution import convolve
from jaxsoft.natural._gram import jacobian_gram, structured_gram

N, OBS, ACTIONS = 6, 5, 4


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


X, A = normal(N, OBS), jnp.arange(N) % ACTIONS
FRAMES = normal(N, 12, 12, 3, seed=1)


def taken(logits, actions=A):
    log_prob = jax.nn.log_softmax(logits)
    return jnp.take_along_axis(log_prob, actions[..., None], -1)[..., 0]


def weights(*sizes, seed=2):
    """Dense layers [(W, b), ...]."""
    pairs = enumerate(itertools.pairwise(sizes))
    return [
        {"w": normal(n, m, seed=seed + i) / np.sqrt(n), "b": normal(m, seed=seed + 9 + i)}
        for i, (n, m) in pairs
    ]


def mlp(layers, x):
    for layer in layers[:-1]:
        x = jnp.tanh(jnp.dot(x, layer["w"]) + jnp.expand_dims(layer["b"], range(x.ndim - 1)))
    return jnp.dot(x, layers[-1]["w"]) + jnp.expand_dims(layers[-1]["b"], range(x.ndim - 1))


class Conv(nn.Module):
    """The Nature network, in small."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (4, 4), (2, 2), padding="VALID")(x))
        x = nn.relu(nn.Conv(5, (3, 3), padding="SAME")(x))
        return nn.Dense(ACTIONS)(nn.relu(nn.Dense(7)(x.reshape(len(x), -1))))


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(ACTIONS)(nn.silu(nn.LayerNorm()(nn.Dense(7)(x))))


def flax_case(module, x):
    params = module.init(jax.random.key(0), x)
    keys = iter(range(99))
    params = jax.tree.map(lambda p: p + 0.1 * normal(*p.shape, seed=next(keys)), params)
    return lambda p: taken(module.apply(p, x)), params


def raw_conv(x=FRAMES, groups=1, **options):
    x = jnp.moveaxis(x, -1, 1)
    kernel = normal(6, x.shape[1] // groups, 3, 2, seed=3)

    def f(p):
        options.setdefault("padding", "VALID")
        options.setdefault("window_strides", (2, 1))
        z = lax.conv_general_dilated(x, p["k"], feature_group_count=groups, **options)
        z = jnp.tanh(z + p["b"][:, None, None][None]).sum((2, 3))
        return taken(jnp.dot(z, p["w"]))

    return f, {"k": kernel, "b": normal(6), "w": normal(6, ACTIONS)}


def trunk_and_heads():
    params = {"trunk": weights(OBS, 7, 6), "pi": weights(6, ACTIONS), "v": weights(6, 1)}

    def f(p):
        h = jnp.tanh(mlp(p["trunk"], X))
        return taken(mlp(p["pi"], h)) + mlp(p["v"], h)[:, 0] ** 2

    return f, params


def ensemble():
    w, v = normal(3, OBS, 7), normal(3, 7, ACTIONS)

    def f(p):
        h = jax.vmap(lambda w: jnp.tanh(X @ w))(p["w"])
        return taken(jnp.mean(jax.vmap(jnp.dot)(h, p["v"]), 0) / p["temperature"])

    return f, {"w": w, "v": v, "temperature": jnp.asarray(0.7)}


def weight_standardised():
    f, params = raw_conv()

    def standardise(k):
        return k - jnp.mean(k, (1, 2, 3), keepdims=True)

    return lambda p: f(p | {"k": standardise(p["k"])}), params


@jax.custom_jvp
def doubled(x):
    return 2 * x


doubled.defjvp(lambda primals, tangents: (doubled(*primals), 2 * tangents[0]))

SQUARE = {"w": normal(OBS, OBS, seed=4)}
POSITIONS = normal(N, 3, OBS, seed=5)
S = jnp.asarray([0, 7, 7, 2, 0, 9])
MLP = weights(OBS, 7, 6, ACTIONS)
CASES = {
    "tabular": lambda: (lambda p: taken(p[S]), normal(10, ACTIONS)),
    "tabular_normalised": lambda: (lambda p: jax.nn.log_softmax(p)[S, A], normal(10, ACTIONS)),
    "embedding": lambda: (
        lambda p: taken(mlp(p["mlp"], p["table"][S])),
        {"mlp": MLP, "table": normal(10, OBS)},
    ),
    "mlp": lambda: (lambda p: taken(mlp(p, X)), MLP),
    "one_sample": lambda: (lambda p: jnp.tanh(X[:1] @ p["w"]).sum(1), SQUARE),
    "indexed": lambda: (lambda p: jax.nn.log_softmax(mlp(p, X))[jnp.arange(N), A], MLP),
    "one_hot": lambda: (
        lambda p: jnp.sum(jax.nn.log_softmax(mlp(p, X)) * jax.nn.one_hot(A, ACTIONS), -1),
        MLP,
    ),
    "trunk_and_heads": trunk_and_heads,
    "flax_conv": lambda: flax_case(Conv(), FRAMES),
    "conv_nchw": raw_conv,
    "conv_dilated": lambda: raw_conv(
        padding=((2, 0), (1, 2)), lhs_dilation=(2, 1), rhs_dilation=(1, 3), window_strides=(1, 2)
    ),
    "conv_cropped": lambda: raw_conv(padding=((-1, 0), (0, -2))),
    "conv_grouped": lambda: raw_conv(groups=3),
    "conv_vmapped": lambda: (
        lambda p: jax.vmap(lambda x: lax.conv(x[None], p, (2, 2), "SAME").sum())(FRAMES) ** 2,
        normal(2, 12, 3, 3),
    ),
    "conv_standardised": weight_standardised,
    "layer_norm": lambda: flax_case(Normed(), X),
    "time_batch": lambda: (
        lambda p: taken(mlp(p, X.reshape(2, 3, OBS)), A.reshape(2, 3)),
        MLP,
    ),
    "time_batch_norm": lambda: (
        lambda p: taken(jnp.asarray(Normed().apply(p, X.reshape(3, 2, OBS))), A.reshape(3, 2)),
        flax_case(Normed(), X)[1],
    ),
    "vmapped": lambda: (lambda p: jax.vmap(lambda x, a: taken(mlp(p, x), a))(X, A), MLP),
    "vmapped_left": lambda: (
        lambda p: jax.vmap(lambda x: jnp.tanh(p["v"] @ jnp.tanh(p["w"] @ x + p["b"]))[0])(X),
        {"w": normal(7, OBS), "b": normal(7), "v": normal(3, 7)},
    ),
    "few_positions": lambda: (
        lambda p: taken(jnp.sum(mlp(p, POSITIONS) ** 2, 1)),
        weights(OBS, 40, ACTIONS),
    ),
    "many_positions": lambda: (lambda p: taken(jnp.sum(mlp(p, POSITIONS) ** 2, 1)), MLP),
    "ensemble": ensemble,
    "jitted": lambda: (jax.jit(lambda p: jax.jit(taken)(jax.jit(mlp)(p, X))), MLP),
    "rematerialised": lambda: (jax.checkpoint(lambda p: taken(jax.nn.relu(mlp(p, X)))), MLP),
    "custom_jvp": lambda: (lambda p: taken(doubled(mlp(p, X))), MLP),
    "tied": lambda: (lambda p: taken(jnp.tanh(jnp.tanh(X @ p["w"]) @ p["w"])[:, :4]), SQUARE),
    "tied_transposed": lambda: (
        lambda p: jnp.sum(jnp.tanh(jnp.tanh(X @ p["w"]) @ p["w"].T), 1),
        {"w": normal(OBS, 3)},
    ),
    "low_rank": lambda: (
        lambda p: taken(X @ (p["u"] @ p["v"]) + p["b"][None] / 3),
        {"u": normal(OBS, 2), "v": normal(2, ACTIONS), "b": normal(ACTIONS)},
    ),
    "unused_leaf": lambda: (lambda p: taken(mlp(p["used"], X)), {"used": MLP, "rest": normal(3)}),
    "scan_behind": lambda: (
        lambda p: lax.scan(lambda c, z: (jnp.tanh(c + z), None), jnp.zeros(N), mlp(p, X).T)[0],
        MLP,
    ),
}


def dense(f, params):
    jacobian = jax.tree.leaves(jax.jit(jax.jacrev(lambda p: jnp.ravel(f(p))))(params))
    return sum(
        np.reshape(j, (j.shape[0], -1)) @ np.reshape(j, (j.shape[0], -1)).T for j in jacobian
    )


def structured(f, params):
    gram = structured_gram(jax.linearize(f, params)[1], params)
    assert gram is not None, "the structure is not recognised: the fast path is lost"
    return gram


@pytest.mark.parametrize("name", CASES)
def test_equals_the_dense_product(name):
    f, params = CASES[name]()
    expected = dense(f, params)
    gram = jax.jit(functools.partial(structured, f))(params)
    np.testing.assert_allclose(gram, expected, rtol=1e-10, atol=1e-10)


def cast(tree, dtype):
    return jax.tree.map(lambda x: x.astype(dtype), tree)


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 5e-2)])
@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_lower_precision(network, dtype, tolerance):
    if network == "mlp":
        params = MLP

        def f(p, dtype):
            return taken(mlp(cast(p, dtype), X.astype(dtype)))
    else:
        _, params = flax_case(Conv(), FRAMES)

        def f(p, dtype):
            return taken(Conv().apply(cast(p, dtype), FRAMES.astype(dtype)))

    expected = dense(functools.partial(f, dtype=jnp.float64), params)
    gram = structured(functools.partial(f, dtype=dtype), cast(params, jnp.float32))
    assert gram.dtype == jnp.float32
    np.testing.assert_allclose(gram, expected, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit])
def test_vmap_of_the_whole(transform):
    x = normal(3, N, OBS, seed=6)

    def gram(params, x):
        return structured(lambda p: taken(mlp(p, x)), params)

    grams = transform(jax.vmap(gram, (None, 0)))(MLP, x)
    for one, expected in zip(x, grams, strict=True):
        np.testing.assert_allclose(gram(MLP, one), expected, rtol=1e-10, atol=1e-10)


def test_forms_no_gradient_of_a_dense_layer():
    params = weights(OBS, 64, 64, ACTIONS)
    program = jax.make_jaxpr(lambda p: structured(lambda p: taken(mlp(p, X)), p))(params)
    largest = max(var.aval.size for eqn in program.eqns for var in eqn.outvars)
    assert largest < N * 64 * 64


def recurrent(p):
    return lax.scan(lambda h, _: (jnp.tanh(h @ p["w"]), None), X, None, length=2)[0][:, 0]


@jax.custom_vjp
def opaque(x):
    return jnp.sin(x)


opaque.defvjp(lambda x: (jnp.sin(x), x), lambda x, g: (g * jnp.cos(x),))

UNRECOGNISED = {
    "scan": (recurrent, SQUARE),
    "cond": (lambda p: lax.cond(X[0, 0] > 0, lambda w: X @ w, lambda w: -X @ w, p)[:, 0], X.T),
    "parameter_per_sample": (taken, normal(N, ACTIONS)),
    "sample_axis_lost": (lambda p: (normal(N + 1, OBS) @ p["w"])[:N, 0], SQUARE),
    "constant": (lambda p: X[:, 0] + 0 * lax.stop_gradient(p["w"][0, 0]), SQUARE),
    "convolutions_of_an_ensemble": (
        lambda p: taken(jax.vmap(convolve)(FRAMES[None], p[None]).sum((0, 2, 3))),
        normal(2, 2, 3, ACTIONS),
    ),
    "shuffled_axes": (lambda p: (normal(2, N, N, OBS) @ p["w"]).sum((0, 2, 3)), SQUARE),
}
WITHOUT_SAMPLES = ("sample_axis_lost", "constant")


@pytest.mark.parametrize("name", UNRECOGNISED)
def test_unrecognised_structure(name):
    f, params = UNRECOGNISED[name]
    assert structured_gram(jax.linearize(f, params)[1], params) is None


@pytest.mark.parametrize("name", [x for x in UNRECOGNISED if x not in WITHOUT_SAMPLES])
def test_jacobian_gram_of_unrecognised_structure(name):
    f, params = UNRECOGNISED[name]
    gram = jacobian_gram(jax.linearize(f, params)[1], params)
    np.testing.assert_allclose(gram, dense(f, params), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["time_batch", "conv_nchw", "tied", "trunk_and_heads"])
def test_jacobian_gram(name):
    f, params = CASES[name]()
    gram = jax.jit(lambda p: jacobian_gram(jax.linearize(f, p)[1], p))(params)
    np.testing.assert_allclose(gram, dense(f, params), rtol=1e-10, atol=1e-10)


def test_custom_vjp_is_transposed_as_told():
    _, lin = jax.linearize(lambda p: opaque(mlp(p, X))[:, 0], MLP)
    gram = structured_gram(lin, MLP)
    assert gram is not None
    expected = dense(lambda p: jnp.sin(mlp(p, X))[:, 0], MLP)
    np.testing.assert_allclose(gram, expected, rtol=1e-10, atol=1e-10)


def test_interacting_samples_are_for_the_caller_to_notice():
    def batch_normalised(p):
        z = mlp(p, X)
        return taken((z - jnp.mean(z, 0, keepdims=True)) / jnp.std(z, 0, keepdims=True))

    wrong = structured(batch_normalised, MLP)
    _, lin = jax.linearize(batch_normalised, MLP)
    right = jacobian_gram(lin, MLP)
    np.testing.assert_allclose(right, dense(batch_normalised, MLP), rtol=1e-10, atol=1e-10)
    assert np.abs(wrong - right).max() > 0.1 * np.abs(right).max()
