"""On-policy algorithms and agents against NumPy, on rollouts with ends and dummy steps."""

import functools
import sys
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsoft
from jaxsoft import boltzmann, losses, returns
from jaxsoft.agents import on_policy
from jaxsoft.agents.base import Metrics, Rollout
from jaxsoft.agents.natural import damped_q, natural_pg
from jaxsoft.agents.networks import MLP, ActorCritic, QNetwork
from jaxsoft.agents.on_policy import Acted, Direction, Objective, direction_of
from jaxsoft.agents.registry import ALGORITHMS
from jaxsoft.natural import _operator
from tests.support import bridge, oracles
from tests.support.bridge import assert_close, assert_differs, log_of
from tests.support.steps import of_numpy

STATES, A, T, N = 6, 4, 9, 5
GAMMA, STEPS, C, DAMPING = 0.9, 3, 0.7, 0.03
MEASURE = np.array([0.5, 0.2, 0.0, 0.9])  # of no total in particular; one action is masked
# log π̄ as the user gives it, the measure it stands for, τ.
PRIORS = {
    "uniform": (None, np.full(A, 1 / A), 0.3),
    "counting": (0.0, np.ones(A), 0.05),
    "masked": (log_of(MEASURE), MEASURE, 2.5),
}
HEADS: dict[str, on_policy.Head] = {
    "q": on_policy.q_head,
    "actor_critic": on_policy.actor_critic_head,
}
LOSSES = {
    name: getattr(on_policy, name)
    for name in ("a2c", "a2c_naive", "soft_q", "nstep_soft_q", "pcl", "pgq")
}
GRADIENTS = {name: direction_of(loss) for name, loss in LOSSES.items()}
SOLVES = {
    "natural_pg": natural_pg(damping=DAMPING),
    "natural_pg_cg": natural_pg(damping=DAMPING, solver="cg"),
    "damped_q": damped_q(damping=DAMPING),
}
METRICS = {"loss", "value", "entropy", "kl", "gradient_norm", "skipped"}
# An optimiser that steps nowhere, and whose state is the direction that it was given last.
RECORDER = optax.GradientTransformation(
    lambda params: jax.tree.map(jnp.zeros_like, params),
    lambda direction, *_: (jax.tree.map(jnp.zeros_like, direction), direction),
)


def random_rollout(seed, length=T, num_envs=N):
    """Ends of both kinds, each followed by the dummy step of an auto-reset; one at the start."""
    rng = np.random.default_rng(seed)
    terminated, truncated, dummy = np.zeros((3, length, num_envs), bool)
    dummy[0, 0] = True
    for t, n in np.ndindex(length, num_envs):
        if t > 0:
            dummy[t, n] = terminated[t - 1, n] or truncated[t - 1, n]
        if not dummy[t, n]:
            kind = rng.random()
            terminated[t, n], truncated[t, n] = kind < 0.15, kind > 0.85
    return of_numpy(
        Rollout,
        observation=rng.integers(STATES, size=(length + 1, num_envs)),
        action=rng.choice(np.flatnonzero(MEASURE), size=(length, num_envs)),
        reward=rng.normal(size=(length, num_envs)),
        discount=1.0 - terminated,
        cut=terminated | truncated | dummy,
        weight=1.0 - dummy,
        first=np.concatenate([np.zeros((1, num_envs), bool), dummy]),
    )


def ends(rollout):
    """(terminated, truncated) [T, N]."""
    terminated = rollout.discount == 0
    return terminated, rollout.cut & ~terminated & (rollout.weight > 0)


def network_of(agent):
    """(params, states [...]) -> q, or (v, log_pi)."""

    def network(theta, states):
        at = bridge.heads(agent, theta, states)
        return at.q if agent.head == "q" else (at.v, at.log_pi)

    return network


