"""Speculative decoding: words that are keys of one JSON flag of vLLM."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from autotune.domain.basics.errors import InfeasibleConfigError
from autotune.domain.configs.config import EngineConfig
from launchers.options import Tokens
from launchers.vllm.flags import SPECULATIVE

SPECULATIVE_KEYS = {
    "speculative_tokens": "num_speculative_tokens",
    "speculative_model": "model",
    "prompt_lookup_max": "prompt_lookup_max",
}
_WORD_OF_KEY = {key: word for word, key in SPECULATIVE_KEYS.items()}


@dataclass(frozen=True, slots=True)
class _Method:
    """Words that a method cannot do without, and those that it may have."""

    needs: frozenset[str]
    may_have: frozenset[str] = frozenset()


_WITH_MODEL = _Method(frozenset({"speculative_tokens", "speculative_model"}))
_METHODS = {
    "ngram": _Method(frozenset({"speculative_tokens"}), frozenset({"prompt_lookup_max"})),
    "draft_model": _WITH_MODEL,
    "eagle": _WITH_MODEL,
    "eagle3": _WITH_MODEL,
    # The layers that propose are in the checkpoint, or in one beside it, which says for how many tokens.
    "mtp": _Method(frozenset(), frozenset({"speculative_tokens", "speculative_model"})),
}


def speculation_tokens(config: EngineConfig) -> Tokens:
    """Write the flag; raises InfeasibleConfigError for words that do not go with the method."""
    method = _METHODS.get(config.speculation or "none", _Method(frozenset()))
    said = {word: config.words[word] for word in SPECULATIVE_KEYS if word in config.words}
    if stray := [word for word in said if word not in method.needs | method.may_have]:
        what = f"means nothing with speculation: {config.speculation or 'none'}"
        raise InfeasibleConfigError(f"vllm: {', '.join(stray)} {what}")
    if missing := [word for word in SPECULATIVE_KEYS if word in method.needs - said.keys()]:
        raise InfeasibleConfigError(f"vllm: speculation: {config.speculation} needs {', '.join(missing)}")
    if config.speculation in {None, "none"}:
        return ()
    keys = {SPECULATIVE_KEYS[word]: value for word, value in said.items()}
    return (SPECULATIVE, json.dumps({"method": config.speculation, **keys}))


def speculation_words(text: str) -> Mapping[str, Any]:
    """Read the flag's value; empty where the vocabulary cannot say it."""
    try:
        given = json.loads(text)
    except ValueError:
        return {}
    if not isinstance(given, dict):
        return {}
    name = given.pop("method", None)
    method = _METHODS.get(name) if isinstance(name, str) else None
    if method is None or not given.keys() <= _WORD_OF_KEY.keys():
        return {}
    words = {_WORD_OF_KEY[key]: value for key, value in given.items()}
    if not method.needs <= words.keys() <= method.needs | method.may_have:
        return {}
    return {"speculation": name, **words}
