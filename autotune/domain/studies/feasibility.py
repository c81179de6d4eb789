"""Rules by which a configuration is refused on paper: each is provable, and is shown with the refusal.

Rules that hold for every engine, or for a family of them, live here and in ``shape_rules``; those of one
engine are its launcher's, which refuses in ``launch_spec``. What is only likely to fail is launched, but
``probability_it_runs`` says how likely it is to run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from statistics import median

from autotune.domain.configs.config import EngineConfig
from autotune.domain.hardware.hardware import Device, DeviceKind, Hardware
from autotune.domain.models.checkpoint import StoredWeights
from autotune.domain.models.memory import GIB, Constants, MemoryNeed, calibrated, family_of, memory_needs
from autotune.domain.models.model import ModelShape
from autotune.domain.models.precision import why_not_on_cpu, why_too_old
from autotune.domain.models.shape_rules import SHAPE_RULES, ShapeRule, Worker, cuts_tiles
from autotune.domain.studies.study import Requirements


@dataclass(frozen=True, slots=True)
class KnownModel:
    """What is at hand of a model that configurations name: its config.json, and what its files say."""

    shape: ModelShape | None = None
    stored: StoredWeights | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What a configuration must fit into; ``model`` is None where its config.json is not at hand.

    ``real_text``: every workload's prompts are text that people wrote. ``args`` are the study's own arguments
    of the engine. ``stored`` is what the checkpoint's files say, where they are at hand. ``named`` are the
    checkpoints and draft models that configurations name. ``constants`` are those of the memory model, by
    engine where a launch of the study has shown better ones.
    """

    hardware: Hardware
    model: ModelShape | None
    requirements: Requirements
    longest_request_tokens: int
    real_text: bool = False
    args: tuple[str, ...] = ()
    stored: StoredWeights | None = None
    named: Mapping[str, KnownModel] = field(default_factory=dict)
    constants: Constants = field(default_factory=Constants)
    calibrated: Mapping[str, Constants] = field(default_factory=dict)

    def of(self, config: EngineConfig) -> Setting:
        """The same with the model that a configuration loads, where it has a checkpoint of its own."""
        if not config.checkpoint:
            return self
        loaded = self.named.get(config.checkpoint, KnownModel())
        return replace(self, model=loaded.shape, stored=loaded.stored)

    def draft(self, config: EngineConfig) -> ModelShape | None:
        """Shape of the model that proposes tokens, where it is one of its own and at hand."""
        named = config.speculative_model if config.speculation == "draft_model" else None
        return self.named.get(named or "", KnownModel()).shape


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a configuration cannot run, and by which rule; rules keep their ids."""

    rule: str
    why: str

    def __str__(self) -> str:
        return f"{self.why} [{self.rule}]"


Rule = Callable[[EngineConfig, Setting], str | None]

CPU_BLOCK_TOKENS = 32
CUT_TILES_RUN = 0.5
"""Chance that an engine runs experts whose slices are not whole tiles of a quantised checkpoint."""


def refusal(config: EngineConfig, setting: Setting) -> Refusal | None:
    """The first rule that the configuration breaks; None when it breaks none."""
    setting = setting.of(config)
    broken = ((name, rule(config, setting)) for name, rule in RULES.items())
    return next((Refusal(name, why) for name, why in broken if why), None)


def why_infeasible(config: EngineConfig, setting: Setting) -> str | None:
    """The same in words, which end in the rule's id in brackets."""
    refused = refusal(config, setting)
    return str(refused) if refused else None


def probability_it_runs(config: EngineConfig, setting: Setting) -> float:
    """Chance that the configuration starts and answers its longest request; 0 where it is refused.

    By the memory model, the pools of a configuration taken together (``probability_of_fitting``); half where
    tiles of a quantised checkpoint are cut, which some versions do not run; 1 where nothing is known of model
    or devices.
    """
    if refusal(config, setting):
        return 0.0
    setting = setting.of(config)
    workers: tuple[Worker, ...] = (*config.pools.values(),) or (config,)
    cut = setting.model is not None and any(cuts_tiles(worker, setting.model) for worker in workers)
    return (CUT_TILES_RUN if cut else 1.0) * prod(
        need.probability_of_fitting(_longest_tokens(config, setting))
        for need in _memory_needs(config, setting)
    )