class Case:
    """One network, prior and τ; every algorithm compiled once, as a function of the rollout."""

    def __init__(self, head, prior):
        log_prior, measure, self.tau = PRIORS[prior]
        self.agent, self.theta = bridge.make_agent(
            oracles.mlp(0, STATES, A), head, np.tile(measure, (STATES, 1)), self.tau
        )
        self.head, self.network = HEADS[head], network_of(self.agent)
        self.objective = Objective(self.tau, GAMMA, STEPS, C, log_prior)
        self.rollout = random_rollout(1)
        self.losses = jax.jit(self._losses)
        self.gradients = jax.jit(functools.partial(self._updates, GRADIENTS))
        self.solves = jax.jit(functools.partial(self._updates, SOLVES))

    def _losses(self, theta, rollout):
        at = self.head(self.network(theta, rollout.observation), self.objective)
        return {name: f(at, rollout, self.objective) for name, f in LOSSES.items()}

    def _updates(self, directions, theta, rollout):
        """{name: (direction, metrics)} of agents."""
        found = {}
        for name, direction in directions.items():
            agent = self.agent_along(direction, optimiser=RECORDER)
            state = agent.init(jax.random.key(0))._replace(params=theta)
            state, metrics = agent.update(state, rollout, jax.random.key(0))
            found[name] = state.optimiser, metrics.sums
        return found

    def agent_along(self, direction, **options):
        settings: dict[str, Any] = {
            "optimiser": optax.sgd(0.1),
            "objective": self.objective,
            "head": self.head,
        }
        return on_policy.agent_along(
            self.network, lambda _: self.theta, direction, **settings | options
        )

    def agent_of(self, loss, **options):
        return self.agent_along(direction_of(loss), **options)


make_case = functools.cache(Case)


CASES = [
    ("actor_critic", "counting"),
    ("q", "masked"),
    ("actor_critic", "masked"),
    ("q", "uniform"),
]


@pytest.fixture(params=CASES, ids="-".join)
def case(request):
    return make_case(*request.param)


@pytest.fixture(params=CASES[:2], ids="-".join)
def solved(request):
    return make_case(*request.param)


class Oracle:
    """All that the algorithms are made of, step by step: values [T, N], slopes [T, N, P]."""

    def __init__(self, case):
        agent, theta, rollout, self.tau = case.agent, case.theta, case.rollout, case.tau
        s, self.s_next, a = rollout.observation[:-1], rollout.observation[1:], rollout.action
        self.r, self.weight = rollout.reward, rollout.weight
        self.discount, self.cut = GAMMA * rollout.discount, rollout.cut
        values, kl_of = agent.value(theta), agent.kl(theta)[:, 0]
        policy = agent.policy(theta)
        self.v, self.v_next, self.kl = values[s], values[self.s_next], kl_of[s]
        self.log_pi, self.ratio = agent.log_policy(theta)[s, a], agent.ratio(theta)[s, a]
        self.q = agent.q(theta)[s, a]
        # (87), of which the largest over the allowed actions is backed up.
        centred = np.where(agent.prior > 0, values[:, None] + self.tau * agent.ratio(theta), -9e9)
        self.q_max = (np.max(centred, axis=-1) - self.tau * kl_of)[self.s_next]
        self.entropy = -oracles.kl(policy, np.ones_like(policy))[s]

        def slope(f, *index):
            return oracles.jacobian(f, theta)[index]

        self.d_log_pi, self.d_q = slope(agent.log_policy, s, a), slope(agent.q, s, a)
        self.d_ratio = slope(agent.ratio, s, a)
        self.d_v, self.d_v_next = slope(agent.value, s), slope(agent.value, self.s_next)
        self.d_kl = oracles.jacobian(agent.kl, theta)[s, 0]
        self.target = self.columns(
            oracles.n_step_q_targets, self.r, self.discount, self.v_next, self.kl, self.tau, STEPS
        )
        # V̂ − V, once with the KL in the return and once without.
        self.advantage = self.target - self.tau * self.kl - self.v
        self.naive_advantage = self.value_targets(self.r, self.v_next, 0 * self.kl) - self.v

    def columns(self, f, *args):
        """f of each environment's trajectory."""
        rows = []
        for n in range(self.r.shape[1]):
            own = [x[:, n] if np.ndim(x) else x for x in args]
            rows.append(f(*own, self.cut[:, n]))
        return np.stack(rows, axis=1)

    def value_targets(self, r, v_next, kl):
        return self.columns(
            oracles.n_step_value_targets, r, self.discount, v_next, kl, self.tau, STEPS
        )

    def mean(self, x):
        weight = self.weight.reshape(self.weight.shape + (1,) * (x.ndim - 2))
        return np.sum(weight * x, axis=(0, 1)) / self.weight.sum()

    def of(self, name):
        """Losses [T, N] and their gradients [T, N, P], targets held fixed."""
        return getattr(self, name)()

    def _actor_critic(self, advantage):
        loss = -self.log_pi * advantage + self.tau * self.kl + C / 2 * advantage**2
        slope = -(self.d_log_pi + C * self.d_v) * advantage[..., None]
        return loss, slope + self.tau * self.d_kl

    def a2c(self):
        return self._actor_critic(self.advantage)

    def a2c_naive(self):
        return self._actor_critic(self.naive_advantage)

    def soft_q(self):
        error = self.q - self.target
        return error**2 / 2, (self.d_log_pi + C * self.d_v) * error[..., None]

    def nstep_soft_q(self):
        error = self.q - self.target
        return error**2 / 2, self.d_q * error[..., None]

    def pcl(self):
        # The error is linear in V and log π: its slope is the same sum of their slopes.
        error = self.value_targets(self.r, self.v_next, self.ratio) - self.v
        slopes = [
            self.value_targets(0 * self.r, self.d_v_next[..., p], self.d_ratio[..., p])
            for p in range(self.d_v.shape[-1])
        ]
        return error**2 / 2, (np.stack(slopes, axis=-1) - self.d_v) * error[..., None]

    def pgq(self):
        q = self.q - self.tau * self.kl
        errors = [q - (self.v + self.advantage), q - (self.r + self.discount * self.q_max)]
        loss = (errors[0] ** 2 + errors[1] ** 2) / 4
        return loss, (self.d_log_pi + C * self.d_v) * ((errors[0] + errors[1]) / 2)[..., None]

    def natural_pg(self):
        """(loss, direction): the regression of the docstring, solved densely; to be descended."""
        psi, phi = self.d_log_pi, self.d_v
        error = self.target - self.q
        curvature = self.mean(outer(psi, psi)) + C * self.mean(outer(phi, phi))
        slope = self.mean(psi * error[..., None]) + C * self.mean(phi * self.advantage[..., None])
        return error**2 / 2, -np.linalg.solve(ridged(curvature), slope)

    def damped_q(self):
        error = self.target - self.q
        curvature = self.mean(outer(self.d_q, self.d_q))
        slope = self.mean(self.d_q * error[..., None])
        return error**2 / 2, -np.linalg.solve(ridged(curvature), slope)


