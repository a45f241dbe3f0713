"""Servers are waited for until they answer, and stopped whatever they do."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

import psutil
import pytest

from mlxfleet.bench.servers import HOST, ServerError, ServerSpec, free_port, serving, start, stop

ANSWERING = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'data: {"choices": [{"text": "a", "finish_reason": "length"}]}\\n\\n')
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""

DYING = "import sys; print('no such model'); sys.exit(3)"

STUBBORN = """
import signal, subprocess, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("child", child.pid, flush=True)
child.wait()
"""


def make_spec(code: str) -> ServerSpec:
    """A Python program as a server."""
    port = free_port()
    return ServerSpec("fake", [sys.executable, "-c", code, str(port)], f"http://{HOST}:{port}")


def test_server_is_ready_when_it_answers_and_ends_with_the_block(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(make_spec(ANSWERING), tmp_path / "log") as server:
            assert server.ready_s > 0
            assert psutil.pid_exists(server.pid)
        assert not psutil.pid_exists(server.pid)
        assert server.exit_status == -signal.SIGTERM
        assert not server.was_killed

    asyncio.run(main())


def test_death_before_ready_is_told_with_the_last_output(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(make_spec(DYING), tmp_path / "log"):
            pass

    with pytest.raises(ServerError, match=r"(?s)ended with 3.*no such model"):
        asyncio.run(main())


def test_silence_until_the_deadline_is_told(tmp_path: Path) -> None:
    async def main() -> None:
        silent = make_spec("import time; time.sleep(600)")
        async with serving(silent, tmp_path / "log", ready_timeout_s=0.3):
            pass

    with pytest.raises(ServerError, match="no answer"):
        asyncio.run(main())


def test_server_that_ignores_sigterm_is_killed_with_its_children(tmp_path: Path) -> None:
    async def main() -> None:
        log = tmp_path / "log"
        process = await start(make_spec(STUBBORN), log)
        async with asyncio.timeout(20):
            while not (words := log.read_text().split()):  # noqa: ASYNC110 - a file
                await asyncio.sleep(0.01)
        child = psutil.Process(int(words[1]))
        assert await stop(process, grace_s=0.1)
        assert process.returncode == -signal.SIGKILL
        child.wait(20)

    asyncio.run(main())
