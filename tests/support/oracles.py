"""The independent oracle of the tests: slow, exact float64 NumPy that knows nothing of the library.

Equation numbers are the paper's (Schulman, Chen, Abbeel: Equivalence Between Policy Gradients and
Soft Q-Learning). Where it misprints one, functions here compute the corrected form; section 8 keeps
the printed forms, so that tests can show that they fail.

Shapes: S states, A actions, M reward outcomes, K trajectories, T or n steps, P parameters. Policies
are probabilities [S, A]; log-policies are -inf where the prior is 0 (a masked action). Functions of
theta accept and return complex arrays: gradients are complex steps, exact to rounding.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

Array: TypeAlias = Any  # a NumPy array or scalar, real or complex
Function: TypeAlias = Callable[[Array], Array]  # of theta [P]


# ---- 1. Problems ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bandit:
    """A bandit of section 2: action a pays rewards[a, m] with probability reward_probs[m]."""

    rewards: Array  # [A, M]
    reward_probs: Array  # [M]
    prior: Array  # [A], any non-negative measure
    tau: float

    @property
    def mean_reward(self) -> Array:
        """E[r | a], [A]."""
        return self.rewards @ self.reward_probs


@dataclass(frozen=True)
class MDP:
    """A finite MDP: the step s, a, s' pays rewards[s, a, s', m] with probability reward_probs[m].

    A terminal state loops to itself for nothing and the discount into it is 0: so every operator
    below holds as written in every state, and whatever stands at a terminal state never counts.
    """

    transition: Array  # [S, A, S]
    rewards: Array  # [S, A, S, M]
    reward_probs: Array  # [M]
    prior: Array  # [S, A], any non-negative measure; 0 masks an action
    gamma: float
    tau: float
    terminal: Array  # [S], bool

    @property
    def mean_reward(self) -> Array:
        """E[r | s, a], [S, A]."""
        return np.sum(self.transition * (self.rewards @ self.reward_probs), axis=-1)

    @property
    def discounts(self) -> Array:
        """Discount of a step that ends in s', [S]: gamma, or 0 where s' is terminal."""
        return np.where(self.terminal, 0.0, self.gamma)

    def outcomes(self, s: int, a: int) -> list[tuple[float, int, float]]:
        """All (r, s', P(r, s' | s, a)) of positive probability."""
        if self.terminal[s]:
            return [(0.0, s, 1.0)]
        return [
            (self.rewards[s, a, x, m], int(x), self.transition[s, a, x] * self.reward_probs[m])
            for x in np.flatnonzero(self.transition[s, a])
            for m in np.flatnonzero(self.reward_probs)
        ]


def random_bandit(seed: int, *, actions: int = 4, outcomes: int = 2, tau: float = 0.3) -> Bandit:
    """A random bandit with a non-uniform prior."""
    rng = np.random.default_rng(seed)
    rewards = rng.normal(size=(actions, outcomes))
    reward_probs = rng.dirichlet(np.full(outcomes, 3.0))
    return Bandit(rewards, reward_probs, rng.dirichlet(np.full(actions, 3.0)), tau)


def random_mdp(
    seed: int,
    *,
    states: int = 4,
    actions: int = 3,
    outcomes: int = 2,
    branching: int = 2,
    terminals: int = 0,
    acyclic: bool = False,
    masked: bool = False,
    normalised: bool = True,
    gamma: float = 0.9,
    tau: float = 0.3,
) -> MDP:
    """A random MDP with a non-uniform prior; (s, a) leads to `branching` random successors.

    The last `terminals` states are terminal. `acyclic` admits only successors numbered higher (so
    S - 1 steps end every episode and gamma may be 1) and makes the last state terminal. `masked`
    forbids action s mod A in state s. branching = outcomes = 1 makes the MDP deterministic.
    """
    rng = np.random.default_rng(seed)
    terminal = np.arange(states) >= states - max(terminals, int(acyclic))
    transition = np.zeros((states, actions, states))
    for s in range(states):
        for a in range(actions):
            candidates = np.arange(s + 1 if acyclic else 0, states)
            if terminal[s]:
                candidates = np.array([s])
            size = min(branching, candidates.size)
            successors = rng.choice(candidates, size, replace=False)
            transition[s, a, successors] = rng.dirichlet(np.full(size, 3.0))
    rewards = rng.normal(size=(states, actions, states, outcomes))
    rewards[terminal] = 0.0
    prior = rng.dirichlet(np.full(actions, 3.0), size=states)
    if masked:
        prior[np.arange(states), np.arange(states) % actions] = 0.0
        prior /= prior.sum(axis=-1, keepdims=True)
    if not normalised:
        prior *= rng.uniform(0.3, 3.0, size=(states, 1))
    reward_probs = rng.dirichlet(np.full(outcomes, 3.0))
    return MDP(transition, rewards, reward_probs, prior, gamma, tau, terminal)


def random_policy(seed: int, prior: Array) -> Array:
    """A random policy [..., A] on the actions that the prior allows."""
    weight = np.random.default_rng(seed).uniform(0.2, 1.0, size=prior.shape) * (prior > 0)
    return weight / weight.sum(axis=-1, keepdims=True)


# ---- 2. Action values and policies (sections 2 and 3.2) ------------------------------------------


def soft_value(q: Array, tau: float | np.longdouble, prior: Array) -> Array:
    """tau log sum_a prior exp(q/tau), [...]: (29), (11) and (55) corrected; the max at tau = 0."""
    allowed = prior > 0
    top = np.max(np.where(allowed, np.real(q), -np.inf), axis=-1)
    if tau == 0:
        return top
    exponent = np.where(allowed, q - top[..., None], 0.0) / tau
    return top + tau * np.log(np.sum(prior * np.exp(exponent), axis=-1))


def log_boltzmann(q: Array, tau: float, prior: Array) -> Array:
    """log of prior exp((q - V_q)/tau), tau > 0, [..., A]: (2), (10), (12), (28), (30), (56)."""
    allowed = prior > 0
    advantage = np.where(allowed, q - soft_value(q, tau, prior)[..., None], 0.0)
    return np.where(allowed, np.log(np.where(allowed, prior, 1.0)) + advantage / tau, -np.inf)


def boltzmann(q: Array, tau: float, prior: Array) -> Array:
    """The Boltzmann policy itself, [..., A]."""
    return np.exp(log_boltzmann(q, tau, prior))


def log_ratio(log_policy: Array, prior: Array) -> Array:
    """l = log(policy/prior), [..., A], and 0 where the prior is 0."""
    allowed = prior > 0
    return np.where(allowed, log_policy, 0.0) - np.log(np.where(allowed, prior, 1.0))


def kl(policy: Array, prior: Array) -> Array:
    """sum_a policy log(policy/prior), [...], with 0 log 0 = 0; inf off the prior's support."""
    taken = policy != 0
    with np.errstate(divide="ignore"):
        log_prior = np.log(np.where(taken, prior, 1.0))
    return np.sum(policy * (np.log(np.where(taken, policy, 1.0)) - log_prior), axis=-1)