def outer(x, y):
    return x[..., :, None] * y[..., None, :]


def ridged(curvature):
    return curvature + DAMPING * np.eye(len(curvature))


# ---- Algorithms ----------------------------------------------------------------------------------


def test_rollouts_have_everything():
    rollout = random_rollout(1)
    dummy = rollout.weight[1:] == 0
    for end in ends(rollout):
        assert (dummy & end[:-1]).sum() > 1
    assert rollout.weight[0, 0] == 0
    assert rollout.weight.sum() > T * N / 2


def test_heads_are_tied(solved):
    """(57), whichever of them the network has."""
    case = solved
    obs, theta, objective = case.rollout.observation, case.theta, case.objective
    at = jax.jit(lambda x: case.head(case.network(x, obs), objective))(theta)
    agent, allowed = case.agent, case.agent.prior[obs] > 0
    assert_close(at.v, agent.value(theta)[obs])
    assert_close(at.log_pi, agent.log_policy(theta)[obs])
    assert_close(np.where(allowed, at.q, 0), np.where(allowed, agent.q(theta)[obs], 0))
    from_q = on_policy.q_head(at.q, objective)
    from_policy = on_policy.actor_critic_head((at.v, at.log_pi), objective)
    for other in (from_q, from_policy):
        for x, expected in zip(other, at, strict=True):
            assert x.shape == expected.shape
            assert_close(np.where(np.isfinite(x), x, 0), np.where(np.isfinite(x), expected, 0))
            assert np.array_equal(np.isfinite(x), np.isfinite(x) & np.isfinite(expected))
    ratio = np.where(allowed, agent.ratio(theta)[obs], 0)
    assert_close(np.where(allowed, at.q, 0) - allowed * at.v[..., None], case.tau * ratio)


def test_algorithms(case):
    """Losses of the steps that count, the gradient of their mean, and what is reported."""
    oracle = Oracle(case)
    steps = case.losses(case.theta, case.rollout)
    results = case.gradients(case.theta, case.rollout)
    described = {
        "value": oracle.mean(oracle.v),
        "entropy": oracle.mean(oracle.entropy),
        "kl": np.log(A) - oracle.mean(oracle.entropy),
    }
    for name in LOSSES:
        loss, slopes = oracle.of(name)
        assert steps[name].shape == (T, N)
        assert_close(oracle.weight * steps[name], oracle.weight * loss)
        gradient, metrics = results[name]
        assert_close(gradient, oracle.mean(slopes))
        assert set(metrics) == METRICS
        norm = np.linalg.norm(oracle.mean(slopes))
        own = {"loss": oracle.mean(loss), "gradient_norm": norm, "skipped": 0.0}
        for key, expected in (described | own).items():
            np.testing.assert_allclose(metrics[key], expected, rtol=1e-9, err_msg=key)


