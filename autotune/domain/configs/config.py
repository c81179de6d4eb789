"""The common vocabulary in which configurations of every engine are written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

Value = bool | int | float | str
"""What a dimension of a search space can take."""

Fraction = Annotated[float, Field(gt=0, le=1)]


class _Shape(BaseModel):
    """Words that the pools of a disaggregated engine may have each their own of."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tensor_parallel: PositiveInt | None = Field(None, description="ranks that share each layer")
    pipeline_parallel: PositiveInt | None = Field(None, description="stages of consecutive layers")
    data_parallel: PositiveInt | None = Field(None, description="replicas of the attention layers")
    dp_attention: bool | None = Field(
        None, description="data-parallel replicas share one set of experts; false: whole replicas"
    )
    expert_parallel: bool | None = Field(None, description="whole experts per rank, not slices of each")
    context_parallel: PositiveInt | None = Field(
        None, description="tensor-parallel ranks that split the KV cache of each sequence between them"
    )
    max_num_seqs: PositiveInt | None = Field(None, description="requests decoded together, per replica")
    max_num_batched_tokens: PositiveInt | None = Field(None, description="tokens in one forward step")
    memory_fraction: Fraction | None = Field(None, description="share of device memory to use")
    eager: bool | None = Field(None, description="no graph capture, no compilation")
    graph_capture: bool | None = Field(None, description="decode steps are replayed from captured graphs")
    graph_max_batch: PositiveInt | None = Field(None, description="largest batch that has a graph")
    moe_backend: str | None = Field(None, description="kernels of the experts")
    all2all_backend: str | None = Field(None, description="how tokens travel to their experts")

    @property
    def ranks(self) -> int:
        """Devices of one worker: TP x PP x DP, whatever the engine calls them."""
        return (self.tensor_parallel or 1) * (self.pipeline_parallel or 1) * (self.data_parallel or 1)


class Pool(_Shape):
    """Workers of a disaggregated engine that do one of the two phases, where they differ from the rest."""

    workers: PositiveInt | None = Field(None, description="engines in the pool")


POOLS = ("prefill", "decode")


