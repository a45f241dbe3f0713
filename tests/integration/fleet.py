"""A fleet started with the real command, for tests that look at it from outside."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sysconfig
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import psutil
from prometheus_client.parser import text_string_to_metric_families

COMMAND = str(Path(sysconfig.get_path("scripts")) / "mlxfleet")
DEADLINE_S = 90.0


def wait_for(condition: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S) -> Any:
    """Wait until a condition holds, and return its value."""
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.01)
    raise AssertionError(f"still waiting for {what} after {deadline_s} s")


class Fleet:
    """`mlxfleet launch` on a free port. Use as a context manager."""

    command: tuple[str, ...] = ("launch", "--port", "0")

    def __init__(self, *arguments: str, environment: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [COMMAND, *self.command, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        self.lines: list[str] = []
        self._closing = contextlib.ExitStack()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    def __enter__(self) -> Fleet:
        self.url = wait_for(self._ready_url, "the ready line")
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=30)
        self._reader.join(timeout=10)
        assert self.process.stdout is not None
        self.process.stdout.close()

    @property
    def output(self) -> str:
        """Everything printed so far."""
        return "\n".join(self.lines)

    def _ready_url(self) -> str | None:
        if self.process.poll() is not None:
            raise AssertionError(
                f"{self.command[0]} ended with {self.process.returncode}:\n{self.output}"
            )
        ready = [line for line in self.lines if line.startswith("ready http://")]
        return ready[0].split()[1] if ready else None

    def client(self, **options: Any) -> openai.OpenAI:
        """The official client."""
        settings = {"api_key": "none", "max_retries": 0, "timeout": 120.0, **options}
        client = openai.OpenAI(base_url=f"{self.url}/v1", **settings)
        self._closing.callback(client.close)
        return client

    def process_named(self, name: str) -> psutil.Process:
        """The running child process of that name."""

        def find() -> psutil.Process | None:
            for child in psutil.Process(self.process.pid).children(recursive=True):
                try:
                    if " ".join(child.cmdline()).strip() == f"mlxfleet: {name}":
                        return child
                except psutil.Error:
                    continue
            return None

        found: psutil.Process = wait_for(find, f"process {name}")
        return found

    def kill(self, name: str) -> None:
        """SIGKILL a child by name."""
        self.process_named(name).kill()

    def get(self, path: str) -> tuple[int, str]:
        """Status and body of a GET."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=30) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def post(
        self, path: str, body: object, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, Any], dict[str, str]]:
        """Status, JSON body and headers of a POST; `body` is JSON or raw bytes."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(
            self.url + path,
            data=data,
            headers={"Content-Type": "application/json", **(headers or {})},
        )
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                return response.status, json.loads(response.read()), dict(response.headers)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read()), dict(error.headers)

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that have these labels, of the router and its nodes; 0 if
        there are none."""
        wanted = labels.items()
        return sum(
            sample.value
            for family in text_string_to_metric_families(self.exposition())
            for sample in family.samples
            if sample.name == name and wanted <= sample.labels.items()
        )

    def exposition(self) -> str:
        """What the router shows, and then what each of its nodes does that is there."""
        text = self.get("/metrics")[1]
        for group in json.loads(self.get("/metrics/targets")[1]):
            for target in group["targets"]:
                with (
                    contextlib.suppress(OSError),
                    urllib.request.urlopen(f"http://{target}/metrics", timeout=30) as response,
                ):
                    text += response.read().decode()
        return text
