"""Value and gradient of the losses, a second; and of the whole network under them.

    python -m benchmarks.losses [--json FILE] [--quick | --full]

Each loss runs on a rollout of T transitions and B environments, differentiated with respect to what
the network says, as jaxsoft has it and as its alternatives have: rlax, composed per trajectory and
vmapped over the batch as its documentation shows, where it has the same mathematics; the shortest
batched JAX for the same; PyTorch, where it is installed, eager and compiled. All sides are held to
the same values and gradients before any is timed. `memory` is the time in which the same bytes,
every input read and every gradient written once, move through a copy.
"""

import functools
import importlib.util
import itertools
import statistics
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rlax
from jax import Array

import jaxsoft
from benchmarks import harness
from benchmarks.harness import compiled
from jaxsoft.agents import networks
from jaxsoft.training.launch import compiler_options, keep_pages

Arrays = Mapping[str, Array]
Loss = Callable[[Arrays, Arrays], Array]
"""From what is differentiated, and the rest, to the mean loss."""

TAU, N, C, ACTIONS = 0.01, 5, 0.5, 4
# T, B, A: a form takes torch.compile longer than all else here together.
TORCH_SIZES = ((5, 16, 4), (128, 256, 4), (1024, 4096, 4))


def inputs(length: int, batch: int, actions: int, dtype: Any) -> tuple[dict[str, Array], Arrays]:
    """Outputs of a network at T + 1 states, and a rollout."""
    rng = np.random.default_rng(0)
    shape = (length, batch)
    network = {
        "q": rng.normal(size=(length + 1, batch, actions)),
        "logits": rng.normal(size=(length + 1, batch, actions)),
        "v": rng.normal(size=(length + 1, batch)),
    }
    rollout = {
        "r": jnp.asarray(rng.normal(size=shape), dtype),
        "discount": jnp.asarray(rng.choice([0.0, 0.99], size=shape, p=[0.02, 0.98]), dtype),
        "a": jnp.asarray(rng.integers(actions, size=shape), jnp.int32),
    }
    return {name: jnp.asarray(x, dtype) for name, x in network.items()}, rollout


# ---- jaxsoft -------------------------------------------------------------------------------------


def soft_q(net: Arrays, ro: Arrays, tau: float = TAU) -> Array:
    return jaxsoft.n_step_soft_q(
        net["q"], ro["a"], ro["r"], discount_t=ro["discount"], tau=tau, n=N
    ).mean()


def policy_gradient(net: Arrays, ro: Arrays, naive: bool = False) -> Array:
    form = jaxsoft.naive_actor_critic if naive else jaxsoft.actor_critic
    log_pi = jax.nn.log_softmax(net["logits"])
    return form(net["v"], log_pi, ro["a"], **whole_rollout(ro), value_coef=C, log_prior=0.0).mean()


def tied_soft_q(net: Arrays, ro: Arrays) -> Array:
    log_pi = jax.nn.log_softmax(net["logits"])
    return jaxsoft.tied_soft_q(net["v"], log_pi, ro["a"], **whole_rollout(ro), value_coef=C).mean()


def whole_rollout(ro: Arrays) -> dict[str, Any]:
    return {"r_t": ro["r"], "discount_t": ro["discount"], "tau": TAU, "n": len(ro["r"])}


# ---- the shortest batched JAX --------------------------------------------------------------------


def hand_window(r: Array, discount: Array, v: Array, kl: Array | None = None) -> Array:
    """n-step targets, n shifted multiply-adds; the first KL is not part of them."""
    length = len(r)
    r, discount = (jnp.pad(x, [(0, N), (0, 0)]) for x in (r, discount))
    discount = discount.at[length:].set(1)
    v = jnp.pad(v, [(0, N), (0, 0)], mode="edge")
    cost = jnp.zeros_like(v) if kl is None else TAU * jnp.pad(kl[:length], [(0, N + 1), (0, 0)])
    y = v[N : N + length]
    for d in reversed(range(N)):
        at = slice(d, d + length)
        y = r[at] + discount[at] * y - (cost[at] if d else 0)
    return y


def hand_soft_q(net: Arrays, ro: Arrays) -> Array:
    q = jax.lax.stop_gradient(net["q"])
    v = TAU * (jax.nn.logsumexp(q / TAU, axis=-1) - jnp.log(q.shape[-1]))
    pi = jax.nn.softmax(q / TAU)
    kl = ((pi * q).sum(-1) - v) / TAU
    y = hand_window(ro["r"], ro["discount"], v, kl)
    chosen = jnp.take_along_axis(net["q"][:-1], ro["a"][..., None], axis=-1)[..., 0]
    return 0.5 * jnp.square(chosen - y).mean()