# ---- 3. Exact values and backup operators (sections 3.1, 3.3, 3.4) -------------------------------


def lookahead(mdp: MDP, v: Array) -> Array:
    """E[r + gamma V(s') | s, a], [S] -> [S, A]."""
    return mdp.mean_reward + mdp.transition @ (mdp.discounts * v)


def state_value(mdp: MDP, policy: Array, q: Array) -> Array:
    """E_policy[Q(s, .)] - tau KL(s), [S, A] -> [S]: (26), (31)."""
    return np.sum(policy * q, axis=-1) - mdp.tau * kl(policy, mdp.prior)


def policy_value(mdp: MDP, policy: Array) -> Array:
    """V_pi [S], the entropy-augmented return (24), by linear solve."""
    move = np.einsum("sa,sax->sx", policy, mdp.transition) * mdp.discounts
    return np.linalg.solve(np.eye(len(move)) - move, state_value(mdp, policy, mdp.mean_reward))


def policy_q(mdp: MDP, policy: Array) -> Array:
    """Q_pi [S, A] (25), which leaves out the first KL."""
    return lookahead(mdp, policy_value(mdp, policy))


def v_backup(mdp: MDP, policy: Array, v: Array, n: int = 1) -> Array:
    """(T_pi)^n V, [S] (32), by repeated application."""
    for _ in range(n):
        v = state_value(mdp, policy, lookahead(mdp, v))
    return v


def q_backup(mdp: MDP, policy: Array, q: Array, n: int = 1) -> Array:
    """(T_pi)^n Q, [S, A] (33), by repeated application."""
    for _ in range(n):
        q = lookahead(mdp, state_value(mdp, policy, q))
    return q


def boltzmann_backup(mdp: MDP, q: Array, n: int = 1) -> Array:
    """(T_pi)^n Q with pi = pi_Q held fixed, [S, A]: (39), (38) corrected; (40). Not T^n Q."""
    first = lookahead(mdp, soft_value(q, mdp.tau, mdp.prior))
    return q_backup(mdp, boltzmann(q, mdp.tau, mdp.prior), first, n - 1)


def td_lambda_backup(mdp: MDP, q: Array, lambda_: float) -> Array:
    """(1 - lambda) sum_k lambda^k T_pi^(k+1) Q, pi = pi_Q, [S, A]: (42) corrected, as a series."""
    policy, total, weight, term = boltzmann(q, mdp.tau, mdp.prior), np.zeros_like(q), 1.0, q
    while weight > 1e-18:
        term = q_backup(mdp, policy, term)
        total = total + (1.0 - lambda_) * weight * term
        weight *= lambda_
    return total


def expected_td_sum(mdp: MDP, q: Array, lambda_: float) -> Array:
    """E[sum_t (gamma lambda)^t delta_t | s, a], [S, A], under pi_Q and V_Q, by linear solve.

    (43) corrected: td_lambda_backup = V_Q(s) + tau KL(s) + this.
    """
    v, policy = soft_value(q, mdp.tau, mdp.prior), boltzmann(q, mdp.tau, mdp.prior)
    delta = lookahead(mdp, v) - (v + mdp.tau * kl(policy, mdp.prior))[:, None]
    move = np.einsum("sax,x,xb->saxb", mdp.transition, mdp.discounts, policy)
    system = np.eye(q.size) - lambda_ * move.reshape(q.size, q.size)
    return np.linalg.solve(system, delta.ravel()).reshape(q.shape)


