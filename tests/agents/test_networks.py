"""Networks against NumPy and XLA's own convolution, in float64; what their outputs promise."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jax import export

from jaxsoft.agents import networks
from jaxsoft.agents.networks import MLP, ActorCritic, Conv, NatureCNN, QNetwork, torso_for
from jaxsoft.natural._gram import structured_gram
from tests.support import platforms

A = 5
ROOT_2 = np.sqrt(2)
WAYS = pytest.mark.parametrize("native", [False, True], ids=["channels_last", "native"])
SMALL = (2, 36, 40)  # an image of which NatureCNN leaves 1 × 1


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def images(seed, *shape):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def leaves(tree):
    """{path: array}."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): x
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }


def arrays(tree):
    """The same of NumPy's."""
    return jax.tree.map(np.asarray, leaves(tree))


def random_params(module, x, seed=0, dtype=jnp.float64):
    """Parameters of the right shapes, no bias of them zero, no policy of them near uniform."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)
    rng = np.random.default_rng(seed)

    def draw(leaf):
        fan_in = np.prod(leaf.shape[:-1]) if len(leaf.shape) > 1 else 1
        return jnp.asarray(rng.normal(size=leaf.shape) * np.sqrt(2 / fan_in), dtype)

    return jax.tree.map(draw, shapes)


def apply(module):
    return jax.jit(module.apply)


# ---- Convolution ---------------------------------------------------------------------------------


def xla_conv(p, x, stride):
    """In another layout than the library's."""
    kernel = p["params"]["kernel"].transpose(3, 2, 0, 1)
    y = jax.lax.conv(x.transpose(0, 3, 1, 2), kernel, (stride, stride), "VALID")
    return y.transpose(0, 2, 3, 1) + p["params"]["bias"][None, None, None]


def assert_convolves(native, batch, height, width, kernel, stride, channels, features):
    module = Conv(features, kernel, stride, jnp.float64, native)
    x = jnp.asarray(normal(1, batch, height, width, channels))
    params = random_params(module, x)
    shape = (batch, (height - kernel) // stride + 1, (width - kernel) // stride + 1, features)
    weight = normal(2, *shape)

    def both(f):
        def weighted(p, x):
            y = f(p, x)
            return jnp.sum(weight * y), y

        (_, y), gradients = jax.jit(jax.value_and_grad(weighted, (0, 1), has_aux=True))(params, x)
        return {"y": y, **leaves(gradients)}

    actual, expected = both(module.apply), both(lambda p, x: xla_conv(p, x, stride))
    assert set(actual) == {"y", "0/params/kernel", "0/params/bias", "1"}
    assert actual["y"].shape == shape
    for name, x in expected.items():
        size = np.abs(x).max()
        np.testing.assert_allclose(actual[name], x, rtol=0, atol=1e-12 * size, err_msg=name)


@WAYS
def test_conv_is_that_of_xla_at_the_nature_networks_first_layer(native):
    assert_convolves(native, 1, 84, 84, 8, 4, 4, 32)


@st.composite
def convolutions(draw):
    stride = draw(st.integers(1, 3))
    kernel = stride * draw(st.integers(1, 3))
    sides = st.integers(kernel, kernel + 7)
    height, width = draw(sides), draw(sides)
    small = st.integers(1, 3)
    return draw(small), height, width, kernel, stride, draw(small), draw(small)


@settings(max_examples=4)
@example((2, 11, 14, 4, 2, 3, 5))
@example((1, 10, 7, 3, 3, 1, 2))
@example((2, 6, 4, 1, 1, 2, 1))
@example((3, 5, 5, 5, 1, 2, 2))
@given(convolutions())
def test_conv_is_a_convolution(sizes):
    assert_convolves(False, *sizes)


def test_native_convolution():
    assert_convolves(True, 2, 11, 14, 4, 2, 3, 5)


def test_half_precision_convolution():
    x = normal(0, 2, 20, 20, 4)
    exact = Conv(8, 8, 4, jnp.float64, True)
    params = random_params(exact, x)
    expected = np.asarray(exact.apply(params, x))
    for native in (False, True):
        y = apply(Conv(8, 8, 4, jnp.bfloat16, native))(params, x)
        assert y.dtype == jnp.bfloat16
        size = np.abs(expected).max()
        np.testing.assert_allclose(y.astype(float), expected, rtol=0, atol=0.02 * size)


def every_derivative(module, batched):
    """Of a kernel and of images, once more of the gradients, and for many at once."""

    def loss(params, x):
        return jnp.sum(jnp.sin(module.apply(params, x)))

    def twice(params, x):
        gradient = jax.grad(loss, (0, 1))
        return gradient(params, x), jax.jvp(gradient, (params, x), (params, x))

    return jax.vmap(twice, batched) if batched else twice


@pytest.mark.parametrize("batched", [None, (0, None), (None, 0), (0, 0)])
def test_the_platform_that_is_compiled_for_has_its_form(batched):
    x = normal(0, 2, 9, 10, 2)  # of which stride 2 leaves a row
    params = random_params(Conv(3, 4, 2, jnp.float64), x)
    if batched:
        params, x = (
            jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), tree) if axis == 0 else tree
            for tree, axis in zip((params, x), batched, strict=True)
        )
    ours, native = (
        platforms.lowered(
            every_derivative(Conv(3, 4, 2, jnp.float64, native), batched),
            params,
            x,
            platforms=("cpu", "cuda", "rocm", "tpu"),
        )
        for native in (False, True)
    )
    for platform in ("cuda", "rocm", "tpu"):
        found = platforms.convolutions(ours[platform])
        assert len(found) > 4
        assert found == platforms.convolutions(native[platform])
        assert "stablehlo.while" not in ours[platform]
    plain = "dim_numbers = [b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f], window = {}"
    assert all(x.startswith(plain) for x in platforms.convolutions(ours["cpu"]))


