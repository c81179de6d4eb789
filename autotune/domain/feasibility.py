"""Rules by which a configuration is refused on paper: each is provable, and is shown with the refusal.

Rules that hold for every engine live here; those of one engine are its launcher's, which refuses in
``launch_spec``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from autotune.domain.config import EngineConfig
from autotune.domain.hardware import Hardware
from autotune.domain.model import ModelShape
from autotune.domain.study import Requirements


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What a configuration must fit into; ``model`` is None where its config.json is not at hand.

    ``real_text``: every workload's prompts are text that people wrote.
    """

    hardware: Hardware
    model: ModelShape | None
    requirements: Requirements
    longest_request_tokens: int
    real_text: bool = False


Rule = Callable[[EngineConfig, Setting], str | None]


def why_infeasible(config: EngineConfig, setting: Setting) -> str | None:
    """Return the first rule that the configuration breaks, in words; None when none does."""
    return next((why for rule in RULES if (why := rule(config, setting))), None)


def _devices(config: EngineConfig, setting: Setting) -> str | None:
    here = setting.hardware.count
    most = min(setting.requirements.most_gpus or here, here)
    if config.ranks > most:
        return f"needs {config.ranks} devices (TP x PP x DP), {most} may be used"
    return None


def _heads(config: EngineConfig, setting: Setting) -> str | None:
    tp, model = config.tensor_parallel or 1, setting.model
    if model and model.attention_heads and model.attention_heads % tp:
        return f"tensor_parallel {tp} does not divide the model's {model.attention_heads} attention heads"
    return None


def _layers(config: EngineConfig, setting: Setting) -> str | None:
    pp, model = config.pipeline_parallel or 1, setting.model
    if model and model.layers and pp > model.layers:
        return f"pipeline_parallel {pp} is more than the model's {model.layers} layers"
    return None


def _experts(config: EngineConfig, setting: Setting) -> str | None:
    if config.expert_parallel and setting.model and not setting.model.experts:
        return "expert_parallel needs a model with experts, and this one has none"
    return None


def _context(config: EngineConfig, setting: Setting) -> str | None:
    context, model = config.context_length, setting.model
    most = model.most_positions if model else 0
    if context and most and context > most:
        return f"context_length {context} is beyond the model's {most} positions"
    least = max(setting.requirements.context_length or 0, setting.longest_request_tokens)
    served = context or most
    if served and served < least:
        return f"serves {served} tokens of context, {least} are required"
    return None


def _speculation(config: EngineConfig, _: Setting) -> str | None:
    if config.speculation in {None, "none"} and (config.speculative_tokens or config.prompt_lookup_max):
        return "speculative_tokens and prompt_lookup_max mean nothing without speculation"
    return None


def _real_text(config: EngineConfig, setting: Setting) -> str | None:
    if config.speculation not in {None, "none"} and not setting.real_text:
        return (
            "speculation is ranked on real text alone, random tokens cannot be foretold: give every workload "
            "`prompts: {text: FOLDER}`"
        )
    return None


def _sampling(config: EngineConfig, setting: Setting) -> str | None:
    dropped = {"min_p", "logit_bias"} & set(setting.requirements.sampling)
    if config.speculation not in {None, "none"} and dropped:
        return f"speculation refuses requests that use {' or '.join(sorted(dropped))}, which are required"
    return None


def _required_features(config: EngineConfig, setting: Setting) -> str | None:
    if setting.requirements.lora and not config.lora:
        return "LoRA is required and this configuration turns it off"
    if setting.requirements.tools and config.tool_parser != setting.requirements.tools:
        return f"tools through {setting.requirements.tools!r} are required"
    return None


RULES: tuple[Rule, ...] = (
    _devices,
    _heads,
    _layers,
    _experts,
    _context,
    _speculation,
    _real_text,
    _sampling,
    _required_features,
)