def test_solves(solved):
    oracle, results = Oracle(solved), solved.solves(solved.theta, solved.rollout)
    for name in SOLVES:
        loss, direction = oracle.of(name.removesuffix("_cg"))
        actual, metrics = results[name]
        assert_close(actual, direction, 1e-7)
        assert set(metrics) == METRICS | {"residual"}
        np.testing.assert_allclose(metrics["loss"], oracle.mean(loss), rtol=1e-9)
        assert metrics["residual"] < 1e-9
        np.testing.assert_allclose(metrics["value"], oracle.mean(oracle.v), rtol=1e-9)


def test_without_a_value_loss_it_is_the_natural_policy_gradient():
    """The parameters of V alone stay where they are."""
    case = make_case("actor_critic", "counting")
    oracle, agent, rollout, tau = Oracle(case), case.agent, case.rollout, case.tau
    # One network for the policy, another for the value, half of the parameters each.
    half = case.theta.size
    separate = oracles.Model(
        2 * half,
        lambda w, tanh=np.tanh: (
            agent.model.heads(w[:half], tanh)[0],
            agent.model.heads(w[half:], tanh)[1],
        ),
    )
    network, theta = network_of(replace(agent, model=separate)), np.tile(case.theta, 2)
    objective = case.objective._replace(value_coef=0.0)
    # (70), with Δ from the definition.
    error = oracle.advantage - tau * (oracle.ratio - oracle.kl)

    @jax.jit
    def both(theta):
        solve = natural_pg(damping=DAMPING, solver="cg").of
        direction, *_ = solve(network, case.head, theta, rollout, objective)

        def log_prob(theta):
            return jaxsoft.take_action(network(theta, rollout.observation[:-1])[1], rollout.action)

        expected, _ = jaxsoft.natural_gradient(
            log_prob, theta, error, damping=DAMPING, weight=rollout.weight
        )
        return direction, expected

    direction, expected = both(theta)
    assert_close(-direction, expected, 1e-7)
    np.testing.assert_array_equal(direction[half : -A - 2], 0)
    psi = oracle.d_log_pi
    slope = oracle.mean(psi * error[..., None])
    dense = np.linalg.solve(ridged(oracle.mean(outer(psi, psi))), slope)
    assert_close(-direction[:half], dense, 1e-7)


@pytest.mark.parametrize("head", HEADS)
def test_soft_q_and_a2c_have_one_expected_gradient(head):
    """Over every path of two steps, actions from the policy; A2C is the blocks composed."""
    tau, n = 0.3, 2
    mdp = oracles.random_mdp(4, outcomes=1, tau=tau, terminals=1)
    prior = np.tile([0.5, 0.2, 0.9], (4, 1))
    mdp = replace(mdp, prior=prior)
    agent, theta = bridge.make_agent(oracles.linear(0, 4, 3), head, prior, tau)
    path = bridge.paths(mdp, agent.policy(theta), 2, "state")
    no = np.zeros(path.states.shape, bool)
    rollout = of_numpy(
        Rollout,
        observation=path.states,
        action=path.actions,
        reward=path.rewards,
        discount=np.where(path.discounts == 0, 0.0, 1.0),
        cut=path.discounts == 0,
        weight=path.probs * ~mdp.terminal[path.states[:-1]],
        first=no,
    )
    log_prior = log_of(prior[0])
    objective = Objective(tau, mdp.gamma, n, C, log_prior)
    network = network_of(agent)

    def composed(at, rollout, objective):
        kl = jaxsoft.kl_to_prior(at.log_pi, log_prior)
        target = jaxsoft.n_step_soft_q_targets(
            at.v, kl[:-1], rollout.reward, discount_t=path.discounts, tau=tau, n=n
        )
        return losses.a2c_loss(
            at.v[:-1], at.log_pi[:-1], rollout.action,
            target_t=target, tau=tau, value_coef=C, log_prior=log_prior,
        )  # fmt: skip

    @jax.jit
    def gradients(theta, rollout):
        algorithms = (on_policy.soft_q, on_policy.a2c, composed, on_policy.a2c_naive)
        arguments = network, HEADS[head], theta, rollout, objective
        return [direction_of(f).of(*arguments)[0] for f in algorithms]

    soft_q, a2c, blocks, naive = gradients(theta, rollout)
    assert_close(a2c, soft_q)
    assert_close(blocks, a2c, 1e-12)
    assert_differs(naive, a2c)
    some = rollout.weight * (np.arange(path.probs.size) % 3 == 0)
    soft_q, a2c, *_ = gradients(theta, rollout._replace(weight=some))
    assert_differs(soft_q, a2c)