def hand_hard_q(net: Arrays, ro: Arrays) -> Array:
    y = hand_window(ro["r"], ro["discount"], jax.lax.stop_gradient(net["q"]).max(-1))
    chosen = jnp.take_along_axis(net["q"][:-1], ro["a"][..., None], axis=-1)[..., 0]
    return 0.5 * jnp.square(chosen - y).mean()


def hand_returns(x: Array, c: Array, last: Array) -> Array:
    def step(g: Array, xc: tuple[Array, Array]) -> tuple[Array, Array]:
        g = xc[0] + xc[1] * g
        return g, g

    return jax.lax.scan(step, last, (x, c), reverse=True)[1]


def hand_policy_gradient(net: Arrays, ro: Arrays, naive: bool = False) -> Array:
    log_pi, v = jax.nn.log_softmax(net["logits"][:-1]), net["v"]
    entropy = -(jnp.exp(log_pi) * log_pi).sum(-1)
    r = ro["r"] if naive else ro["r"] + TAU * jax.lax.stop_gradient(entropy)
    target = hand_returns(r, ro["discount"], jax.lax.stop_gradient(v[-1]))
    chosen = jnp.take_along_axis(log_pi, ro["a"][..., None], axis=-1)[..., 0]
    error = target - v[:-1]
    policy = -chosen * jax.lax.stop_gradient(error) - TAU * entropy
    return (policy + C * 0.5 * jnp.square(error)).mean()


def hand_tied_soft_q(net: Arrays, ro: Arrays) -> Array:
    log_pi, v = jax.nn.log_softmax(net["logits"][:-1]), net["v"]
    fixed = jax.lax.stop_gradient
    ratio = fixed(log_pi) + jnp.log(log_pi.shape[-1])
    kl = (jnp.exp(fixed(log_pi)) * ratio).sum(-1)
    cost = TAU * kl
    target = hand_returns(ro["r"] - cost, ro["discount"], fixed(v[-1])) + cost
    chosen = jnp.take_along_axis(log_pi, ro["a"][..., None], axis=-1)[..., 0]
    taken = jnp.take_along_axis(ratio, ro["a"][..., None], axis=-1)[..., 0]
    error = fixed(v[:-1]) + TAU * taken - target
    # The value is ½ error², the gradient error · (∇log π + c∇V).
    streams = chosen + C * v[:-1]
    return (0.5 * jnp.square(error) + error * (streams - fixed(streams))).mean()


# ---- rlax, per trajectory under vmap -------------------------------------------------------------


def rlax_hard_q(net: Arrays, ro: Arrays) -> Array:
    def one(q: Array, a: Array, r: Array, discount: Array) -> Array:
        v = q[1:].max(-1)
        y = rlax.n_step_bootstrapped_returns(r, discount, v, N, stop_target_gradients=True)
        loss: Array = rlax.l2_loss(rlax.batched_index(q[:-1], a) - y).mean()
        return loss

    return jax.vmap(one, 1)(net["q"], ro["a"], ro["r"], ro["discount"]).mean()


def rlax_naive_policy_gradient(net: Arrays, ro: Arrays) -> Array:
    def one(v: Array, logits: Array, a: Array, r: Array, discount: Array) -> Array:
        error = rlax.td_lambda(v[:-1], r, discount, v[1:], 1.0)
        weight = jnp.ones_like(r)
        policy = rlax.policy_gradient_loss(logits[:-1], a, error, weight)
        entropy = rlax.entropy_loss(logits[:-1], weight)
        loss: Array = policy + TAU * entropy + C * rlax.l2_loss(error).mean()
        return loss

    rest = (ro["a"], ro["r"], ro["discount"])
    return jax.vmap(one, 1)(net["v"], net["logits"], *rest).mean()


LOSSES: dict[str, tuple[tuple[str, ...], dict[str, Loss]]] = {
    "soft_q": (("q",), {"jaxsoft": soft_q, "jax by hand": hand_soft_q}),
    "hard_q": (
        ("q",),
        {
            "jaxsoft": functools.partial(soft_q, tau=0.0),
            "jax by hand": hand_hard_q,
            "rlax": rlax_hard_q,
        },
    ),
    "policy_gradient": (
        ("v", "logits"),
        {"jaxsoft": policy_gradient, "jax by hand": hand_policy_gradient},
    ),
    "naive_policy_gradient": (
        ("v", "logits"),
        {
            "jaxsoft": functools.partial(policy_gradient, naive=True),
            "jax by hand": functools.partial(hand_policy_gradient, naive=True),
            "rlax": rlax_naive_policy_gradient,
        },
    ),
    "tied_soft_q": (("v", "logits"), {"jaxsoft": tied_soft_q, "jax by hand": hand_tied_soft_q}),
}


def torch_peer() -> Any:
    """PyTorch's side of everything, on the device that JAX uses; `None` where it is missing."""
    if importlib.util.find_spec("torch") is None:
        return None
    return importlib.import_module("benchmarks.peers.torch_losses")


