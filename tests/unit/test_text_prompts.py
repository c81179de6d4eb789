"""Prompts of text: exact token counts by the model's own tokenizer, shared where keys are, and no more."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from autotune.adapters.files.synthetic_model import make_tiny_model
from autotune.adapters.files.text_prompts import OWN_TOKENS, PromptMaker, prompt_maker
from autotune.domain.basics.errors import InputError
from autotune.domain.load.prompts import PromptSource, RandomTokens, Segment
from autotune.domain.load.workload import Workload

SENTENCES = (
    "The keeper of the lighthouse wrote, every evening, what the sea had been like.",
    "On some days it was grey and flat; on others (he counted 17 of them) nobody could cross.",
    "def weather(day):\n    return log[day] if day in log else None\n",
    "«Où est le phare ?» asked a sailor — the keeper only pointed.",
)
KINDS = ("byte-level", "metaspace", "tiny")


def corpus() -> str:
    rng = np.random.default_rng(0)
    return "\n".join(" ".join(SENTENCES[i] for i in rng.integers(0, 4, 5)) for _ in range(400))


def byte_level(text: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, show_progress=False, initial_alphabet=alphabet)
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer


def metaspace(text: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(vocab_size=600, show_progress=False, special_tokens=["<unk>"])
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    text = corpus()
    (folder / "books" / "deep").mkdir(parents=True)
    (folder / "books" / "a.txt").write_text(text[: len(text) // 2])
    (folder / "books" / "deep" / "b.txt").write_text(text[len(text) // 2 :])
    (folder / "books" / "picture.png").write_bytes(b"\x89PNG\xff\xfe")
    byte_level(text).save(str(folder / "byte-level"))
    metaspace(text).save(str(folder / "metaspace"))
    make_tiny_model(folder / "model")
    (folder / "model" / "tokenizer.json").rename(folder / "tiny")
    return folder


def maker(files: Path, kind: str, **parts: Any) -> PromptMaker:
    workload = Workload.model_validate({"input_tokens": 400, "output_tokens": 8, **parts})
    return prompt_maker(workload, tokenizer=files / kind, vocab_size=600, cache=files / "cache")


def source(files: Path, kind: str, prompts: object, api: str, seed: int = 1) -> PromptSource:
    prompts = {"text": str(files / "books")} if prompts == "text" else prompts
    return maker(files, kind, prompts=prompts, api=api)(seed)


def decoded(files: Path, kind: str, ids: list[int]) -> str:
    return str(Tokenizer.from_file(str(files / kind)).decode(ids))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prompts", ["random", "text"])
def test_chat_prompts_have_exactly_the_tokens_wanted(files: Path, kind: str, prompts: str) -> None:
    tokenizer = Tokenizer.from_file(str(files / kind))
    made = source(files, kind, prompts, "chat")
    for key in range(100):
        count = 1 + 4 * key
        segments = [Segment(0, 20, "system"), Segment(3 * key + 1, count), Segment(3 * key + 2, 7)]
        segments += [Segment(3 * key + 3, 33, "assistant"), Segment(3 * key + 4, 1)]
        messages = made.messages(segments)
        assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
        lengths = [len(tokenizer.encode(m["content"], add_special_tokens=False).ids) for m in messages]
        assert lengths == [20, count + 7, 33, 1]
        # Chat templates may trim what they are given.
        assert all(m["content"] == m["content"].strip() for m in messages)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("prompts", "api"), [("text", "completions"), ("text", "chat"), ("random", "chat")])
def test_ids_have_exactly_the_tokens_wanted(files: Path, kind: str, prompts: str, api: str) -> None:
    made = source(files, kind, prompts, api)
    for key in range(50):
        assert len(made.token_ids([Segment(key, 1 + 7 * key), Segment(99, 5)])) == 6 + 7 * key


def test_text_prompts_are_the_text_after_a_few_words(files: Path) -> None:
    text = corpus()
    half = len(text) // 2
    text = text[:half] + "\n\n" + text[half:]
    made = source(files, "byte-level", "text", "completions")
    ids = made.token_ids([Segment(5, 200)])
    assert decoded(files, "byte-level", ids[OWN_TOKENS:]) in text
    (message,) = source(files, "byte-level", "text", "chat").messages([Segment(5, 200)])
    words = message["content"].split(" ")
    middle = " ".join(words[OWN_TOKENS + 1 : -20])
    assert len(middle) > 200
    assert middle in text


@pytest.mark.parametrize(("prompts", "api"), [("text", "completions"), ("text", "chat"), ("random", "chat")])
def test_prompts_share_what_their_keys_share(files: Path, prompts: str, api: str) -> None:
    made = source(files, "byte-level", prompts, api)
    other = source(files, "byte-level", prompts, api, seed=2)
    shared, one, two = Segment(1, 64), Segment(2, 64), Segment(3, 64)
    assert made.token_ids([shared, one]) == made.token_ids([shared, one])
    assert made.token_ids([shared, one])[:64] == made.token_ids([shared, two])[:64]
    assert made.token_ids([shared, one])[64:] != made.token_ids([shared, two])[64:]
    assert made.token_ids([one]) != other.token_ids([one])
    if api == "chat":
        (a,), (b,), (c,) = (made.messages([shared, s]) for s in (one, one, two))
        assert a == b != c
        (alone,) = made.messages([shared])
        assert a["content"].startswith(alone["content"])
        assert c["content"].startswith(alone["content"])
        assert made.messages([one]) != other.messages([one])


@pytest.mark.parametrize(("prompts", "api"), [("text", "completions"), ("text", "chat"), ("random", "chat")])
def test_prompts_of_their_own_share_no_beginning(files: Path, prompts: str, api: str) -> None:
    """Far more prompts than the text has places to begin at."""
    made = source(files, "byte-level", prompts, api)
    beginnings = {tuple(made.token_ids([Segment(key, 40)])[:16]) for key in range(5000)}
    assert len(beginnings) == 5000


@pytest.mark.parametrize(("prompts", "api"), [("text", "completions"), ("text", "chat"), ("random", "chat")])
def test_prompts_travel_to_other_processes_in_little_space(files: Path, prompts: str, api: str) -> None:
    made = source(files, "tiny", prompts, api)
    carried = pickle.dumps(made)
    assert len(carried) < 100_000
    assert pickle.loads(carried).token_ids([Segment(4, 30)]) == made.token_ids([Segment(4, 30)])


def test_text_is_tokenised_once(files: Path, tmp_path: Path) -> None:
    workload = Workload.model_validate(
        {"input_tokens": 40, "output_tokens": 8, "prompts": {"text": str(files / "books")}}
    )
    made = [prompt_maker(workload, tokenizer=files / "tiny", vocab_size=9, cache=tmp_path) for _ in range(2)]
    (kept,) = tmp_path.iterdir()
    written = (kept / "ids.npy").stat().st_mtime_ns
    prompt_maker(workload, tokenizer=files / "tiny", vocab_size=9, cache=tmp_path)
    assert (kept / "ids.npy").stat().st_mtime_ns == written
    assert made[0](1) == made[1](1)


def test_random_completions_need_no_tokenizer() -> None:
    workload = Workload(input_tokens=40, output_tokens=8)
    assert prompt_maker(workload, tokenizer=None, vocab_size=900)(3) == RandomTokens(900, 3)
    with pytest.raises(ValueError, match="tokenizer"):
        RandomTokens(900, 3).messages([Segment(1, 4)])


def test_ids_of_text_are_no_chat(files: Path) -> None:
    with pytest.raises(ValueError, match="api: chat"):
        source(files, "tiny", "text", "completions").messages([Segment(1, 4)])


@pytest.mark.parametrize("parts", [{"api": "chat"}, {"prompts": {"text": "books"}}])
def test_text_without_a_tokenizer_is_refused_with_a_remedy(parts: dict[str, Any]) -> None:
    workload = Workload.model_validate({"input_tokens": 40, "output_tokens": 8, **parts})
    with pytest.raises(InputError, match=r"needs the model's tokenizer\.json") as raised:
        prompt_maker(workload, tokenizer=None, vocab_size=900)
    assert "prompts: random" in raised.value.problems[0].remedy


@pytest.mark.parametrize(
    ("content", "why"),
    [(b"short", "text would repeat itself"), (b"", "holds no text"), (b"\xff\xfe", "holds no text")],
)
def test_too_little_text_is_refused(files: Path, tmp_path: Path, content: bytes, why: str) -> None:
    text = tmp_path / "text"
    text.write_bytes(content)
    with pytest.raises(InputError, match=why) as raised:
        maker(files, "tiny", prompts={"text": str(text)})
    assert raised.value.problems[0].remedy


def test_text_that_is_not_there_is_named(files: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere: cannot be read"):
        maker(files, "tiny", prompts={"text": str(tmp_path / "nowhere")})


def test_a_tokenizer_without_words_cannot_chat(files: Path, tmp_path: Path) -> None:
    """Every word's tokens depend on the words beside it: here all spaces vanish."""
    joined = Tokenizer(
        models.BPE({"a": 0, "b": 1, "ab": 2, "ba": 3, "<unk>": 4}, [("a", "b")], unk_token="<unk>")
    )
    joined.save(str(tmp_path / "joined"))
    with pytest.raises(InputError, match="too few words") as raised:
        maker(tmp_path, "joined", api="chat")
    assert "api: completions" in raised.value.problems[0].remedy


@pytest.mark.parametrize("content", ["", "{}", "no json"])
def test_a_broken_tokenizer_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "broken").write_text(content)
    with pytest.raises(InputError, match="is no tokenizer"):
        maker(tmp_path, "broken", api="chat")
