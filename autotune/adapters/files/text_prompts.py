"""Prompts of real text, and of random words, with exact token counts; the tokenizer is the model's own.

Chat prompts are text, and text is cut at spaces before words. There tokenizers begin anew (at training no
merge crossed them), so that the tokens of a text are those of its parts; whether that is so with the
tokenizer at hand is checked before it is used.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path

import numpy as np
import platformdirs
from numpy.typing import NDArray
from tokenizers import Tokenizer

from autotune.adapters.files.tokenizer_files import read_tokenizer
from autotune.domain.basics.errors import InputError, InputProblem
from autotune.domain.load.prompts import PromptSource, RandomTokens, Segment
from autotune.domain.load.workload import TextFiles, Workload

MOST_CHARACTERS = 8_000_000
"""Text beyond this is left unread: it is some two million tokens."""
OWN_TOKENS = 4
"""Random words that each piece of text begins with: two pieces may start at one place in the text."""
LEAST_WORDS, MOST_WORDS = 16, 4096
CHECKS = 100
"""Pieces of text whose token counts are checked beforehand."""
_CHUNK = 1 << 16
_CUT = re.compile(r"(?<=\S) (?=[^\W\d_])")
_OPENERS = ("The", "A", "I", "a", "b")

PromptMaker = Callable[[int], PromptSource]
"""From a seed to prompts of its own."""


def prompt_maker(
    workload: Workload, *, tokenizer: Path | None, vocab_size: int, cache: Path | None = None
) -> PromptMaker:
    """Prepare a workload's prompts; text is tokenised once and kept under ``cache``.

    ``tokenizer`` is the model's tokenizer.json. Raises InputError.
    """
    if workload.prompts == "random" and workload.api == "completions":
        return lambda seed: RandomTokens(vocab_size, seed)
    if tokenizer is None:
        needs = "real text" if workload.has_real_text else "chat"
        what = f"{needs} needs the model's tokenizer.json, which is not at hand"
        remedy = "fetch it into the model's folder, or write `prompts: random` and `api: completions`"
        raise InputError(InputProblem(f"workload {workload.name!r}", what, remedy))
    words = _words(tokenizer) if workload.api == "chat" else None
    if not isinstance(workload.prompts, TextFiles):
        assert words is not None
        return lambda seed: RandomWords(words, seed)
    kept = cache or Path(platformdirs.user_cache_dir("autotune")) / "text"
    corpus = _prepared(tokenizer, Path(workload.prompts.text), kept, words)
    tokens = len(_loaded(corpus).ids)
    if tokens < workload.longest_tokens:
        what = f"has {tokens} tokens, the longest request {workload.longest_tokens}: text would repeat itself"
        remedy = "give more text; a prompt that repeats itself flatters speculation"
        raise InputError(InputProblem(workload.prompts.text, what, remedy))
    return lambda seed: TextPrompts(corpus, words, seed)


@dataclass(frozen=True, slots=True)
class Words:
    """Words that are one token each after a space, by their ids; ``opener`` is one at a message's start."""

    opener: str
    words: tuple[str, ...]
    ids: tuple[int, ...]

    def drawn(self, count: int, rng: np.random.Generator) -> str:
        """``count`` words, each after a space."""
        places = rng.integers(0, len(self.words), count).tolist()
        return "".join(map(self.words.__getitem__, places))


@dataclass(frozen=True, slots=True)
class RandomWords:
    """Random words: text of exact token count that no cache has seen."""

    words: Words
    seed: int

    def token_ids(self, segments: Sequence[Segment]) -> list[int]:
        """The prompt as token ids."""
        ids: list[int] = []
        for segment in segments:
            places = _rng(self.seed, segment).integers(0, len(self.words.ids), segment.tokens)
            ids += map(self.words.ids.__getitem__, places.tolist())
        return ids

    def messages(self, segments: Sequence[Segment]) -> list[dict[str, str]]:
        """The prompt as chat messages."""
        return _messages(segments, self.words, lambda s, n: self.words.drawn(n, _rng(self.seed, s)))