def test_a2c_is_naive_but_for_the_kl_in_the_return(case):
    """Paid the KL back as a reward, the one is the other; else they differ by the sum of it."""
    oracle, rollout = Oracle(case), case.rollout
    paid = rollout._replace(reward=rollout.reward + case.tau * oracle.kl)
    a2c, naive = case.losses(case.theta, paid)["a2c"], case.losses(case.theta, rollout)["a2c_naive"]
    assert_close(oracle.weight * a2c, oracle.weight * naive)
    paid, plain = case.gradients(case.theta, paid), case.gradients(case.theta, rollout)
    assert_close(paid["a2c"][0], plain["a2c_naive"][0])
    kl_in_return = oracle.columns(oracles.weighted_sums, oracle.kl, oracle.discount, STEPS)
    slope = (oracle.d_log_pi + C * oracle.d_v) * case.tau * kl_in_return[..., None]
    difference = plain["a2c"][0] - plain["a2c_naive"][0]
    assert_close(difference, oracle.mean(slope), of=plain["a2c"][0])
    assert_differs(plain["a2c"][0], plain["a2c_naive"][0], by=1e-2)


def with_garbage(rollout):
    """What dummy steps pay and do, and what is seen at a start that nothing leads to."""
    rng, dummy = np.random.default_rng(7), rollout.weight == 0
    led_to = np.concatenate([np.zeros((1, N), bool), rollout.discount[:-1] > 0])
    unseen = np.concatenate([dummy & ~led_to, np.zeros((1, N), bool)])
    other_action = rng.choice(np.flatnonzero(MEASURE), size=(T, N))
    garbage = rollout._replace(
        reward=np.where(dummy, 1e9 * rng.normal(size=(T, N)), rollout.reward),
        action=np.where(dummy, other_action, rollout.action),
        observation=np.where(unseen, (rollout.observation + 1) % STATES, rollout.observation),
    )
    assert np.any(garbage.action != rollout.action)
    assert np.any(garbage.observation != rollout.observation)
    return garbage


def elsewhere_after_truncations(rollout):
    """What a truncation leads to is seen: its value is the bootstrap."""
    seen = np.concatenate([np.zeros((1, N), bool), ends(rollout)[1]])
    return rollout._replace(
        observation=np.where(seen, (rollout.observation + 1) % STATES, rollout.observation)
    )


def assert_dummies_change_nothing(f, case):
    rollouts = case.rollout, with_garbage(case.rollout), elsewhere_after_truncations(case.rollout)
    expected, actual, moved = (f(case.theta, rollout) for rollout in rollouts)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)
    for name, (gradient, _) in moved.items():
        assert_differs(gradient, expected[name][0])


def assert_nothing_is_learned(f, case):
    rollout = case.rollout._replace(weight=np.zeros((T, N)))
    for name, (gradient, metrics) in f(case.theta, rollout).items():
        np.testing.assert_array_equal(gradient, 0, err_msg=name)
        np.testing.assert_array_equal(list(metrics.values()), 0, err_msg=name)


def test_dummy_steps_change_nothing(case):
    assert_dummies_change_nothing(case.gradients, case)


def test_dummy_steps_change_no_solve(solved):
    assert_dummies_change_nothing(solved.solves, solved)


def test_nothing_is_learned_where_nothing_counts(case):
    assert_nothing_is_learned(case.gradients, case)


def test_nothing_is_solved_where_nothing_counts(solved):
    assert_nothing_is_learned(solved.solves, solved)


@pytest.mark.parametrize("kind", [ActorCritic, QNetwork])
def test_natural_algorithms_take_the_fast_path(monkeypatch, kind):
    """One row a sample: K is read off the program, and no Jacobian is formed."""

    def formed(*_):
        raise AssertionError("the structure is not recognised: the fast path is lost")

    monkeypatch.setattr(_operator, "jacobian_gram", formed)
    network = kind(MLP((5,)), A, 1)
    observation = jax.random.normal(jax.random.key(0), (T + 1, N, 3), jnp.float32)
    params = jax.eval_shape(network.init, jax.random.key(0), observation)
    rollout = random_rollout(0)._replace(observation=observation)
    head = HEADS["actor_critic" if kind is ActorCritic else "q"]
    for direction in (natural_pg(), damped_q()):
        f = functools.partial(direction.of, network.apply, head)
        jax.eval_shape(lambda p, f=f: f(p, rollout, Objective()), params)


# ---- Agents --------------------------------------------------------------------------------------