def test_a_checkpoint_moves_between_platforms():
    """One tree of parameters, whatever is compiled for."""
    network = ActorCritic(NatureCNN(), A, 3)
    x = jax.ShapeDtypeStruct((2, *SMALL), np.uint8)
    params = jax.eval_shape(network.init, jax.random.key(0), x)
    shapes = {
        platform: export.export(jax.jit(network.apply), platforms=[platform])(params, x).in_avals
        for platform in ("cpu", "cuda", "tpu")
    }
    assert shapes["cpu"] == shapes["cuda"] == shapes["tpu"]


# ---- Nature network ------------------------------------------------------------------------------


def numpy_conv(x, w, b, stride):
    windows = np.lib.stride_tricks.sliding_window_view(x, w.shape[:2], (1, 2))
    return np.einsum("nyxcij,ijcf->nyxf", windows[:, ::stride, ::stride], w, optimize=True) + b


def numpy_nature(params, x, centred):
    p = arrays(params["params"])
    x = np.moveaxis(x, 1, -1) / 255.0
    if centred:
        x = np.stack([image - image.mean() for image in x])
    for i, stride in enumerate((4, 2, 1)):
        x = np.maximum(numpy_conv(x, p[f"Conv_{i}/kernel"], p[f"Conv_{i}/bias"], stride), 0)
    flat = x.reshape(len(x), -1)
    return np.maximum(flat @ p["Dense_0/kernel"] + p["Dense_0/bias"], 0)


@WAYS
@pytest.mark.parametrize("size", [(4, 84, 84), (1, 53, 38)], ids=["atari", "odd"])
@pytest.mark.parametrize("centred", [False, True])
def test_nature_network(native, size, centred):
    x = images(0, 2, *size)
    module = NatureCNN(jnp.float64, native, centred)
    params = random_params(module, x)
    expected = numpy_nature(params, x, centred)
    assert expected.shape == (2, 512)
    assert 0.2 < np.mean(expected > 0) < 0.8
    features = apply(module)(params, x)
    np.testing.assert_allclose(features, expected, rtol=0, atol=1e-11 * expected.max())


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_centred_network_does_not_see_the_brightness(dtype):
    x = images(0, 2, *SMALL) // 2
    for centred in (False, True):
        module = NatureCNN(dtype, centred=centred)
        params = random_params(module, x)
        dark, bright = (np.float64(apply(module)(params, y)) for y in (x, x + np.uint8(100)))
        assert dark.any()
        same = np.abs(bright - dark).max() < 1e-3 * np.abs(dark).max()
        assert same == centred


def atari():
    return ActorCritic(NatureCNN(), A, 3)


def test_sizes_of_the_nature_network():
    params = jax.eval_shape(atari().init, jax.random.key(0), images(0, 4, 84, 84))["params"]
    # One parameter less than the kernels' sizes would show here.
    torso = (8 * 8 * 4 + 1) * 32 + (4 * 4 * 32 + 1) * 64 + (3 * 3 * 64 + 1) * 64
    torso += (7 * 7 * 64 + 1) * 512
    assert torso == 1_684_128
    assert sum(x.size for x in jax.tree.leaves(params["torso"])) == torso
    assert sum(x.size for x in jax.tree.leaves(params)) == torso + (512 + 1) * (A + 1)
    assert {name: x.shape for name, x in leaves(params).items() if name.endswith("kernel")} == {
        "torso/Conv_0/kernel": (8, 8, 4, 32),
        "torso/Conv_1/kernel": (4, 4, 32, 64),
        "torso/Conv_2/kernel": (3, 3, 64, 64),
        "torso/Dense_0/kernel": (7 * 7 * 64, 512),
        "policy/kernel": (512, A),
        "value/kernel": (512, 1),
    }
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(params))


