"""Writes TensorRT-LLM's options for the words of a configuration, whoever reads them."""

from __future__ import annotations

from collections.abc import Mapping
from io import StringIO
from typing import Any

from ruamel.yaml import YAML

from autotune.domain.basics.errors import InfeasibleConfigError
from autotune.domain.configs.config import EngineConfig
from launchers.trtllm.keys import (
    ALL2ALL,
    ALL2ALL_VARIABLE,
    ATTENTION_DP,
    CHOICES,
    COMPILE,
    CONTEXT_CONFIG,
    CONTEXT_PARALLEL,
    DECODING_TYPES,
    DRAFT_MODEL,
    DRAFT_TOKENS,
    ENABLE_LORA,
    EXPERT_PARALLEL,
    GRAPHS,
    LOOKUP_MAX,
    LORA,
    LORA_SHAPE,
    POLICIES,
    SCHEDULER,
    SPECULATIVE,
    TENSOR_PARALLEL,
    TOKENS_PER_BLOCK,
    TOKENS_PER_BLOCK_DEFAULT,
    VALUED,
)

Options = dict[str, Any]
"""Values by key, nested keys with dots: ``kv_cache_config.dtype``."""


def llm_options(config: EngineConfig, *, engine: str = "trtllm") -> Options:
    """Options in which ``config`` differs from the defaults; InfeasibleConfigError for what none says."""
    try:
        return {
            **_parallel(config),
            **_valued(config),
            **_scheduling(config),
            **_graphs(config),
            **_speculation(config),
            **_lora(config),
        }
    except InfeasibleConfigError as refused:
        raise InfeasibleConfigError(f"{engine}: {refused}") from refused


def llm_environment(config: EngineConfig, *, engine: str = "trtllm") -> dict[str, str]:
    """Environment variables for words that are no option; InfeasibleConfigError for other values."""
    if config.all2all_backend is None:
        return {}
    return {
        ALL2ALL_VARIABLE: _chosen("all2all_backend", config.all2all_backend, ALL2ALL, engine=f"{engine}: ")
    }


def yaml_text(options: Mapping[str, Any]) -> str:
    """Write options as YAML, the same for the same options."""
    nested: dict[str, Any] = {}
    for key, value in options.items():
        *outer, last = key.split(".")
        place = nested
        for name in outer:
            place = place.setdefault(name, {})
        place[last] = value
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    text = StringIO()
    yaml.dump(nested, text)
    return text.getvalue()


def _parallel(config: EngineConfig) -> Options:
    """Ranks as ``Mapping`` counts them: one stage has TP x CP of them, attention replicas among TP.

    Its attention is data-parallel over all of its TP ranks or over none (llmapi/llm_args.py).
    """
    tensor, data, split = config.tensor_parallel, config.data_parallel, config.context_parallel
    if config.dp_attention and (tensor or 1) > 1:
        raise InfeasibleConfigError(
            f"attention is data-parallel over all ranks or none: dp_attention with tensor_parallel {tensor}"
        )
    if (data or 1) > 1 and not config.dp_attention:
        raise InfeasibleConfigError(
            f"one server has no replicas: data_parallel {data} needs dp_attention: true"
        )
    if (tensor or 1) % (split or 1):
        raise InfeasibleConfigError(f"context_parallel {split} does not divide tensor_parallel {tensor}")
    stage = (tensor or 1) * (data or 1)
    options: Options = {}
    if tensor is not None or data is not None:
        options[TENSOR_PARALLEL] = stage // (split or 1)
    if split is not None:
        options[CONTEXT_PARALLEL] = split
    if (split or 1) > 1:
        # Helix; its blocks must be as large as the KV cache's (llm_args.py).
        block = config.block_size or TOKENS_PER_BLOCK_DEFAULT
        options[CONTEXT_CONFIG] = {"cp_type": "HELIX", "tokens_per_block": block}
        options[TOKENS_PER_BLOCK] = block
    if config.dp_attention is not None:
        options[ATTENTION_DP] = config.dp_attention
    if config.expert_parallel is not None:
        # Helix ranks hold experts too (mapping.py, moe_world_size).
        options[EXPERT_PARALLEL] = stage if config.expert_parallel else 1
    return options