def table_agent(*, tau=0.3, log_prior=None, **options):
    """One of which the parameters are the action values."""
    settings = {"optimiser": optax.sgd(0.1), "objective": Objective(tau, log_prior=log_prior)}
    return on_policy.agent(
        lambda q, states: q[states],
        lambda key: jax.random.normal(key, (STATES, A)),
        on_policy.a2c,
        head=on_policy.q_head,
        **settings | options,
    )


@pytest.mark.parametrize("prior", ["counting", "masked"])
def test_acting_follows_the_policy(prior):
    log_prior, measure, _ = PRIORS[prior]
    agent = table_agent(tau=0.7, log_prior=log_prior)
    state, count = agent.init(jax.random.key(2)), 6000
    observation = np.arange(count) % STATES
    keys = jax.random.split(jax.random.key(1), count)
    action, carry, extras = jax.jit(agent.act)(state, None, observation, keys)
    assert carry is None
    assert action.dtype == jnp.int32
    policy = oracles.boltzmann(np.asarray(state.params), 0.7, np.tile(measure, (STATES, 1)))
    for s in range(STATES):
        expected = policy[s] * count / STATES
        counted = np.bincount(action[observation == s], minlength=A)
        assert not np.any(counted[expected == 0])
        allowed = expected > 0
        chi_square = np.sum((counted - expected)[allowed] ** 2 / expected[allowed])
        assert chi_square < 17  # one in a thousand is greater
    assert isinstance(extras, Acted)
    np.testing.assert_allclose(extras.log_mu, np.log(policy[observation, action]), rtol=1e-9)


def test_an_update_of_no_transition_is_in_no_mean():
    """As where all environments restart at once, which short rollouts of few of them do."""
    agent = table_agent()
    state = agent.init(jax.random.key(2))
    observation = np.arange(2 * N).reshape(2, N) % STATES
    rollout = Rollout(
        observation=jnp.asarray(observation),
        action=jnp.zeros((1, N), jnp.int32),
        reward=jnp.ones((1, N)),
        discount=jnp.ones((1, N)),
        cut=jnp.zeros((1, N), bool),
        weight=jnp.ones((1, N)),
        first=jnp.zeros((2, N), bool),
    )
    some = agent.update(state, rollout, jax.random.key(0))[1]
    none = agent.update(state, rollout._replace(weight=jnp.zeros((1, N))), jax.random.key(0))[1]
    assert (some.updates, none.updates) == (1, 0)
    assert set(map(float, none.sums.values())) == {0.0}
    both = jax.tree.map(jnp.add, some, none)
    np.testing.assert_allclose((both.sums["entropy"] + both.sums["kl"]) / both.updates, np.log(A))


@pytest.mark.parametrize("prior", ["counting", "masked"])
def test_the_greedy_action_is_the_likeliest(prior):
    log_prior, measure, _ = PRIORS[prior]
    agent = table_agent(tau=0.7, log_prior=log_prior)
    state, observation = agent.init(jax.random.key(2)), np.arange(STATES)
    keys = jax.random.split(jax.random.key(1), STATES)
    action, carry, extras = agent.greedy(state, None, observation, keys)
    policy = oracles.boltzmann(np.asarray(state.params), 0.7, np.tile(measure, (STATES, 1)))
    np.testing.assert_array_equal(action, np.argmax(policy, axis=-1))
    assert np.any(action != np.argmax(state.params, axis=-1)) == (prior == "masked")
    assert carry is extras is None
    assert action.dtype == jnp.int32


def test_an_environment_acts_by_its_own_key():
    """Neither its neighbours nor their number matter."""
    agent = table_agent(tau=2.0)
    state = agent.init(jax.random.key(2))

    @jax.jit
    def act(observation, keys):
        return agent.act(state, None, observation, keys)[0]

    keys = jax.random.split(jax.random.key(1), 60)
    here, other = np.zeros(60, int), np.where(np.arange(60) % 2, 3, 0)
    action = act(here, keys)
    assert len(set(action.tolist())) == A
    np.testing.assert_array_equal(act(other, keys)[::2], action[::2])
    np.testing.assert_array_equal(act(here[:7], keys[:7]), action[:7])
    np.testing.assert_array_equal(act(here, keys[::-1]), action[::-1])
    assert len(set(act(here, keys[jnp.zeros(60, int)]).tolist())) == 1