def agree(name: str, results: Mapping[str, Any]) -> None:
    """All sides have one value and one gradient: what is timed is the same mathematics."""

    def plain(x: Any) -> np.ndarray:
        if hasattr(x, "detach"):
            x = x.detach().float().cpu().numpy()
        return np.asarray(x, np.float64)

    first, *others = results
    expected = [plain(x) for x in jax.tree.leaves(results[first])]
    for other in others:
        for x, y in zip(expected, map(plain, jax.tree.leaves(results[other])), strict=True):
            error = np.linalg.norm(x - y) / max(float(np.linalg.norm(x)), 1e-30)
            if not error < 2e-3:
                raise SystemExit(f"{name}: {other} is {error:.1e} apart from {first}")


def copy_rate(megabytes: int) -> float:
    """Bytes that a copy reads and writes in a second, at its best."""
    x = jnp.zeros(megabytes << 18, jnp.float32)
    copy = compiled(lambda x: x + 1)
    seconds = harness.measure({"copy": lambda: copy(x)}, repetitions=15)["copy"]
    return 2 * x.nbytes / min(seconds)


def loss_rows(*, quick: bool, full: bool) -> list[dict[str, Any]]:
    lengths, batches, actions, repetitions = [5, 32, 128, 1024], [16, 256, 4096], [4, 18], 5
    dtypes: tuple[Any, ...] = (jnp.float32, jnp.bfloat16)
    if quick:
        lengths, batches, actions, dtypes, repetitions = [5, 128], [16, 256], [4], dtypes[:1], 3
    elif not full:
        dtypes = dtypes[:1]
    rate = copy_rate(64 if quick else 256)
    rows = []
    for dtype, length, batch, count in itertools.product(dtypes, lengths, batches, actions):
        network, rollout = inputs(length, batch, count, dtype)
        for name, (wanted, forms) in LOSSES.items():
            net = {key: network[key] for key in wanted}
            calls: dict[str, Callable[[], Any]] = {
                side: functools.partial(compiled(jax.value_and_grad(form)), net, rollout)
                for side, form in forms.items()
            }
            sized = dtype == jnp.float32 and (length, batch, count) in TORCH_SIZES
            if sized and (peer := torch_peer()):
                calls |= peer.sides(peer.loss(name, TAU, N, C), net, rollout)
            size = {"T": length, "B": batch, "A": count, "dtype": jnp.dtype(dtype).name}
            if dtype == jnp.float32:  # in half precision, the others compute in it as well
                agree(f"{name} {size}", {side: call() for side, call in calls.items()})
            seconds = harness.measure(calls, repetitions=repetitions, at_least=0.01)
            moved = 2 * sum(x.nbytes for x in net.values())
            moved += sum(x.nbytes for x in rollout.values())
            for side in calls:
                row: dict[str, Any] = {"loss": name, **size, "side": side}
                row |= harness.summary(seconds[side])
                row["to_jaxsoft"] = harness.ratio(seconds, side, "jaxsoft")["median"]
                rows.append(row)
            row = {"loss": name, **size, "side": "memory", "bytes": moved}
            row["median_us"] = 1e6 * moved / rate
            row["to_jaxsoft"] = moved / rate / statistics.median(seconds["jaxsoft"])
            rows.append(row)
            print(
                f"{name:<22}{length:>5} x {batch:<5}A {count:<3}{size['dtype']:<9}"
                + "  ".join(f"{r['side']} {r['median_us']:,.0f}" for r in rows[-len(calls) - 1 :]),
                flush=True,
            )
    return rows


def advantages(r: Array, discount: Array, v: Array) -> Array:
    delta = jaxsoft.td_errors(v[:-1], r, discount, v_t=v[1:], kl_tm1=0.0, tau=0.0)
    return jaxsoft.lambda_advantages(delta, discount, lambda_=0.95)


def rlax_advantages(r: Array, discount: Array, v: Array) -> Array:
    def one(r: Array, discount: Array, v: Array) -> Array:
        out: Array = rlax.truncated_generalized_advantage_estimation(r, discount, 0.95, v)
        return out

    return jax.vmap(one, 1, 1)(r, discount, v)


def returns_rows(quick: bool) -> list[dict[str, Any]]:
    """Advantages alone, the whole rollout: the one part whose depth grows with T."""
    rows = []
    for length, batch in itertools.product((128,) if quick else (32, 128, 1024), (16, 256, 4096)):
        network, rollout = inputs(length, batch, 1, jnp.float32)
        arguments = (rollout["r"], rollout["discount"], network["v"])
        calls = {
            "jaxsoft": functools.partial(compiled(advantages), *arguments),
            "rlax": functools.partial(compiled(rlax_advantages), *arguments),
        }
        agree(f"returns {length} x {batch}", {k: f() for k, f in calls.items()})
        seconds = harness.measure(calls, repetitions=9)
        for side in calls:
            row = {"loss": "returns", "T": length, "B": batch, "side": side}
            row |= harness.summary(seconds[side])
            row["to_jaxsoft"] = harness.ratio(seconds, side, "jaxsoft")["median"]
            rows.append(row)
            print(f"returns {length} x {batch} {side} {row['median_us']:,.0f} µs", flush=True)
    return rows


