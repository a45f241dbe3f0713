"""Tiny models have exactly the tensors that mlx-lm's models of that architecture have."""

from __future__ import annotations

import importlib
from typing import Any, get_args

import pytest
from mlx.utils import tree_flatten

from mlxfleet.bench.tiny_architectures import PARTS, Architecture, model_config

EMBEDDING = "model.embed_tokens.weight"


@pytest.mark.parametrize("architecture", get_args(Architecture))
def test_names_and_shapes_are_those_of_mlx_lm(architecture: Architecture) -> None:
    module = importlib.import_module(f"mlx_lm.models.{architecture}")
    model = module.Model(module.ModelArgs.from_dict(model_config(architecture)))
    flat: Any = tree_flatten(model.parameters())
    # gemma3_text ties its head when the weights have none.
    expected = {name: array.shape for name, array in flat if name != "lm_head.weight"}
    del expected[EMBEDDING]
    assert {part.name: part.shape for part in PARTS[architecture]()} == expected