def test_an_update_is_an_optimisers_step():
    case = make_case("actor_critic", "counting")
    agent = case.agent_of(on_policy.a2c)
    state = agent.init(jax.random.key(0))
    assert agent.forget(state) is state
    state, metrics = jax.jit(agent.update)(state, case.rollout, jax.random.key(0))
    gradient, sums = case.gradients(case.theta, case.rollout)["a2c"]
    assert_close(state.params, case.theta - 0.1 * gradient, 1e-12)
    assert isinstance(metrics, Metrics)
    assert metrics.updates == 1
    assert set(metrics.sums) == set(sums)
    for key, x in sums.items():
        np.testing.assert_allclose(metrics.sums[key], x, rtol=1e-9, atol=1e-12, err_msg=key)


@pytest.mark.parametrize("name", LOSSES)
def test_only_what_the_registry_says_is_differentiated_at_the_last_state(name):
    """Only path consistency has a gradient there: the others need not go through it."""
    case = make_case("q" if name == "nstep_soft_q" else "actor_critic", "uniform")
    differentiates_target = ALGORITHMS[name].differentiates_target
    assert differentiates_target == (name == "pcl")
    agent = on_policy.agent(
        case.network,
        lambda _: case.theta,
        LOSSES[name],
        head=case.head,
        optimiser=RECORDER,
        objective=case.objective,
        differentiates_target=differentiates_target,
    )
    state = agent.init(jax.random.key(0))
    state, metrics = jax.jit(agent.update)(state, case.rollout, jax.random.key(0))
    gradient, expected = case.gradients(case.theta, case.rollout)[name]
    assert_close(state.optimiser, gradient, 1e-12)
    short = direction_of(LOSSES[name], differentiates_target=False)
    agent = case.agent_along(short, optimiser=RECORDER)
    shorter, same = jax.jit(agent.update)(
        agent.init(jax.random.key(0)), case.rollout, jax.random.key(0)
    )
    for key, x in expected.items():
        np.testing.assert_allclose(metrics.sums[key], x, rtol=1e-9, err_msg=key)
        if key != "gradient_norm":
            np.testing.assert_allclose(same.sums[key], x, rtol=1e-9, err_msg=key)
    (assert_differs if name == "pcl" else assert_close)(shorter.optimiser, gradient)


def test_an_update_lowers_the_loss():
    """That of path consistency is all differentiated: by the squared norm, to first order."""
    case, rate = make_case("actor_critic", "uniform"), 1e-5
    agent = case.agent_of(on_policy.pcl, optimiser=optax.sgd(rate))
    state, update = agent.init(jax.random.key(0)), jax.jit(agent.update)
    state, before = update(state, case.rollout, jax.random.key(0))
    _, after = update(state, case.rollout, jax.random.key(0))
    expected = rate * before.sums["gradient_norm"] ** 2
    np.testing.assert_allclose(before.sums["loss"] - after.sums["loss"], expected, rtol=1e-2)


WRONG_LOSSES = {
    "a mean": lambda at, rollout, objective: jnp.mean(jnp.square(at.v)),
    "a number per step": lambda at, rollout, objective: jnp.mean(jnp.square(at.v[:-1]), axis=1),
    "a number per state": lambda at, rollout, objective: jnp.square(at.v),
    "a column": lambda at, rollout, objective: jnp.square(at.v[:-1, :1]),
    "integers": lambda at, rollout, objective: jnp.sign(at.v[:-1]).astype(int),
    "a Python number": lambda at, rollout, objective: 0.0,
}


@pytest.mark.parametrize("name", WRONG_LOSSES)
def test_a_loss_that_is_no_number_per_transition_is_refused(name):
    case = make_case("actor_critic", "uniform")
    agent = case.agent_of(WRONG_LOSSES[name])
    state = agent.init(jax.random.key(0))
    with pytest.raises(ValueError, match=r"^step_loss: expected one number per transition.*\[\d"):
        agent.update(state, case.rollout, jax.random.key(0))


def test_a_loss_may_be_nan_where_it_does_not_count():
    case = make_case("actor_critic", "uniform")
    assert (case.rollout.weight == 0).any()

    def loss(at, rollout, objective):
        return jnp.square(at.v[:-1] - rollout.reward)

    def nowhere(at, rollout, objective):
        return jnp.where(rollout.weight == 0, jnp.nan, loss(at, rollout, objective))

    results = []
    for step_loss in (loss, nowhere):
        agent = case.agent_of(step_loss)
        state = agent.init(jax.random.key(0))
        results.append(agent.update(state, case.rollout, jax.random.key(0)))
    for x, y in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_array_equal(x, y)