def optimal_q(mdp: MDP) -> Array:
    """The fixed point Q* of T, [S, A], by value iteration to 1e-14."""
    q = np.zeros_like(mdp.mean_reward)
    for _ in range(100_000):
        q, last = boltzmann_backup(mdp, q), q
        if np.max(np.abs(q - last)) <= 1e-14 * max(1.0, np.max(np.abs(q))):
            return q
    raise RuntimeError("value iteration did not converge: is gamma < 1, or every episode finite?")


# ---- 4. Enumeration of trajectories --------------------------------------------------------------


@dataclass(frozen=True)
class Trajectories:
    """All trajectories of one length, [K, n] each, and their probabilities [K]."""

    states: Array
    actions: Array
    rewards: Array
    next_states: Array
    discounts: Array  # 0 where the step ends in a terminal state
    probs: Array

    @property
    def accumulated(self) -> Array:
        """gamma^0 ... gamma^n as products of the discounts, [K, n + 1]."""
        return np.cumprod(np.insert(self.discounts, 0, 1.0, axis=1), axis=1)


def trajectories(mdp: MDP, policy: Array, s0: int, n: int, a0: int | None = None) -> Trajectories:
    """Every trajectory of n steps from s0 (and a0, if given), actions from `policy` [S, A].

    Branches of probability 0 are dropped. A terminal state is not left: there the policy's
    likeliest action (which no mask forbids) is repeated, for reward 0.
    """
    paths: list[tuple[list[tuple[int, int, float, int]], int, Array]] = [([], s0, 1.0)]
    for t in range(n):
        longer = []
        for path, s, prob in paths:
            choice = policy[s]
            if mdp.terminal[s]:
                choice = np.eye(len(choice))[np.argmax(np.real(choice))]
            if t == 0 and a0 is not None:
                choice = np.eye(len(choice))[a0]
            for a in map(int, np.flatnonzero(choice)):
                for r, s_next, chance in mdp.outcomes(s, a):
                    step = (s, a, r, s_next)
                    longer.append(([*path, step], s_next, prob * choice[a] * chance))
        paths = longer
    states, actions, rewards, next_states = (
        np.array([[step[i] for step in path] for path, _, _ in paths]) for i in range(4)
    )
    probs = np.array([prob for _, _, prob in paths])
    discounts = mdp.discounts[next_states]
    return Trajectories(states, actions, rewards, next_states, discounts, probs)


def expected_return(paths: Trajectories, penalty: Array, v: Array) -> Array:
    """E[sum_{t<n} gamma^t (r_t - penalty_t) + gamma^n V(s_n)]; penalty [K, n], v [S]."""
    value = np.sum(paths.accumulated[:, :-1] * (paths.rewards - penalty), axis=1)
    return paths.probs @ (value + paths.accumulated[:, -1] * v[paths.next_states[:, -1]])


def v_backup_by_paths(mdp: MDP, policy: Array, kl_s: Array, v: Array, n: int) -> Array:
    """E[sum_{t<n} gamma^t (r_t - tau KL_t) + gamma^n V(s_n) | s], [S]: (34) by enumeration.

    kl_s [S] is the KL that is charged: that of `policy`, or of a target policy off-policy, or 0.
    """
    paths = [trajectories(mdp, policy, s, n) for s in range(len(v))]
    return np.array([expected_return(p, mdp.tau * kl_s[p.states], v) for p in paths])


def q_backup_by_paths(mdp: MDP, policy: Array, kl_s: Array, v: Array, n: int) -> Array:
    """E[r_0 + sum_{0<t<n} gamma^t (r_t - tau KL_t) + gamma^n V(s_n) | s, a], [S, A], likewise.

    v = state_value(mdp, policy, q) gives (35); v = V_Q gives (41), the mean of the target (46).
    With kl_s = 0 it is the mean of the return inside the naive estimator (79).
    """
    values = np.zeros(mdp.prior.shape)
    for s, a in np.ndindex(values.shape):
        paths = trajectories(mdp, policy, s, n, a0=a)
        penalty = mdp.tau * kl_s[paths.states]
        penalty[:, 0] = 0.0
        values[s, a] = expected_return(paths, penalty, v)
    return values


def finite_horizon_objective(mdp: MDP, policy: Array, s0: int, horizon: int) -> Array:
    """E[sum_{t<T} gamma^t (r_t - tau KL_t)] by enumeration; at gamma = 1 the objective of (51)."""
    paths, zero = trajectories(mdp, policy, s0, horizon), np.zeros(len(policy))
    return expected_return(paths, mdp.tau * kl(policy, mdp.prior)[paths.states], zero)


def visits(mdp: MDP, policy: Array, s0: int, horizon: int) -> Array:
    """Pr(s_t = s, not terminal), [horizon, S]."""
    rows = [np.eye(len(policy))[s0] * ~mdp.terminal]
    for _ in range(horizon - 1):
        rows.append(np.einsum("s,sa,sax->x", rows[-1], policy, mdp.transition) * ~mdp.terminal)
    return np.array(rows)


# ---- 5. One trajectory, by definition (sections 3.5, 3.6, 7) -------------------------------------
# Arguments are [T]: r, discount, v_next belong to a transition's end; v, kl_s, q, c to its start.
# discount is 0 at a termination; cut is 1 where the trajectory ends for any reason after that step.


