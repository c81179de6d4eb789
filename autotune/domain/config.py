"""The common vocabulary in which configurations of every engine are written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveInt, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

Value = bool | int | float | str
"""What a dimension of a search space can take."""

Fraction = Annotated[float, Field(gt=0, le=1)]


class EngineConfig(BaseModel):
    """One configuration of one engine; ``None`` leaves the word to the engine's own default."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    engine: str
    tensor_parallel: PositiveInt | None = Field(None, description="ranks that share each layer")
    pipeline_parallel: PositiveInt | None = Field(None, description="stages of consecutive layers")
    data_parallel: PositiveInt | None = Field(None, description="replicas of the model behind one endpoint")
    expert_parallel: bool | None = Field(None, description="whole experts per rank, not slices of each")
    max_num_seqs: PositiveInt | None = Field(None, description="requests decoded together")
    max_num_batched_tokens: PositiveInt | None = Field(None, description="tokens in one forward step")
    chunked_prefill: bool | None = Field(None, description="prompts may be split over steps")
    prefix_caching: bool | None = Field(None, description="KV blocks of shared prefixes are kept")
    speculation: Literal["none", "ngram"] | None = Field(None, description="speculative decoding method")
    speculative_tokens: PositiveInt | None = Field(None, description="tokens proposed per step")
    prompt_lookup_max: PositiveInt | None = Field(None, description="longest n-gram looked up (ngram)")
    dtype: str | None = Field(None, description="precision of activations and unquantised weights")
    quantization: str | None = Field(None, description="weight quantisation; none for none")
    kv_cache_dtype: str | None = Field(None, description="precision of the KV cache")
    block_size: PositiveInt | None = Field(None, description="tokens per KV block")
    memory_fraction: Fraction | None = Field(None, description="share of device memory to use")
    context_length: PositiveInt | None = Field(None, description="longest prompt plus output, tokens")
    lora: bool | None = Field(None, description="LoRA adapters can be served")
    tool_parser: str | None = Field(None, description="parser of tool calls; turns tools on")
    eager: bool | None = Field(None, description="no graph capture, no compilation")
    extra_args: tuple[str, ...] = Field((), description="engine arguments that have no word here")

    @property
    def ranks(self) -> int:
        """Devices that the configuration occupies: TP x PP x DP."""
        return (self.tensor_parallel or 1) * (self.pipeline_parallel or 1) * (self.data_parallel or 1)

    @property
    def words(self) -> dict[str, Any]:
        """The words that are set, in the order of the vocabulary, the engine's name left out."""
        return self.model_dump(exclude_none=True, exclude_defaults=True, exclude={"engine"})

    @property
    def key(self) -> str:
        """Identity of the configuration: equal for equal words, stable over versions and processes."""
        canonical = json.dumps({"engine": self.engine, **self.words}, sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def replaced(self, words: Mapping[str, Any]) -> EngineConfig:
        """Return a copy in which ``words`` take the place of mine; raises pydantic's ValidationError."""
        return EngineConfig.model_validate({**self.model_dump(exclude_none=True), **words})

    def label(self, but: EngineConfig | None = None) -> str:
        """Short text for tables: the words set here and not alike in ``but``."""
        common = but.words if but else {}
        own = {k: v for k, v in self.words.items() if common.get(k) != v}
        return " ".join(_show(word, value) for word, value in own.items()) or "engine defaults"


def _show(word: str, value: Any) -> str:
    if isinstance(value, bool):
        return word if value else f"no-{word}"
    return f"{word}={' '.join(value) if isinstance(value, tuple) else value}"


SEARCHABLE = tuple(name for name in EngineConfig.model_fields if name not in {"engine", "extra_args"})
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
        if (read := getattr(config, word)) != value:
            raise error_at(f"{value!r} is read as {read!r}; write {str(read).lower()}", word)


def _checked(words: dict[str, Value]) -> dict[str, Value]:
    check_words(words)
    return words


Words = Annotated[dict[str, Value], AfterValidator(_checked)]
"""Words of the vocabulary with a value each."""
