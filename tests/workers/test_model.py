"""Loading: what is read from a model's folder, and errors that say what is wrong."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.nn.layers.quantized import quantize as quantize_modules
from mlx.utils import tree_flatten

from mlxfleet.common.config import WorkerOptions, WorkerProcess
from mlxfleet.common.errors import ModelError
from mlxfleet.common.messages import LoadProgress
from mlxfleet.common.model_config import context_length, eos_ids
from mlxfleet.workers import load_report, weights
from mlxfleet.workers import model as model_module
from mlxfleet.workers.load_report import LoadReport
from mlxfleet.workers.memory import block_bytes
from mlxfleet.workers.mlx_lm_storage import MlxLmStorage
from mlxfleet.workers.model import load_model
from mlxfleet.workers.slab_storage import SlabStorage
from tests.workers.tiny_models import COMMON, HEAD_DIM, LAYERS, OVERRIDES, VOCAB_SIZE, build

CONFIG = {**COMMON, **OVERRIDES["llama"], "model_type": "llama", "eos_token_id": 7}
KV_HEADS = 2
FLOAT32 = 4
# Wide enough for groups of 64.
WIDE = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 64}


@pytest.fixture(autouse=True)
def no_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLX's memory limits are global; leave them alone."""
    monkeypatch.setattr(model_module, "set_memory_limits", lambda *_: None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny llama on disk."""
    write(tmp_path, build("llama"), CONFIG)
    return tmp_path


@pytest.fixture
def wide_folder(tmp_path: Path) -> Path:
    """A llama that can be quantized."""
    write(tmp_path, build("llama", **WIDE), {**CONFIG, **WIDE})
    return tmp_path


def write(folder: Path, model: Any, config: dict[str, Any]) -> None:
    (folder / "config.json").write_text(json.dumps(config))
    weights: Any = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights)


def bytes_of(model: Any) -> int:
    parameters: Any = tree_flatten(model.parameters())
    return sum(array.nbytes for _, array in parameters)


def told(folder: Path, **options: Any) -> WorkerProcess:
    return WorkerProcess(
        name="worker",
        model_dir=folder,
        scheduler_address="",
        max_rows=4,
        max_chunk_tokens=64,
        options=WorkerOptions(**{"memory_gb": 1.0, **options}),
    )


def test_a_model_is_loaded_and_measured(folder: Path) -> None:
    storage, info = load_model(told(folder))
    assert isinstance(storage, SlabStorage)
    assert info.in_slabs
    assert info.vocab_size == VOCAB_SIZE
    assert info.context_length == 512
    assert info.eos_ids == [7]
    assert info.weights_bytes == bytes_of(build("llama"))
    assert (info.fixed_bytes, info.windowed) == (0, [])
    assert info.bytes_per_token == LAYERS * 2 * KV_HEADS * HEAD_DIM * FLOAT32


def test_the_loading_is_reported_to_the_last_byte(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "PIECE_BYTES", 2000)
    monkeypatch.setattr(load_report, "REPORT_S", 0.0)
    said: list[LoadProgress] = []
    _, info = load_model(told(folder), LoadReport(said.append))
    assert [stage for stage, _ in groupby(progress.stage for progress in said)] == [
        "starting",
        "reading",
        "testing",
        "measuring",
    ]
    reading = [progress for progress in said if progress.stage == "reading"]
    loaded = [progress.loaded_bytes for progress in reading]
    assert len(loaded) > 5
    assert loaded == sorted(loaded)
    assert loaded[-1] == reading[0].total_bytes == info.weights_bytes
    assert reading[0].context_length == info.context_length
    assert said[-1].done >= 3


def test_quantizing_is_reported_in_bytes_of_the_quantized_weights(wide_folder: Path) -> None:
    said: list[LoadProgress] = []
    _, info = load_model(told(wide_folder, quantize="q4"), LoadReport(said.append))
    testing = next(progress for progress in said if progress.stage == "testing")
    assert testing.loaded_bytes == testing.total_bytes == info.weights_bytes
    assert "quantizing" in {progress.stage for progress in said}


def test_weights_passes_prefixes_and_sequences_share_the_limit(folder: Path) -> None:
    _, info = load_model(told(folder))
    prefix_bytes = info.cold_blocks * block_bytes(info.bytes_per_token)
    activation_bytes = 10**9 - info.weights_bytes - prefix_bytes - info.kv_budget_bytes
    assert prefix_bytes > 10**8
    assert 0 < activation_bytes < 10**8
    _, without = load_model(told(folder, prefix_cache_gb=0.0))
    assert without.cold_blocks == 0
    assert without.kv_budget_bytes > info.kv_budget_bytes + 10**8


def test_a_model_that_remembers_something_else_reuses_no_prefixes(tmp_path: Path) -> None:
    write(tmp_path, build("mamba2"), {**COMMON, "model_type": "mamba2"})
    storage, info = load_model(told(tmp_path))
    assert isinstance(storage, MlxLmStorage)
    assert not info.in_slabs
    assert info.cold_blocks == 0
    with pytest.raises(ModelError, match="--prefix-cache-gb"):
        load_model(told(tmp_path, prefix_cache_gb=0.1))


def test_weights_that_leave_no_room_are_refused_with_a_table(folder: Path) -> None:
    with pytest.raises(ModelError, match="no room") as caught:
        load_model(told(folder, memory_gb=5e-5))
    lines = [line.split() for line in str(caught.value).splitlines()]
    assert ["limit", "0.000", "GB", "--memory-gb"] in lines
    assert [line[0] for line in lines[1:-1]] == ["weights", "activations", "prefix", "KV", "limit"]
    assert "raise --memory-gb" in str(caught.value)


# --- quantization -------------------------------------------------------------------------------


@pytest.mark.parametrize(("quantize", "bits"), [("q8", 8), ("q4", 4)])
def test_weights_are_quantized_when_they_are_loaded(
    wide_folder: Path, quantize: str, bits: int
) -> None:
    _, info = load_model(told(wide_folder, quantize=quantize))
    full = bytes_of(build("llama", **WIDE))
    # A scale and a bias for 64 weights.
    share = (bits + 1) / 32
    assert info.weights_bytes == pytest.approx(full * share, rel=0.05)


def test_layers_that_groups_do_not_divide_stay_as_they_are(folder: Path) -> None:
    _, info = load_model(told(folder, quantize="q4"))
    assert info.weights_bytes == bytes_of(build("llama"))


def test_weights_that_are_quantized_already_are_not_quantized_again(tmp_path: Path) -> None:
    model = build("llama", **WIDE)
    quantize_modules(model, group_size=64, bits=8)
    quantization = {"group_size": 64, "bits": 8}
    write(tmp_path, model, {**CONFIG, **WIDE, "quantization": quantization})
    _, info = load_model(told(tmp_path))
    assert info.weights_bytes == bytes_of(model)
    with pytest.raises(ModelError, match="--quantize: the weights are quantized already"):
        load_model(told(tmp_path, quantize="q4"))


@pytest.mark.parametrize("bits", [4, 8])
def test_quantized_keys_and_values_take_fewer_bytes(wide_folder: Path, bits: int) -> None:
    storage, info = load_model(told(wide_folder, kv_bits=bits))
    assert isinstance(storage, SlabStorage)
    per_head = 64 * bits // 8 + 2 * FLOAT32
    assert info.bytes_per_token == LAYERS * 2 * KV_HEADS * per_head


def test_heads_that_groups_do_not_divide_cannot_have_quantized_caches(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"--kv-bits 8: heads of \[8\] values"):
        load_model(told(folder, kv_bits=8))


def test_only_models_in_slabs_have_quantized_caches(tmp_path: Path) -> None:
    write(tmp_path, build("mamba2"), {**COMMON, "model_type": "mamba2"})
    with pytest.raises(ModelError, match="--kv-bits 4 is for models that run in slabs"):
        load_model(told(tmp_path, kv_bits=4))


# --- folders that cannot be loaded --------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", "{"),
        ("config.json", "{}"),
        ("config.json", '{"model_type": "no such"}'),
        ("config.json", '{"model_type": "llama"}'),
        ("config.json", json.dumps({**CONFIG, "hidden_size": 64})),
        ("config.json", json.dumps({**CONFIG, "vocab_size": 0})),
        ("model.safetensors", "no weights"),
    ],
)
def test_a_broken_folder_is_a_model_error(folder: Path, name: str, content: str) -> None:
    (folder / name).write_text(content)
    with pytest.raises(ModelError, match="cannot load"):
        load_model(told(folder))


def test_an_empty_folder_is_a_model_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot load"):
        load_model(told(tmp_path))


def test_a_model_that_this_machine_cannot_run_is_a_model_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NeedsMetal:
        layers = ()

        def parameters(self) -> dict[str, Any]:
            return {}

        def __call__(self, *_: Any, **__: Any) -> mx.array:
            raise RuntimeError("[metal_kernel] No Metal back-end.")

    monkeypatch.setattr("mlx_lm.utils.load_model", lambda *_, **__: (NeedsMetal(), {}))
    with pytest.raises(ModelError, match=r"does not run on this machine: .*No Metal"):
        load_model(told(folder))


# --- what is read from it -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "max_context", "expected"),
    [
        ({"max_position_embeddings": 2048}, None, 2048),
        ({"n_positions": 1024}, None, 1024),
        ({"text_config": {"max_position_embeddings": 4096}}, None, 4096),
        ({"max_position_embeddings": None, "text_config": {"n_ctx": 64}}, None, 64),
        ({"max_position_embeddings": 2048}, 100, 100),
        ({"max_position_embeddings": 2048}, 5000, 2048),
        ({}, None, 32_768),
    ],
)
def test_context_length(config: dict[str, Any], max_context: int | None, expected: int) -> None:
    assert context_length(config, max_context) == expected


def test_tokens_that_end_a_sequence_come_from_model_and_tokenizer(tmp_path: Path) -> None:
    assert eos_ids(tmp_path, {}) == set()
    assert eos_ids(tmp_path, {"eos_token_id": 3}) == {3}
    assert eos_ids(tmp_path, {"eos_token_id": [3, 4]}) == {3, 4}
    assert eos_ids(tmp_path, {"text_config": {"eos_token_id": 5}}) == {5}
    tokens = [{"id": 8, "content": "<end>"}, {"id": 9, "content": "<other>"}]
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": tokens}))
    for eos_token in ("<end>", {"content": "<end>"}):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": eos_token}))
        assert eos_ids(tmp_path, {"eos_token_id": 3}) == {3, 8}


@pytest.mark.parametrize("length", [1, 63, "long", [4096], -5, float("inf")])
def test_a_context_that_is_no_use_is_refused(length: Any) -> None:
    with pytest.raises(ModelError, match="max_position_embeddings"):
        context_length({"max_position_embeddings": length}, None)


@pytest.mark.parametrize("ends", ["x", {"a": 1}, [1, "x"], [-1], True, 1.5])
def test_ends_that_are_no_token_ids_are_refused(tmp_path: Path, ends: Any) -> None:
    with pytest.raises(ModelError, match="eos_token_id"):
        eos_ids(tmp_path, {"eos_token_id": ends})


@pytest.mark.parametrize("text", ["{", "[]", '{"added_tokens": [{}]}', '{"added_tokens": 5}'])
def test_a_broken_tokenizer_is_named_by_who_reads_its_special_tokens(
    tmp_path: Path, text: str
) -> None:
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<end>"}')
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        eos_ids(tmp_path, {})