def deltas(r: Array, discount: Array, v: Array, v_next: Array, kl_s: Array, tau: float) -> Array:
    """delta_t = r_t - tau KL_t + gamma V(s_{t+1}) - V(s_t): (36)."""
    return (r - tau * kl_s) + discount * v_next - v


def reach(t: int, limit: int, length: int, cut: Array = None) -> int:
    """Number of steps in a window from t: at most `limit`, none beyond the end or a cut."""
    size = 1
    while size < limit and t + size < length and not (cut is not None and cut[t + size - 1]):
        size += 1
    return size


def weighted_sums(x: Array, decay: Array, n: int, cut: Array = None) -> Array:
    """sum_{d<n} (prod_{t<=i<t+d} decay_i) x_{t+d}, [T], stopped at the end and at cuts."""
    sums = np.zeros(len(x))
    for t in range(len(x)):
        for d in range(reach(t, n, len(x), cut)):
            sums[t] += np.prod(decay[t : t + d]) * x[t + d]
    return sums


def n_step_advantages(delta: Array, discount: Array, n: int, cut: Array = None) -> Array:
    """Delta_t = sum_{d<n} gamma^d delta_{t+d}: (47), (52)."""
    return weighted_sums(delta, discount, n, cut)


def lambda_advantages(delta: Array, discount: Array, lambda_: float, cut: Array = None) -> Array:
    """Delta_t = sum_d (gamma lambda)^d delta_{t+d}: (43)."""
    return weighted_sums(delta, lambda_ * discount, len(delta), cut)


def n_step_value_targets(
    r: Array, discount: Array, v_next: Array, kl_s: Array, tau: float, n: int, cut: Array = None
) -> Array:
    """sum_{d<m} gamma^d (r - tau KL)_{t+d} + gamma^m V(s_{t+m}), m <= n: (54) corrected."""
    targets = weighted_sums(r - tau * kl_s, discount, n, cut)
    for t in range(len(r)):
        last = t + reach(t, n, len(r), cut) - 1
        targets[t] += np.prod(discount[t : last + 1]) * v_next[last]
    return targets


def n_step_q_targets(
    r: Array, discount: Array, v_next: Array, kl_s: Array, tau: float, n: int, cut: Array = None
) -> Array:
    """y_t = tau KL_t + sum_{d<m} gamma^d (r - tau KL)_{t+d} + gamma^m V(s_{t+m}): (45), (46)."""
    return tau * kl_s + n_step_value_targets(r, discount, v_next, kl_s, tau, n, cut)


TRACES: dict[str, Callable[[Array, Array], Array]] = {  # c(pi, mu), to be multiplied by lambda
    "retrace": lambda pi, mu: np.minimum(1.0, pi / mu),
    "tree_backup": lambda pi, _mu: pi,
    "importance": lambda pi, mu: pi / mu,
    "uncorrected": lambda pi, _mu: np.ones_like(pi),
}


def retrace_targets(
    r: Array, discount: Array, q: Array, v_next: Array, c: Array, cut: Array = None
) -> Array:
    """y_t = Q_t + sum_d gamma^d (prod_{1<=k<=d} c_{t+k}) (r + gamma V' - Q)_{t+d}.

    q is Q(s_t, a_t), c_t belongs to a_t, v_next is state_value of the target policy at s_{t+1}.
    """
    error, targets = r + discount * v_next - q, np.array(q, dtype=float)
    for t in range(len(r)):
        for d in range(reach(t, len(r), len(r), cut)):
            trace = np.prod(discount[t : t + d]) * np.prod(c[t + 1 : t + d + 1])
            targets[t] += trace * error[t + d]
    return targets


def vtrace_errors(
    delta: Array, discount: Array, rho: Array, rho_clip: float, c_clip: float, cut: Array = None
) -> Array:
    """v_s - V(s_s) = sum_{t>=s} gamma^{t-s} (prod_{s<=i<t} c_i) rho_t delta_t, delta of (36)."""
    c = np.minimum(rho, c_clip)
    return weighted_sums(np.minimum(rho, rho_clip) * delta, discount * c, len(delta), cut)


def path_consistency_errors(
    r: Array, discount: Array, v: Array, v_next: Array, ratio: Array, tau: float, n: int
) -> Array:
    """LHS - RHS of (90): sum gamma^d (tau l - r)_{t+d} - gamma^m V(s_{t+m}) + V(s_t), l = ratio."""
    return v - n_step_value_targets(r, discount, v_next, ratio, tau, n)


def pgq_q(v: Array, log_policy: Array, tau: float, prior: Array) -> Array:
    """V + tau (l - KL), [S, A]: (87) corrected, where prior 1 gives V + tau (log pi + entropy)."""
    mean = v - tau * kl(np.exp(log_policy), prior)
    return mean[..., None] + tau * log_ratio(log_policy, prior)


# ---- 6. Parametrised agents and exact derivatives ------------------------------------------------


def jacobian(f: Function, theta: Array) -> Array:
    """df/dtheta by complex steps, [..., P] for f [...]; f must be analytic (no abs, no conj)."""
    moves = 1e-30j * np.eye(theta.size)
    return np.stack([np.imag(f(theta + move)) / 1e-30 for move in moves], axis=-1)


