"""A real Prometheus with the files in deploy/, for tests that ask it."""

from __future__ import annotations

import json
import math
import re
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

from tests.deploy.expressions import DEPLOY
from tests.integration.fleet import wait_for

CONFIG = DEPLOY / "prometheus" / "prometheus.yml"
ADDRESS_IN_CONFIG = "127.0.0.1:8000"
INTERVAL_S = 1


class Found(NamedTuple):
    """A series that an expression had: labels, and values that are numbers."""

    labels: dict[str, str]
    values: list[float]


class Prometheus:
    """Scrapes a fleet once a second. Use as a context manager."""

    def __init__(self, folder: Path, fleet_url: str) -> None:
        self.started = time.time()
        (folder / "prometheus.yml").write_text(faster(fleet_url.removeprefix("http://")))
        self._process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                "--web.listen-address=127.0.0.1:0",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stderr is not None
        self._lines.extend(self._process.stderr)

    def __enter__(self) -> Prometheus:
        self.url = wait_for(self._listening, "Prometheus")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(timeout=30)
        self._reader.join(timeout=10)
        assert self._process.stderr is not None
        self._process.stderr.close()

    def _listening(self) -> str | None:
        log = "".join(self._lines)
        assert self._process.poll() is None, log
        ready = "Server is ready to receive web requests" in log
        found = re.search(r'msg="Listening on".* address=(\S+)', log)
        return f"http://{found.group(1)}" if found and ready else None

    def get(self, path: str, **parameters: str) -> Any:
        """The data of an answer; an AssertionError has what is wrong with an expression."""
        query = urllib.parse.urlencode(parameters)
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=30) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(f"{parameters}: {error.read().decode()}") from None

    def targets(self) -> dict[str, str]:
        """Health by job, and for nodes by job and node."""
        return {
            "/".join(filter(None, (t["labels"]["job"], t["labels"].get("node")))): t["health"]
            for t in self.get("targets", state="active")["activeTargets"]
        }

    def ask(self, expression: str) -> list[Found]:
        """What an expression had at any time since the start; without what was never a number."""
        data = self.get(
            "query_range",
            query=expression,
            start=str(self.started),
            end=str(time.time()),
            step=str(INTERVAL_S),
        )
        found = [
            Found(
                series["metric"],
                [v for _, text in series["values"] if math.isfinite(v := float(text))],
            )
            for series in data["result"]
        ]
        return [series for series in found if series.values]


def faster(address: str) -> str:
    """The configuration in deploy/, for another router and with shorter intervals."""
    text = CONFIG.read_text().replace(ADDRESS_IN_CONFIG, address)
    text = text.replace("- rules/", f"- {CONFIG.parent}/rules/")
    return re.sub(r"(\w+_interval): \d+s", rf"\1: {INTERVAL_S}s", text)
