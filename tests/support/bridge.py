"""Between the oracle and the library: the same problems, networks and paths, seen by both."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from inspect import isfunction, signature
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxsoft
from tests.support import oracles
from tests.support.oracles import MDP, Agent, Array, Model

TAUS = (0.01, 0.3, 2.5)
HEADS: tuple[Literal["q", "actor_critic"], ...] = ("q", "actor_critic")


STATIC = {"group_axis", "leave_one_out", "n"}
# The library, each function compiled once for each shape: eager calls would compile every operation
# of its own.
lib = SimpleNamespace(
    **{
        name: jax.jit(function, static_argnames=STATIC & signature(function).parameters.keys())
        for name, function in vars(jaxsoft).items()
        if isfunction(function)
    }
)


# ---- Comparison ----------------------------------------------------------------------------------


def assert_close(actual: Any, expected: Any, tolerance: float = 1e-10, of: Any = None) -> None:
    """Equality to `tolerance` times the largest entry of `of` (or of what is expected)."""
    expected = np.asarray(expected)
    scale = expected if of is None else np.asarray(of)
    size = np.max(np.abs(scale[np.isfinite(scale)]), initial=0.0)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * size, strict=True)


def assert_trees_close(actual: Any, expected: Any, tolerance: float = 1e-10) -> None:
    """`assert_close`, leaf by leaf."""
    jax.tree.map(lambda a, b: assert_close(a, b, tolerance), actual, expected)


def assert_differs(actual: Any, expected: Any, by: float = 1e-3) -> None:
    """Some entry is off by more than `by` times the largest one."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    assert np.max(np.abs(actual - expected)) > by * np.max(np.abs(expected))


def log_of(x: Array) -> Array:
    """log x, -inf at 0."""
    with np.errstate(divide="ignore"):
        return np.log(x)


# ---- Networks ------------------------------------------------------------------------------------


class Heads(NamedTuple):
    """What a network says of states [...]: all three, whichever two it has the heads for."""

    q: Any  # [..., A]
    v: Any  # [...]
    log_pi: Any  # [..., A]
    log_prior: Any  # [..., A]


def heads(agent: Agent, theta: Any, states: Array | None = None) -> Heads:
    """An oracle's agent by the library's algebra, differentiable by JAX, at states [...]."""
    with jax.numpy_rank_promotion("allow"):  # the oracle's networks are NumPy's
        raw, value = agent.model.heads(theta, jnp.tanh)
    out = algebra(raw, value, agent.tau, log_of(agent.prior), agent.head)
    return out if states is None else _at(out, states)


@partial(jax.jit, static_argnames="head")  # with tau an argument: compiled once for each shape
def algebra(raw: Any, value: Any, tau: Any, log_prior: Any, head: str) -> Heads:
    """All that an agent's outputs [S, A], [S] mean, by the library."""
    if head == "q":
        v = jaxsoft.soft_value(raw, tau, log_prior)
        return Heads(raw, v, jaxsoft.log_policy(raw, tau, log_prior), log_prior)
    log_pi = jaxsoft.log_policy(raw, 1.0, jnp.where(log_prior > -jnp.inf, 0.0, -jnp.inf))
    return Heads(jaxsoft.q_from_policy(value, log_pi, tau, log_prior), value, log_pi, log_prior)


@jax.jit
def _at(out: Heads, states: Any) -> Heads:
    return jax.tree.map(lambda x: x[states], out)


def scaled(model: Model, factor: float) -> Model:
    return Model(
        model.size, lambda w, tanh=np.tanh: tuple(factor * x for x in model.heads(w, tanh))
    )


def make_agent(
    model: Model, head: Literal["q", "actor_critic"], prior: Array, tau: float, seed: int = 0
) -> tuple[Agent, Array]:
    """An agent and its parameters. Q's gaps are of the order of tau: else all would be greedy."""
    return Agent(scaled(model, tau) if head == "q" else model, prior, tau, head), model.init(seed)


MODELS: dict[str, Callable[[int, int], Model]] = {
    "tabular": oracles.tabular,
    "linear": lambda states, actions: oracles.linear(0, states, actions),
    "mlp": lambda states, actions: oracles.mlp(0, states, actions),
}

