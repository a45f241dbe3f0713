"""Where dumps are, who can read them, and how many are kept."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mlxfleet.common.node_identity import STATE_ENV
from mlxfleet.common.tap.dumps import dump_folder, remove_old, write_dump


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(STATE_ENV, str(tmp_path / "state"))
    return tmp_path / "state"


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_only_the_user_can_read_them(state: Path) -> None:
    state.mkdir()
    (state / "dumps").mkdir(mode=0o755)
    path = write_dump("worker-0", "crash", [b"abc", b"def"])
    assert (mode(path.parent), mode(path)) == (0o700, 0o600)
    assert path.read_bytes() == b"abcdef"
    assert path.parent == state / "dumps"
    assert path.name.endswith(f"-worker-0-{os.getpid()}-crash.msgpack")


def test_a_file_that_is_not_whole_does_not_look_like_a_dump() -> None:
    def parts() -> object:
        yield b"abc"
        [path] = dump_folder().iterdir()
        assert path.suffix != ".msgpack"
        yield b"def"

    write_dump("worker-0", "asked", parts())  # type: ignore[arg-type]
    assert [path.suffix for path in dump_folder().iterdir()] == [".msgpack"]


def make(names: str, size: int = 10) -> None:
    for name in names:
        (dump_folder() / f"{name}.msgpack").write_bytes(bytes(size))


def names() -> str:
    return "".join(sorted(path.name[0] for path in dump_folder().iterdir()))


@pytest.mark.parametrize(
    ("max_files", "max_bytes", "left"),
    [(3, 1000, "cde"), (9, 25, "de"), (9, 50, "abcde"), (0, 0, "e")],
)
def test_the_oldest_make_room(max_files: int, max_bytes: int, left: str) -> None:
    make("abcde")
    (dump_folder() / "notes.txt").write_text("mine")
    remove_old(dump_folder(), max_files, max_bytes)
    assert names() == left + "n"


def test_what_a_crash_in_a_dump_has_left_goes_too() -> None:
    make("bcd")
    (dump_folder() / "a.msgpack.partial").write_bytes(b"x")
    remove_old(dump_folder(), 3, 1000)
    assert names() == "bcd"
