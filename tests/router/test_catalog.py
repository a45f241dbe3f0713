"""Which model a request means, and which nodes may serve it."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from mlxfleet.common.config import ServedModel
from mlxfleet.common.errors import InvalidRequestError, ModelNotFoundError
from mlxfleet.common.messages import NodeInfo
from mlxfleet.router.catalog import Catalog
from tests.router.reports import make_model

ONE = Catalog([ServedModel(name="chat", source="folder", tokenizer_hash="a" * 64)])
TWO = Catalog([ServedModel(name="x", source="x"), ServedModel(name="y", source="y")])


def test_a_single_model_need_not_be_named() -> None:
    assert ONE.find(None) == ONE.find("chat") == "chat"
    assert TWO.find("y") == "y"
    with pytest.raises(InvalidRequestError, match="'x', 'y'") as caught:
        TWO.find(None)
    assert caught.value.param == "model"


@pytest.mark.parametrize("name", ["", "folder", "Chat"])
def test_an_unknown_model_is_not_found(name: str) -> None:
    with pytest.raises(ModelNotFoundError, match="'chat'"):
        ONE.find(name)


def test_a_node_may_name_the_folder_or_the_served_name() -> None:
    for name in ("chat", "folder"):
        info = NodeInfo(model=name, tokenizer_hash="a" * 64)
        assert ONE.model_of(info) == "chat"
        assert ONE.refusal(info) is None


def test_refusals_name_both_sides() -> None:
    reason = ONE.refusal(NodeInfo(model="other", tokenizer_hash="a" * 64))
    assert reason is not None
    assert "'other'" in reason
    assert "folder" in reason
    reason = ONE.refusal(NodeInfo(model="chat", tokenizer_hash="b" * 64))
    assert reason is not None
    assert "a" * 16 in reason
    assert "b" * 16 in reason


def test_what_the_models_configuration_says_bounds_what_nodes_say() -> None:
    said = make_model()
    known = Catalog([ServedModel(name="m", vocab_size=32_000, context_length=4096)])
    assert known.bounded("m", said) == replace(said, vocab_size=32_000, context_length=4096)
    small = replace(said, vocab_size=1, context_length=100)
    assert known.bounded("m", small) == replace(said, vocab_size=32_000, context_length=100)
    assert Catalog([ServedModel(name="m")]).bounded("m", said) == said
