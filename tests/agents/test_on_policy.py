"""On-policy algorithms and learners against NumPy, on rollouts with ends and dummy steps."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsoft
from jaxsoft import natural
from jaxsoft.agents import on_policy
from jaxsoft.agents.base import Trained, descend
from jaxsoft.agents.networks import MLP, ActorCritic, QNetwork
from jaxsoft.agents.on_policy import ALGORITHMS, Objective, damped_q, gradient_of, natural_pg
from jaxsoft.training.collect import Rollout
from tests.support import bridge, oracles
from tests.support.bridge import assert_close, assert_differs, log_of

STATES, A, T, N = 6, 4, 9, 5
GAMMA, STEPS, C, DAMPING = 0.9, 3, 0.7, 0.03
MEASURE = np.array([0.5, 0.2, 0.0, 0.9])  # of no total in particular; one action is masked
# log π̄ as the user gives it, the measure it stands for, τ.
PRIORS = {
    "uniform": (None, np.full(A, 1 / A), 0.3),
    "counting": (0.0, np.ones(A), 0.05),
    "masked": (log_of(MEASURE), MEASURE, 2.5),
}
HEADS = ("q", "actor_critic")
SOLVES = {
    "natural_pg": natural_pg(damping=DAMPING),
    "natural_pg_cg": natural_pg(damping=DAMPING, solver="cg"),
    "damped_q": damped_q(damping=DAMPING),
}
GRADIENTS = {name: gradient_of(loss) for name, loss in ALGORITHMS.items()}
DESCRIPTION = {"loss", "value", "value_error", "entropy", "kl"}


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
    return Rollout(
        observation=rng.integers(STATES, size=(length + 1, num_envs)),
        action=rng.choice(np.flatnonzero(MEASURE), size=(length, num_envs)),
        reward=rng.normal(size=(length, num_envs)),
        terminated=terminated,
        truncated=truncated,
        weight=1.0 - dummy,
        reset=np.zeros((length + 1, num_envs), bool),
    )


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
        self.network = network_of(self.agent)
        self.objective = Objective(self.tau, GAMMA, STEPS, C, log_prior)
        self.rollout = random_rollout(1)
        self.losses = jax.jit(self._losses)
        self.gradients = jax.jit(functools.partial(self._apply, GRADIENTS))
        self.solves = jax.jit(functools.partial(self._apply, SOLVES))

    def _losses(self, theta, rollout):
        at = on_policy.heads(self.network, theta, rollout.observation, self.objective)
        return {name: f(at, rollout, self.objective) for name, f in ALGORITHMS.items()}

    def _apply(self, gradients, theta, rollout):
        arguments = self.network, theta, rollout, self.objective
        return {name: f(*arguments) for name, f in gradients.items()}


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
        self.discount = np.where(rollout.terminated, 0.0, GAMMA)
        self.cut = rollout.terminated | rollout.truncated | (rollout.weight == 0)
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
    counts = rollout.weight[1:] == 0
    assert (counts & rollout.terminated[:-1]).sum() > 1
    assert (counts & rollout.truncated[:-1]).sum() > 1
    assert rollout.weight[0, 0] == 0
    assert rollout.weight.sum() > T * N / 2


def test_heads_are_tied(solved):
    """(57), whichever of them the network has."""
    case = solved
    obs, theta, objective = case.rollout.observation, case.theta, case.objective
    at = jax.jit(lambda x: on_policy.heads(case.network, x, obs, objective))(theta)
    agent, allowed = case.agent, case.agent.prior[obs] > 0
    assert_close(at.v, agent.value(theta)[obs])
    assert_close(at.log_pi, agent.log_policy(theta)[obs])
    assert_close(np.where(allowed, at.q, 0), np.where(allowed, agent.q(theta)[obs], 0))
    from_q = on_policy.heads(lambda *_: at.q, None, obs, objective)
    from_policy = on_policy.heads(lambda *_: (at.v, at.log_pi), None, obs, objective)
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
    losses = case.losses(case.theta, case.rollout)
    results = case.gradients(case.theta, case.rollout)
    described = {
        "value": oracle.mean(oracle.v),
        "value_error": oracle.mean(np.abs(oracle.advantage)),
        "entropy": oracle.mean(oracle.entropy),
        "kl": np.log(A) - oracle.mean(oracle.entropy),
    }
    for name in ALGORITHMS:
        loss, slopes = oracle.of(name)
        assert losses[name].shape == (T, N)
        assert_close(oracle.weight * losses[name], oracle.weight * loss)
        gradient, metrics = results[name]
        assert_close(gradient, oracle.mean(slopes))
        assert set(metrics) == DESCRIPTION
        for key, expected in (described | {"loss": oracle.mean(loss)}).items():
            np.testing.assert_allclose(metrics[key], expected, rtol=1e-9, err_msg=key)


def test_solves(solved):
    oracle, results = Oracle(solved), solved.solves(solved.theta, solved.rollout)
    for name in SOLVES:
        loss, direction = oracle.of(name.removesuffix("_cg"))
        actual, metrics = results[name]
        assert_close(actual, direction, 1e-7)
        assert set(metrics) == DESCRIPTION | {"residual"}
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
        direction, _ = natural_pg(damping=DAMPING, solver="cg")(network, theta, rollout, objective)

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
    """Over every path of two steps, actions from the policy; A2C is the one-call algorithm."""
    tau, n = 0.3, 2
    mdp = oracles.random_mdp(4, outcomes=1, tau=tau, terminals=1)
    prior = np.tile([0.5, 0.2, 0.9], (4, 1))
    mdp = replace(mdp, prior=prior)
    agent, theta = bridge.make_agent(oracles.linear(0, 4, 3), head, prior, tau)
    path = bridge.paths(mdp, agent.policy(theta), 2, "state")
    rollout = Rollout(
        path.states,
        path.actions,
        path.rewards,
        path.discounts == 0,
        np.zeros(path.rewards.shape, bool),
        path.probs * ~mdp.terminal[path.states[:-1]],
        np.zeros(path.states.shape, bool),
    )
    objective = Objective(tau, mdp.gamma, n, C, log_of(prior[0]))
    network = network_of(agent)

    def one_call(at, rollout, objective):
        return jaxsoft.policy_gradient(
            at.v, at.log_pi, rollout.action, rollout.reward, path.discounts, tau,
            n=n, value_coef=C, log_prior=log_of(prior[0]),
        )  # fmt: skip

    @jax.jit
    def gradients(theta, rollout):
        algorithms = (on_policy.soft_q, on_policy.a2c, one_call, on_policy.a2c_naive)
        return [gradient_of(f)(network, theta, rollout, objective)[0] for f in algorithms]

    soft_q, a2c, called, naive = gradients(theta, rollout)
    assert_close(a2c, soft_q)
    assert_close(called, a2c, 1e-12)
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
    led_to = np.concatenate([np.zeros((1, N), bool), ~rollout.terminated[:-1]])
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
    seen = np.concatenate([np.zeros((1, N), bool), rollout.truncated])
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
        assert all(x == 0 for x in metrics.values()), name


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

    monkeypatch.setattr(natural, "jacobian_gram", formed)
    network = kind(MLP((5,)), A, 1)
    observation = jax.random.normal(jax.random.key(0), (T + 1, N, 3), jnp.float32)
    params = jax.eval_shape(network.init, jax.random.key(0), observation)
    rollout = random_rollout(0)._replace(observation=observation)
    for gradient in (natural_pg(), damped_q()):
        jax.eval_shape(lambda p, f=gradient: f(network.apply, p, rollout, Objective()), params)


# ---- Learners ------------------------------------------------------------------------------------


def make_learner(case, *algorithm, **options):
    settings = {"optimiser": optax.sgd(0.1), "objective": case.objective}
    return on_policy.learner(case.network, lambda _: case.theta, *algorithm, **settings | options)


def table_learner(*algorithm, tau=0.3, log_prior=None, **options):
    """One of which the parameters are the action values."""
    settings = {"optimiser": optax.sgd(0.1), "objective": Objective(tau, log_prior=log_prior)}
    return on_policy.learner(
        lambda q, states: q[states],
        lambda key: jax.random.normal(key, (STATES, A)),
        *algorithm or (on_policy.a2c,),
        **settings | options,
    )


@pytest.mark.parametrize("prior", ["counting", "masked"])
def test_acting_follows_the_policy(prior):
    log_prior, measure, _ = PRIORS[prior]
    learner = table_learner(tau=0.7, log_prior=log_prior)
    state, count = learner.init(jax.random.key(2)), 6000
    observation = np.arange(count) % STATES
    action = jax.jit(learner.act)(state, observation, jax.random.split(jax.random.key(1), count))
    assert action.dtype == jnp.int32
    policy = oracles.boltzmann(np.asarray(state.params), 0.7, np.tile(measure, (STATES, 1)))
    for s in range(STATES):
        expected = policy[s] * count / STATES
        counted = np.bincount(action[observation == s], minlength=A)
        assert not np.any(counted[expected == 0])
        allowed = expected > 0
        chi_square = np.sum((counted - expected)[allowed] ** 2 / expected[allowed])
        assert chi_square < 17  # one in a thousand is greater


def test_an_environment_acts_by_its_own_key():
    """Neither its neighbours nor their number matter."""
    learner = table_learner(tau=2.0)
    state, act = learner.init(jax.random.key(2)), jax.jit(learner.act)
    keys = jax.random.split(jax.random.key(1), 60)
    here, other = np.zeros(60, int), np.where(np.arange(60) % 2, 3, 0)
    action = act(state, here, keys)
    assert len(set(action.tolist())) == A
    np.testing.assert_array_equal(act(state, other, keys)[::2], action[::2])
    np.testing.assert_array_equal(act(state, here[:7], keys[:7]), action[:7])
    np.testing.assert_array_equal(act(state, here, keys[::-1]), action[::-1])
    assert len(set(act(state, here, keys[jnp.zeros(60, int)]).tolist())) == 1


def test_an_update_is_an_optimisers_step():
    case = make_case("actor_critic", "counting")
    learner = make_learner(case, on_policy.a2c)
    state = learner.init(jax.random.key(0))
    state, metrics = jax.jit(learner.update)(state, case.rollout, jax.random.key(0))
    gradient, described = case.gradients(case.theta, case.rollout)["a2c"]
    assert_close(state.params, case.theta - 0.1 * gradient, 1e-12)
    norm = np.linalg.norm(gradient)
    expected = described | {"gradient_norm": norm, "skipped": 0, "updates": 1}
    assert set(metrics) == set(expected)
    for key, x in expected.items():
        np.testing.assert_allclose(metrics[key], x, rtol=1e-6, atol=1e-9, err_msg=key)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_learners_take_the_whole_gradient(name):
    """Only path consistency has one into the last state: the others need not go through it."""
    case = make_case("q" if name == "nstep_soft_q" else "actor_critic", "uniform")
    learner = make_learner(case, ALGORITHMS[name])
    state = learner.init(jax.random.key(0))
    state, _ = jax.jit(learner.update)(state, case.rollout, jax.random.key(0))
    gradient, metrics = case.gradients(case.theta, case.rollout)[name]
    assert_close(state.params, case.theta - 0.1 * gradient, 1e-12)
    short = gradient_of(ALGORITHMS[name], through_last=False)
    shorter, same = short(case.network, case.theta, case.rollout, case.objective)
    for key, x in metrics.items():
        np.testing.assert_allclose(same[key], x, rtol=1e-9, err_msg=key)
    (assert_differs if name == "pcl" else assert_close)(shorter, gradient)


def test_an_update_lowers_the_loss():
    """That of path consistency is all differentiated: by the squared norm, to first order."""
    case, rate = make_case("actor_critic", "uniform"), 1e-5
    learner = make_learner(case, ALGORITHMS["pcl"], optimiser=optax.sgd(rate))
    state, update = learner.init(jax.random.key(0)), jax.jit(learner.update)
    state, before = update(state, case.rollout, jax.random.key(0))
    _, after = update(state, case.rollout, jax.random.key(0))
    expected = rate * before["gradient_norm"] ** 2
    np.testing.assert_allclose(before["loss"] - after["loss"], expected, rtol=1e-2)


def test_a_loss_and_a_gradient_of_ones_own():
    case = make_case("actor_critic", "uniform")
    rollout = case.rollout

    def towards_rewards(at, rollout, objective):
        return jnp.square(at.v[:-1] - rollout.reward) / objective.value_coef

    def against_signs(network, params, rollout, objective):
        return jnp.sign(params), {"own": rollout.reward.sum() * objective.value_coef}

    learner = make_learner(case, towards_rewards)
    state = learner.init(jax.random.key(0))
    after, metrics = jax.jit(learner.update)(state, rollout, jax.random.key(0))
    oracle = Oracle(case)
    error = oracle.v - oracle.r
    gradient = oracle.mean(2 / C * error[..., None] * oracle.d_v)
    assert_close(after.params, case.theta - 0.1 * gradient)
    np.testing.assert_allclose(metrics["loss"], oracle.mean(error**2) / C)

    learner = make_learner(case, gradient=against_signs)
    after, metrics = jax.jit(learner.update)(state, rollout, jax.random.key(0))
    assert_close(after.params, case.theta - 0.1 * np.sign(case.theta))
    assert set(metrics) == {"own", "gradient_norm", "skipped", "updates"}
    np.testing.assert_allclose(metrics["own"], C * rollout.reward.sum())


def test_seeds_side_by_side_learn_what_they_learn_alone():
    learner = on_policy.learner(
        lambda p, states: (p["v"][states], jax.nn.log_softmax(p["logits"][states])),
        lambda key: {
            "v": jax.random.normal(key, (STATES,)),
            "logits": jax.random.normal(jax.random.fold_in(key, 1), (STATES, A)),
        },
        gradient=damped_q(damping=DAMPING, solver="cg"),
        optimiser=optax.sgd(0.1, momentum=0.9),
        objective=Objective(0.3, GAMMA, STEPS),
    )

    def act_and_update(state, rollout, key):
        action = learner.act(state, rollout.observation[0], jax.random.split(key, N))
        return action, *learner.update(state, rollout, key)

    keys = jax.random.split(jax.random.key(0), 2)
    states = [learner.init(key) for key in keys]
    assert np.any(states[0].params["v"] != states[1].params["v"])
    rollouts = [random_rollout(seed) for seed in (3, 4)]
    one = jax.jit(act_and_update)
    alone = [one(*x) for x in zip(states, rollouts, keys, strict=True)]
    together = jax.tree.map(lambda *x: jnp.stack(x), *states)
    stacked = jax.tree.map(lambda *x: np.stack(x, axis=1), *rollouts)
    got = jax.jit(jax.vmap(act_and_update, (0, 1, 0)))(together, stacked, keys)
    expected = jax.tree.map(lambda *x: np.stack(x), *alone)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-7, atol=1e-9), got, expected)


def test_one_of_algorithm_and_gradient():
    for how, words in (
        ({}, "neither `algorithm` nor `gradient`"),
        ({"algorithm": on_policy.a2c, "gradient": natural_pg()}, "both of them"),
    ):
        with pytest.raises(ValueError, match=words):
            make_learner(make_case("actor_critic", "counting"), **how)


# ---- The optimiser's step ------------------------------------------------------------------------

PARAMS = {"w": np.arange(6.0).reshape(2, 3) - 2, "b": np.array([0.5, -0.0], np.float32)}


def gradients_with(value):
    """One entry of one leaf is `value`."""
    w = np.ones((2, 3))
    w[1, 2] = value
    return {"w": w, "b": np.ones(2, np.float32)}


def bits(tree):
    return [(x.dtype, x.shape, np.asarray(x).tobytes()) for x in jax.tree.leaves(tree)]


ADAM = optax.adamw(0.1)  # whose step depends on the parameters too
step = jax.jit(functools.partial(descend, ADAM))


@functools.cache
def trained():
    """After a step, so that no moment is zero."""
    return step(Trained(PARAMS, ADAM.init(PARAMS)), gradients_with(1.0))[0]


def test_a_step():
    state, gradients = trained(), gradients_with(-2.0)
    after, metrics = step(state, gradients)
    updates, expected = ADAM.update(gradients, state.optimiser, state.params)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-6)
    jax.tree.map(close, after.params, optax.apply_updates(state.params, updates))
    jax.tree.map(close, after.optimiser, expected)
    np.testing.assert_allclose(metrics["gradient_norm"], np.sqrt(7 + 4))
    assert metrics["skipped"] == 0
    assert set(metrics) == {"gradient_norm", "skipped"}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_no_step_is_taken_without_finite_gradients(value):
    state = trained()
    after, metrics = step(state, gradients_with(value))
    assert bits(after) == bits(state)
    assert metrics["skipped"] == 1
    assert not np.isfinite(metrics["gradient_norm"])


def test_one_seed_skips_and_the_other_does_not():
    state = trained()
    both = jax.tree.map(lambda x: np.stack([x, x]), state)
    gradients = jax.tree.map(lambda *x: np.stack(x), gradients_with(np.nan), gradients_with(3.0))
    after, metrics = jax.jit(jax.vmap(step))(both, gradients)
    first, second = (jax.tree.map(lambda x, i=i: np.asarray(x)[i], after) for i in range(2))
    assert bits(first) == bits(state)
    expected, _ = step(state, gradients_with(3.0))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), second, expected)
    assert np.any(second.params["w"] != state.params["w"])
    np.testing.assert_array_equal(metrics["skipped"], [1, 0])
    np.testing.assert_array_equal(np.isfinite(metrics["gradient_norm"]), [False, True])


def test_public_names():
    assert set(ALGORITHMS) <= set(on_policy.__all__)
    assert all(getattr(on_policy, name) is f for name, f in ALGORITHMS.items())
