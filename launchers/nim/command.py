"""Reads the command lines that run a NIM in production."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

from autotune.domain.configs.config import EngineConfig
from launchers.nim.flags import ENV, OF_DOCKER, PROFILE_VARIABLE, TABLE
from launchers.options import Option, split_command

_RUNTIMES = frozenset({"docker", "podman"})
_WORD_OF_VARIABLE = {
    PROFILE_VARIABLE: "profile",
    "NIM_TENSOR_PARALLEL_SIZE": "tensor_parallel",
    "NIM_PIPELINE_PARALLEL_SIZE": "pipeline_parallel",
    "NIM_MAX_MODEL_LEN": "context_length",
}


def parse_command(command: str) -> tuple[EngineConfig, str]:
    """Read ``docker run ... IMAGE ...`` as (configuration, model); raises ValueError.

    The model is what the image is named after: ``nvcr.io/nim/meta/llama-3.1-8b-instruct:2.0.8``. How the
    container runs is dropped, and so are variables that no word stands for, keys among them; arguments of the
    NIM that have no word are kept in ``extra_args``.
    """
    options, loose = TABLE.read(_arguments(command))
    if len(loose) != 1 or "/" not in loose[0]:
        raise ValueError(f"a NIM's command names one image; found: {', '.join(loose) or 'none'}")
    words: dict[str, Any] = {}
    extra: list[str] = []
    for option in options:
        if option.flag == ENV:
            words = {**_variable(option), **words}  # arguments count more
        elif (word := TABLE.word_of(option.flag)) and option.values:
            words[word] = option.values[0]
        elif option.flag not in OF_DOCKER:
            extra += option.tokens
    image = PurePath(loose[0].partition("@")[0])
    model = f"{image.parent.name}/{image.name.partition(':')[0]}"
    return EngineConfig.model_validate({"engine": "nim", **words, "extra_args": tuple(extra)}), model


def _arguments(command: str) -> list[str]:
    tokens = split_command(command, "docker")
    for at, token in enumerate(tokens[:-1]):
        if PurePath(token).name in _RUNTIMES and tokens[at + 1] == "run":
            return tokens[at + 2 :]
    raise ValueError("this runs no NIM: it has neither `docker run` nor `podman run`")


def _variable(option: Option) -> dict[str, str]:
    name, equals, value = (option.values[0] if option.values else "").partition("=")
    word = _WORD_OF_VARIABLE.get(name)
    return {word: value} if word and equals else {}
