from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from autotune.adapters.files.model_files import ModelFiles
from autotune.adapters.files.synthetic_model import make_tiny_model
from autotune.domain.basics.errors import InputError
from autotune.domain.models.weights import parameters


def _put(directory: Path, layers: int) -> Path:
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps({"num_hidden_layers": layers}))
    return directory


def _layers(model: str, environ: dict[str, str]) -> int | None:
    shape = ModelFiles(environ).shape(model)
    return shape.layers if shape else None


def test_a_local_directory_is_read(tmp_path: Path) -> None:
    assert _layers(str(_put(tmp_path / "model", 7)), {}) == 7


@pytest.mark.parametrize(
    ("environ", "hub"),
    [
        ({"HF_HUB_CACHE": "{0}/direct", "HF_HOME": "{0}/elsewhere"}, "direct"),
        ({"HF_HOME": "{0}/hf", "XDG_CACHE_HOME": "{0}/elsewhere"}, "hf/hub"),
        ({"XDG_CACHE_HOME": "{0}/xdg"}, "xdg/huggingface/hub"),
    ],
)
def test_the_hub_cache_is_found_by_its_variables(tmp_path: Path, environ: dict[str, str], hub: str) -> None:
    _put(tmp_path / hub / "models--org--name/snapshots/abc", 5)

    assert _layers("org/name", {name: value.format(tmp_path) for name, value in environ.items()}) == 5


def test_main_wins_over_a_newer_snapshot(tmp_path: Path) -> None:
    cached = tmp_path / "hub/models--org--name"
    _put(cached / "snapshots/released", 5)
    os.utime(_put(cached / "snapshots/newer", 9) / "config.json", (2e9, 2e9))
    environ = {"HF_HOME": str(tmp_path)}

    assert _layers("org/name", environ) == 9
    (cached / "refs").mkdir()
    (cached / "refs/main").write_text("released")
    assert _layers("org/name", environ) == 5


@pytest.mark.parametrize("model", ["org/name", "gpt2"])
def test_a_hub_model_that_was_never_fetched_is_not_at_hand(tmp_path: Path, model: str) -> None:
    assert ModelFiles({"HF_HOME": str(tmp_path)}).shape(model) is None


def test_a_single_file_checkpoint_has_no_shape_to_read(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")

    assert ModelFiles({}).shape(str(tmp_path / "model.gguf")) is None


@pytest.mark.parametrize(
    "name", ["{0}/absent", "./absent", "~/absent-model-of-nobody", ".models/absent", "a/b/c"]
)
def test_a_path_that_leads_nowhere_is_the_users_to_mend(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="no such directory") as raised:
        ModelFiles({}).shape(name.format(tmp_path))
    assert "autotune models make" in raised.value.problems[0].remedy


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (Path.unlink, "cannot be read"),
        (lambda path: path.write_text("{"), "is damaged"),
        (lambda path: path.write_bytes(b"\xff\xfe"), "is damaged"),
        (lambda path: path.write_text('{"num_hidden_layers": "many"}'), "is damaged"),
        (lambda path: path.write_text('{"num_hidden_layers": [4]}'), "is damaged"),
        (
            lambda path: path.write_text('{"num_hidden_layers": 4, "moe_layer_freq": [1], "num_experts": 2}'),
            "is damaged",
        ),
        (lambda path: path.write_text('{"quantization_config": "fp8"}'), "is damaged"),
        (lambda path: path.write_text("[]"), "does not describe a model"),
        (lambda path: path.write_text('{"text_config": "x"}'), "does not describe a model"),
    ],
)
def test_a_broken_config_is_named_with_a_remedy(
    tmp_path: Path, spoil: Callable[[Path], object], what: str
) -> None:
    directory = _put(tmp_path / "model", 4)
    spoil(directory / "config.json")

    with pytest.raises(InputError, match=what) as raised:
        ModelFiles({}).shape(str(directory))
    assert raised.value.problems[0].where == str(directory / "config.json")
    assert raised.value.problems[0].remedy