def gradient(f: Function, theta: Array) -> Array:
    """The gradient [P] of a scalar function."""
    grad = jacobian(f, theta)
    assert grad.shape == theta.shape, "gradient of a function that is not scalar"
    return grad


@dataclass(frozen=True)
class Model:
    """Two heads on shared parameters: heads(theta, tanh=np.tanh) -> (raw [S, A], value [S]).

    heads also takes a JAX theta with jnp.tanh, so that a test can differentiate the same network.
    """

    size: int
    heads: Callable[..., tuple[Array, Array]]

    def init(self, seed: int, scale: float = 1.0) -> Array:
        """Random parameters, [P]."""
        return scale * np.random.default_rng(seed).normal(size=self.size)


def tabular(states: int, actions: int) -> Model:
    """One parameter for each raw[s, a], then one for each value[s]."""
    pairs = states * actions
    return Model(
        pairs + states, lambda w, _tanh=None: (w[:pairs].reshape(states, actions), w[pairs:])
    )


def linear(seed: int, states: int, actions: int, features: int = 5) -> Model:
    """Random features; both heads share every parameter."""
    phi = np.random.default_rng(seed).normal(size=(states, actions + 1, features))
    return Model(features, lambda w, _tanh=None: (phi[:, :-1] @ w, phi[:, -1] @ w))


def mlp(seed: int, states: int, actions: int, inputs: int = 3, hidden: int = 4) -> Model:
    """One tanh layer on random observations, shared by both heads."""
    observations = np.random.default_rng(seed).normal(size=(states, inputs))
    shapes = [(inputs, hidden), (hidden,), (hidden, actions + 1), (actions + 1,)]
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])

    def heads(theta: Array, tanh: Function = np.tanh) -> tuple[Array, Array]:
        parts = [theta[e - np.prod(x) : e].reshape(x) for e, x in zip(ends, shapes, strict=True)]
        out = tanh(observations @ parts[0] + parts[1]) @ parts[2] + parts[3]
        return out[:, :-1], out[:, -1]

    return Model(int(ends[-1]), heads)


@dataclass(frozen=True)
class Agent:
    """Q, V and policy of one model, tied by (57): Q = V + tau log(policy/prior).

    Head "q": raw is Q, and (55), (56) give V and the policy. Head "actor_critic": raw is logits (a
    softmax over the allowed actions), value is V, and (57) gives Q. At masked actions Q is idle.
    """

    model: Model
    prior: Array  # [S, A]
    tau: float
    head: Literal["q", "actor_critic"] = "q"

    def value(self, theta: Array) -> Array:
        """V_theta, [S]."""
        raw, value = self.model.heads(theta)
        return soft_value(raw, self.tau, self.prior) if self.head == "q" else value

    def log_policy(self, theta: Array) -> Array:
        """log pi_theta, [S, A]."""
        raw, _ = self.model.heads(theta)
        if self.head == "q":
            return log_boltzmann(raw, self.tau, self.prior)
        return log_boltzmann(raw, 1.0, np.where(self.prior > 0, 1.0, 0.0))

    def policy(self, theta: Array) -> Array:
        """pi_theta, [S, A]."""
        return np.exp(self.log_policy(theta))

    def ratio(self, theta: Array) -> Array:
        """l = log(pi_theta/prior), [S, A]."""
        return log_ratio(self.log_policy(theta), self.prior)

    def kl(self, theta: Array) -> Array:
        """KL(s), [S, 1], to broadcast against [S, A]."""
        return kl(self.policy(theta), self.prior)[:, None]

    def q(self, theta: Array) -> Array:
        """Q_theta, [S, A]."""
        if self.head == "q":
            return self.model.heads(theta)[0]
        return self.value(theta)[:, None] + self.tau * self.ratio(theta)


# ---- 7. Gradients --------------------------------------------------------------------------------
# *_samples are gradients for one sample (s, a), [S, A, P], with targets and advantages held fixed.
# They are linear in those: `expect` of them is exact with the mean [S, A] of a target given (s, a).


def expect(weights: Array, samples: Array) -> Array:
    """sum weights[s, a] samples[s, a], [P]; weights: law of (s, a), times any importance weight."""
    return np.einsum("sa,sap->p", weights, samples)


def trace_covariance(probs: Array, samples: Array) -> float:
    """Trace of the covariance of samples [K, P] with probabilities [K]."""
    return float(probs @ np.sum((samples - probs @ samples) ** 2, axis=-1))


def soft_q_samples(agent: Agent, theta: Array, target: Array) -> Array:
    """grad 1/2 (Q - y)^2 = grad Q (Q - y): (9), (44), (59)."""
    return jacobian(agent.q, theta) * (agent.q(theta) - target)[..., None]


def policy_samples(agent: Agent, theta: Array, advantage: Array) -> Array:
    """grad L_policy = -grad log pi Delta + tau grad KL: (65), (84); minus (52) corrected, (69)."""
    score = jacobian(agent.log_policy, theta)
    return -score * advantage[..., None] + agent.tau * jacobian(agent.kl, theta)