def multiplications() -> int:
    """Multiply-adds of one frame, forward, backward to the parameters, and to the inputs."""
    first = 20 * 20 * 32 * 8 * 8 * 4
    others = 9 * 9 * 64 * 4 * 4 * 32 + 7 * 7 * 64 * 3 * 3 * 64 + 7 * 7 * 64 * 512
    others += 512 * (ACTIONS + 1)
    return 2 * first + 3 * others  # no gradient flows into the images


def peak() -> float:
    """Multiply-adds a second in a product of large matrices."""
    x = jnp.ones((2048, 2048), jnp.float32)
    product = jax.jit(jnp.matmul)
    seconds = harness.measure({"product": lambda: product(x, x)}, repetitions=7)["product"]
    return 2048**3 / min(seconds)


def through_network(native: bool, frames: Array, rest: Arrays) -> tuple[Any, Callable[[], Any]]:
    """Parameters, and a call for the value and gradient of A2C's loss with fixed targets."""
    network = networks.ActorCritic(networks.NatureCNN(native=native), ACTIONS, 3)
    params = network.init(jax.random.key(0), frames[:1])

    def loss(params: Any, frames: Array, rest: Arrays) -> Array:
        said: Any = network.apply(params, frames)
        v, log_pi = said
        return jaxsoft.a2c_loss(
            v, log_pi, rest["a"], target_t=rest["target"], tau=TAU, value_coef=C
        ).mean()

    options = {} if native else compiler_options()
    gradient = jax.jit(jax.value_and_grad(loss), compiler_options=options)
    return params, lambda: gradient(params, frames, rest)


def network_rows(*, quick: bool, full: bool) -> list[dict[str, Any]]:
    """The whole gradient of A2C through the Nature CNN, frames a second."""
    largest = peak()
    rows = []
    for batch in (80,) if quick else (80, 320, 2048, *([16384] if full else [])):
        rng = np.random.default_rng(0)
        frames = jnp.asarray(rng.integers(256, size=(batch, 4, 84, 84), dtype=np.uint8))
        rest = {
            "a": jnp.asarray(rng.integers(ACTIONS, size=batch), jnp.int32),
            "target": jnp.asarray(rng.normal(size=batch), jnp.float32),
        }
        params, ours = through_network(False, frames, rest)
        calls = {"jaxsoft": ours}
        if jax.default_backend() == "cpu" and batch <= 2048:
            calls["jax, convolutions as they are"] = through_network(True, frames, rest)[1]
        if peer := torch_peer():
            calls["torch"] = peer.network(params, frames, rest, TAU, C)
        agree(f"network {batch}", {name: f()[0] for name, f in calls.items()})
        seconds = harness.measure(calls, repetitions=3 if batch > 320 else 7)
        for name in calls:
            row: dict[str, Any] = {"loss": "a2c, Nature CNN", "B": batch, "side": name}
            row |= harness.summary(seconds[name])
            row["to_jaxsoft"] = harness.ratio(seconds, name, "jaxsoft")["median"]
            row["frames_per_second"] = 1e6 * batch / row["median_us"]
            row["share_of_peak"] = row["frames_per_second"] * multiplications() / largest
            rows.append(row)
            print(
                f"network {batch:>6} {name:<26}{row['frames_per_second']:>9,.0f} frames/s   "
                f"{row['share_of_peak']:.0%} of peak",
                flush=True,
            )
    return rows


def geometric(rows: list[dict[str, Any]], side: str) -> str:
    """The mean and the extremes of how much longer a side takes."""
    ratios = [row["to_jaxsoft"] for row in rows if row["side"] == side]
    if not ratios:
        return ""
    mean = statistics.geometric_mean(ratios)
    return f"{side}: {mean:.2f} x jaxsoft's time ({min(ratios):.2f} - {max(ratios):.2f})"


def main() -> None:
    given = harness.arguments(__doc__.splitlines()[0])
    rows = loss_rows(quick=given.quick, full=given.full)
    rows += returns_rows(given.quick) + network_rows(quick=given.quick, full=given.full)
    for side in dict.fromkeys(row["side"] for row in rows):
        if side != "jaxsoft":
            print(geometric(rows, side))
    harness.write(given, "losses", rows)


if __name__ == "__main__":
    keep_pages()
    main()
