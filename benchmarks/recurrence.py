"""How to evaluate G_t = x_t + c_t G_{t+1} and its windows: every candidate, at every size.

    python -m benchmarks.recurrence [--json FILE] [--quick | --full]

The library takes the sequential scan on a CPU and a TPU, blocks on a GPU, and windows by doubling
or by sixteens (`jaxsoft._recurrence.suffix_sums`). The other candidates live here only.
"""

import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from benchmarks import harness
from jaxsoft import _recurrence

Recurrence = Callable[[Array, Array], Array]
Pair = tuple[Array, Array]


def associative(x: Array, c: Array) -> Array:
    def combine(later: Pair, earlier: Pair) -> Pair:
        return earlier[0] + earlier[1] * later[0], earlier[1] * later[1]

    sums: Array = jax.lax.associative_scan(combine, (x, c), reverse=True)[0]
    return sums


def unrolled(x: Array, c: Array) -> Array:
    sums = [x[-1]]
    for t in range(len(x) - 2, -1, -1):
        sums.append(x[t] + c[t] * sums[-1])
    return jnp.stack(sums[::-1])


def scan_unrolled(x: Array, c: Array, unroll: int) -> Array:
    def step(following: Array, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
        here = inputs[0] + inputs[1] * following
        return here, here

    return jax.lax.scan(step, jnp.zeros_like(x[0]), (x, c), reverse=True, unroll=unroll)[1]


def vmapped_scan(x: Array, c: Array) -> Array:
    """One trajectory at a time under vmap, as per-trajectory libraries are used."""
    return jax.vmap(_recurrence.by_scan, 1, 1)(x, c)


def horner(x: Array, c: Array, window: int) -> Array:
    """n shifted multiply-adds."""
    length = len(x)
    pad = [(0, window - 1), (0, 0)]
    x, c = jnp.pad(x, pad), jnp.pad(c, pad)
    sums = x[window - 1 :]
    for d in range(window - 2, -1, -1):
        sums = x[d : d + length] + c[d : d + length] * sums
    return sums


def carried(x: Array, c: Array, window: int) -> Array:
    """A scan that carries the windows of all lengths up to n."""

    def step(windows: Array, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
        here, decay = inputs
        windows = jnp.concatenate([here[None], here[None] + decay[None] * windows[:-1]])
        return windows, windows[-1]

    start = jnp.zeros((window, *x.shape[1:]), x.dtype)
    return jax.lax.scan(step, start, (x, c), reverse=True)[1]


def blocked(x: Array, c: Array, window: int) -> Array:
    """van Herk: scans within blocks of n; a window is the end of one, the start of the next."""
    length, batch = x.shape
    blocks = -(-length // window) + 1
    pad = [(0, blocks * window - length), (0, 0)]
    x, c = (jnp.pad(a, pad).reshape(blocks, window, batch).swapaxes(0, 1) for a in (x, c))

    def backward(state: Pair, inputs: Pair) -> tuple[Pair, Pair]:
        state = inputs[0] + inputs[1] * state[0], inputs[1] * state[1]
        return state, state

    def forward(state: Pair, inputs: Pair) -> tuple[Pair, Array]:
        return (state[0] + state[1] * inputs[0], state[1] * inputs[1]), state[0]

    zero, one = jnp.zeros_like(x[0]), jnp.ones_like(x[0])
    _, (ends, products) = jax.lax.scan(backward, (zero, one), (x, c), reverse=True)
    _, starts = jax.lax.scan(forward, (zero, one), (x, c))
    following = jnp.concatenate([starts[:, 1:], jnp.zeros_like(starts[:, :1])], axis=1)
    sums: Array = ends + products * following
    return sums.swapaxes(0, 1).reshape(blocks * window, batch)[:length]


def whole(length: int) -> dict[str, Recurrence]:
    candidates: dict[str, Recurrence] = {
        "scan": _recurrence.by_scan,
        "scan, unroll 8": functools.partial(scan_unrolled, unroll=8),
        "associative": associative,
        "blocks": _recurrence.by_blocks,
        "doubling": functools.partial(_recurrence.by_windows, window=length, base=2),
        "scan under vmap": vmapped_scan,
        "library": _recurrence.suffix_sums,
    }
    return candidates | ({"unrolled": unrolled} if length <= 128 else {})


def windowed(window: int) -> dict[str, Recurrence]:
    candidates: dict[str, Recurrence] = {
        "doubling": functools.partial(_recurrence.by_windows, window=window, base=2),
        "by sixteens": functools.partial(_recurrence.by_windows, window=window, base=16),
        "carried": functools.partial(carried, window=window),
        "blocked": functools.partial(blocked, window=window),
        "library": functools.partial(_recurrence.suffix_sums, window=window),
    }
    return candidates | (
        {"horner": functools.partial(horner, window=window)} if window <= 32 else {}
    )


def main() -> None:
    args = harness.arguments("Evaluations of the linear recurrence under all returns.")
    lengths, batches, windows, repetitions = [5, 32, 128, 1024], [16, 256, 4096], [5, 20, 128], 9
    if args.quick:
        lengths, batches, windows, repetitions = [5, 128], [16, 256], [5], 5
    rows = []
    for length, batch in itertools.product(lengths, batches):
        rng = np.random.default_rng(0)
        x = jnp.asarray(rng.normal(size=(length, batch)), jnp.float32)
        c = jnp.asarray(rng.choice([0.0, 0.99], size=x.shape, p=[0.02, 0.98]), jnp.float32)
        cases = {"all": whole(length)} | {n: windowed(n) for n in windows if n < length}
        for window, candidates in cases.items():
            sides = {name: functools.partial(jax.jit(f), x, c) for name, f in candidates.items()}
            seconds = harness.measure(sides, repetitions=repetitions)
            print(f"\nT = {length}, B = {batch}, n = {window}")
            for name, each in sorted(seconds.items(), key=lambda item: min(item[1])):
                figures = harness.summary(each)
                relative = harness.ratio(seconds, name, "library")
                rows.append(
                    {"T": length, "B": batch, "n": window, "evaluation": name}
                    | figures
                    | {"to_library": relative["median"]}
                )
                print(
                    f"  {name:<18}{figures['median_us']:12.1f} µs"
                    f"   ({figures['low_us']:.1f} – {figures['high_us']:.1f})"
                    f"   {relative['median']:6.2f} × library"
                )
    harness.write(args, "recurrence", rows)


if __name__ == "__main__":
    main()