@dataclass(frozen=True, slots=True)
class TextPrompts:
    """Pieces of real text, each after a few random words; ``corpus`` is a folder of prompt_maker's."""

    corpus: Path
    words: Words | None
    seed: int

    def token_ids(self, segments: Sequence[Segment]) -> list[int]:
        """The prompt as token ids."""
        text = _loaded(self.corpus).ids
        ids: list[int] = []
        for segment in segments:
            rng = _rng(self.seed, segment)
            own = min(OWN_TOKENS, segment.tokens)
            ids += text[rng.integers(0, len(text), own)].tolist()
            start = int(rng.integers(0, max(len(text) - segment.tokens, 1)))
            ids += text[start : start + segment.tokens - own].tolist()
        return ids

    def messages(self, segments: Sequence[Segment]) -> list[dict[str, str]]:
        """The prompt as chat messages; raises ValueError where it was made for token ids."""
        words, corpus = self.words, _loaded(self.corpus)
        if words is None:
            raise ValueError("these prompts were prepared for token ids; chat needs the workload's api: chat")

        def piece(segment: Segment, tokens: int) -> str:
            rng = _rng(self.seed, segment)
            own = min(OWN_TOKENS, tokens)
            text, used = corpus.piece(tokens - own, rng)
            return words.drawn(own, rng) + text + words.drawn(tokens - own - used, rng)

        return _messages(segments, words, piece)


@dataclass(frozen=True, slots=True, eq=False)
class _Corpus:
    """Text, its token ids, and where it may be cut: after how many tokens, at which character."""

    text: str
    ids: NDArray[np.int32]
    cut_token: NDArray[np.int64]
    cut_character: NDArray[np.int64]

    def piece(self, tokens: int, rng: np.random.Generator) -> tuple[str, int]:
        """Text of at most ``tokens`` tokens from a place drawn, and its tokens."""
        beyond = np.searchsorted(self.cut_token, self.cut_token[-1] - tokens, "right")
        first = int(rng.integers(0, max(int(beyond), 1)))
        last = int(np.searchsorted(self.cut_token, self.cut_token[first] + tokens, "right")) - 1
        text = self.text[self.cut_character[first] : self.cut_character[last]]
        return text, int(self.cut_token[last] - self.cut_token[first])


def _rng(seed: int, segment: Segment) -> np.random.Generator:
    return np.random.default_rng((seed, segment.key))


def _messages(
    segments: Sequence[Segment], words: Words, piece: Callable[[Segment, int], str]
) -> list[dict[str, str]]:
    """Neighbouring segments of one role in one message, whose first token is the opener."""
    messages = []
    for role, group in groupby(segments, key=lambda segment: segment.role):
        texts = [piece(s, s.tokens - (place == 0)) for place, s in enumerate(group)]
        messages.append({"role": role, "content": words.opener + "".join(texts)})
    return messages


def _prepared(tokenizer_file: Path, source: Path, cache: Path, words: Words | None) -> Path:
    """Folder with the tokenised text; made unless it is there. Raises InputError."""
    text = _text(source)
    digest = hashlib.sha256(tokenizer_file.read_bytes() + text.encode()).hexdigest()[:32]
    folder = cache / digest
    if not folder.is_dir():
        _prepare(read_tokenizer(tokenizer_file), text, folder)
    if words is not None:
        _check_pieces(read_tokenizer(tokenizer_file), _loaded(folder), words, source)
    return folder


def _prepare(tokenizer: Tokenizer, text: str, folder: Path) -> None:
    chunks = list(_chunks(text))
    ids: list[NDArray[np.int32]] = []
    cuts: list[tuple[int, int]] = []
    tokens = characters = 0
    for chunk, encoding in zip(chunks, tokenizer.encode_batch(chunks, add_special_tokens=False), strict=True):
        spans = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
        places = np.array([match.start() for match in _CUT.finditer(chunk)], dtype=np.int64)
        before = np.searchsorted(spans[:, 1], places, "right")
        clean = (before < len(spans)) & (spans[np.minimum(before, len(spans) - 1), 0] >= places)
        cuts += zip((before[clean] + tokens).tolist(), (places[clean] + characters).tolist(), strict=True)
        ids.append(np.array(encoding.ids, dtype=np.int32))
        tokens += len(spans)
        characters += len(chunk)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as made:
        partial = Path(made) / "text"
        partial.mkdir()
        np.save(partial / "ids.npy", np.concatenate(ids))
        np.save(partial / "cuts.npy", np.array(cuts, dtype=np.int64).reshape(-1, 2))
        (partial / "text").write_bytes(text.encode())
        if not folder.is_dir():
            partial.rename(folder)


