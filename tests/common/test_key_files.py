"""Keys are files that only their owner reads, and are never overwritten."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from mlxfleet.common.errors import ConfigError
from mlxfleet.common.key_files import (
    accepted_keys,
    is_key,
    node_secret_path,
    read_key,
    refuse_readable,
    write_keys,
)


def test_every_pair_fits_and_is_private(tmp_path: Path) -> None:
    out = tmp_path / "keys"
    paths = write_keys(out, ["a", "b"])
    assert {path.name for path in out.iterdir()} == {path.name for path in paths}
    assert stat.S_IMODE(out.stat().st_mode) == 0o700
    for name in ("router", "a", "b"):
        secret, public = out / f"{name}.secret", out / f"{name}.public"
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600
        assert zmq.curve_public(read_key(secret).encode()).decode() == read_key(public)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    write_keys(tmp_path, ["a"])
    before = {path: path.read_text() for path in tmp_path.iterdir()}
    with pytest.raises(ConfigError, match="not overwritten"):
        write_keys(tmp_path, ["b"])
    assert {path: path.read_text() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("names", [["router"], ["a", "a"], ["../a"], [""], ["a b"], [".a"]])
def test_names_that_cannot_be_used_are_refused(tmp_path: Path, names: list[str]) -> None:
    with pytest.raises(ConfigError):
        write_keys(tmp_path, names)
    assert not list(tmp_path.iterdir())


def test_a_router_accepts_every_node_but_not_itself(tmp_path: Path) -> None:
    write_keys(tmp_path, ["a", "b"])
    assert sorted(accepted_keys(tmp_path).values()) == ["a", "b"]
    assert read_key(tmp_path / "router.public") not in accepted_keys(tmp_path)


def test_a_node_takes_the_secret_of_its_name_or_the_only_one(tmp_path: Path) -> None:
    write_keys(tmp_path, ["a", "b"])
    assert node_secret_path(tmp_path, "b").name == "b.secret"
    with pytest.raises(ConfigError, match="several secrets"):
        node_secret_path(tmp_path, "c")
    (tmp_path / "a.secret").unlink()
    assert node_secret_path(tmp_path, "c").name == "b.secret"
    (tmp_path / "b.secret").unlink()
    with pytest.raises(ConfigError, match="no secret key"):
        node_secret_path(tmp_path, "c")


def test_a_secret_that_others_can_read_is_refused(tmp_path: Path) -> None:
    write_keys(tmp_path, ["a"])
    (tmp_path / "a.secret").chmod(0o644)
    (tmp_path / "a.public").chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        read_key(tmp_path / "a.secret")
    assert read_key(tmp_path / "a.public")


def test_errors_show_no_key(tmp_path: Path) -> None:
    path = tmp_path / "a.secret"
    path.write_text("top secret but no key")
    path.chmod(0o600)
    with pytest.raises(ConfigError) as caught:
        read_key(path)
    assert "top secret" not in str(caught.value)
    with pytest.raises(ConfigError, match="cannot read"):
        read_key(tmp_path / "b.secret")


@given(st.text(max_size=45))
def test_anything_may_stand_in_a_file(text: str) -> None:
    is_key(text)


@given(st.binary(min_size=32, max_size=32))
def test_every_key_is_one(key: bytes) -> None:
    from zmq.utils import z85

    assert is_key(z85.encode(key).decode())


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620, 0o602])
def test_files_with_secrets_are_for_their_owner_only(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "keys"
    path.write_text("a-key")
    path.chmod(mode)
    with pytest.raises(ConfigError, match=f"--api-key-file: others can read {path}"):
        refuse_readable("--api-key-file", path)
    path.chmod(0o400)
    refuse_readable("--api-key-file", path)
