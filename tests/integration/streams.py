"""Streams that are compared with those of an undisturbed run, and one that nobody waits for."""

from __future__ import annotations

import json
import socket
import threading
import urllib.parse
from dataclasses import dataclass, field

from tests.integration.fleet import Fleet

MODEL = "tiny"
STREAMS = 8
MAX_TOKENS = 400
KILL_AFTER_CHUNKS = 20


@dataclass
class Stream:
    """One stream's text so far."""

    options: dict[str, object]
    text: str = ""
    chunks: int = 0
    finish_reason: str | None = None
    completion_tokens: int = 0
    done: threading.Event = field(default_factory=threading.Event)

    def run(self, fleet: Fleet) -> None:
        try:
            for chunk in fleet.client().completions.create(
                model=MODEL, stream=True, stream_options={"include_usage": True}, **self.options
            ):
                if chunk.choices:
                    self.text += chunk.choices[0].text
                    self.finish_reason = chunk.choices[0].finish_reason
                    self.chunks += 1
                if chunk.usage:
                    self.completion_tokens = chunk.usage.completion_tokens
        finally:
            self.done.set()


def make_streams() -> list[Stream]:
    """Half of them greedy, half seeded, of different prompt lengths."""
    return [
        Stream(
            {
                "prompt": "once upon a time " * (1 + 7 * i),
                "max_tokens": MAX_TOKENS,
                "temperature": 0.0 if i % 2 else 0.9,
                "seed": i,
                "extra_body": {"ignore_eos": True},
            }
        )
        for i in range(STREAMS)
    ]


def hang_up(fleet: Fleet) -> None:
    """Start a long stream, read its beginning and go away."""
    body = json.dumps({"prompt": "Hello", "max_tokens": 400, "stream": True}).encode()
    address = urllib.parse.urlsplit(fleet.url)
    with socket.create_connection((address.hostname, address.port), timeout=30) as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        connection.recv(64)
