"""Random numbers of a step's draws, said beforehand."""

from __future__ import annotations


class Noise:
    """In place of ``StepDraws``: numbers that are said beforehand, call by call."""

    def __init__(self, numbers):
        self.numbers = numbers

    def __call__(self, generator, clips):
        return self

    def of_clips(self, first):
        calls = iter(self.numbers)

        def uniform(clips, count):
            return next(calls)[first : first + clips, :count]

        return uniform