def _valued(config: EngineConfig) -> Options:
    options: Options = {}
    for word, key in VALUED.items():
        if (value := getattr(config, word)) is not None:
            options[key] = _chosen(word, value, CHOICES[key]) if key in CHOICES else value
    return options


def _chosen(word: str, value: str, choices: tuple[str, ...], *, engine: str = "") -> str:
    """The spelling of a value among ``choices``; raises InfeasibleConfigError if it is none of them."""
    for choice in choices:
        if value.lower() == choice.lower():
            return choice
    raise InfeasibleConfigError(f"{engine}{word} cannot be {value!r}; choices: {', '.join(choices)}")


def _scheduling(config: EngineConfig) -> Options:
    if config.scheduling_policy is None:
        return {}
    policy = _chosen("scheduling_policy", config.scheduling_policy, tuple(POLICIES))
    key, value = POLICIES[policy]
    return {f"{SCHEDULER}.{key}": value}


def _graphs(config: EngineConfig) -> Options:
    """Graphs are captured and nothing is compiled unless it is said otherwise; null is "none"."""
    wanted = {
        word: getattr(config, word)
        for word in ("graph_capture", "graph_max_batch", "compilation")
        if getattr(config, word)
    }
    if config.eager and wanted:
        raise InfeasibleConfigError(f"eager leaves no room for {', '.join(wanted)}")
    if config.graph_capture is False and config.graph_max_batch:
        raise InfeasibleConfigError("graph_max_batch needs graph_capture")
    options: Options = {}
    if config.eager or config.graph_capture is False:
        options[GRAPHS] = None
    elif config.graph_capture or config.graph_max_batch:
        # A batch between two sizes has a graph only if it may be padded.
        options[f"{GRAPHS}.enable_padding"] = True
        if config.graph_max_batch:
            options[f"{GRAPHS}.max_batch_size"] = config.graph_max_batch
    if config.compilation is not None:
        options[COMPILE] = {"enable_fullgraph": True} if config.compilation else None
    elif config.eager:
        options[COMPILE] = None
    return options


def _speculation(config: EngineConfig) -> Options:
    method = config.speculation
    own = {
        word: getattr(config, word)
        for word in ("speculative_tokens", "speculative_model", "prompt_lookup_max")
        if getattr(config, word) is not None
    }
    if method in {None, "none"}:
        if own:
            raise InfeasibleConfigError(f"{', '.join(own)} needs speculation")
        return {}
    if method == "eagle":
        raise InfeasibleConfigError("speculation: eagle is not served, only eagle3 and its draft checkpoints")
    assert method is not None, "returned above"
    if method != "mtp" and "speculative_tokens" not in own:
        raise InfeasibleConfigError(f"speculation: {method} needs speculative_tokens")
    if method in {"draft_model", "eagle3"} and "speculative_model" not in own:
        raise InfeasibleConfigError(f"speculation: {method} needs speculative_model")
    if method == "ngram" and "speculative_model" in own:
        raise InfeasibleConfigError("speculative_model needs speculation: draft_model, eagle3 or mtp")
    if method != "ngram" and "prompt_lookup_max" in own:
        raise InfeasibleConfigError("prompt_lookup_max needs speculation: ngram")
    keys = {
        "speculative_tokens": DRAFT_TOKENS,
        "speculative_model": DRAFT_MODEL,
        "prompt_lookup_max": LOOKUP_MAX,
    }
    given = {f"{SPECULATIVE}.{keys[word]}": value for word, value in own.items()}
    return {f"{SPECULATIVE}.decoding_type": DECODING_TYPES[method], **given}


def _lora(config: EngineConfig) -> Options:
    if config.lora is None:
        return {}
    return {LORA: dict(LORA_SHAPE)} if config.lora else {ENABLE_LORA: False}