def value_samples(agent: Agent, theta: Array, target: Array) -> Array:
    """grad L_value = grad 1/2 (V - V_hat)^2 with V_hat [S, A]: (65), (85)."""
    error = agent.value(theta)[:, None] - target
    return jacobian(agent.value, theta)[:, None] * error[..., None]


def tied_samples(agent: Agent, theta: Array, target: Array, value_coef: float) -> Array:
    """Soft-Q gradient of section 6.3: advantage stream scaled by 1/tau, value stream by c."""
    stream = value_coef * jacobian(agent.value, theta)[:, None] + jacobian(agent.log_policy, theta)
    return stream * (agent.q(theta) - target)[..., None]


def residual_samples(agent: Agent, theta: Array) -> Array:
    """xi = tau^2 [grad log pi (l - KL) - grad KL] + tau grad V (l - KL).

    soft_q_samples = tau policy_samples + value_samples + xi, whatever the target.
    """
    tau, centred = agent.tau, (agent.ratio(theta) - agent.kl(theta))[..., None]
    policy_part = jacobian(agent.log_policy, theta) * centred - jacobian(agent.kl, theta)
    return tau**2 * policy_part + tau * jacobian(agent.value, theta)[:, None] * centred


def bandit_objective(bandit: Bandit, policy: Array) -> Array:
    """eta = E[r] - tau KL: (1), policy [A]."""
    return np.sum(policy * bandit.mean_reward) - bandit.tau * kl(policy, bandit.prior)


def bandit_policy_gradient(bandit: Bandit, agent: Agent, theta: Array) -> Array:
    """E_{a,r}[grad log pi r - tau grad KL], [P]: (7), for an agent of one state."""
    policy, score = agent.policy(theta)[0], jacobian(agent.log_policy, theta)[0]
    total = -bandit.tau * jacobian(agent.kl, theta)[0, 0]
    for a, m in np.ndindex(bandit.rewards.shape):
        total = total + policy[a] * bandit.reward_probs[m] * score[a] * bandit.rewards[a, m]
    return total


def gradient_by_values(mdp: MDP, agent: Agent, theta: Array, s0: int, horizon: int) -> Array:
    """g_gamma = E sum_t [grad log pi (Q_pi - V_pi) - tau grad KL], [P]: (50).

    No gamma^t weights the steps. Every episode must end within the horizon (acyclic, S - 1 steps).
    """
    policy = agent.policy(theta)
    advantage = policy_q(mdp, policy) - policy_value(mdp, policy)[:, None]
    count = visits(mdp, policy, s0, horizon).sum(axis=0)
    return -expect(count[:, None] * policy, policy_samples(agent, theta, advantage))


def gradient_by_returns(
    mdp: MDP, agent: Agent, theta: Array, s0: int, horizon: int, *, printed: bool = False
) -> Array:
    """E sum_t [grad log pi (r_t + sum_{d>=1} gamma^d (r - tau KL)_{t+d}) - tau grad KL_t], [P].

    (49) corrected, by enumeration up to the horizon. `printed` has r_0 for r_t; the paper's other
    slip, grad KL inside the parenthesis, would multiply two vectors and is fixed in both.
    """
    score, kl_grad = jacobian(agent.log_policy, theta), jacobian(agent.kl, theta)[:, 0]
    kl_s, paths = agent.kl(theta)[:, 0], trajectories(mdp, agent.policy(theta), s0, horizon)
    total = np.zeros(theta.size)
    for k, prob in enumerate(paths.probs):
        s, a, r, discount = (
            x[k] for x in (paths.states, paths.actions, paths.rewards, paths.discounts)
        )
        for t in range(horizon):
            if not mdp.terminal[s[t]]:
                value = r[0] if printed else r[t]
                for d in range(1, horizon - t):
                    value += np.prod(discount[t : t + d]) * (r[t + d] - mdp.tau * kl_s[s[t + d]])
                total += prob * (score[s[t], a[t]] * value - mdp.tau * kl_grad[s[t]])
    return total


def natural_direction(psi: Array, advantage: Array, damping: float = 0.0) -> Array:
    """(Psi'Psi/N + damping I)^-1 Psi'Delta/N, psi [N, P], advantage [N]: (66) over epsilon."""
    curvature = psi.T @ psi / len(psi) + damping * np.eye(psi.shape[1])
    return np.linalg.solve(curvature, psi.T @ advantage / len(psi))


def fisher(agent: Agent, theta: Array, weights: Array) -> Array:
    """F = E[grad log pi grad log pi'], [P, P]; weights [S, A] as in `expect`."""
    score = jacobian(agent.log_policy, theta)
    return np.einsum("sa,sap,saq->pq", weights, score, score)


def natural_gradient(agent: Agent, theta: Array, weights: Array, advantage: Array) -> Array:
    """F^-1 g with g of (69), [P]; F must be invertible (that of tabular logits is not)."""
    g = -expect(weights, policy_samples(agent, theta, advantage))
    return np.linalg.solve(fisher(agent, theta, weights), g)


def gauss_newton_step(residual: Function, theta: Array, weights: Array) -> Array:
    """Gauss-Newton step [P] on E[1/2 residual^2], residual: theta -> [S, A]."""
    jac = jacobian(residual, theta)
    curvature = np.einsum("sa,sap,saq->pq", weights, jac, jac)
    return -np.linalg.solve(curvature, expect(weights * residual(theta), jac))


