"""Tokens guessed ahead from what has been said: one pass over the weights then answers several.

n-gram speculative decoding (prompt lookup). A guess costs a row of a step and changes nothing: it
is kept only where the model's own token is the same. Reflections repeat what was seen, and answers
to one kind of question resemble each other, so the memory is shared by all answers of a session.
"""

from __future__ import annotations

from collections.abc import Sequence

_CONTEXTS = (8, 4, 2)  # tokens that a guess has behind it, the most first
_LEAST_GAIN = 0.25  # tokens that guessing adds to a step, below which it costs more
_MEMORY = 1 / 16  # weight of the last guess in that mean
_TRY_AGAIN = 8  # while it costs more, one in so many guesses is still made
_MAX_CONTEXTS = 1 << 17  # remembered, some 30 MB; the oldest are forgotten


class NgramDrafter:
    """What followed the last occurrence of the last 8, 4 or 2 tokens, over all answers so far.

    `num_tokens`: guessed ahead in one step, at most. `num_drafted` and `num_accepted` count all
    guesses and those that came true. Where few do, few are made. Not thread-safe.
    """

    def __init__(self, num_tokens: int) -> None:
        self.num_tokens = num_tokens
        self.num_drafted = 0
        self.num_accepted = 0
        self._gain = 1.0  # mean tokens that came true of a sequence's guesses
        self._num_held_back = 0
        self._following: dict[tuple[int, ...], tuple[Sequence[int], int]] = {}

    def learn(self, tokens: Sequence[int]) -> None:
        """Remember the last of an answer's `tokens`; call it with each of them in turn.

        The sequence itself is kept, and must only grow.
        """
        last = len(tokens) - 1
        for n in _CONTEXTS:
            if n <= last:
                context = tuple(tokens[last - n : last])
                self._following.pop(context, None)  # the newest stands at the end
                self._following[context] = tokens, last
        while len(self._following) > _MAX_CONTEXTS:
            del self._following[next(iter(self._following))]

    def count(self, num_drafted: int, num_accepted: int) -> None:
        """Take note of one sequence's guesses in a step."""
        self.num_drafted += num_drafted
        self.num_accepted += num_accepted
        self._gain += (num_accepted - self._gain) * _MEMORY

    def guess(self, tokens: Sequence[int], count: int) -> list[int]:
        """Up to `count` tokens that may follow `tokens`."""
        found = self._find(tokens, count)
        if found and self._gain < _LEAST_GAIN:
            self._num_held_back = (self._num_held_back + 1) % _TRY_AGAIN
            return [] if self._num_held_back else found
        return found

    def _find(self, tokens: Sequence[int], count: int) -> list[int]:
        for n in _CONTEXTS:
            found = self._following.get(tuple(tokens[-n:])) if n <= len(tokens) else None
            if found is not None:
                said, at = found
                return list(said[at : at + count])
        return []