def test_a_loss_a_head_and_a_direction_of_ones_own():
    case = make_case("actor_critic", "uniform")
    rollout = case.rollout

    def towards_rewards(at, rollout, objective):
        return jnp.square(at.v[:-1] - rollout.reward) / objective.value_coef

    def doubled(out, objective):
        v, log_pi = out
        return on_policy.actor_critic_head((2 * v, log_pi), objective)

    def against_signs(network, head, params, rollout, objective):
        at = head(network(params, rollout.observation), objective)
        own = rollout.reward.sum() * objective.value_coef
        return jnp.sign(params), {"own": own}, on_policy.starts_of(at)

    agent = case.agent_of(towards_rewards, head=doubled)
    state = agent.init(jax.random.key(0))
    after, metrics = jax.jit(agent.update)(state, rollout, jax.random.key(0))
    oracle = Oracle(case)
    error = 2 * oracle.v - oracle.r
    gradient = oracle.mean(4 / C * error[..., None] * oracle.d_v)
    assert_close(after.params, case.theta - 0.1 * gradient)
    np.testing.assert_allclose(metrics.sums["loss"], oracle.mean(error**2) / C)
    np.testing.assert_allclose(metrics.sums["value"], 2 * oracle.mean(oracle.v))

    agent = case.agent_along(Direction(against_signs))
    after, metrics = jax.jit(agent.update)(state, rollout, jax.random.key(0))
    assert_close(after.params, case.theta - 0.1 * np.sign(case.theta))
    assert set(metrics.sums) == METRICS - {"loss"} | {"own"}
    np.testing.assert_allclose(metrics.sums["own"], C * rollout.reward.sum())


def test_seeds_side_by_side_learn_what_they_learn_alone():
    agent = on_policy.agent_along(
        lambda p, states: (p["v"][states], jax.nn.log_softmax(p["logits"][states])),
        lambda key: {
            "v": jax.random.normal(key, (STATES,)),
            "logits": jax.random.normal(jax.random.fold_in(key, 1), (STATES, A)),
        },
        damped_q(damping=DAMPING, solver="cg"),
        head=on_policy.actor_critic_head,
        optimiser=optax.sgd(0.1, momentum=0.9),
        objective=Objective(0.3, GAMMA, STEPS),
    )

    def act_and_update(state, rollout, key):
        acted = agent.act(state, None, rollout.observation[0], jax.random.split(key, N))
        return acted, *agent.update(state, rollout, key)

    keys = jax.random.split(jax.random.key(0), 2)
    states = [agent.init(key) for key in keys]
    assert np.any(states[0].params["v"] != states[1].params["v"])
    rollouts = [random_rollout(seed) for seed in (3, 4)]
    one = jax.jit(act_and_update)
    alone = [one(*x) for x in zip(states, rollouts, keys, strict=True)]
    together = jax.tree.map(lambda *x: jnp.stack(x), *states)
    stacked = jax.tree.map(lambda *x: np.stack(x, axis=1), *rollouts)
    got = jax.jit(jax.vmap(act_and_update, (0, 1, 0)))(together, stacked, keys)
    expected = jax.tree.map(lambda *x: np.stack(x), *alone)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-7, atol=1e-9), got, expected)


def counted(monkeypatch, function):
    """A list that grows with each call of a function of the library."""
    calls = []

    def called(*args, **kwargs):
        calls.append(function.__name__)
        return function(*args, **kwargs)

    for name, module in list(sys.modules.items()):
        if name.split(".")[0] == "jaxsoft":
            for key, x in list(vars(module).items()):
                if x is function:
                    monkeypatch.setattr(module, key, called)
    return calls


@pytest.mark.parametrize(
    ("name", "prior", "kls"),
    [
        ("a2c", "uniform", 2),
        ("a2c", "counting", 2),
        ("a2c", "masked", 3),  # the metrics' entropy is none of its KLs
        ("soft_q", "uniform", 2),
        ("a2c_naive", "counting", 2),
        ("pgq", "uniform", 3),  # which is made of returns and backups
    ],
)
def test_an_update_computes_a_kl_for_its_loss_and_another_for_its_metrics(
    monkeypatch, name, prior, kls
):
    case = make_case("actor_critic", prior)
    kl = counted(monkeypatch, boltzmann.kl)
    recurrences = counted(monkeypatch, returns.n_step_advantages)
    direction = direction_of(LOSSES[name], differentiates_target=False)
    agent = case.agent_along(direction)
    state = jax.eval_shape(agent.init, jax.random.key(0))
    jax.eval_shape(agent.update, state, case.rollout, jax.random.key(0))
    assert len(kl) <= kls
    assert len(recurrences) == 1
