"""Language models as the family has them: tokens are actions, and the reference is the prior.

On the whole tree of sequences of three tokens, undiscounted, with a reward at the end.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.equations.test_family import TAUS
from tests.support.bridge import assert_close, assert_differs, lib

TOKENS, LENGTH = 3, 3
SEQUENCES = np.array(list(itertools.product(range(TOKENS), repeat=LENGTH))).T  # [T, N]
PREFIXES = [p for t in range(LENGTH) for p in itertools.product(range(TOKENS), repeat=t)]
AT = np.array(
    [[PREFIXES.index(tuple(x[:t])) for x in SEQUENCES.T] for t in range(LENGTH)]
)  # the prefix at each step [T, N]
DISCOUNT = np.repeat([[1.0]] * (LENGTH - 1) + [[0.0]], SEQUENCES.shape[1], axis=1)

rng = np.random.default_rng(0)
REWARD = rng.normal(size=SEQUENCES.shape[1:])
R = np.zeros(SEQUENCES.shape)
R[-1] = REWARD
REFERENCE = np.log(rng.dirichlet(np.ones(TOKENS), size=len(PREFIXES)))
FEATURES = rng.normal(size=(len(PREFIXES), TOKENS, 5))  # shared by all prefixes
THETA = jnp.asarray(rng.normal(size=5))


@pytest.fixture(params=TAUS)
def tau(request):
    return request.param


def policy(theta):
    return jnp.asarray(jax.nn.log_softmax(FEATURES @ theta))


def of_sequences(log_pi):
    """Sums over each sequence [N]."""
    return jnp.sum(lib.take_action(log_pi[AT], SEQUENCES), axis=0)


def soft_optimum(tau):
    """V [prefixes] and log π* by the library's backups, from the leaves."""
    q = np.zeros((len(PREFIXES), TOKENS))
    ends = AT[-1]
    q[ends, SEQUENCES[-1]] = REWARD
    for t in range(LENGTH - 1, 0, -1):
        target = lib.one_step_targets(
            R[t - 1], DISCOUNT[t - 1], q[AT[t]], tau=tau, log_prior=REFERENCE[AT[t]]
        )
        q[AT[t - 1], SEQUENCES[t - 1]] = target
    return np.asarray(lib.soft_value(q, tau, REFERENCE)), lib.log_policy(q, tau, REFERENCE)


def test_the_optimum_of_tokens_is_that_of_sequences(tau):
    v, log_pi = soft_optimum(tau)
    weight = np.exp(of_sequences(REFERENCE) + REWARD / tau)
    assert_close(np.exp(of_sequences(log_pi)), weight / weight.sum())
    assert_close(v[0], tau * np.log(weight.sum()))
    # Log-ratios are the rewards of sequences, and the advantages of tokens.
    ratio = np.asarray(lib.take_action((log_pi - REFERENCE)[AT], SEQUENCES))
    assert_close(v[0] + tau * ratio.sum(0), REWARD)
    before = np.cumsum(ratio, axis=0) - ratio
    assert_close(v[AT], v[0] + tau * before)


def test_trajectory_balance(tau):
    """The consistency of whole sequences vanishes at the optimum, and only there."""
    v, log_pi = soft_optimum(tau)

    def loss(log_pi):
        after = np.concatenate([v[AT[1:]], np.zeros_like(R[:1])])
        return lib.path_consistency_loss(
            v[AT], log_pi[AT], SEQUENCES, r_t=R, discount_t=DISCOUNT, v_t=after,
            tau=tau, n=LENGTH, log_prior=REFERENCE[AT],
        )  # fmt: skip

    assert_close(loss(log_pi), np.zeros_like(R), of=1.0)
    other = np.asarray(loss(policy(THETA)))
    ratio = np.asarray(lib.take_action((policy(THETA) - REFERENCE)[AT], SEQUENCES))
    assert_close(other[0], 0.5 * (REWARD - v[0] - tau * ratio.sum(0)) ** 2)


