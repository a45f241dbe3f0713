"""Loading: what is read from a model's folder, and errors that say what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from mlxfleet.common.config import WorkerOptions
from mlxfleet.common.errors import ModelError
from mlxfleet.workers import model as model_module
from mlxfleet.workers.model import context_length, eos_ids, load_model
from tests.workers.tiny_models import COMMON, HEAD_DIM, LAYERS, OVERRIDES, VOCAB_SIZE, build

CONFIG = {**COMMON, **OVERRIDES["llama"], "model_type": "llama", "eos_token_id": 7}


@pytest.fixture(autouse=True)
def no_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLX's memory limits are global; leave them alone."""
    monkeypatch.setattr(model_module, "set_memory_limits", lambda limit_bytes: None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny llama on disk."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    weights: Any = dict(tree_flatten(build("llama").parameters()))
    mx.save_safetensors(str(tmp_path / "model.safetensors"), weights)
    return tmp_path


def test_a_model_is_loaded_and_measured(folder: Path) -> None:
    model, info = load_model(folder, WorkerOptions(memory_gb=1.0))
    weights_bytes = sum(array.nbytes for _, array in tree_flatten(model.parameters()))
    assert info.vocab_size == VOCAB_SIZE
    assert info.context_length == 512
    assert info.eos_ids == [7]
    assert info.weights_bytes == weights_bytes
    assert info.kv_budget_bytes == int((10**9 - weights_bytes) * 0.9)
    assert (info.fixed_bytes, info.windowed) == (0, [])
    assert info.bytes_per_token == LAYERS * 2 * 2 * HEAD_DIM * 4


def test_weights_that_leave_no_room_are_refused(folder: Path) -> None:
    with pytest.raises(ModelError, match="no room"):
        load_model(folder, WorkerOptions(memory_gb=5e-5))


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
        load_model(folder, WorkerOptions(memory_gb=1.0))


def test_an_empty_folder_is_a_model_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot load"):
        load_model(tmp_path, WorkerOptions(memory_gb=1.0))


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
        load_model(folder, WorkerOptions(memory_gb=1.0))


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
    assert context_length(config, WorkerOptions(max_context=max_context)) == expected


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
