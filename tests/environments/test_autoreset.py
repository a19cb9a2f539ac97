"""EnvPool's words for the end of an episode, one by one, and what they are in ours."""

import numpy as np
import pytest

from jaxsoft.environments.autoreset import Answer, interpret
from tests.support.steps import of_numpy

ONE = (1, 1)
# EnvPool's (done, truncated, over) -> our (discount, cut, over), and whether a reset follows.
WORDS = {
    "nothing": ((False, False, False), (1, False, False), False),
    "the game is over": ((True, False, True), (0, True, True), True),
    "a life is lost": ((True, False, False), (0, True, False), True),
    "a time limit": ((False, True, False), (1, True, True), True),
    "a time limit on the game's own end": ((False, True, True), (0, True, True), True),
    "all at once": ((True, True, True), (0, True, True), True),
}


def answer(words=(False, False, False), frame=0.0, reward=2.0, score=5.0):
    done, truncated, over = (np.full(ONE, x) for x in words)
    numbers = (np.full(ONE, x, np.float32) for x in (reward, score))
    return of_numpy(Answer, np.full((*ONE, 3), frame), *numbers, done, truncated, over)


def facts(step):
    names = ("discount", "cut", "over", "weight", "first", "score")
    return tuple(getattr(step, name).item() for name in names)


@pytest.mark.parametrize("words", WORDS)
def test_what_a_step_is_and_what_follows(words):
    given, (discount, cut, over), ends = WORDS[words]
    memory, start = interpret(None, answer())
    assert facts(start) == (1, True, False, 0, True, 0)
    memory, step = interpret(memory, answer(given))
    assert facts(step) == (discount, cut, over, 1, False, 5)
    assert step.reward.item() == 2
    # The next is an automatic reset, whose score does not count even where EnvPool pays one.
    memory, then = interpret(memory, answer())
    assert facts(then) == ((1, True, False, 0, over, 0) if ends else (1, False, False, 1, False, 5))
    assert facts(interpret(memory, answer())[1]) == (1, False, False, 1, False, 5)


def test_stacks_are_shifted_and_begin_with_the_game():
    def seen(words, frame, memory):
        one = answer(words)._replace(frame=np.full((*ONE, 1, 2, 2), frame))
        return interpret(memory, one)

    memory, _ = interpret(None, answer()._replace(frame=np.full((*ONE, 3, 2, 2), 1)))
    stacks = []
    for frame, words in enumerate(
        [WORDS[x][0] for x in ("nothing", "a life is lost", "nothing", "a time limit", "nothing")],
        2,
    ):
        memory, step = seen(words, frame, memory)
        stacks.append(step.observation[0, 0, :, 0, 0].tolist())
    assert stacks == [[1, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 5], [6, 6, 6]]
