"""What the simulated engine reads from a model's folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mlxfleet.common.config import SimOptions
from mlxfleet.common.errors import ModelError
from mlxfleet.workers.sim_model import kv_bytes_per_token, sim_model

CONFIG = {
    "vocab_size": 100,
    "max_position_embeddings": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 64,
    "torch_dtype": "bfloat16",
    "eos_token_id": 2,
}
OPTIONS = SimOptions(sim_kv_tokens=1000, sim_cache_tokens=100)


def write(folder: Path, config: Any) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_model_is_what_its_folder_and_the_options_say(tmp_path: Path) -> None:
    (tmp_path / "model-1.safetensors").write_bytes(b"12345")
    info = sim_model(write(tmp_path, CONFIG), OPTIONS, None)
    assert info.vocab_size == 100
    assert info.context_length == 512
    assert info.eos_ids == [2]
    assert info.bytes_per_token == 2 * 3 * 2 * 16 * 2
    assert info.kv_budget_bytes == 1000 * info.bytes_per_token
    assert info.cold_blocks == 3
    assert info.weights_bytes == 5
    assert [p.seconds for p in info.passes[:2]] == pytest.approx([0.0155, 0.019])
    assert sim_model(tmp_path, OPTIONS, 100).context_length == 100


def test_ends_come_from_the_generation_config_too(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 6]}))
    assert sim_model(write(tmp_path, CONFIG), OPTIONS, None).eos_ids == [5, 6]


def test_text_may_be_a_part_of_the_model(tmp_path: Path) -> None:
    info = sim_model(write(tmp_path, {"text_config": CONFIG}), OPTIONS, None)
    assert (info.vocab_size, info.context_length, info.eos_ids) == (100, 512, [2])


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"n_layer": 2, "n_head": 4, "n_embd": 128}, 2 * 2 * 4 * 32 * 2),
        ({"num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8}, 2 * 2 * 4 * 8 * 2),
        ({"num_hidden_layers": 1, "hidden_size": 8, "dtype": "float32"}, 2 * 1 * 1 * 8 * 4),
        ({}, 2 * 64 * 2),
    ],
)
def test_bytes_per_token(config: dict[str, Any], expected: int) -> None:
    assert kv_bytes_per_token(config) == expected


@pytest.mark.parametrize(
    "config", [{}, {"vocab_size": "many"}, {"vocab_size": 1, "eos_token_id": 0}, []]
)
def test_a_folder_that_does_not_say_enough_is_refused(tmp_path: Path, config: Any) -> None:
    with pytest.raises(ModelError, match=r"config\.json"):
        sim_model(write(tmp_path, config), OPTIONS, None)


def test_a_folder_without_a_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot read"):
        sim_model(tmp_path, OPTIONS, None)
