"""Traces of soft action values: how fast they contract, and what they cost on policy.

By enumeration of all paths, at temperatures that are not 1 and under priors that are not uniform.
Windows of a replay, which end at the soft optimum, are in tests/agents/test_windows.py.
"""

import numpy as np
import pytest

import jaxsoft
from tests.support import bridge, oracles
from tests.support.bridge import assert_close, lib

TAUS = (0.1, 0.5, 1.7)


@pytest.fixture(params=TAUS)
def tau(request):
    return request.param


COEFFICIENTS = {
    "tree": lambda pi, mu: jaxsoft.tree_backup_coefficients(np.log(pi)),
    "retrace": lambda pi, mu: jaxsoft.retrace_coefficients(np.log(pi / mu)),
    "half": lambda pi, mu: np.full_like(pi, 0.5),
    "uncorrected": lambda pi, mu: np.ones_like(pi),
}


def evaluated(mdp, path, q, pi, trace):
    """Means [S, A] of the targets of a fixed π, along paths of any behaviour."""
    v = np.asarray(lib.policy_value(q, np.log(pi), mdp.tau, np.log(mdp.prior)))
    at = path.states[:-1], path.actions
    return path.mean(
        lib.trace_targets(
            q[at], path.rewards, path.discounts, v_t=v[path.states[1:]], trace_tm1=trace[at]
        )[0]
    )


@pytest.mark.parametrize("traces", COEFFICIENTS)
def test_safe_traces_evaluate_any_policy_and_contract(traces, tau):
    """To Q_π, by γ at least in the greatest norm, whatever acted; others need not.

    The backup is affine in Q, so that its steps from Q_π + e_sa are its matrix and the rows' sums
    are the worst ratio of all.
    """
    mdp = oracles.random_mdp(3, states=3, outcomes=1, branching=1, tau=tau)
    pi, mu = mdp.prior**2, np.full(mdp.prior.shape, 1 / 3)
    pi /= pi.sum(axis=-1, keepdims=True)
    path = bridge.paths(mdp, mu, 4)
    trace = np.asarray(COEFFICIENTS[traces](pi, mu))
    exact = oracles.policy_q(mdp, pi)
    assert_close(evaluated(mdp, path, exact, pi, trace), exact)
    units = np.eye(exact.size).reshape(-1, *exact.shape)
    matrix = np.array([evaluated(mdp, path, exact + one, pi, trace) - exact for one in units])
    worst = np.sum(np.abs(matrix), axis=0).max()
    if traces in ("tree", "retrace"):
        assert worst < mdp.gamma
        np.testing.assert_array_less(-1e-12, matrix)
    else:
        assert worst > mdp.gamma
    assert (traces == "uncorrected") <= (worst > 1)
    rng = np.random.default_rng(0)
    for q in exact + rng.normal(size=(5, *exact.shape)):
        after = evaluated(mdp, path, q, pi, trace)
        assert np.max(abs(after - exact)) <= (worst + 1e-9) * np.max(abs(q - exact))


@pytest.mark.parametrize("lambda_", [0.3, 0.9])
def test_on_policy_the_expected_divergence_is_the_better_trace(lambda_, tau):
    """c = λ has the sampled τℓ where (43) has τKL: the same means and, here, more variance.

    That is no law: single pairs' may be less, for ℓ and what follows are not independent.
    """
    mdp = oracles.random_mdp(5, states=3, outcomes=1, tau=tau)
    rng = np.random.default_rng(1)
    q = rng.normal(size=(3, 1)) + 2 * tau * rng.normal(size=mdp.prior.shape)
    v, pi = oracles.soft_value(q, tau, mdp.prior), oracles.boltzmann(q, tau, mdp.prior)
    kl = oracles.kl(pi, mdp.prior)
    path = bridge.paths(mdp, pi, 3)
    starts = path.states[:-1]
    sampled = lib.trace_targets(
        q[starts, path.actions],
        path.rewards,
        path.discounts,
        v_t=v[path.states[1:]],
        trace_tm1=lambda_,
    )[0]
    advantage = lib.lambda_advantages(
        bridge.soft_deltas(mdp, path, v, kl), path.discounts, lambda_=lambda_
    )
    expected = lib.soft_q_targets(advantage, v[starts], kl[starts], tau=tau)[0]
    means = [path.mean(y) for y in (sampled, expected)]
    assert_close(*means)
    of_sampled, of_expected = (
        path.mean(np.square(y)) - mean**2
        for y, mean in zip((sampled, expected), means, strict=True)
    )
    assert of_sampled.mean() > of_expected.mean()
