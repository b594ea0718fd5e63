"""How much of the prompts a step may read, so that nobody waits long for the next one."""

from __future__ import annotations

GOAL = 0.25  # seconds that a step should take
LEAST = 16  # prompt tokens in a step: fewer would not share the reading of the weights
MEMORY = 4  # steps that the estimate is taken over, roughly


class Pace:
    """tokens: of prompts in the next step at most.

    What a prompt's token takes is measured step by step, everything else in the step included: so where there is much
    else, fewer prompt tokens come with it. Results do not depend on how prompts are cut.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.tokens = min(LEAST, most)  # nothing is known yet
        self._seconds = 0.0  # that a token takes

    def learn(self, tokens: int, seconds: float) -> None:
        """A step with so many prompt tokens took so long."""
        if not tokens:
            return
        found = seconds / tokens
        self._seconds += (found - self._seconds) / (MEMORY if self._seconds else 1)
        fitting = GOAL / self._seconds if self._seconds > 0 else self.most
        self.tokens = max(1, min(self.most, max(LEAST, int(min(fitting, self.most)))))
