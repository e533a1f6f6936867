"""A small language of English claims about one decimal digit, each with the digits it holds for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SUBJECTS = ("the digit", "it", "this number")

DIGITS = frozenset(range(10))
EVEN = frozenset({0, 2, 4, 6, 8})
PRIME = frozenset({2, 3, 5, 7})
SQUARE = frozenset({0, 1, 4, 9})
TRIPLE = frozenset({0, 3, 6, 9})
LOOP = frozenset({0, 6, 8, 9})  # 4 is left out: in these drawings most are open at the top


@dataclass(frozen=True, slots=True)
class Claim:
    """A sentence about a digit.

    Attributes:
        text: The sentence, lower case, without a full stop.
        holds_for: The digits it is true of; neither none of them nor all ten.
    """

    text: str
    holds_for: frozenset[int]


def predicates() -> Iterator[tuple[str, frozenset[int]]]:
    """What can be said of a digit, ``("is greater than four", {5, ..., 9})``, each wording once.

    Most properties come with their negation, so that no word is tied to truth.
    """
    yield from _both(EVEN, ["is even", "is an even number", "is not odd"],
                     ["is odd", "is an odd number", "is not even"])  # fmt: skip
    yield from _both(PRIME, ["is prime", "is a prime number"],
                     ["is not prime", "is not a prime number"])  # fmt: skip
    yield from _both(SQUARE, ["is a square number"], ["is not a square number"])
    yield from _both(TRIPLE, ["is a multiple of three", "can be divided by three"],
                     ["is not a multiple of three", "cannot be divided by three"])  # fmt: skip
    yield from _both(LOOP, ["is drawn with a closed loop", "has a closed loop"],
                     ["is drawn without a closed loop", "has no closed loop"])  # fmt: skip
    for n, word in enumerate(NUMBERS):
        above = frozenset(range(n + 1, 10))
        yield from _both(above, [f"is greater than {word}", f"is more than {word}"],
                         [f"is at most {word}", f"is not greater than {word}"])  # fmt: skip
        yield from _both(above | {n}, [f"is at least {word}", f"is not less than {word}"],
                         [f"is less than {word}", f"is smaller than {word}"])  # fmt: skip
        yield from _both(frozenset({n}), [f"is {_article(word)}"], [f"is not {_article(word)}"])
        yield from _both(frozenset({n + 1}) & DIGITS, [f"is one more than {word}"], [])
        yield from _both(frozenset({n - 1}) & DIGITS, [f"is one less than {word}"], [])
        for m in range(n + 3, 10):
            inside = frozenset(range(n + 1, m))
            yield from _both(inside, [f"is between {word} and {NUMBERS[m]}"], [])
        if n < 8:
            pair = frozenset({n, n + 2})
            yield from _both(pair, [f"is either {word} or {NUMBERS[n + 2]}"],
                             [f"is neither {word} nor {NUMBERS[n + 2]}"])  # fmt: skip


def claims() -> tuple[Claim, ...]:
    """Every predicate with one subject each, in turn: the sentences of :class:`DigitClaims`."""
    return tuple(
        Claim(f"{SUBJECTS[index % len(SUBJECTS)]} {predicate}", digits)
        for index, (predicate, digits) in enumerate(predicates())
    )


def _both(
    digits: frozenset[int], affirming: Iterable[str], denying: Iterable[str]
) -> Iterator[tuple[str, frozenset[int]]]:
    if digits and digits != DIGITS:  # what holds always or never says nothing
        yield from ((text, digits) for text in affirming)
        yield from ((text, DIGITS - digits) for text in denying)


def _article(word: str) -> str:
    return f"an {word}" if word == "eight" else f"a {word}"