@lru_cache(maxsize=4)
def _loaded(folder: Path) -> _Corpus:
    """One copy for each process, however many plans use it."""
    cuts = np.load(folder / "cuts.npy")
    text = (folder / "text").read_bytes().decode()
    ids = np.load(folder / "ids.npy", mmap_mode="r")
    return _Corpus(text, ids, np.ascontiguousarray(cuts[:, 0]), np.ascontiguousarray(cuts[:, 1]))


def _check_pieces(tokenizer: Tokenizer, corpus: _Corpus, words: Words, source: Path) -> None:
    """Raise InputError unless the tokens of a text are those of its parts."""
    if len(corpus.cut_token) > 1:
        rng = np.random.default_rng(0)
        pieces = [corpus.piece(int(n), rng) for n in rng.integers(8, 200, CHECKS)]
        texts = [words.opener + text + words.words[0] for text, _ in pieces]
        encoded = tokenizer.encode_batch(texts, add_special_tokens=False)
        wrong = sum(len(e.ids) != used + 2 for e, (_, used) in zip(encoded, pieces, strict=True))
        if wrong <= CHECKS // 20:
            return
    what = "cannot be cut into chat prompts of exact length with this model's tokenizer"
    raise InputError(InputProblem(str(source), what, "write `api: completions`, which takes token ids"))


@lru_cache(maxsize=4)
def _words(tokenizer_file: Path) -> Words:
    """Words of the vocabulary that stay one token each whatever they are put beside; raises InputError."""
    tokenizer = read_tokenizer(tokenizer_file)
    plain = {token.lstrip("Ġ▁") for token in tokenizer.get_vocab()}
    candidates = sorted(f" {word}" for word in plain if word.isascii() and word.isalpha())
    for opener in _OPENERS:
        texts = [opener + word * 2 for word in candidates]
        encoded = tokenizer.encode_batch(texts, add_special_tokens=False)
        found = {
            e.ids[1]: word
            for word, e in zip(candidates, encoded, strict=True)
            if len(e.ids) == 3 and e.ids[1] == e.ids[2]  # noqa: PLR2004 - the opener and the word twice
        }
        step = max(len(found) // MOST_WORDS, 1)
        kept = sorted(found.items())[::step][:MOST_WORDS]
        words = Words(opener, tuple(word for _, word in kept), tuple(number for number, _ in kept))
        if len(kept) >= LEAST_WORDS and _holds_together(tokenizer, words):
            return words
    what = "has too few words that are one token each, so that chat prompts cannot have an exact length"
    raise InputError(
        InputProblem(str(tokenizer_file), what, "write `api: completions`, which takes token ids")
    )


def _holds_together(tokenizer: Tokenizer, words: Words) -> bool:
    text = words.opener + words.drawn(2000, np.random.default_rng(0))
    return len(tokenizer.encode(text, add_special_tokens=False).ids) == 1 + 2000


def _text(source: Path) -> str:
    """Text of a file, or of a folder's files in order of their names; raises InputError."""
    files = sorted(p for p in source.rglob("*") if p.is_file()) if source.is_dir() else [source]
    parts: list[str] = []
    for file in files:
        try:
            with file.open(encoding="utf-8", newline="") as text:
                parts.append(text.read(MOST_CHARACTERS - sum(map(len, parts))))
        except UnicodeDecodeError:
            continue  # a folder may hold pictures too
        except OSError as error:
            what = f"cannot be read: {error.strerror}"
            raise InputError(InputProblem(str(source), what, "name a file or folder of text")) from error
        if sum(map(len, parts)) >= MOST_CHARACTERS:
            break
    whole = "\n\n".join(part for part in parts if part.strip())
    if not whole:
        remedy = "name a file of UTF-8 text, or a folder that holds some"
        raise InputError(InputProblem(str(source), "holds no text", remedy))
    return whole


def _chunks(text: str) -> Iterator[str]:
    """Pieces that a tokenizer takes at once, which end at a line's end where there is one."""
    start = 0
    while start < len(text):
        end = text.rfind("\n", start, start + _CHUNK) + 1
        end = end if end > start and start + _CHUNK < len(text) else min(start + _CHUNK, len(text))
        yield text[start:end]
        start = end