# ---- Initialisation ------------------------------------------------------------------------------


def assert_initialised(params, gains):
    """Rows or columns, whichever are fewer, are orthonormal times the gain; biases are zero."""
    for name, x in leaves(params["params"]).items():
        layer, kind = name.rsplit("/", 1)
        if kind == "bias":
            assert not np.any(x), name
            continue
        matrix = np.asarray(x, np.float64).reshape(-1, x.shape[-1]) / gains(layer)
        if len(matrix) < len(matrix.T):
            matrix = matrix.T
        identity = np.eye(matrix.shape[1])
        np.testing.assert_allclose(matrix.T @ matrix, identity, atol=2e-5, err_msg=name)


@pytest.mark.parametrize(
    ("network", "observation"),
    [
        (atari(), images(0, *SMALL)),
        (ActorCritic(MLP((7, 11)), A, 1), normal(0, 3)),
        (QNetwork(MLP((16,)), A, 1), normal(0, 3)),
    ],
    ids=["nature", "mlp", "q"],
)
def test_initial_kernels_are_orthogonal(network, observation):
    gains = {"policy": 0.01, "value": 1.0, "action_values": 0.01}
    params = jax.jit(network.init)(jax.random.key(3), observation)
    assert_initialised(params, lambda layer: gains.get(layer, ROOT_2))
    assert {layer.split("/")[0] for layer in params["params"]} <= {"torso", *gains}


def test_parameters_do_not_depend_on_the_form():
    x = normal(0, 1, 8, 8, 2)
    one, other = (
        jax.jit(Conv(3, 4, 2, native=way).init)(jax.random.key(0), x) for way in (False, True)
    )
    jax.tree.map(np.testing.assert_array_equal, one, other)


# ---- Outputs -------------------------------------------------------------------------------------


def numpy_mlp(params, x, layers=2):
    p = arrays(params)
    x = np.asarray(x, np.float64).reshape(len(x), -1)
    for i in range(layers):
        x = np.tanh(x @ p[f"Dense_{i}/kernel"] + p[f"Dense_{i}/bias"])
    return x


@pytest.mark.parametrize(
    "observations", [normal(1, 4, 3, 2), np.arange(24).reshape(4, 6), np.arange(4)]
)
def test_mlp(observations):
    module = MLP((5, 6), jnp.float64)
    params = random_params(module, observations)
    y = np.asarray(module.apply(params, observations))
    np.testing.assert_allclose(y, numpy_mlp(params["params"], observations), rtol=1e-12)


def test_heads():
    x = normal(1, 4, 3)
    v_and_policy = ActorCritic(MLP((5, 6), jnp.float64), A, 1)
    params = random_params(v_and_policy, x)
    p = arrays(params["params"])
    features = numpy_mlp(params["params"]["torso"], x)
    v, log_pi = apply(v_and_policy)(params, x)
    np.testing.assert_allclose(
        v, (features @ p["value/kernel"] + p["value/bias"])[:, 0], rtol=1e-12
    )
    logits = features @ p["policy/kernel"] + p["policy/bias"]
    expected = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    np.testing.assert_allclose(log_pi, expected, rtol=1e-12)
    assert np.ptp(expected) > 1

    values = QNetwork(MLP((5, 6), jnp.float64), A, 1)
    params = random_params(values, x)
    p = arrays(params["params"])
    features = numpy_mlp(params["params"]["torso"], x)
    q = features @ p["action_values/kernel"] + p["action_values/bias"]
    np.testing.assert_allclose(apply(values)(params, x), q, rtol=1e-12)


