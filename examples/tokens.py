"""Where the KL to a reference model belongs: a language model small enough to list its answers.

A token is an action, the answer so far is the state, and the reference model is the prior. Of all
policies, the one that maximises E[R − τ Σ_t KL[π‖π_ref](s_t)], R the reward of an answer x, is

    π*(x) = π_ref(x) exp(R(x)/τ) / Z

What to see: with τKL in the return, `policy_gradient_loss` has the gradient of that objective and
leads to π*. With the KL as a term of the loss alone, no token is charged for the divergence that
later ones will need; the gradient is another one and leads elsewhere. GRPO's form leads further
still: its term k3, of the sampled tokens alone, has the gradient of KL[π_ref‖π]. A group's mean as
the baseline of its own members shrinks the return but not the KL beside it, a bias again, where the
mean of the others has none. Preferences lead to π* as well.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

import jaxsoft

TOKENS, LENGTH = 4, 3
ANSWERS = np.array(list(itertools.product(range(TOKENS), repeat=LENGTH))).T  # [T, N]
PREFIXES = [x for t in range(LENGTH) for x in itertools.product(range(TOKENS), repeat=t)]
STATES = np.array([[PREFIXES.index(tuple(x[:t])) for x in ANSWERS.T] for t in range(LENGTH)])
EVERY = np.arange(ANSWERS.shape[1])
rng = np.random.default_rng(0)
REFERENCE = np.log(rng.dirichlet(np.full(TOKENS, 2.0), size=len(PREFIXES)))  # [prefixes, A]
REWARD = rng.normal(size=len(EVERY))
ELSEWHERE = REFERENCE + rng.normal(size=REFERENCE.shape)
TAU, TAUS, MEMBERS, GROUPS = 0.5, (0.1, 0.5, 1.7), 4, 64


def look_up(logits, n):
    """Log π and log π_ref [T, ..., A], and tokens [T, ...], along the answers n [...]."""
    states = jnp.asarray(STATES)[:, n]
    log_pi = jax.nn.log_softmax(logits)[states]
    return log_pi, jnp.asarray(REFERENCE)[states], jnp.asarray(ANSWERS)[:, n]


def returns(n, kl, tau):
    """What follows each token [T, ...]: the reward, less the τKL that it is to contain."""
    nothing = jnp.zeros([LENGTH, *n.shape])
    rewards = nothing.at[-1].set(jnp.asarray(REWARD)[n])
    delta = jaxsoft.td_errors(nothing, rewards, 1.0, v_t=nothing, kl_tm1=kl, tau=tau)
    return jaxsoft.n_step_advantages(delta, 1.0, n=LENGTH)


def exact_kl(logits, n, baseline, tau, in_return):
    log_pi, log_prior, tokens = look_up(logits, n)
    kl = jaxsoft.kl_to_prior(log_pi, log_prior) if in_return else 0.0
    advantage = baseline(returns(n, kl, tau))
    return jaxsoft.policy_gradient_loss(log_pi, tokens, advantage, tau=tau, log_prior=log_prior)


def k3(logits, n, baseline, tau):
    log_pi, log_prior, tokens = look_up(logits, n)
    log_ratio = jaxsoft.take_action(log_pi - log_prior, tokens)
    advantage = baseline(returns(n, 0.0, tau))
    policy = jaxsoft.policy_gradient_loss(log_pi, tokens, advantage, tau=0.0)
    return policy + tau * (jnp.exp(-log_ratio) - 1 + log_ratio)


IN_RETURN = functools.partial(exact_kl, in_return=True)
FORMS = {  # a loss, and whether to leave an answer out of its own baseline
    "in the return": (IN_RETURN, True),
    "in the return, own baseline": (IN_RETURN, False),
    "in the loss alone": (functools.partial(exact_kl, in_return=False), True),
    "in the loss alone, as k3": (k3, True),
}


def log_probs(logits):
    """Of each answer [N]."""
    log_pi, _, tokens = look_up(logits, EVERY)
    return jnp.sum(jaxsoft.take_action(log_pi, tokens), axis=0)


def expected(logits, tau, loss, leave_one_out):
    """A loss in expectation over the answers, and over the others of their groups."""
    share = 1 if leave_one_out else (MEMBERS - 1) / MEMBERS
    losses = loss(logits, EVERY, lambda return_: share * return_, tau)
    return jnp.sum(jax.lax.stop_gradient(jnp.exp(log_probs(logits))) * losses)


def sampled(logits, key, tau, loss, leave_one_out):
    """A loss of groups of answers drawn from the policy."""
    n = jax.random.categorical(key, log_probs(logits), shape=(MEMBERS, GROUPS))

    def baseline(return_):
        return jaxsoft.group_advantages(return_, 1, leave_one_out=leave_one_out)

    return jnp.mean(jnp.sum(loss(logits, n, baseline, tau), axis=0))


def preferences(logits, tau):
    """All pairs of answers, of which one is preferred with chance σ(its reward − the other's)."""
    log_pi, log_prior, tokens = look_up(logits, EVERY)
    log_ratio = jaxsoft.take_action(log_pi - log_prior, tokens)
    one, other = np.array(list(itertools.permutations(EVERY, 2))).T
    chance = jax.nn.sigmoid(REWARD[one] - REWARD[other])
    losses = jaxsoft.preference_loss(log_ratio[:, one], log_ratio[:, other], tau=tau)
    return jnp.mean(chance * losses)


def train(loss, *, updates, step_size=4.0, decay=0.0):
    """Logits after gradient descent from the reference, on a function of logits and key."""

    def update(logits, step):
        i, key = step
        return logits - step_size / (1 + decay * i) * jax.grad(loss)(logits, key), None

    steps = jnp.arange(updates), jax.random.split(jax.random.key(0), updates)
    return jax.jit(lambda x: jax.lax.scan(update, x, steps)[0])(jnp.asarray(REFERENCE))


def train_in_expectation(form):
    return train(lambda logits, _: expected(logits, TAU, *form), updates=3000)


def train_by_groups(form):
    return train(lambda logits, key: sampled(logits, key, TAU, *form), updates=2000, decay=0.005)


def train_by_preferences():
    return train(lambda logits, _: preferences(logits, TAU), updates=1000, step_size=50.0)


def gradient_error(form, tau):
    """How far the exact gradient is from that of the objective, away from the reference."""
    gradient = jax.grad(expected)
    right = gradient(ELSEWHERE, tau, *FORMS["in the return"])
    return jnp.linalg.norm(gradient(ELSEWHERE, tau, *form) - right) / jnp.linalg.norm(right)


def distance(logits, tau=TAU):
    """KL[π‖π*] over answers: τ times that is what the objective falls short of its maximum."""
    log_p = log_probs(logits)
    best = jax.nn.log_softmax(log_probs(REFERENCE) + REWARD / tau)
    return jnp.sum(jnp.exp(log_p) * (log_p - best))


def main():
    print(f"{'':<26}{'gradient is off by':>25}{f'KL[π‖π*] at the end, τ = {TAU}':>36}")
    taus = "".join(f"{f'τ = {tau}':>10}" for tau in TAUS)
    print(f"{'The KL is':<28}{taus}{'in expectation':>17}{'by groups':>12}")
    for name, form in FORMS.items():
        off = "".join(f"{gradient_error(form, tau):10.0%}" for tau in TAUS)
        ends = distance(train_in_expectation(form)), distance(train_by_groups(form))
        print(f"{name:<28}{off}{ends[0]:17.4f}{ends[1]:12.4f}")
    print(f"{'preferences, no return':<58}{distance(train_by_preferences()):17.4f}")


if __name__ == "__main__":
    with jax.enable_x64(True):
        main()
