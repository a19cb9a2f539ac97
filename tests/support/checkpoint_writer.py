"""Saves as fast as it can until it is killed: `test_checkpoints.py` runs and kills this.

python checkpoint_writer.py DIR. Every line it prints is a step whose save is reported as finished.
"""

import sys

import jax.numpy as jnp
import numpy as np

from jaxsoft.training.checkpoints import Checkpoints

CONFIG = {"test": "kill"}
PARTS = 6


def noise():
    """Does not compress: a save has to take its time."""
    return np.random.default_rng(0).integers(0, 2**31, size=100_000, dtype=np.uint32)


def state(step):
    """A state in which every number tells the step."""
    return {
        "step": jnp.asarray(step, jnp.int32),
        **{f"part{i}": jnp.asarray(noise() + np.uint32(step + i)) for i in range(PARTS)},
    }


def step_of(state):
    """The step that the whole of a state agrees on."""
    parts = [np.asarray(state[f"part{i}"]) - noise() - np.uint32(i) for i in range(PARTS)]
    steps = {int(state["step"])}.union(*(np.unique(part).tolist() for part in parts))
    assert len(steps) == 1, steps
    return steps.pop()


def write(directory):
    with Checkpoints(directory, keep=2, config=CONFIG) as checkpoints:
        step = checkpoints.latest()
        step = 0 if step is None else checkpoints.restore(state(0))[0]
        while True:
            step += 1
            checkpoints.save(step, state(step))
            if step % 2:
                checkpoints.wait()
                print(step, flush=True)


if __name__ == "__main__":
    write(sys.argv[1])
