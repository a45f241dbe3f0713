"""The front end as operators see it: /ready, /fleet and /admin."""

from __future__ import annotations

import asyncio
import json
import os
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from mlxfleet.common.admin_header import ADMIN_HEADERS
from mlxfleet.common.cluster.file import Cluster
from mlxfleet.common.errors import ConfigError, MlxfleetError, NetworkError
from mlxfleet.common.key_files import refuse_readable
from mlxfleet.common.messages import LoadProgress
from mlxfleet.common.preflight import API_KEY_ENV

ADMIN_KEY_ENV = "MLXFLEET_ADMIN_KEY"
TIMEOUT_S = 10.0
GENERATING = ("ready", "busy")
"""States of a node that generates."""


class FleetNode(Struct):
    """A node in /fleet."""

    name: str
    model: str = ""
    chip: str = ""
    state: str = ""
    breaker: str = "closed"
    breaker_open_s: float = 0.0
    fenced: str = ""
    sequences: int = 0
    running: int = 0
    queued: int = 0
    kv_used_bytes: int = 0
    kv_budget_bytes: int = 0
    cached_tokens: int = 0
    prefilled_tokens: int = 0
    tokens_per_s: float | None = None
    temperature_c: float | None = None
    loading: LoadProgress | None = None

    @property
    def generates(self) -> bool:
        """Whether it generates. Its breaker may still keep requests away."""
        return self.state in GENERATING

    @property
    def shown_state(self) -> str:
        """Its state for people: one that would get requests gets none while its breaker is open,
        and one at a time until that has gone well."""
        if not self.generates or self.breaker == "closed":
            return self.state
        if self.breaker == "half_open":
            return "breaker half open"
        return f"breaker open {self.breaker_open_s:.0f} s"

    @property
    def load(self) -> int:
        """Sequences it has, or that are on the way to it."""
        return max(self.sequences, self.running + self.queued)


class Fleet(Struct):
    """The answer of /fleet."""

    nodes: list[FleetNode]
    router: dict[str, Any] = {}

    def node(self, name: str) -> FleetNode | None:
        """The node of that name."""
        return next((node for node in self.nodes if node.name == name), None)


class NoSuchNodeError(MlxfleetError):
    """The front end does not know a node."""


@dataclass(frozen=True)
class RouterClient:
    """Asks one front end. `key` goes along where there is one."""

    url: str
    key: str | None

    async def alive(self) -> bool:
        """Whether there is a front end."""
        return await self._succeeds("/health")

    async def ready(self) -> bool:
        """Whether requests can be answered."""
        return await self._succeeds("/ready")

    async def _succeeds(self, path: str) -> bool:
        try:
            await self._ask("GET", path)
        except MlxfleetError:
            return False
        return True

    async def fleet(self) -> Fleet:
        """All nodes. NetworkError if the front end cannot be reached or does not have /fleet."""
        body = await self._ask("GET", "/fleet")
        try:
            return msgspec.json.decode(body, type=Fleet)
        except msgspec.MsgspecError as error:
            raise NetworkError(f"{self.url}/fleet: {error}") from error

    async def drain(self, node: str) -> None:
        """Give a node no more work."""
        await self._ask("POST", f"/admin/drain/{urllib.parse.quote(node, safe='')}")

    async def undrain(self, node: str) -> None:
        """Give it work again."""
        await self._ask("POST", f"/admin/undrain/{urllib.parse.quote(node, safe='')}")

    async def _ask(self, method: str, path: str) -> bytes:
        return await asyncio.to_thread(self._ask_blocking, method, path)

    def _ask_blocking(self, method: str, path: str) -> bytes:
        request = urllib.request.Request(self.url + path, method=method, headers=ADMIN_HEADERS)
        if method == "POST":
            request.data = b""
        if self.key is not None:
            request.add_header("Authorization", f"Bearer {self.key}")
        # The way to a Mac in the rack is not through a proxy.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=TIMEOUT_S) as response:
                return bytes(response.read())
        except urllib.error.HTTPError as error:
            with error:
                raise refused(self.url + path, error.code, error.read()) from error
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise NetworkError(f"cannot reach {self.url}: {reason}") from error


def refused(url: str, status: int, body: bytes) -> MlxfleetError:
    """What an answer that is no success means."""
    try:
        said = str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        said = body[:200].decode(errors="replace").strip()
    if status in (403, 421):
        return ConfigError(f"{url}: {said or status}")
    if status == 401:
        return ConfigError(
            f"{url}: {said or status}; give a key with --api-key-file, or in {ADMIN_KEY_ENV} or"
            f" {API_KEY_ENV}"
        )
    if status == 404 and "/admin/" in url:
        return NoSuchNodeError(f"{url}: {said or 'not found'}")
    if status == 404:
        return ConfigError(f"{url}: what answers there has no /fleet; is it a mlxfleet router?")
    return NetworkError(f"{url} answered {status}: {said}")


def first_key(path: Path) -> str | None:
    """The first key of a key file. ConfigError if others can read it."""
    refuse_readable("--api-key-file", path)
    lines = (line.strip() for line in path.read_text().splitlines())
    return next((line for line in lines if line and not line.startswith("#")), None)


def find_key(cluster: Cluster | None, given: Path | None) -> str | None:
    """The key to use: out of a given file, the environment, or the cluster's own key files."""
    try:
        if given is not None:
            return first_key(given)
        for name in (ADMIN_KEY_ENV, API_KEY_ENV):
            if os.environ.get(name):
                return os.environ[name]
        for setting in ("admin_key_file", "api_key_file"):
            if cluster is not None and setting in cluster.front_settings:
                return first_key(cluster.local(cluster.front_settings[setting]))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read a key: {error}") from error
    return None