NETWORKS = {
    "images": (ActorCritic(NatureCNN(), A, 3), images(0, 2, 3, *SMALL)),
    "vectors": (ActorCritic(MLP(), A, 1), normal(0, 2, 3, 4).astype(np.float32)),
    "numbers": (QNetwork(MLP(), A, 0), np.arange(6).reshape(2, 3)),
    "q_matrices": (QNetwork(MLP(), A, 2), normal(0, 2, 3, 4, 2).astype(np.float32)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_leading_axes_are_optional(name):
    network, x = NETWORKS[name]
    params = random_params(network, x, dtype=jnp.float32)
    run = apply(network)
    whole = run(params, x)
    outputs = jax.tree.leaves(whole)
    shapes = [(2, 3, A)] if isinstance(network, QNetwork) else [(2, 3), (2, 3, A)]
    assert [y.shape for y in outputs] == shapes
    assert isinstance(whole, tuple) == isinstance(network, ActorCritic)
    assert np.std(outputs[-1]) > 0.1
    for part in ((1, 2),) if name == "images" else ((1,), (1, 2)):
        for y, expected in zip(jax.tree.leaves(run(params, x[part])), outputs, strict=True):
            np.testing.assert_allclose(y, expected[part], rtol=1e-4, atol=1e-5)
            assert y.dtype == jnp.float32


@pytest.mark.parametrize(
    ("torso", "kind"), [(NatureCNN, ActorCritic), (MLP, ActorCritic), (MLP, QNetwork)]
)
def test_half_precision_stays_inside(torso, kind):
    x = images(0, 3, *SMALL) if torso is NatureCNN else normal(0, 3, 4)
    exact, half = (kind(torso(dtype=d), A, x.ndim - 1) for d in (jnp.float64, jnp.bfloat16))
    params = random_params(exact, x, dtype=jnp.float32)

    @jax.jit
    def run(params):
        return half.apply(params, x, capture_intermediates=True), exact.apply(params, x)

    (outputs, inside), expected = run(params)
    assert inside["intermediates"]["torso"]["__call__"][0].dtype == jnp.bfloat16
    for y, z in zip(jax.tree.leaves(outputs), jax.tree.leaves(expected), strict=True):
        assert y.dtype == jnp.float32
        assert z.dtype == jnp.float64
        np.testing.assert_allclose(y, z, rtol=0, atol=0.05 * np.abs(z).max())
    if kind is ActorCritic:  # to more digits than half precision has
        np.testing.assert_allclose(np.exp(outputs[1]).sum(-1), 1, rtol=1e-6)


# ---- Curvature -----------------------------------------------------------------------------------


@WAYS
def test_the_gram_solver_knows_both_forms(native):
    """K = ΨΨᵀ from the program's structure, of log π and V on one trunk."""
    x, a = images(0, 3, *SMALL), np.array([0, 3, 1])
    network = ActorCritic(NatureCNN(jnp.float64, native), A, 3)
    params = random_params(network, x)
    forward: Callable[..., Any] = network.apply

    def rows(p):
        v, log_pi = forward(p, x)
        return v + jnp.sum(jax.nn.one_hot(a, A) * log_pi, -1)

    @jax.jit
    def both(p):
        gram = structured_gram(jax.linearize(rows, p)[1], p)
        assert gram is not None, "the structure is not recognised: the fast path is lost"
        return gram, jax.tree.leaves(jax.jacrev(rows)(p))

    gram, jacobian = both(params)
    expected = sum(j.reshape(3, -1) @ j.reshape(3, -1).T for j in jacobian)
    np.testing.assert_allclose(gram, expected, rtol=1e-10)


# ---- Choice and mistakes -------------------------------------------------------------------------


def test_torso_for():
    settings = {"hidden": [3, 4], "dtype": jnp.bfloat16, "native": True, "centred": True}
    for dtype in (np.uint8, jnp.uint8, "uint8", np.dtype("uint8")):
        assert torso_for((4, 84, 84), dtype, **settings) == NatureCNN(jnp.bfloat16, True, True)
    mlp = MLP((3, 4), jnp.bfloat16)
    for shape, dtype in (
        ((4, 84, 84), np.float32),
        ((4, 84, 84), np.int32),
        ((128,), np.uint8),
        ((9, 9), np.uint8),
        ((1, 4, 84, 84), np.uint8),
        ((), np.int32),
    ):
        assert torso_for(shape, dtype, **settings) == mlp
    assert torso_for((4,), np.float32) == MLP((64, 64), jnp.float32)
    assert torso_for((4, 84, 84), np.uint8) == NatureCNN(jnp.float32, False)


def initialise(module, x):
    return lambda: jax.eval_shape(module.init, jax.random.key(0), x)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (initialise(Conv(3, 8, 4), normal(0, 1, 7, 84, 3)), "images of 7 x 84 for kernel 8"),
        (initialise(Conv(3, 8, 4), normal(0, 1, 84, 7, 3)), "no smaller than the kernel"),
        (initialise(Conv(3, 8, 3), normal(0, 1, 84, 84, 3)), "a kernel that the stride divides"),
        (initialise(NatureCNN(), images(0, 1, 4, 35, 84)), r"2 x \d+ for kernel 3"),
        (initialise(ActorCritic(NatureCNN(), A, 3), images(0, 84, 84)), "at least 3 axes"),
        (initialise(QNetwork(MLP(), A, 1), np.float32(0)), "got an observation "),
    ],
)
def test_mistakes_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_public_names():
    assert sorted(networks.__all__) == sorted(
        {"ACTIVATIONS", "LOG_STD", "MLP", "ActorCritic", "Conv", "NatureCNN", "QNetwork"}
        | {"SamplingActorCritic", "SoftActorCritic", "torso_for"}
    )