def test_preferences_of_the_optimum_are_stationary(tau):
    """Where choices follow σ(R⁺ − R⁻) the gradient is 0 at the optimum: V cancels."""
    _, best = soft_optimum(tau)
    better, worse = np.array(list(itertools.permutations(range(SEQUENCES.shape[1]), 2))).T
    chance = 1 / (1 + np.exp(REWARD[worse] - REWARD[better]))

    def loss(logits):
        log_pi = jnp.asarray(jax.nn.log_softmax(logits))
        ratio = lib.take_action((log_pi - REFERENCE)[AT], SEQUENCES)
        losses = lib.preference_loss(ratio[:, better], ratio[:, worse], tau=tau)
        return jnp.mean(chance * losses), losses

    gradient, losses = jax.grad(loss, has_aux=True)(best)
    margin = REWARD[better] - REWARD[worse]
    assert_close(losses, np.log1p(np.exp(-margin)))
    assert_close(gradient, np.zeros_like(gradient), of=1.0)
    away = jax.grad(loss, has_aux=True)(
        best + 0.3 * np.random.default_rng(1).normal(size=best.shape)
    )
    assert np.max(abs(away[0])) > 1e-4


def test_sequences_of_different_lengths_are_compared():
    """By sums: a sequence that is shorter is one of zeros behind its end."""
    rng = np.random.default_rng(2)
    chosen, rejected = rng.normal(size=(5, 4)), rng.normal(size=(3, 4))
    padded = np.concatenate([rejected, np.zeros((2, 4))])
    tau = np.array([0.1, 0.5, 0.0, 2.0])
    loss = lib.preference_loss(chosen, rejected, tau=tau)
    assert_close(loss, np.log1p(np.exp(-tau * (chosen.sum(0) - rejected.sum(0)))))
    assert_close(loss, np.asarray(lib.preference_loss(chosen, padded, tau=tau)))
    far = lib.preference_loss(np.full((1, 2), [9e3, -9e3]), np.zeros((1, 2)), tau=1.0)
    assert_close(far, np.array([0.0, 9e3]))


# ---- Where the divergence stands -----------------------------------------------------------------


def weighted(losses):
    """E over sequences [N] of what is [T, N], the policy that acted held fixed."""
    return jnp.sum(jax.lax.stop_gradient(jnp.exp(of_sequences(policy(THETA))))[None] * losses)


def returns(tau, kl):
    delta = lib.td_errors(0 * R, R, DISCOUNT, v_t=0 * R, kl_tm1=kl, tau=tau)
    return lib.n_step_advantages(delta, DISCOUNT, n=LENGTH)


def objective(theta, tau, reward=REWARD):
    log_pi = of_sequences(policy(theta))
    return jnp.sum(jnp.exp(log_pi) * (reward - tau * (log_pi - of_sequences(REFERENCE))))


def descent(tau, advantage):
    def loss(theta):
        return weighted(
            lib.policy_gradient_loss(
                policy(theta)[AT], SEQUENCES, advantage, tau=tau, log_prior=REFERENCE[AT]
            )
        )

    return np.asarray(jax.grad(loss)(THETA))


def test_the_divergence_belongs_in_the_return(tau):
    """As a term of the loss alone it is naive: what later tokens pay is left out."""
    kl = np.asarray(lib.kl_to_prior(policy(THETA)[AT], REFERENCE[AT]))
    exact = -np.asarray(jax.grad(objective)(THETA, tau))
    assert_close(descent(tau, returns(tau, kl)), exact)
    later = np.cumsum(kl[::-1], axis=0)[::-1] - kl
    score = jax.jacobian(lambda x: lib.take_action(policy(x)[AT], SEQUENCES))(THETA)
    probs = np.exp(of_sequences(policy(THETA)))
    short = tau * np.einsum("n,tn,tnp->p", probs, later, score)
    naive = descent(tau, returns(tau, 0.0))
    assert_close(naive + short, exact)
    assert_differs(naive, exact, by=1e-2)