def test_a_models_tokenizer_is_found_in_its_folder_and_in_the_cache(tmp_path: Path) -> None:
    folder = _put(tmp_path / "model", 4)
    assert ModelFiles({}).tokenizer(str(folder)) is None
    (folder / "tokenizer.json").write_text("{}")
    assert ModelFiles({}).tokenizer(str(folder)) == folder / "tokenizer.json"
    snapshot = _put(tmp_path / "hub" / "models--some--model" / "snapshots" / "a", 4)
    (snapshot / "tokenizer.json").write_text("{}")
    files = ModelFiles({"HF_HUB_CACHE": str(tmp_path / "hub")})
    assert files.tokenizer("some/model") == snapshot / "tokenizer.json"
    assert files.tokenizer("other/model") is None


def _safetensors(path: Path, tensors: dict[str, tuple[str, list[int], int]]) -> None:
    """Write a file's header, its tensors left out: nobody reads these here."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, (dtype, sides, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": sides, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)


def test_weights_are_counted_by_dtype_over_the_files_that_the_index_names(tmp_path: Path) -> None:
    folder = _put(tmp_path / "model", 2)
    _safetensors(folder / "a.safetensors", {"model.layers.0.mlp.weight": ("BF16", [3, 4], 24)})
    _safetensors(
        folder / "b.safetensors",
        {
            "model.layers.1.mlp.weight": ("F8_E4M3", [10], 10),
            "model.layers.2.mlp.weight": ("F8_E4M3", [6], 6),
            "mtp.norm.weight": ("F32", [2], 8),
            "scale": ("F32", [], 4),
        },
    )
    files = ModelFiles({})
    assert files.weights(str(folder)) is None  # no index, and no file by the usual name
    placed = {"model.layers.0.mlp.weight": "a.safetensors", "scale": "b.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    stored = files.weights(str(folder))
    assert stored is not None
    assert stored.bytes_by_dtype == {"BF16": 24, "F8_E4M3": 16, "F32": 12}
    assert stored.numbers_by_dtype == {"BF16": 12, "F8_E4M3": 16, "F32": 3}
    assert stored.draft_bytes == 6 + 8
    assert stored.total_bytes == 52
    (folder / "a.safetensors").unlink()
    assert files.weights(str(folder)) is None


def test_a_made_models_files_hold_what_its_shape_says(tmp_path: Path) -> None:
    for moe in (False, True):
        folder = tmp_path / str(moe)
        make_tiny_model(folder, moe=moe)
        shape, stored = ModelFiles({}).shape(str(folder)), ModelFiles({}).weights(str(folder))
        assert shape is not None
        assert stored is not None
        assert parameters(shape) == pytest.approx(sum(stored.numbers_by_dtype.values()), rel=1e-3)


@pytest.mark.parametrize("content", [b"", b"GGUF", (1 << 62).to_bytes(8, "little"), b"\x02\0\0\0\0\0\0\0[]"])
def test_a_file_that_is_no_safetensors_file_is_named(tmp_path: Path, content: bytes) -> None:
    folder = _put(tmp_path / "model", 2)
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="no safetensors file"):
        ModelFiles({}).weights(str(folder))


def test_of_a_model_that_is_not_at_hand_there_are_no_weights(tmp_path: Path) -> None:
    files = ModelFiles({"HF_HUB_CACHE": str(tmp_path)})
    assert files.weights("org/name") is None
    assert files.weights(str(_put(tmp_path / "model", 2))) is None


@pytest.mark.parametrize(
    ("name", "content", "method"),
    [
        ("hf_quant_config.json", {"quantization": {"quant_algo": "NVFP4"}}, "nvfp4"),
        ("quantize_config.json", {"bits": 4, "group_size": 128, "quant_method": "gptq"}, "gptq"),
    ],
)
def test_quantisation_is_found_beside_the_config(
    tmp_path: Path, name: str, content: dict[str, object], method: str
) -> None:
    folder = _put(tmp_path / "model", 2)
    (folder / name).write_text(json.dumps(content))
    shape = ModelFiles({}).shape(str(folder))
    assert shape is not None
    assert shape.quantization is not None
    assert shape.quantization.method == method
