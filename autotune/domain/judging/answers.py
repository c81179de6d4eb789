"""Greedy answers of engines to known prompts, and how far one engine's are from another's.

Two engines that agree on every token so far have seen the same text: their log-probabilities at the next
token can be compared. From the first token that differs on they write different texts. Whether it may differ,
the reference itself says: where it held both tokens for about as likely, rounding decides between them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Token = int | str
"""A token's id, or its text where an endpoint names no ids."""

HIGH_QUANTILE = 0.95
LEAST_CHANCE = 1e-9
"""Stands for what rounding has made of a chance of next to nothing."""
LEAST_GREEDY_LOGPROB = -math.log(1e7)
"""The likeliest of V tokens has a log-probability of at least -ln V; no vocabulary is as large as this."""
ROUNDING_NATS = 1e-3
SHOWN_CHARACTERS = 40


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt: token ids, and (role, text) messages where it can be put as a chat.

    ``scored`` above 0 asks for no answer: the engine says what it gives to each of the last ``scored`` ids.
    """

    ids: tuple[int, ...]
    messages: tuple[tuple[str, str], ...] = ()
    scored: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerTerms:
    """How questions are put: tokens of each answer, how many at once, and the deadline of each, seconds."""

    output_tokens: int
    together: int
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Step:
    """One token and its log-probability, nats (NaN: none was told), with those of the likeliest tokens."""

    token: Token
    logprob: float
    top: tuple[tuple[Token, float], ...] = ()

    @property
    def known(self) -> Mapping[Token, float]:
        """Log-probabilities of every token that is told of, nats."""
        return {**dict(self.top), self.token: self.logprob}

    def logprob_of(self, token: Token) -> float:
        """What a token has, nats; one that is not told of has the least of those that are, at most."""
        known = self.known
        return known.get(token, min(known.values()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What an engine answered; ``steps`` are empty where it tells no tokens.

    ``problem`` is what it said in place of an answer, or of log-probabilities.
    """

    text: str = ""
    output_tokens: int = 0
    steps: tuple[Step, ...] = ()
    problem: str = ""

    @property
    def is_one_token(self) -> bool:
        """Whether it says nothing but the same token, several times."""
        return len(self.steps) > 1 and len({step.token for step in self.steps}) == 1


class NoAnswerError(Exception):
    """An engine that was healthy does not answer at all: the connection broke, or it ``timed_out``."""

    def __init__(self, what: str, *, timed_out: bool = False) -> None:
        super().__init__(what)
        self.timed_out = timed_out


Pairs = Sequence[tuple[Step, Step]]
"""Steps of a reference and of another engine, taken after the same tokens."""


def tokens_comparable(reference: Answer, other: Answer) -> bool:
    """Whether both tell their tokens, and in the same way."""
    return bool(
        reference.steps
        and other.steps
        and isinstance(reference.steps[0].token, int) == isinstance(other.steps[0].token, int)
    )


def aligned(reference: Answer, other: Answer) -> Pairs:
    """The steps of both up to and including the first token that differs."""
    pairs = []
    for pair in zip(reference.steps, other.steps, strict=False):
        pairs.append(pair)
        if pair[0].token != pair[1].token:
            break
    return pairs


def strays(reference: Answer, other: Answer, *, margin_nats: float) -> bool:
    """Whether the first token that differs is less likely to the reference than its own by the margin.

    One that is not even among the likeliest that the reference tells of strays whatever the margin: where all
    tokens are about as likely, as with random weights, margins alone would excuse everything.
    """
    pairs = aligned(reference, other)
    if not pairs or pairs[-1][0].token == pairs[-1][1].token:
        return False
    ours, theirs = pairs[-1]
    told = ours.known.get(theirs.token, -math.inf)
    return not ours.logprob - told < margin_nats


def text_lost(reference: Answer, other: Answer) -> float:
    """Share of the longer text that comes after the beginning which both have."""
    ours, theirs = reference.text, other.text
    common = next((n for n, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), None)
    shortest, longest = sorted((len(ours), len(theirs)))
    return 1 - (shortest if common is None else common) / longest if longest else 0.0


@dataclass(frozen=True, slots=True)
class Distance:
    """Distance of log-probabilities over some steps, nats: mean and quantile of |difference|, and mean KL."""

    steps: int
    mean_nats: float
    high_nats: float
    kl_nats: float


def distance(pairs: Pairs) -> Distance:
    """Distance at the reference's own tokens; infinite where a log-probability is no number."""
    differences = [_finite(abs(ours.logprob - theirs.logprob_of(ours.token))) for ours, theirs in pairs]
    divergences = [_finite(divergence(ours.known, theirs.known)) for ours, theirs in pairs]
    return Distance(
        steps=len(pairs),
        mean_nats=float(np.mean(differences)),
        # A value that occurred: between infinity and anything else there is nothing to interpolate.
        high_nats=float(np.quantile(differences, HIGH_QUANTILE, method="higher")),
        kl_nats=float(np.mean(divergences)),
    )


def divergence(reference: Mapping[Token, float], other: Mapping[Token, float]) -> float:
    """KL divergence of two next-token distributions, at least, nats; both map tokens to log-probabilities.

    Of the tokens that both tell of, and all others taken for one: merging tokens can only lessen it (data
    processing inequality; Cover and Thomas, Elements of Information Theory, 2.8).
    """
    common = reference.keys() & other.keys()
    ours = np.exp([reference[token] for token in common])
    theirs = np.exp([other[token] for token in common])
    ours = np.append(ours, 1 - ours.sum())
    theirs = np.append(theirs, 1 - theirs.sum())
    ours, theirs = np.maximum(ours, LEAST_CHANCE), np.maximum(theirs, LEAST_CHANCE)
    ours, theirs = ours / ours.sum(), theirs / theirs.sum()
    return max(float((ours * np.log(ours / theirs)).sum()), 0.0)


def malformed(answer: Answer, *, tokens: int, exact: bool) -> str:
    """What is wrong with an answer whatever was asked, empty for nothing; ``tokens`` were asked for."""
    if not answer.output_tokens or not (answer.text or answer.steps):
        return f"no answer{f': {answer.problem}' if answer.problem else ''}"
    if answer.output_tokens > tokens or (exact and answer.output_tokens < tokens):
        return f"{answer.output_tokens} tokens where {tokens} were asked for"
    for place, step in enumerate(answer.steps):
        if not LEAST_GREEDY_LOGPROB <= step.logprob <= ROUNDING_NATS:
            return f"a log-probability of {step.logprob:g} at token {place}, which no greedy token has"
    return ""


def quoted(answer: Answer) -> str:
    """The beginning of an answer, for people."""
    cut = answer.text[:SHOWN_CHARACTERS]
    return repr(cut) + ("..." if len(answer.text) > SHOWN_CHARACTERS else "")


def _finite(value: float) -> float:
    return value if math.isfinite(value) else math.inf
