"""The names under which this machine is reached: `studio`, `studio.local`, `studio.example.org`."""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable

from mlxfleet.common.authority import host_name

log = logging.getLogger(__name__)

RENEW_AFTER_S = 60.0
SCUTIL_TIMEOUT_S = 5.0


class OwnNames:
    """The host name, its first part, that part under `.local`, and what takes longer to learn: the
    full name, which may ask DNS, and a Mac's Bonjour name. Names change while a machine runs (a
    laptop in another network), so a name that is not known makes us look again."""

    def __init__(self, learn: Callable[[], set[str]] | None = None) -> None:
        """`learn` finds the slow ones, on a thread of its own."""
        self._learn = learn or slow_names
        self._slow: frozenset[str] = frozenset()
        self._learned_at: float | None = None

    def __contains__(self, name: object) -> bool:
        """Whether a name in lower case is one of them, as far as is known."""
        if name in quick_names() or name in self._slow:
            return True
        self.renew()
        return False

    def renew(self) -> None:
        """Learn the slow names in the background, at most once a minute."""
        now = time.monotonic()
        if self._learned_at is None or now - self._learned_at > RENEW_AFTER_S:
            self._learned_at = now
            threading.Thread(target=self._run, name="own-names", daemon=True).start()

    def _run(self) -> None:
        self._slow = frozenset(self._learn())


def quick_names() -> set[str]:
    """What the kernel knows."""
    return with_local(socket.gethostname())


def slow_names() -> set[str]:
    """What may take seconds."""
    full = host_name(socket.getfqdn())
    return ({full} if full else set()) | with_local(bonjour_name())


def with_local(text: str) -> set[str]:
    """A name, its first part, and that part as Bonjour announces it."""
    name = host_name(text)
    if name is None:
        return set()
    first = name.partition(".")[0]
    return {name, first, f"{first}.local"}


def bonjour_name() -> str:
    """The name that a Mac announces, which its owner may have set apart from the host name; "" on
    other systems. Not yet run on a Mac."""
    if sys.platform != "darwin":
        return ""
    command = ["/usr/sbin/scutil", "--get", "LocalHostName"]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=SCUTIL_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        log.warning("cannot ask for this Mac's Bonjour name: %s", error)
        return ""
    return run.stdout.strip()
