"""Compilation and graph capture: words that are keys of one JSON flag of vLLM."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from autotune.domain.basics.errors import InfeasibleConfigError
from autotune.domain.configs.config import EngineConfig
from autotune.domain.hardware.hardware import DeviceKind
from launchers.options import Option, Tokens
from launchers.vllm.flags import COMPILATION, TABLE

# vllm/config/compilation.py: CompilationMode NONE and VLLM_COMPILE, CUDAGraphMode.
_MODES = {False: 0, True: 3}
_NO_GRAPHS = "NONE"
_GRAPHS = {True: "FULL_AND_PIECEWISE", False: "FULL_DECODE_ONLY"}
"""Graphs by whether the model is compiled, where a configuration says that there are some: piecewise ones
are made by the compiler alone."""

COMPILATION_WORDS = frozenset({"compilation", "graph_capture"})


def refuse_graphs(config: EngineConfig, kind: DeviceKind) -> None:
    """Raise InfeasibleConfigError for words that vLLM would override without a word."""
    graphs = config.graph_capture or config.graph_max_batch is not None
    if graphs and kind is DeviceKind.CPU:
        raise InfeasibleConfigError("vllm: graph_capture, graph_max_batch: its CPU build captures no graphs")
    if config.eager and (config.compilation or graphs):
        raise InfeasibleConfigError("vllm: eager excludes compilation, graph_capture and graph_max_batch")
    if config.graph_capture is False and config.graph_max_batch is not None:
        raise InfeasibleConfigError("vllm: graph_max_batch needs graph_capture")


def compilation_keys(config: EngineConfig) -> dict[str, Any]:
    """Keys of the flag's JSON that a configuration's words stand for."""
    keys: dict[str, Any] = {}
    if config.compilation is not None:
        keys["mode"] = _MODES[config.compilation]
    if config.graph_capture is not None:
        compiled = config.compilation is not False
        keys["cudagraph_mode"] = _GRAPHS[compiled] if config.graph_capture else _NO_GRAPHS
    return keys


def compilation_words(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the flag's JSON: the words it says, and the keys that no word says."""
    words: dict[str, Any] = {}
    rest = dict(given)
    for compiled, mode in _MODES.items():
        if rest.get("mode") == mode:
            words["compilation"] = compiled
            del rest["mode"]
    graphs = {_NO_GRAPHS: False}
    if "mode" not in rest:
        graphs[_GRAPHS[words.get("compilation", True)]] = True
    if rest.get("cudagraph_mode") in graphs:
        words["graph_capture"] = graphs[rest.pop("cudagraph_mode")]
    return words, rest


def is_compilation(option: Option) -> bool:
    """Whether an option is the flag, whole or one of its keys (``--compilation-config.mode``)."""
    return option.flag.partition(".")[0] == COMPILATION and len(option.values) == 1


def merged(
    given: Mapping[str, Any], tokens: Mapping[str, Tokens]
) -> tuple[dict[str, Any], dict[str, Tokens]]:
    """Take the flag out of free ``tokens``, by their source, and put its keys beside the words' ``given``.

    vLLM keeps the last of several such flags whole and forgets the others. Raises InfeasibleConfigError for a
    key that both say, and for JSON that cannot be read.
    """
    keys: dict[str, Any] = dict(given)
    left: dict[str, Tokens] = {}
    for source, written in tokens.items():
        options, loose = TABLE.read(written)
        mine = [option for option in options if is_compilation(option)]
        for option in mine:
            said = _keys_of(option, source)
            if twice := [key for key in said if key in given and said[key] != given[key]]:
                what = f"{COMPILATION}: {', '.join(twice)} is said by a word of the configuration too"
                raise InfeasibleConfigError(f"{source}: {what}")
            keys = _joined(keys, said)
        kept = (token for option in options if option not in mine for token in option.tokens)
        left[source] = (*loose, *kept) if mine else written
    return keys, left


def _joined(keys: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Join objects key by key, as vLLM joins what is written with dots."""
    both = {
        key: _joined(keys[key], value)
        for key, value in more.items()
        if isinstance(value, dict) and isinstance(keys.get(key), dict)
    }
    return {**keys, **more, **both}


def _keys_of(option: Option, source: str) -> dict[str, Any]:
    _, dotted, path = option.flag.partition(".")
    value: Any
    try:
        value = json.loads(option.values[0])
    except ValueError as error:
        if not dotted:
            raise InfeasibleConfigError(f"{source}: {COMPILATION}: no JSON: {error}") from error
        value = option.values[0]
    for key in reversed(path.split(".") if dotted else ()):
        value = {key: value}
    if not isinstance(value, dict):
        raise InfeasibleConfigError(f"{source}: {COMPILATION} is no JSON object")
    return value
