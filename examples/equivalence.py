"""Soft Q-learning and policy gradient side by side, and where their equality ends.

Trains the game of `catch.py` by both losses from the same start, then compares their gradients on
one rollout with `jaxsoft.check_equivalence`: as the theorem wants it, and with each precondition
broken in turn.
"""

from typing import Any

import catch
import jax
import jax.numpy as jnp

import jaxsoft

TAU = catch.TAU
EVERY = 100


def compare(**changes):
    """A compiled check of the user's network, with the user's deviations from the theorem."""

    @jax.jit
    def check(params, observations, actions, rewards, discounts):
        return jaxsoft.check_equivalence(
            catch.network,
            params,
            observations,
            actions,
            r_t=rewards,
            discount_t=discounts,
            tau=TAU,
            **changes,
        )

    return check


def show_training(seed=0):
    """One start, one sequence of keys, two losses."""
    losses = {"soft Q": jaxsoft.tied_soft_q_loss, "policy gradient": jaxsoft.a2c_loss}
    params = dict.fromkeys(losses, catch.initial(seed))
    print("Mean return in training                                 gradients on the same batch")
    print(f"{'update':>8}{'soft Q':>12}{'policy gradient':>18}{'cosine':>18}{'in expectation':>18}")
    check = compare()
    keys = jax.random.split(jax.random.key(seed), catch.UPDATES)
    for i, key in enumerate(keys, start=1):
        returns = {}
        for name, step_loss in losses.items():
            params[name], returns[name] = catch.update(params[name], key, step_loss)
        if i % EVERY == 0:
            here = check(params["soft Q"], *catch.play(params["soft Q"], key))
            apart = f"{here.expected_difference:.1e} apart"
            print(
                f"{i:8}{returns['soft Q']:12.2f}{returns['policy gradient']:18.2f}"
                f"{here.cosine:18.4f}{apart:>18}"
            )
    return params["soft Q"]


def show_preconditions(params, key):
    """The expected difference of the gradients as each precondition is broken."""
    observations, actions, rewards, discounts = catch.play(params, key)
    log_pi = catch.network(params, observations[:-1])[1]
    uniform = jnp.full_like(log_pi, -jnp.log(log_pi.shape[-1]))
    greedy = jnp.logaddexp(jnp.log(0.9) + log_pi, jnp.log(0.1) + uniform)
    hotter = jax.nn.log_softmax(log_pi / 2)

    def moving_target(p):
        return rewards + discounts * catch.network(p, observations)[0][1:]

    def huber(error):
        return jnp.where(jnp.abs(error) < 0.1, error**2 / 2, 0.1 * (jnp.abs(error) - 0.05))

    shown = "actions ε-greedy, ε = 0.1"
    cases: dict[str, dict[str, Any]] = {
        "none: as the theorem wants it": {},
        "actions uniform": {"behaviour_log_pi": uniform},
        shown: {"behaviour_log_pi": greedy},
        "actions at temperature 2τ": {"behaviour_log_pi": hotter},
        "target differentiated": {"target": moving_target},
        "value target differentiated": {"value_target": moving_target},
        "Huber instead of the square": {"error_loss": huber},
    }
    print("\nPrecondition broken                   expected difference   weighted by π/μ   noticed")
    for name, changes in cases.items():
        if "behaviour_log_pi" in changes:
            acted = jaxsoft.sample_actions(key, changes["behaviour_log_pi"])
        else:
            acted = actions
        here = compare(**changes)(params, observations, acted, rewards, discounts)
        noticed = ", ".join(here.broken()) or "–"
        print(
            f"{name:<38}{here.expected_difference:19.1e}{here.reweighted_difference:18.1e}   "
            f"{noticed}"
        )
        if name == shown:
            whole = here
    print(f"\nThe whole report on {shown}:\n{whole}")


if __name__ == "__main__":
    with jax.enable_x64(True):
        trained = show_training()
        show_preconditions(trained, jax.random.key(1))