def natural_residual(agent: Agent, old: Array, advantage: Array, epsilon: float) -> Function:
    """log pi - log pi_old - eps (Delta - tau [log(pi_old/prior) - KL_old]): (71) corrected."""
    step = epsilon * (advantage - agent.tau * (agent.ratio(old) - agent.kl(old)))
    return lambda theta: agent.ratio(theta) - agent.ratio(old) - step


def damped_q_residual(agent: Agent, old: Array, target: Array, epsilon: float) -> Function:
    """Q - (1-eps) Q_old - eps Q_hat, V frozen: (74), (77); Q_hat = V + tau KL_old + Delta (72)."""
    goal, value = (1.0 - epsilon) * agent.q(old) + epsilon * target, agent.value(old)[:, None]
    return lambda theta: value + agent.tau * agent.ratio(theta) - goal


def damped_policy(prior: Array, old: Array, target: Array, tau: float, epsilon: float) -> Array:
    """prior^eps old^(1-eps) exp(eps Q_hat/tau), normalised, [S, A]: the exact tabular solution."""
    log_old = np.log(np.where(prior > 0, old, 1.0))
    return boltzmann(
        (1.0 - epsilon) * log_ratio(log_old, prior) + epsilon * target / tau, 1.0, prior
    )


# ---- 8. The equations as printed, where that is wrong --------------------------------------------


def _printed_22(bandit: Bandit, agent: Agent, theta: Array) -> Array:
    """The value term taken literally: the full gradient of E_{pi_theta}[v (v + tau KL - r)]."""

    def value_term(x: Array) -> Array:
        v = agent.value(x)[:, None]
        return np.sum(agent.policy(x) * v * (v + agent.tau * agent.kl(x) - bandit.mean_reward))

    advantage = bandit.mean_reward - agent.value(theta)[:, None]
    policy_term = expect(agent.policy(theta), policy_samples(agent, theta, advantage))
    return agent.tau * policy_term + gradient(value_term, theta)


def _printed_23(bandit: Bandit, agent: Agent, theta: Array) -> Array:
    """The value term taken literally: the full gradient of E_{pi_theta}[1/2 (v - r + tau KL)^2]."""

    def value_term(x: Array) -> Array:
        error = agent.value(x)[:, None] + agent.tau * agent.kl(x) - bandit.rewards  # [A, M]
        return np.sum(agent.policy(x)[0] * (0.5 * error**2 @ bandit.reward_probs))

    objective = gradient(lambda x: bandit_objective(bandit, agent.policy(x)[0]), theta)
    return -agent.tau * objective + gradient(value_term, theta)


def _printed_37(mdp: MDP, policy: Array, v: Array, n: int) -> Array:
    """E[sum gamma^t delta_t + gamma^n V(s_n)]; the last term should be V(s_0)."""
    values, kl_s = [], kl(policy, mdp.prior)
    for p in (trajectories(mdp, policy, s, n) for s in range(len(v))):
        reward_to_delta = mdp.tau * kl_s[p.states] - p.discounts * v[p.next_states] + v[p.states]
        values.append(expected_return(p, reward_to_delta, v))
    return np.array(values)


def _printed_42(mdp: MDP, q: Array, lambda_: float, terms: int) -> Array:
    """Literal powers of lambda T, an affine map: the partial sums grow without bound."""
    policy, total = boltzmann(q, mdp.tau, mdp.prior), np.zeros_like(q)
    term = q_backup(mdp, policy, q)
    for _ in range(terms):
        total = total + (1.0 - lambda_) * term
        term = lambda_ * q_backup(mdp, policy, term)
    return total


def _printed_71(agent: Agent, old: Array, advantage: Array, epsilon: float) -> Function:
    """The current policy in the bracket: it shrinks the step by 1/(1 + epsilon tau)."""

    def residual(theta: Array) -> Array:
        bracket = agent.ratio(theta) - agent.kl(old)
        return agent.ratio(theta) - agent.ratio(old) - epsilon * (advantage - agent.tau * bracket)

    return residual


def _printed_84(agent: Agent, theta: Array, weights: Array, target: Array) -> Array:
    """L_policy with its Delta = y - V_theta - tau KL_theta differentiated as well."""

    def loss(x: Array) -> Array:
        penalty = agent.tau * agent.kl(x)
        log_policy = np.where(weights > 0, agent.log_policy(x), 0.0)
        return np.sum(
            weights * (penalty - log_policy * (target - agent.value(x)[:, None] - penalty))
        )

    return gradient(loss, theta)


def _printed_85(agent: Agent, theta: Array, weights: Array, target: Array) -> Array:
    """L_value with its V_hat = y - tau KL_theta differentiated as well."""

    def loss(x: Array) -> Array:
        error = agent.value(x)[:, None] - (target - agent.tau * agent.kl(x))
        return np.sum(weights * 0.5 * error**2)

    return gradient(loss, theta)


def _printed_86(agent: Agent, theta: Array, weights: Array, target: Array) -> Array:
    """grad(L_policy + L_value/tau), printed as the soft-Q gradient; a factor tau is missing."""
    v_hat = target - agent.tau * agent.kl(theta)
    policy = policy_samples(agent, theta, v_hat - agent.value(theta)[:, None])
    return expect(weights, policy + value_samples(agent, theta, v_hat) / agent.tau)


