"""Models that a real engine can serve although nothing is downloaded.

Tiny ones have random weights; those of real size have none, and the engine makes them up.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from autotune.domain.basics.errors import InputError, InputProblem

_GENERATOR = 1
"""Version of what this module writes; raised with every change of its output."""

_MANIFEST = "autotune-manifest.json"
_VOCABULARY = 2048
_HIDDEN = 256
_LAYERS = 4
_HEADS = 8
_KV_HEADS = 4
_HEAD_DIM = 32
_POSITIONS = 4096
_DENSE_INTERMEDIATE = 1024
_EXPERT_INTERMEDIATE = 256
_EXPERTS = 8
_SPECIAL_TOKENS = ("<unk>", "<s>", "</s>")
_DENSE_8B = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "rope_theta": 500000.0,
    "vocab_size": 128256,
}
"""As Llama 3.1 8B: 8.0 G parameters."""
_MOE_30B_A3B = {
    "hidden_size": 2048,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "intermediate_size": 6144,
    "max_position_embeddings": 40960,
    "rope_theta": 1000000.0,
    "vocab_size": 151936,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
}
"""As Qwen3 30B-A3B: 30.5 G parameters, 3.3 G of them for a token."""

_EIGHT_BITS = {"num_bits": 8, "type": "int", "symmetric": True}
_INT8 = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {**_EIGHT_BITS, "strategy": "channel", "dynamic": False},
            "input_activations": {**_EIGHT_BITS, "strategy": "token", "dynamic": True},
        }
    },
}

_Stored = NDArray[np.uint16] | NDArray[np.int8] | NDArray[np.float32]
_STORED_AS = {"<u2": "BF16", "|i1": "I8", "<f4": "F32"}
"""What safetensors calls the numbers of an array, bfloat16 being kept as its bits."""


@dataclass(frozen=True, slots=True)
class _Recipe:
    moe: bool
    seed: int
    int8: bool = False
    weightless: bool = False

    @property
    def identity(self) -> dict[str, Any]:
        more = {name: True for name in ("int8", "weightless") if getattr(self, name)}
        return {"generator": _GENERATOR, "moe": self.moe, "seed": self.seed, **more}

    @property
    def files(self) -> tuple[str, ...]:
        """What makes the model, as the engine reads it."""
        weights = () if self.weightless else ("model.safetensors",)
        return ("config.json", "generation_config.json", *weights, "tokenizer.json", "tokenizer_config.json")


def make_tiny_model(path: Path, *, moe: bool = False, seed: int = 0, int8: bool = False) -> bool:
    """Write a model of 5 M parameters (mixture of experts: 8 M) in bfloat16; the same seed, the same bytes.

    ``int8``: its linear layers rounded to 8 bits with a scale per output, as compressed-tensors stores them
    (W8A8: an engine rounds activations per token), so that it is the quantised checkpoint of the other.
    Returns whether it was written: a model of the same recipe that is there already, whole, is kept. Raises
    InputError rather than replace a directory that holds anything else.
    """
    return _make(path, _Recipe(moe, seed, int8))


def make_weightless_model(path: Path, *, moe: bool = False) -> bool:
    """Write configuration and tokenizer of a model of 8 G parameters (mixture of experts: 30 G), no weights.

    For engines that make weights up (vLLM's ``--load-format dummy``): speed, memory and watts are those of
    the real ones, answers are not. Returns and raises as ``make_tiny_model``.
    """
    return _make(path, _Recipe(moe, seed=0, weightless=True))


def _make(path: Path, recipe: _Recipe) -> bool:
    if _is_whole(path, recipe):
        return False
    if path.exists() and not _is_replaceable(path):
        remedy = "choose another path, or remove it yourself"
        raise InputError(InputProblem(str(path), "holds something that was not made here", remedy))
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as scratch:
        fresh = Path(scratch, "fresh")
        fresh.mkdir()
        _write(fresh, recipe)
        if path.exists():
            path.rename(Path(scratch, "old"))
        os.replace(fresh, path)  # noqa: PTH105 - the one call that makes the model appear whole
    return True


def _is_replaceable(path: Path) -> bool:
    return path.is_dir() and ((path / _MANIFEST).is_file() or not any(path.iterdir()))


def _is_whole(path: Path, recipe: _Recipe) -> bool:
    """Whether ``path`` holds the model of a recipe, every file as it was written."""
    try:
        manifest = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))
        return bool(manifest == _manifest(path, recipe))
    except (OSError, ValueError):
        return False


def _manifest(path: Path, recipe: _Recipe) -> dict[str, Any]:
    hashes = {name: hashlib.sha256((path / name).read_bytes()).hexdigest() for name in recipe.files}
    return {**recipe.identity, "sha256": hashes}


def _write(path: Path, recipe: _Recipe) -> None:
    end = {"bos_token_id": 1, "eos_token_id": 2}
    quantised = {"quantization_config": _INT8} if recipe.int8 else {}
    sizes = (_MOE_30B_A3B if recipe.moe else _DENSE_8B) if recipe.weightless else {}
    config = {**_config(recipe.moe), **sizes, **end, **quantised}
    _write_json(path / "config.json", config)
    _write_json(path / "generation_config.json", end)
    _write_json(path / "tokenizer_config.json", _tokenizer_config(config["max_position_embeddings"]))
    _tokenizer(config["vocab_size"]).save(str(path / "tokenizer.json"))
    if not recipe.weightless:
        _write_weights(path, recipe)
    _write_json(path / _MANIFEST, _manifest(path, recipe))


def _write_weights(path: Path, recipe: _Recipe) -> None:
    rng = np.random.default_rng(recipe.seed)
    weights: dict[str, _Stored] = {name: _draw(shape, rng) for name, shape in _shapes(recipe.moe)}
    if recipe.int8:
        weights = _rounded(weights)
    _write_safetensors(path / "model.safetensors", weights)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _config(moe: bool) -> dict[str, Any]:
    common = {
        "hidden_act": "silu",
        "hidden_size": _HIDDEN,
        "num_hidden_layers": _LAYERS,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": _KV_HEADS,
        "head_dim": _HEAD_DIM,
        "intermediate_size": _DENSE_INTERMEDIATE,
        "max_position_embeddings": _POSITIONS,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": _VOCABULARY,
    }
    if not moe:
        return {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **common}
    return {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        **common,
        "num_experts": _EXPERTS,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": _EXPERT_INTERMEDIATE,
        "decoder_sparse_step": 1,
        "norm_topk_prob": True,
        "mlp_only_layers": [],
    }


def _tokenizer_config(positions: int) -> dict[str, Any]:
    unknown, begin, end = _SPECIAL_TOKENS
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": unknown,
        "bos_token": begin,
        "eos_token": end,
        "model_max_length": positions,
    }


def _tokenizer(vocabulary: int) -> Tokenizer:
    """Make a tokenizer of ASCII characters and words of four letters, then six; anything else is unknown.

    Higher bytes are left out on purpose: one alone is no text, and engines hold text back until it is, so
    that a stream would show fewer chunks than tokens.
    """
    ascii_characters = sorted(c for c, _ in _split(pre_tokenizers.ByteLevel(add_prefix_space=False)))
    syllables = ["".join(pair) for pair in product("bdfgklmnprstvz", "aeiou")]
    # "Ġ" is how byte-level tokenizers write the space before a word.
    words = ("Ġ" + "".join(parts) for count in (2, 3) for parts in product(syllables, repeat=count))
    tokens = [*_SPECIAL_TOKENS, *ascii_characters]
    tokens += islice(words, vocabulary - len(tokens))
    model = models.BPE(
        vocab={token: number for number, token in enumerate(tokens)},
        merges=[],
        unk_token=_SPECIAL_TOKENS[0],
        ignore_merges=True,  # a word of the vocabulary is one token although no merges lead to it
    )
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(_SPECIAL_TOKENS))
    return tokenizer


def _split(pre_tokenizer: pre_tokenizers.PreTokenizer) -> Iterator[tuple[str, tuple[int, int]]]:
    """How the byte-level alphabet writes each ASCII character."""
    for code in range(128):
        yield from pre_tokenizer.pre_tokenize_str(chr(code))


def _shapes(moe: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of each weight, in the order in which they are drawn; a norm's has one axis."""
    yield "model.embed_tokens.weight", (_VOCABULARY, _HIDDEN)
    yield "lm_head.weight", (_VOCABULARY, _HIDDEN)
    yield "model.norm.weight", (_HIDDEN,)
    for layer in range(_LAYERS):
        for name, shape in (*_attention_shapes(moe), *(_moe_shapes() if moe else _mlp_shapes())):
            yield f"model.layers.{layer}.{name}.weight", shape


def _attention_shapes(moe: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "input_layernorm", (_HIDDEN,)
    yield "post_attention_layernorm", (_HIDDEN,)
    yield "self_attn.q_proj", (_HEADS * _HEAD_DIM, _HIDDEN)
    yield "self_attn.k_proj", (_KV_HEADS * _HEAD_DIM, _HIDDEN)
    yield "self_attn.v_proj", (_KV_HEADS * _HEAD_DIM, _HIDDEN)
    yield "self_attn.o_proj", (_HIDDEN, _HEADS * _HEAD_DIM)
    if moe:  # Qwen3 normalises queries and keys, Llama does not
        yield "self_attn.q_norm", (_HEAD_DIM,)
        yield "self_attn.k_norm", (_HEAD_DIM,)


def _mlp_shapes(
    prefix: str = "mlp", width: int = _DENSE_INTERMEDIATE
) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{prefix}.gate_proj", (width, _HIDDEN)
    yield f"{prefix}.up_proj", (width, _HIDDEN)
    yield f"{prefix}.down_proj", (_HIDDEN, width)


def _moe_shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "mlp.gate", (_EXPERTS, _HIDDEN)
    for expert in range(_EXPERTS):
        yield from _mlp_shapes(f"mlp.experts.{expert}", _EXPERT_INTERMEDIATE)


def _draw(shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.uint16]:
    """Draw a weight as the bits of bfloat16: norms are one, the rest uniform with deviation 0.02."""
    if len(shape) == 1:
        return _bfloat16(np.ones(shape, np.float32))
    width = np.float32(0.02 * 12**0.5)
    return _bfloat16((rng.random(shape, np.float32) - np.float32(0.5)) * width)


def _bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Return the bits of finite values rounded to the nearest bfloat16, ties to even."""
    bits = values.view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16).astype("<u2")


def _rounded(weights: Mapping[str, _Stored]) -> dict[str, _Stored]:
    """The linear layers of the blocks in 8 bits, each with the scale of every output row beside it."""
    rounded: dict[str, _Stored] = {}
    for name, bits in weights.items():
        if not name.endswith("_proj.weight"):
            rounded[name] = bits
            continue
        values = (bits.astype(np.uint32) << 16).view(np.float32)
        scale = (np.abs(values).max(axis=1, keepdims=True) / 127).astype("<f4")
        rounded[name] = np.round(values / scale).astype(np.int8)
        rounded[f"{name}_scale"] = scale
    return rounded


def _write_safetensors(path: Path, weights: Mapping[str, _Stored]) -> None:
    """Write the file format itself: the library's numpy functions know no bfloat16."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, bits in weights.items():
        header[name] = {
            "dtype": _STORED_AS[bits.dtype.str],
            "shape": list(bits.shape),
            "data_offsets": [offset, offset + bits.nbytes],
        }
        offset += bits.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for bits in weights.values():
            file.write(bits.tobytes())