def calibrated_by(setting: Setting, held: Iterable[tuple[EngineConfig, int]]) -> Setting:
    """The setting whose memory model says what engines logged of their KV caches, in tokens of one replica.

    Of several launches of an engine the median counts: it is one constant that they all correct.
    """
    found: dict[str, list[Constants]] = {}
    for config, kv_tokens in held:
        here = replace(setting.of(config), calibrated={})
        context = config.context_length or (here.model.most_positions if here.model else 0)
        for need in _memory_needs(config, here) if context else ():
            constants = calibrated(here.constants, need, kv_tokens=kv_tokens, context_length=context)
            found.setdefault(config.engine, []).append(constants)
    medians = {
        engine: replace(setting.constants, runtime_bytes=median(each.runtime_bytes for each in several))
        for engine, several in found.items()
    }
    return replace(setting, calibrated=medians)


def _devices(config: EngineConfig, setting: Setting) -> str | None:
    here = setting.hardware.count
    most = min(setting.requirements.most_gpus or here, here)
    if config.devices > most:
        return f"needs {config.devices} devices (TP x PP x DP), {most} may be used"
    return None


def _of_shape(rule: ShapeRule) -> Rule:
    """A rule of shapes as one of configurations: it holds for every pool."""

    def check(config: EngineConfig, setting: Setting) -> str | None:
        model = setting.model
        if model is None or _is_altered(config, setting):
            return None
        workers: dict[str, Worker] = {**config.pools} or {"": config}
        whys = ((name, rule(config.engine, worker, model)) for name, worker in workers.items())
        return next((f"{name}: {why}" if name else why for name, why in whys if why), None)

    return check


def _context(config: EngineConfig, setting: Setting) -> str | None:
    context, model = config.context_length, setting.model
    most = model.most_positions if model and not _is_altered(config, setting) else 0
    if context and most and context > most:
        return f"context_length {context} is beyond the model's {most} positions"
    least = max(setting.requirements.context_length or 0, setting.longest_request_tokens)
    served = context or most
    if served and served < least:
        return f"serves {served} tokens of context, {least} are required"
    return None


def _speculation(config: EngineConfig, setting: Setting) -> str | None:
    if config.speculation in {None, "none"} and (config.speculative_tokens or config.prompt_lookup_max):
        return "speculative_tokens and prompt_lookup_max mean nothing without speculation"
    if config.speculation == "draft_model" and not config.speculative_model:
        return "speculation by draft_model needs a speculative_model"
    model = setting.model
    if config.speculation == "mtp" and not config.speculative_model and model and not model.draft_layers:
        return "speculation by mtp needs a model with layers that draft, and this one has none"
    return None


def _draft(config: EngineConfig, setting: Setting) -> str | None:
    """A draft model proposes tokens of the same vocabulary, and its heads are split as the target's are.

    vLLM 0.32 ``SpeculativeConfig._verify_args``.
    """
    draft, model, tp = setting.draft(config), setting.model, config.tensor_parallel or 1
    if draft is None or model is None or family_of(config.engine) != "vllm" or _is_altered(config, setting):
        return None
    if draft.vocab_size != model.vocab_size:
        return (
            f"{config.speculative_model} proposes from a vocabulary of {draft.vocab_size}, the model's "
            f"has {model.vocab_size}"
        )
    if draft.attention_heads % tp:
        return f"tensor_parallel {tp} does not divide the {draft.attention_heads} heads of the draft model"
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


def _block_size(config: EngineConfig, setting: Setting) -> str | None:
    """Blocks that vLLM's attention on CPUs can read (0.32, v1/attention/backends/cpu_attn.py).

    Latent attention and states choose blocks of their own.
    """
    size, model = config.block_size, setting.model
    on_cpu = setting.hardware.kind is DeviceKind.CPU and family_of(config.engine) == "vllm"
    if not on_cpu or size is None or model is None or model.latent or model.state:
        return None
    if size % CPU_BLOCK_TOKENS:
        return f"block_size {size} is no multiple of {CPU_BLOCK_TOKENS}, which vLLM wants on a CPU"
    return None


def _kv_on_cores(config: EngineConfig, setting: Setting) -> str | None:
    """fp8 caches that vLLM's attention on CPUs can read (0.32, v1/attention/backends/cpu_attn.py)."""
    kind, model = config.kv_cache_dtype or "", setting.model
    on_cpu = setting.hardware.kind is DeviceKind.CPU and family_of(config.engine) == "vllm"
    if not on_cpu or not kind.startswith("fp8") or model is None or model.latent or model.state:
        return None
    if all(device.instructions == frozenset() for device in setting.hardware.devices):
        return f"kv_cache_dtype {kind} needs AVX-512 or AMX on a CPU, and this one has neither"
    return None


