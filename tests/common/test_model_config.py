"""What a model folder says of the model's sizes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mlxfleet.common.model_config import Sizes, known_sizes


@pytest.mark.parametrize(
    ("config", "sizes"),
    [
        ({"vocab_size": 100, "max_position_embeddings": 2048}, Sizes(100, 2048)),
        ({"text_config": {"vocab_size": 9, "n_ctx": 64}, "vocab_size": 5}, Sizes(9, 64)),
        ({"max_position_embeddings": 2048}, Sizes(0, 2048)),
        ({"max_position_embeddings": "many"}, Sizes()),
        ([], Sizes()),
    ],
)
def test_sizes_are_the_configurations(tmp_path: Path, config: Any, sizes: Sizes) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert known_sizes(tmp_path) == sizes


def test_a_folder_with_a_tokenizer_only_has_no_sizes(tmp_path: Path) -> None:
    assert known_sizes(tmp_path) == Sizes()