Loss = Callable[[Heads], Any]


def gradient(
    loss: Loss, agent: Agent, theta: Array, states: Array, weights: Array | float = 1.0
) -> Array:
    """The gradient [P] of the weighted sum of losses at states [...]."""
    return np.asarray(
        jax.grad(lambda x: jnp.sum(weights * loss(heads(agent, x, states))))(jnp.asarray(theta))
    )


def samples(loss: Loss, agent: Agent, theta: Array, states: Array) -> Array:
    """The gradient of each loss, [..., P]."""
    return np.asarray(jax.jacobian(lambda x: loss(heads(agent, x, states)))(jnp.asarray(theta)))


def gauss_newton_step(
    loss: Loss, agent: Agent, theta: Array, states: Array, weights: Array
) -> Array:
    """The step [P] on losses 1/2 residual^2, of least norm where several are.

    The root of a loss loses its residual's sign, which cancels.
    """

    def size(h: Heads) -> Any:
        return jnp.sqrt(2 * loss(h))

    root = np.sqrt(weights)
    residual = root * np.asarray(size(heads(agent, theta, states)))
    jacobian = root[:, None] * samples(size, agent, theta, states)
    return -np.linalg.lstsq(jacobian, residual, rcond=1e-12)[0]


# ---- Paths ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Paths:
    """All trajectories from many starts, time first: [n, K], and [n + 1, K] states."""

    states: Array
    actions: Array
    rewards: Array
    discounts: Array
    probs: Array  # [K], given the start
    starts: tuple[Array, ...]  # ([K],) states or ([K], [K]) states and actions
    shape: tuple[int, ...]

    def mean(self, x: Any) -> Array:
        """E[x | start], [K] -> [S] or [S, A]."""
        total = np.zeros(self.shape)
        np.add.at(total, self.starts, self.probs * np.asarray(x))
        return total

    @property
    def accumulated(self) -> Array:
        """gamma^t as products of the discounts, [n, K]."""
        ones = np.ones_like(self.discounts[:1])
        return np.cumprod(np.concatenate([ones, self.discounts[:-1]]), axis=0)


def paths(mdp: MDP, policy: Array, n: int, per: Literal["state", "pair"] = "pair") -> Paths:
    """Every trajectory of n steps from every state, or from every state and first action.

    Padded by paths of probability 0 to a power of 4: few shapes, few compilations.
    """
    shape = policy.shape if per == "pair" else policy.shape[:1]
    starts = list(np.ndindex(shape))
    parts = [oracles.trajectories(mdp, policy, s, n, *a0) for s, *a0 in starts]

    count = sum(len(part.probs) for part in parts)
    padding = 4 ** int(np.ceil(np.log(count) / np.log(4))) - count

    def padded(x: Array) -> Array:
        return np.concatenate([x, np.repeat(x[-1:], padding, axis=0)])

    def joined(name: str) -> Array:
        return padded(np.concatenate([getattr(part, name) for part in parts])).T

    index = padded(np.repeat(np.array(starts), [len(part.probs) for part in parts], axis=0))
    return Paths(
        np.concatenate([joined("states"), joined("next_states")[-1:]]),
        joined("actions"),
        joined("rewards"),
        joined("discounts"),
        np.where(np.arange(count + padding) < count, joined("probs"), 0.0),
        tuple(index.T),
        shape,
    )


def soft_deltas(mdp: MDP, path: Paths, v: Array, kl: Array) -> Any:
    """The library's errors (36) along paths, [n, K]; v, kl [S]."""
    states = path.states
    return lib.td_errors(
        v[states[:-1]],
        path.rewards,
        path.discounts,
        v_t=v[states[1:]],
        kl_tm1=kl[states[:-1]],
        tau=mdp.tau,
    )


def all_pairs(weights: Array) -> tuple[Array, Array, Array]:
    """States, actions and weights [N] of the pairs of positive weight [S, A]."""
    s, a = np.nonzero(weights)
    return s, a, weights[s, a]
