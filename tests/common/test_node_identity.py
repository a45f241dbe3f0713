"""A node's name stays, and its tokenizer is told by what it does."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlxfleet.common.errors import ConfigError, ModelError
from mlxfleet.common.key_files import NAME
from mlxfleet.common.node_identity import STATE_ENV, node_info, node_name
from mlxfleet.common.tokenizer_files import tokenizer_hash


def test_a_machine_keeps_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STATE_ENV, str(tmp_path / "state"))
    name = node_name(None)
    assert NAME.fullmatch(name)
    assert node_name(None) == name
    assert node_name("given") == "given"
    monkeypatch.setenv(STATE_ENV, str(tmp_path / "other"))
    assert node_name(None) != name


@pytest.mark.parametrize("name", ["", "a b", "-a", "a/b", "ü", "a" * 64])
def test_a_name_that_cannot_be_a_label_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="--name"):
        node_name(name)


def test_what_a_node_tells(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    info, again = node_info("m", tmp_path), node_info("m", tmp_path)
    assert info.model == "m"
    assert info.chip
    assert info.memory_bytes > 0
    assert info.tokenizer_hash == again.tokenizer_hash == tokenizer_hash(tmp_path)
    assert info.instance != again.instance


def test_a_hash_follows_the_vocabulary_only(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    before = tokenizer_hash(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("other")
    assert tokenizer_hash(tmp_path) == before
    (tmp_path / "tokenizer.json").write_text("{ }")
    assert tokenizer_hash(tmp_path) != before


def test_without_tokenizer_json_every_file_counts(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no tokenizer"):
        tokenizer_hash(tmp_path)
    (tmp_path / "vocab.json").write_text("ab")
    (tmp_path / "merges.txt").write_text("")
    before = tokenizer_hash(tmp_path)
    (tmp_path / "vocab.json").write_text("a")
    (tmp_path / "merges.txt").write_text("b")
    assert tokenizer_hash(tmp_path) != before
