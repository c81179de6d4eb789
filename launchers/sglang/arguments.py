"""Writes the arguments of one server for the words of a configuration."""

from __future__ import annotations

from collections.abc import Container, Sequence

from autotune.domain.basics.errors import InfeasibleConfigError
from autotune.domain.configs.config import EngineConfig
from launchers.options import Tokens
from launchers.sglang.flags import (
    ALGORITHM,
    ALGORITHMS,
    ATTENTION_DP,
    CHUNK,
    DP_ATTENTION,
    DP_SIZE,
    DRAFT_MODEL,
    DRAFT_STEPS,
    DRAFT_TOKENS,
    DRAFT_TOP_K,
    EP_SIZE,
    LORA_FLAGS,
    LORA_SHAPE,
    MAX_RUNNING,
    NAMES,
    PREFILL_BATCH,
    PREFILL_BATCH_DEFAULT,
    TABLE,
    TP_SIZE,
)


def word_tokens(config: EngineConfig, args: Sequence[str], flags: Container[str] = ()) -> dict[str, Tokens]:
    """Tokens by the word that asks for them.

    ``args`` are the study's own, which stand behind them; ``flags`` are those of the installed parser, none:
    it was not asked. Raises InfeasibleConfigError for what SGLang cannot do, or would quietly not do.
    """
    _refuse_impossible(config)
    tokens = {**_parallel(config, flags), **TABLE.tokens(config)}
    for word, names in NAMES.items():
        if word in tokens:
            flag, value = tokens[word]
            tokens[word] = (flag, names.get(value, value))
    if config.quantization == "none":
        del tokens["quantization"]
    given = {option.flag for option in TABLE.read((*config.extra_args, *args))[0]}
    if config.lora and not given & LORA_FLAGS:
        tokens["lora"] += LORA_SHAPE
    return {**tokens, **_batching(config), **_speculation(config)}


def _parallel(config: EngineConfig, flags: Container[str]) -> dict[str, Tokens]:
    """SGLang's tensor-parallel group holds the replicas of data-parallel attention; ours lie side by side."""
    tokens: dict[str, Tokens] = {}
    sharing = _sharing(config)
    group = (config.tensor_parallel or 1) * sharing
    if config.tensor_parallel is not None or group > 1:
        tokens["tensor_parallel"] = (TP_SIZE, str(group))
    if sharing > 1:
        older = TP_SIZE in flags and ATTENTION_DP not in flags
        words = (DP_SIZE, str(sharing), DP_ATTENTION) if older else (ATTENTION_DP, str(sharing))
        tokens["dp_attention"] = words
    elif config.data_parallel is not None:
        tokens["data_parallel"] = (DP_SIZE, str(config.data_parallel))
    if config.expert_parallel:
        tokens["expert_parallel"] = (EP_SIZE, str(group))
    return tokens


def _sharing(config: EngineConfig) -> int:
    """Replicas of the attention layers among which SGLang divides what it is given for all of them."""
    return (config.data_parallel or 1) if config.dp_attention else 1


def _batching(config: EngineConfig) -> dict[str, Tokens]:
    """Both bounds are per replica for us; SGLang divides its own by the replicas of data-parallel attention.

    srt/model_executor/pool_configurator.py, srt/arg_groups/parallel_hook.py; a prefill batch is not divided.
    """
    tokens: dict[str, Tokens] = {}
    sharing, step = _sharing(config), config.max_num_batched_tokens
    if config.max_num_seqs is not None:
        tokens["max_num_seqs"] = (MAX_RUNNING, str(config.max_num_seqs * sharing))
    if config.chunked_prefill is False:
        tokens["chunked_prefill"] = (CHUNK, "-1")
        if step is not None:
            tokens["max_num_batched_tokens"] = (PREFILL_BATCH, str(step))
    elif step is not None:
        # A batch of prompts ends at the lower of the two.
        wider = (PREFILL_BATCH, str(step)) if step > PREFILL_BATCH_DEFAULT else ()
        tokens["max_num_batched_tokens"] = (CHUNK, str(step * sharing), *wider)
    return tokens


def _speculation(config: EngineConfig) -> dict[str, Tokens]:
    """A chain of proposals; SGLang counts the token that they follow among the draft tokens."""
    if config.speculation in {None, "none"}:
        return {}
    tokens: dict[str, Tokens] = {"speculation": (ALGORITHM, ALGORITHMS[str(config.speculation)])}
    if config.speculative_model is not None:
        tokens["speculative_model"] = (DRAFT_MODEL, config.speculative_model)
    if (proposed := config.speculative_tokens) is not None:
        chain = (DRAFT_STEPS, str(proposed), DRAFT_TOP_K, "1") if config.speculation != "ngram" else ()
        tokens["speculative_tokens"] = (*chain, DRAFT_TOKENS, str(proposed + 1))
    return tokens


def _refuse_impossible(config: EngineConfig) -> None:
    """Raise for what SGLang refuses whatever the model, and for words that would have no effect."""
    for word in ("speculative_tokens", "speculative_model"):
        if word in config.words and config.speculation in {None, "none"}:
            raise InfeasibleConfigError(f"sglang: {word} needs speculation")
    if why := _contradiction(config) or _unsupported(config):
        raise InfeasibleConfigError(f"sglang: {why}")


def _contradiction(config: EngineConfig) -> str | None:
    """Two words of which one would quietly lose."""
    graphs = [word for word in ("graph_capture", "graph_max_batch", "compilation") if config.words.get(word)]
    if config.eager and graphs:
        return f"eager leaves no {graphs[0]}"
    if config.graph_capture is False and config.graph_max_batch:
        return "graph_max_batch needs graph_capture"
    if config.dp_attention and (config.data_parallel or 1) == 1:
        return "dp_attention needs data_parallel above 1, and is turned off without"
    if config.expert_parallel is False and config.all2all_backend not in {None, "none"}:
        return f"all2all_backend {config.all2all_backend} turns expert_parallel on"
    if config.speculation in {"draft_model", "eagle", "eagle3"} and config.speculative_model is None:
        return f"speculation {config.speculation} needs speculative_model"
    if config.speculation == "ngram" and config.speculative_model is not None:
        return "speculation ngram has no speculative_model"
    return None


def _unsupported(config: EngineConfig) -> str | None:
    """What srt/arg_groups/validation_hook.py, attention_hook.py and speculative_hook.py refuse."""
    cp, tp = config.context_parallel or 1, config.tensor_parallel or 1
    if tp % cp:
        return f"context_parallel {cp} does not divide tensor_parallel {tp}"
    if config.speculation in {"ngram", "draft_model", "eagle3"} and (config.pipeline_parallel or 1) > 1:
        return f"no speculation {config.speculation} with pipeline_parallel"
    if config.dp_attention and config.speculation in {"ngram", "draft_model"}:
        return f"no speculation {config.speculation} with dp_attention"
    step, page = config.max_num_batched_tokens, config.block_size
    if config.chunked_prefill is not False and step and page and step % page:
        return f"max_num_batched_tokens {step} is no multiple of block_size {page}"
    return None