def test_distillation_of_tokens_holds_the_states_fixed(tau):
    """`kl_to_prior` to a teacher is a part of what sequences diverge: the return has the rest."""
    kl = np.asarray(lib.kl_to_prior(policy(THETA)[AT], REFERENCE[AT]))

    def tokens(theta):
        return tau * weighted(lib.kl_to_prior(policy(theta)[AT], REFERENCE[AT]))

    per_token = np.asarray(jax.grad(tokens)(THETA))
    whole = -np.asarray(jax.grad(objective)(THETA, tau, 0 * REWARD))
    assert_close(descent(tau, np.asarray(returns(tau, kl)) - np.asarray(returns(tau, 0.0))), whole)
    cosine = per_token @ whole / np.linalg.norm(per_token) / np.linalg.norm(whole)
    assert 0 < cosine < 1 - 1e-4


def test_estimators_of_the_divergence_as_losses():
    """k1 has no gradient, k2 that of KL[π‖ref], k3 that of KL[ref‖π] unless weighted by π/μ."""
    reference = REFERENCE[0]
    log_pi = policy(THETA)[1]
    probs = np.exp(log_pi)

    def gradient(f):
        def mean(logits):
            new = jnp.asarray(jax.nn.log_softmax(logits))
            return jnp.sum(probs * f(new - reference, jnp.exp(new) / probs))

        return np.asarray(jax.grad(mean)(log_pi))

    def of_kl(f):
        return np.asarray(jax.grad(lambda x: f(jax.nn.log_softmax(x)))(log_pi))

    backward = of_kl(lambda x: lib.kl_to_prior(x, reference))
    forward = of_kl(lambda x: lib.kl_to_prior(reference, x))
    assert_close(gradient(lambda ratio, _: ratio), np.zeros(TOKENS), of=1.0)
    assert_close(gradient(lambda ratio, _: 0.5 * ratio**2), backward)
    assert_close(gradient(lambda ratio, _: jnp.exp(-ratio) - 1 + ratio), forward)
    assert_close(gradient(lambda ratio, rho: rho * (jnp.exp(-ratio) - 1 + ratio)), backward)
    assert_differs(forward, backward, by=0.05)


# ---- Groups --------------------------------------------------------------------------------------


def test_a_baseline_of_others_is_unbiased():
    """One of all members scales the gradient by (G − 1)/G."""
    log_pi, reward, size = policy(THETA)[1], REWARD[:TOKENS], 4
    members = np.array(list(itertools.product(range(TOKENS), repeat=size))).T  # [G, M]
    probs = np.prod(np.exp(log_pi)[members], axis=0)
    score = (np.eye(TOKENS) - np.exp(log_pi))[members]
    exact = np.einsum("a,ap,a->p", np.exp(log_pi), np.eye(TOKENS) - np.exp(log_pi), reward)
    for leave_one_out, factor in ((True, 1.0), (False, (size - 1) / size)):
        advantage = lib.group_advantages(reward[members], 0, leave_one_out=leave_one_out)
        estimate = np.einsum("m,gm,gmp->p", probs, advantage, score) / size
        assert_close(estimate, factor * exact)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_group_advantages_step_by_step(axis):
    value = np.random.default_rng(3).normal(size=(3, 4, 2))
    groups = np.moveaxis(value, axis, 0)
    others = np.array([np.delete(groups, i, axis=0).mean(0) for i in range(len(groups))])
    advantage = lib.group_advantages(value, axis)
    assert_close(advantage, np.moveaxis(groups - others, 0, axis))
    constant = lib.group_advantages(value + 1e3, axis)
    assert_close(constant, np.asarray(advantage))


def test_dividing_by_the_deviation_is_another_temperature(tau):
    """That of τσ, over σ: the KL's weight varies from group to group."""
    rng = np.random.default_rng(4)
    log_pi, a = policy(THETA)[AT], SEQUENCES
    advantage, sigma = rng.normal(size=a.shape), rng.uniform(0.3, 2, size=(1, a.shape[1]))
    divided = lib.policy_gradient_loss(
        log_pi, a, advantage / sigma, tau=tau, log_prior=REFERENCE[AT]
    )
    hotter = lib.policy_gradient_loss(
        log_pi, a, advantage, tau=np.broadcast_to(tau * sigma, a.shape), log_prior=REFERENCE[AT]
    )
    assert_close(divided, np.asarray(hotter / sigma))
