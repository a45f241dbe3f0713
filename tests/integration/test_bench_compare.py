"""The real command: two servers that it starts, one of them slower."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from mlxfleet.bench.records import Comparison, Record, Round, Run, Summary, Verdict, read_records
from mlxfleet.bench.servers import console_script
from mlxfleet.common.errors import ExitCode

SERVER = """
import http.server, sys, time

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer(b'{"data": [{"id": "fake"}]}' if self.path == "/v1/models" else b"{}")

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(float(sys.argv[2]))
        token = b'data: {"choices": [{"text": "a", "finish_reason": "length"}]}\\n\\n'
        self.answer(token + b'data: {"choices": [], "usage": {"completion_tokens": 9}}\\n\\n')

    def answer(self, body):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
ENDS_WITHIN_S = 30.0


class Compared:
    """How the command is called here, and what it leaves behind."""

    def __init__(self, folder: Path) -> None:
        self.out = folder / "out.jsonl"
        self._server = folder / "server.py"
        self._server.write_text(SERVER)
        self._prompts = folder / "prompts.jsonl"
        self._prompts.write_text('"Hello"\n"Good day"\n')

    def command(self, *flags: str) -> list[str]:
        """Of two servers, the second of which takes eight times as long."""
        sides = [self.side(0.01), self.side(0.08)]
        load = ["--prompts", str(self._prompts), "--requests", "8", "--concurrency", "4"]
        fast = ["--cooldown-s", "0", "--baseline-s", "0", "--warmup-tolerance", "0.5"]
        out = ["--out", str(self.out), "--no-telemetry"]
        return [console_script(), "bench", "compare", *sides, *load, *fast, *out, *flags]

    def side(self, answer_s: float) -> str:
        return shlex.join([sys.executable, str(self._server), "{port}", str(answer_s)])

    def records(self, kind: type[Record]) -> list[Record]:
        return [record for record in read_records(self.out) if isinstance(record, kind)]

    def servers(self) -> list[psutil.Process]:
        own = psutil.Process().children(recursive=True)
        return [process for process in own if str(self._server) in process.cmdline()]


@pytest.fixture
def compared(tmp_path: Path) -> Iterator[Compared]:
    found = Compared(tmp_path)
    yield found
    assert found.servers() == []


def test_the_slower_one_is_found_and_fails_the_gate(compared: Compared) -> None:
    flags = ["--alive", "all", "--blocks", "3", "--confidence", "0.75", "--gate", ">=1.0"]
    done = subprocess.run(compared.command(*flags), capture_output=True, text=True, check=False)
    assert done.returncode == ExitCode.GATE_FAILED, done.stderr
    assert "gate >=1 for B: failed" in done.stdout
    [comparison] = compared.records(Comparison)
    assert isinstance(comparison, Comparison)
    assert list(comparison.sides) == ["A", "B"]
    [verdict] = compared.records(Verdict)
    assert isinstance(verdict, Verdict)
    assert verdict.verdict == "slower"
    assert 0 < verdict.low <= verdict.ratio <= verdict.high < 1
    runs = [run.id for run in compared.records(Run) if isinstance(run, Run)]
    assert len(runs) == len(compared.records(Summary)) == len(compared.records(Round)) == 12
    assert [r.run for r in compared.records(Round) if isinstance(r, Round)] == runs


def test_ctrl_c_stops_the_server_and_keeps_what_there_is(compared: Compared) -> None:
    process = subprocess.Popen(
        compared.command("--blocks", "100"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + ENDS_WITHIN_S
    while not (compared.out.exists() and compared.records(Round)):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=ENDS_WITHIN_S)
    assert process.returncode == ExitCode.FORCED
    assert b"fewer than 8 whole blocks" in output


def test_a_server_that_does_not_start_is_told_with_its_output(compared: Compared) -> None:
    broken = shlex.join([sys.executable, "-c", "raise SystemExit('no model today')", "{port}"])
    command = [*compared.command("--blocks", "8")]
    command[4] = broken
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == ExitCode.INTERNAL
    assert "B ended with 1" in done.stderr
    assert "no model today" in done.stderr