def _printed_88(mdp: MDP, policy: Array, p: Trajectories) -> Array:
    """LHS - RHS of every trajectory; 0 only in expectation, or with deterministic dynamics."""
    v = policy_value(mdp, policy)
    advantage = (policy_q(mdp, policy) - v[:, None])[p.states, p.actions]
    error = advantage - (p.rewards + p.discounts * v[p.next_states] - v[p.states])
    return np.sum(p.accumulated[:, :-1] * error, axis=1)


PRINTED: dict[str, Callable[..., Array]] = {
    # (q [..., A], tau, prior) -> [...]: misplaced parenthesis; truth: soft_value
    "11": lambda q, tau, prior: tau * np.log(np.sum(prior * np.exp(q), -1) / tau),
    # (bandit, agent, theta) -> [P]; truth: expect(policy, soft_q_samples(.., mean_reward[None]))
    "22": _printed_22,
    "23": _printed_23,
    # (mdp, policy, v [S], n) -> [S]; truth: v_backup
    "37": _printed_37,
    # (mdp, q) -> [S, A]: Q(s, a) for Q(s', a'); truth: boltzmann_backup
    "38": lambda mdp, q: (
        q_backup(mdp, boltzmann(q, mdp.tau, mdp.prior), 0 * q)
        + (mdp.transition @ mdp.discounts) * q
    ),
    # (mdp, q, lambda, terms) -> partial sum [S, A]; truth: td_lambda_backup
    "42": _printed_42,
    # (mdp, q, lambda) -> [S, A]: Q(s, a) for V_Q + tau KL; truth: td_lambda_backup
    "43": lambda mdp, q, lambda_: q + expected_td_sum(mdp, q, lambda_),
    # (mdp, agent, theta, s0, horizon) -> [P]: r_0 for r_t; truth: gradient_by_returns, _by_values
    "49": lambda mdp, agent, theta, s0, n: gradient_by_returns(
        mdp, agent, theta, s0, n, printed=True
    ),
    # (agent, theta, weights, advantage) -> [P]: no grad KL; truth: -expect(weights, policy_samples)
    "52": lambda agent, theta, weights, advantage: expect(
        weights * advantage, jacobian(agent.log_policy, theta)
    ),
    # (r, discount, v, n) -> y_0: no KL, V(s_{n-1}) for V(s_n); truth: n_step_value_targets[0]
    "54": lambda r, discount, v, n: (
        weighted_sums(r, discount, n)[0] + np.prod(discount[: n - 1]) * v[n - 1]
    ),
    # (q, tau, prior) -> [...]: E_a over uniform a, for a ~ prior; truth: soft_value
    "55": lambda q, tau, prior: soft_value(q, tau, np.full_like(prior, 1 / prior.shape[-1])),
    # (policy, prior) -> [...]: E[policy/prior] without the log; truth: kl
    "63": lambda policy, prior: np.sum(policy**2 / np.where(prior > 0, prior, 1.0), -1),
    # (psi, w, epsilon) -> change of log pi [N] after the step w of (66); truth: psi @ w
    "67": lambda psi, w, epsilon: epsilon * (psi @ w),
    # (agent, old, advantage, epsilon) -> residual; truth: natural_residual
    "71": _printed_71,
    # (agent, old, advantage) -> target of log(pi/prior) [S, A]; truth: Delta/tau + KL_old
    "73": lambda agent, old, delta: agent.ratio(old) + delta / agent.tau + agent.kl(old),
    # (agent, old, advantage, epsilon) -> residual without the taus; truth: damped_q_residual, which
    # is tau natural_residual(.., epsilon/tau)
    "78": natural_residual,
    # (r, discount, v, n) -> advantage at 0, no bootstrap; truth: n_step_advantages[0] with KL = 0
    "79": lambda r, discount, v, n: weighted_sums(r, discount, n)[0] - v[0],
    # (r, discount, v, kl_s, tau, n) -> the same; truth: n_step_advantages[0]
    "80": lambda r, discount, v, kl_s, tau, n: weighted_sums(r - tau * kl_s, discount, n)[0] - v[0],
    # (r, gamma, q' [A], tau) -> y: no factor tau; truth: r + gamma soft_value, prior 1/A and 1
    "82": lambda r, gamma, q, tau: r + gamma * np.log(np.sum(np.exp(q / tau))) - np.log(len(q)),
    "83": lambda r, gamma, q, tau: r + gamma * np.log(np.sum(np.exp(q / tau))),
    # (agent, theta, weights, y [S, A]) -> [P]; truth: expect of policy_samples, of value_samples
    # (Delta, V_hat fixed), and of soft_q_samples
    "84": _printed_84,
    "85": _printed_85,
    "86": _printed_86,
    # (v, log_policy, tau) -> [S, A]: tau twice; truth: pgq_q with prior 1
    "87": lambda v, log_pi, tau: (
        v[:, None] + tau * (log_pi - tau * np.sum(np.exp(log_pi) * log_pi, -1, keepdims=True))
    ),
    # (mdp, policy, trajectories) -> [K]; truth: 0 in expectation. (90): path_consistency_errors
    "88": _printed_88,
}