class EngineConfig(_Shape):
    """One configuration of one engine; ``None`` leaves the word to the engine's own default.

    Words of a pool are written ``prefill.workers``; what a pool does not say, the common word says.
    """

    engine: str
    chunked_prefill: bool | None = Field(None, description="prompts may be split over steps")
    prefix_caching: bool | None = Field(None, description="KV blocks of shared prefixes are kept")
    scheduling_policy: str | None = Field(None, description="order in which waiting requests are taken")
    speculation: Literal["none", "ngram", "draft_model", "eagle", "eagle3", "mtp"] | None = Field(
        None, description="speculative decoding method"
    )
    speculative_tokens: PositiveInt | None = Field(None, description="tokens proposed per step")
    speculative_model: str | None = Field(
        None, description="model that proposes (draft_model, eagle, eagle3)"
    )
    prompt_lookup_max: PositiveInt | None = Field(None, description="longest n-gram looked up (ngram)")
    dtype: str | None = Field(None, description="precision of activations and unquantised weights")
    checkpoint: str | None = Field(
        None, description="the same model as somebody quantised it: a folder, or a name on the hub"
    )
    quantization: str | None = Field(None, description="weight quantisation; none for none")
    kv_cache_dtype: str | None = Field(None, description="precision of the KV cache")
    attention_backend: str | None = Field(None, description="kernels of the attention layers")
    block_size: PositiveInt | None = Field(None, description="tokens per KV block")
    context_length: PositiveInt | None = Field(None, description="longest prompt plus output, tokens")
    compilation: bool | None = Field(None, description="the model is compiled before it serves")
    lora: bool | None = Field(None, description="LoRA adapters can be served")
    tool_parser: str | None = Field(None, description="parser of tool calls; turns tools on")
    kv_transfer: str | None = Field(None, description="how KV blocks travel between the pools")
    profile: str | None = Field(None, description="what a container's maker tuned, by its id (NIM)")
    power_limit_w: PositiveInt | None = Field(None, description="power limit of each GPU, watts")
    graphics_clock_mhz: PositiveInt | None = Field(None, description="clock that each GPU is locked to")
    prefill: Pool | None = None
    decode: Pool | None = None
    extra_args: tuple[str, ...] = Field((), description="engine arguments that have no word here")

    @model_validator(mode="before")
    @classmethod
    def _gathered(cls, given: Any) -> Any:
        """Take ``prefill.workers: 2`` for what it says."""
        if not isinstance(given, Mapping):
            return given
        words = {name: value for name, value in given.items() if "." not in name}
        for name in given.keys() - words.keys():
            pool, _, word = name.partition(".")
            inner = words.get(pool) or {}
            words[pool] = {**(inner.model_dump(exclude_none=True) if isinstance(inner, Pool) else inner)}
            words[pool][word] = given[name]
        return words

    @property
    def pools(self) -> dict[str, Pool]:
        """Pools of a disaggregated configuration, each whole: common words where it has none of its own."""
        if self.prefill is None and self.decode is None:
            return {}
        common = {word: getattr(self, word) for word in _Shape.model_fields}
        pools = {name: getattr(self, name) or Pool() for name in POOLS}
        return {
            name: Pool.model_validate({**common, **pool.model_dump(exclude_none=True)})
            for name, pool in pools.items()
        }

    @property
    def devices(self) -> int:
        """Devices that the configuration occupies, its pools together."""
        pools = self.pools.values()
        return sum((pool.workers or 1) * pool.ranks for pool in pools) if pools else self.ranks

    @property
    def models_named(self) -> tuple[str, ...]:
        """Models that its words name, beside the study's."""
        return tuple(self.words[word] for word in MODEL_WORDS if word in self.words)

    @property
    def widest_tensor_parallel(self) -> int:
        """Ranks of the largest group that shares layers."""
        return max(
            (pool.tensor_parallel or 1 for pool in self.pools.values()), default=self.tensor_parallel or 1
        )

    @property
    def words(self) -> dict[str, Any]:
        """The words that are set, in the order of the vocabulary, the engine's name left out."""
        words = self.model_dump(exclude_none=True, exclude_defaults=True, exclude={"engine", *POOLS})
        for name in POOLS:
            pool: Pool | None = getattr(self, name)
            own = pool.model_dump(exclude_none=True) if pool else {}
            words |= {f"{name}.{word}": value for word, value in own.items()}
        return words

    @property
    def key(self) -> str:
        """Identity of the configuration: equal for equal words, stable over versions and processes."""
        canonical = json.dumps({"engine": self.engine, **self.words}, sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def replaced(self, words: Mapping[str, Any]) -> EngineConfig:
        """Return a copy in which ``words`` take the place of mine; raises pydantic's ValidationError."""
        return EngineConfig.model_validate({"engine": self.engine, **self.words, **words})

    def label(self, but: EngineConfig | None = None) -> str:
        """Short text for tables: the words set here and not alike in ``but``."""
        common = but.words if but else {}
        own = {k: v for k, v in self.words.items() if common.get(k) != v}
        shown = " ".join(_show(word, value) for word, value in own.items()) or "engine defaults"
        return f"{self.engine}: {shown}" if but and but.engine != self.engine else shown


def _show(word: str, value: Any) -> str:
    if isinstance(value, bool):
        return word if value else f"no-{word}"
    return f"{word}={' '.join(value) if isinstance(value, tuple) else value}"


SETTING_WORDS = ("power_limit_w", "graphics_clock_mhz")
"""Settings of the devices: they change under a running engine, which needs no launch for them."""

MODEL_WORDS = ("checkpoint", "speculative_model")
"""Words whose values are models: folders, or names on the hub."""

SEARCHABLE = (
    *(name for name in EngineConfig.model_fields if name not in {"engine", "extra_args", *POOLS}),
    *(f"{pool}.{word}" for pool in POOLS for word in Pool.model_fields),
)
"""Words that a search space may have as dimensions."""


def error_at(what: str, *where: str | int) -> ValidationError:
    """What a validator raises about a place inside its value; ``what`` may end in ``; remedy``."""
    complaint = PydanticCustomError("value_error", "{what}", {"what": what})
    return ValidationError.from_exception_data(
        "input", [InitErrorDetails(type=complaint, loc=where, input=None)]
    )


def check_words(words: Mapping[str, Value]) -> None:
    """Raise pydantic's ValidationError, placed at the word, for what the vocabulary does not have."""
    strange = [word for word in words if word not in SEARCHABLE]
    if strange:
        unknown = [InitErrorDetails(type="extra_forbidden", loc=(w,), input=words[w]) for w in strange]
        raise ValidationError.from_exception_data("words", unknown)
    config = EngineConfig.model_validate({"engine": "any", **words})
    for word, value in words.items():
        # Read as another value, ``no`` as False, it would not be found again among a space's choices.
        if (read := config.words.get(word)) != value:
            raise error_at(f"{value!r} is read as {read!r}; write {str(read).lower()}", word)


def _checked(words: dict[str, Value]) -> dict[str, Value]:
    check_words(words)
    return words


Words = Annotated[dict[str, Value], AfterValidator(_checked)]
"""Words of the vocabulary with a value each."""
