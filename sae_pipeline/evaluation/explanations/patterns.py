"""From examples of a latent to patterns of tokens (Neuron to Graph: Foote et al. 2023; as in Gao et al. 2024 §4.3).

Of each example the shortest end is taken at which the latent still has half of its activation. A token of it that can
be replaced at the cost of less than half of that is a wildcard. If a token put in front costs more than half of the
example's activation, the pattern holds at the start of a context only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from sae_pipeline.evaluation.explanations.asking import Tokens
from sae_pipeline.evaluation.explanations.sampling import Example
from sae_pipeline.evaluation.inputs import FloatArray

ANY: Final = -1
"""In a pattern: whatever token stands there."""

ANYWHERE: Final = -1
"""The start of a pattern that holds at every place of a context."""

HALF: Final = 0.5
EXAMPLES_AT_ONCE: Final = 1024
_FIRST_ROUND: Final = 4

Ask = Callable[[Sequence[tuple[Tokens, int]]], FloatArray]


@dataclass(frozen=True, order=True)
class Pattern:
    """The latent in `slot` has `value` on the last of these tokens, `ANY` among them standing for any.

    `start` is the one position in a context that the first of them may have: 0, or behind the lead; or `ANYWHERE`.
    """

    slot: int
    tokens: Tokens
    start: int
    value: float


@dataclass(frozen=True)
class Frame:
    """What excerpts are put between.

    Attributes:
        lead: what every context begins with, kept before every excerpt.
        padding: the token that replaces others.
        longest: tokens that the subject can read.
    """

    lead: Tokens
    padding: int
    longest: int

    def excerpt(self, example: Example, length: int) -> Tokens:
        """The last `length` tokens of an example as they are asked about."""
        return self.framed(example.tokens[-length:], whole=length == len(example.tokens))

    def framed(self, tokens: Tokens, *, whole: bool) -> Tokens:
        """Tokens behind the lead, which a whole context has already."""
        return tokens if whole else (*self.lead, *tokens)


@dataclass(frozen=True)
class _End:
    """The shortest end of an example that is enough, and the activation that is left there."""

    example: Example
    length: int
    value: float

    @property
    def tokens(self) -> Tokens:
        return self.example.tokens[-self.length :]

    @property
    def whole(self) -> bool:
        return self.length == len(self.example.tokens)


def explain(examples: Sequence[Example], ask: Ask, frame: Frame) -> list[Pattern]:
    """The patterns of all examples, in order, each once with its largest value.

    An example whose whole context no longer gives half of its activation (half-precision subjects) has none.
    """
    largest: dict[tuple[int, Tokens, int], float] = {}
    for first in range(0, len(examples), EXAMPLES_AT_ONCE):
        ends = _shortest_ends(examples[first : first + EXAMPLES_AT_ONCE], ask, frame)
        for slot, tokens, start, value in _patterns(ends, ask, frame):
            key = (slot, tokens, start)
            largest[key] = max(value, largest.get(key, 0.0))
    return sorted(Pattern(*key, value) for key, value in largest.items())


def _shortest_ends(examples: Sequence[Example], ask: Ask, frame: Frame) -> list[_End]:
    """All lengths of a round are asked at once and the shortest that is enough is taken: as if grown one by one."""
    found: dict[int, _End] = {}
    pending = list(range(len(examples)))
    for low, high in _rounds(max((len(example.tokens) for example in examples), default=0)):
        tried = [(i, m) for i in pending for m in range(low, min(high, len(examples[i].tokens)) + 1)]
        values = ask([(frame.excerpt(examples[i], m), examples[i].slot) for i, m in tried])
        for (i, m), value in zip(tried, values.tolist(), strict=True):
            if i not in found and value >= HALF * examples[i].value:
                found[i] = _End(examples[i], m, value)
        pending = [i for i in pending if i not in found and len(examples[i].tokens) > high]
    return [found[i] for i in sorted(found)]


def _rounds(longest: int) -> Iterator[tuple[int, int]]:
    """1–4, 5–8, 9–16, … up to the longest."""
    low, high = 1, _FIRST_ROUND
    while low <= longest:
        yield low, high
        low, high = high + 1, 2 * high


def _patterns(ends: Sequence[_End], ask: Ask, frame: Frame) -> Iterator[tuple[int, Tokens, int, float]]:
    """Anchors and wildcards of all ends, asked at once."""
    shifted = [(*frame.lead, frame.padding, *end.tokens) for end in ends]
    shiftable = [len(tokens) <= frame.longest for tokens in shifted]
    requests = [(tokens, end.example.slot) for tokens, end, can in zip(shifted, ends, shiftable, strict=True) if can]
    requests += [(tokens, end.example.slot) for end in ends for tokens in _replaced(end, frame)]
    values = iter(ask(requests).tolist())
    # what fills the subject's context can stand at its start only
    anchored = [not can or next(values) < HALF * end.example.value for end, can in zip(ends, shiftable, strict=True)]
    for end, fixed in zip(ends, anchored, strict=True):
        tokens = tuple(ANY if next(values) > HALF * end.value else token for token in end.tokens)
        start = 0 if end.whole else len(frame.lead)
        yield end.example.slot, tokens, start if fixed else ANYWHERE, end.value


def _replaced(end: _End, frame: Frame) -> Iterator[Tokens]:
    """The end with each of its tokens in turn replaced."""
    for i in range(end.length):
        tokens = (*end.tokens[:i], frame.padding, *end.tokens[i + 1 :])
        yield frame.framed(tokens, whole=end.whole)
