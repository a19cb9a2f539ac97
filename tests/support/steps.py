"""Time steps as tests read them."""


def ends(steps):
    """(game over, life lost, truncated): the ends that there are, told apart."""
    no_value = steps.discount == 0
    return steps.over & no_value, ~steps.over & no_value, steps.over & ~no_value
