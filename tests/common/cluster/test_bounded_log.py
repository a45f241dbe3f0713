"""Logs stay small, and nothing is missed by who follows them."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from mlxfleet.common.cluster.bounded_log import BoundedLog, followed, last_lines, older


def test_a_log_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = BoundedLog(path, limit_bytes=100)
    for number in range(1000):
        log.write(f"{number}\n".encode())
    log.close()
    assert path.stat().st_size + older(path).stat().st_size <= 200
    assert last_lines(path, 3) == ["997", "998", "999"]
    assert len(last_lines(path, 1000)) > 25


def test_who_follows_sees_every_line_even_when_the_log_is_full(tmp_path: Path) -> None:
    log = BoundedLog(tmp_path / "log", limit_bytes=50)
    for number in range(10):
        log.write(f"before {number}\n".encode())
    pending = list(range(40))

    def pause() -> bool:
        if not pending:
            return False
        for _ in range(3):
            if pending:
                log.write(f"{pending.pop(0)}\n".encode())
        return True

    lines = list(followed(tmp_path / "log", 2, pause))
    log.close()
    assert lines == ["before 8", "before 9", *map(str, range(40))]


@given(st.lists(st.binary(max_size=30).filter(lambda line: b"\n" not in line), max_size=30))
def test_any_bytes_can_be_logged(lines: list[bytes]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log"
        log = BoundedLog(path)
        for line in lines:
            log.write(line + b"\n")
        log.close()
        assert path.read_bytes() == b"".join(line + b"\n" for line in lines)
        list(followed(path, 5, lambda: False))
