from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from tokenizers import Tokenizer

from autotune.adapters.files.model_files import ModelFiles
from autotune.adapters.files.synthetic_model import _bfloat16, make_tiny_model, make_weightless_model
from autotune.domain.basics.errors import InputError
from autotune.domain.models.model import ModelShape
from autotune.domain.models.weights import parameters


def _contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(path.iterdir())}


def _tensors(path: Path) -> dict[str, dict[str, Any]]:
    return dict(safetensors.deserialize((path / "model.safetensors").read_bytes()))  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("moe", [False, True])
def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(tmp_path: Path, moe: bool) -> None:
    for name, seed in (("one", 3), ("same", 3), ("other", 4)):
        assert make_tiny_model(tmp_path / name, moe=moe, seed=seed)

    assert _contents(tmp_path / "one") == _contents(tmp_path / "same")
    weights = "model.safetensors"
    assert _contents(tmp_path / "one")[weights] != _contents(tmp_path / "other")[weights]


@pytest.mark.parametrize(("moe", "parameters"), [(False, 4_983_040), (True, 8_137_216)])
def test_the_weights_are_bfloat16_near_zero_and_of_the_announced_number(
    tmp_path: Path, moe: bool, parameters: int
) -> None:
    make_tiny_model(tmp_path / "model", moe=moe)
    tensors = _tensors(tmp_path / "model")

    assert sum(int(np.prod(t["shape"])) for t in tensors.values()) == parameters
    assert {t["dtype"] for t in tensors.values()} == {"BF16"}
    head = np.frombuffer(tensors["lm_head.weight"]["data"], "<u2").astype(np.uint32) << 16
    assert abs(float(head.view(np.float32).mean())) < 1e-3
    assert float(head.view(np.float32).std()) == pytest.approx(0.02, rel=0.01)
    norm = np.frombuffer(tensors["model.norm.weight"]["data"], "<u2").astype(np.uint32) << 16
    assert set(norm.view(np.float32).tolist()) == {1.0}


@pytest.mark.parametrize(("moe", "experts"), [(False, 0), (True, 8)])
def test_the_config_describes_the_weights(tmp_path: Path, moe: bool, experts: int) -> None:
    make_tiny_model(tmp_path / "model", moe=moe)
    shape = ModelFiles({}).shape(str(tmp_path / "model"))
    tensors = _tensors(tmp_path / "model")

    assert shape is not None
    assert (shape.attention_heads, shape.kv_heads, shape.layers, shape.experts) == (8, 4, 4, experts)
    assert shape.most_positions == 4096
    assert tensors["model.embed_tokens.weight"]["shape"] == [shape.vocab_size, 256]
    layers = {name.split(".")[2] for name in tensors if name.startswith("model.layers.")}
    assert layers == {str(layer) for layer in range(shape.layers)}
    assert len([name for name in tensors if "experts" in name]) == experts * shape.layers * 3


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "model"
    make_tiny_model(path)
    return Tokenizer.from_file(str(path / "tokenizer.json"))


def test_the_int8_model_is_the_other_rounded(tmp_path: Path) -> None:
    make_tiny_model(tmp_path / "whole")
    make_tiny_model(tmp_path / "int8", int8=True)
    whole, int8 = _tensors(tmp_path / "whole"), _tensors(tmp_path / "int8")
    name = "model.layers.0.mlp.down_proj.weight"
    bits = np.frombuffer(whole[name]["data"], "<u2").astype(np.uint32) << 16
    values = bits.view(np.float32).reshape(whole[name]["shape"])
    scale = np.frombuffer(int8[f"{name}_scale"]["data"], "<f4").reshape(-1, 1)
    rounded = np.frombuffer(int8[name]["data"], np.int8).reshape(values.shape) * scale
    assert np.abs(rounded - values).max() <= scale.max() / 2 * 1.01
    assert int8["lm_head.weight"] == whole["lm_head.weight"]
    model = ModelFiles({}).shape(str(tmp_path / "int8"))
    assert model is not None
    assert model.quantization is not None
    assert (model.quantization.method, model.quantization.bits) == ("compressed-tensors", 8.0)
    stored = ModelFiles({}).weights(str(tmp_path / "int8"))
    assert stored is not None
    assert set(stored.bytes_by_dtype) == {"BF16", "I8", "F32"}


def test_every_token_but_the_special_ones_is_text_of_its_own(tokenizer: Tokenizer) -> None:
    assert tokenizer.get_vocab_size() == 2048
    texts = [tokenizer.decode([token]) for token in range(3, 2048)]

    assert all(texts)
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(texts)
    assert len(set(texts)) == len(texts)
    assert tokenizer.decode([0, 1, 2]) == ""


def test_a_word_of_the_vocabulary_is_one_token(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode(" baba bade").tokens == ["Ġbaba", "Ġbade"]


@given(text=st.text(st.characters(max_codepoint=127)))
def test_ascii_survives_encoding_and_decoding(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


@given(values=st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1))
def test_bfloat16_keeps_the_sign_and_is_nearest(values: list[float]) -> None:
    exact = np.array(values, np.float32)
    bits = _bfloat16(exact).astype(np.int64)

    def magnitude(code: NDArray[np.int64]) -> NDArray[np.float64]:
        return (code << 16).astype(np.uint32).view(np.float32).astype(float)

    assert np.array_equal(bits >> 15 == 1, np.signbit(exact))
    code = bits & 0x7FFF
    error = np.abs(magnitude(code) - np.abs(exact))
    for neighbour in (np.maximum(code - 1, 0), code + 1):
        assert np.all(error <= np.abs(magnitude(neighbour) - np.abs(exact)))


def test_a_whole_model_is_kept_and_a_damaged_one_made_again(tmp_path: Path) -> None:
    path = tmp_path / "model"
    make_tiny_model(path)
    before, inode = _contents(path), (path / "config.json").stat().st_ino

    assert not make_tiny_model(path)
    assert (path / "config.json").stat().st_ino == inode

    (path / "model.safetensors").write_bytes(b"cut off")
    assert make_tiny_model(path)
    assert _contents(path) == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_another_recipe_replaces_the_model(tmp_path: Path) -> None:
    path = tmp_path / "model"
    make_tiny_model(path)

    assert make_tiny_model(path, moe=True)
    assert json.loads((path / "config.json").read_text())["model_type"] == "qwen3_moe"


def test_what_was_not_made_here_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")

    with pytest.raises(InputError, match="not made here"):
        make_tiny_model(tmp_path)
    assert _contents(tmp_path) == {"notes.txt": b"mine"}


@pytest.mark.parametrize(("moe", "billions"), [(False, 8.0), (True, 30.5)])
def test_a_model_of_real_size_has_its_shape_and_a_token_for_every_id_and_no_weights(
    tmp_path: Path, moe: bool, billions: float
) -> None:
    assert make_weightless_model(tmp_path / "real", moe=moe)
    assert not make_weightless_model(tmp_path / "real", moe=moe)

    assert not list((tmp_path / "real").glob("*.safetensors"))
    config = json.loads((tmp_path / "real" / "config.json").read_text())
    assert parameters(ModelShape.from_config(config)) / 1e9 == pytest.approx(billions, abs=0.05)
    tokenizer = Tokenizer.from_file(str(tmp_path / "real" / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == config["vocab_size"]
    words = tokenizer.decode(list(range(5000, 5010)))
    assert tokenizer.encode(words).ids == list(range(5000, 5010))