def _precision(config: EngineConfig, setting: Setting) -> str | None:
    """Compute capabilities that an engine itself demands (``precision``, with the source of each)."""
    if setting.hardware.kind is DeviceKind.CPU:
        return why_not_on_cpu(family_of(config.engine), setting.model, config.quantization)
    if setting.hardware.kind is not DeviceKind.CUDA or not setting.hardware.devices:
        return None
    oldest = min(device.compute_capability for device in setting.hardware.devices)
    return why_too_old(family_of(config.engine), setting.model, config.words, oldest)


_NEED_A_QUANTISED_CHECKPOINT = {
    "awq": "awq",
    "awq_marlin": "awq",
    "auto_awq": "awq",
    "gptq": "gptq",
    "gptq_marlin": "gptq",
    "auto_gptq": "gptq",
    "compressed-tensors": "compressed-tensors",
}
"""Words that only read what a checkpoint was quantised to, by the family of checkpoints that they read."""


def _checkpoint(config: EngineConfig, setting: Setting) -> str | None:
    """A word that reads quantised weights finds them (vLLM ``_verify_quantization``; SGLang alike)."""
    model, word, family = setting.model, config.quantization or "", family_of(config.engine)
    wanted = _NEED_A_QUANTISED_CHECKPOINT.get(word)
    if family == "vllm" and word == "modelopt" and setting.stored is not None:
        wanted = word  # told in a file of its own, which is only known not to be there if all files are
    if model is None or wanted is None or family not in {"vllm", "sglang"}:
        return None
    if model.quantization is None:
        return f"quantization {word} reads weights that were quantised before, and these were not"
    families = {*_NEED_A_QUANTISED_CHECKPOINT.values(), "fp8", "mxfp4"}
    method = model.quantization.method
    if method in families and method != wanted:
        return f"quantization {word} does not read a checkpoint that was quantised by {method}"
    return None


def _memory(config: EngineConfig, setting: Setting) -> str | None:
    """The least that weights and the longest request need is beyond what a device has."""
    if _is_altered(config, setting):
        return None
    for need in _memory_needs(config, setting):
        weights, budget = need.weights.least, need.least_budget_bytes
        if weights > budget:
            return f"weights are {_gib(weights)} GiB a device at the least, {_gib(budget)} may be used"
        tokens = _longest_tokens(config, setting)
        if need.least_bytes(tokens) > budget:
            cache = need.least_bytes(tokens) - weights
            return (
                f"weights are {_gib(weights)} GiB a device at the least and {tokens} tokens of context "
                f"{_gib(cache)} GiB, {_gib(budget)} may be used"
            )
    return None


def _longest_tokens(config: EngineConfig, setting: Setting) -> int:
    """Tokens of one sequence that must fit: the longest request, and vLLM's context before it starts."""
    longest = max(setting.requirements.context_length or 0, setting.longest_request_tokens)
    refuses = family_of(config.engine) == "vllm"
    return max(longest, config.context_length or 0) if refuses else longest


def _memory_needs(config: EngineConfig, setting: Setting) -> Iterator[MemoryNeed]:
    memory_bytes = _memory_bytes(setting.hardware.devices)
    if setting.model is None or not memory_bytes or family_of(config.engine) == "":
        return
    needs = memory_needs(
        config,
        setting.model,
        memory_bytes,
        stored=setting.stored,
        draft=setting.draft(config),
        constants=setting.calibrated.get(config.engine, setting.constants),
    )
    yield from needs.values()


def _memory_bytes(devices: tuple[Device, ...]) -> int:
    """Memory of the largest device; 0 for cores, which share the host's, and that may be swapped."""
    return max((d.memory_bytes for d in devices if d.kind is not DeviceKind.CPU), default=0)


_ALTERING = re.compile(
    r"offload|override|rope|quantization|cache.dtype|load.format|parallel|^--?(q|tp|pp|dp|ep)\b"
)
"""Arguments that change the model or its split, or keep weights and cache elsewhere or smaller."""


def _is_altered(config: EngineConfig, setting: Setting) -> bool:
    """Whether arguments that have no word here may change what the model is, so that nothing is certain."""
    given = (*config.extra_args, *setting.args)
    return any(_ALTERING.search(argument) for argument in given)


def _gib(value_bytes: float) -> str:
    return f"{value_bytes / GIB:.1f}"


RULES: dict[str, Rule] = {
    "devices": _devices,
    **{name: _of_shape(rule) for name, rule in SHAPE_RULES.items()},
    "context": _context,
    "speculation": _speculation,
    "draft": _draft,
    "real-text": _real_text,
    "sampling": _sampling,
    "features": _required_features,
    "block-size": _block_size,
    "kv-on-cores": _kv_on_cores,
    "precision": _precision,
    "checkpoint": _checkpoint,
    "memory": _memory,
}
"""Every rule by its id, in the order in which they are asked."""
