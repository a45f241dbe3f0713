"""A node that follows the protocol as far as it likes."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec
import zmq

from mlxfleet.common import channels
from mlxfleet.common.addresses import as_reached
from mlxfleet.common.curve import Security
from mlxfleet.common.messages import (
    Generate,
    ModelInfo,
    NodeInfo,
    NodeStatus,
    Resend,
    RouterToNode,
    Welcome,
)

REPORT_S = 0.25
# The newest, which can be sent again.
MAX_REQUESTS = 1000
RATE = 1e9


def boasting(name: str, incarnation: str, info: NodeInfo, model: ModelInfo) -> NodeStatus:
    """A report of a node that is idle and faster than any other."""
    return NodeStatus(
        name=name,
        incarnation=incarnation,
        model=model,
        worker="ready",
        running=0,
        queued=0,
        max_running=256,
        max_queue=256,
        kv_used_bytes=0,
        steps=1,
        busy_s=0.0,
        idle_s=0.0,
        preemptions=0,
        generated_tokens=0,
        prefilled_tokens=0,
        cached_tokens=0,
        cold_blocks_used=0,
        worker_restarts=0,
        dropped_frames=0,
        worker_dropped_frames=0,
        worker_memory_bytes=0,
        prefill_tokens_per_s=RATE,
        cold_age_s=1e9,
        info=info,
    )


class RogueNode:
    """Joins a router, reports regularly, and does with requests what `on_request` does, and when it
    is to send a request's tokens from a position on again what `on_resend` does: nothing, if they
    are not given."""

    def __init__(
        self,
        context: zmq.Context[Any],
        address: str,
        name: str,
        info: NodeInfo,
        model: ModelInfo,
        *,
        security: Security = None,
        on_request: Callable[[RogueNode, Generate], None] = lambda node, request: None,
        on_resend: Callable[[RogueNode, Generate, int], None] = lambda node, request, start: None,
    ) -> None:
        self.name = name
        self.joined = asyncio.Event()
        self.asked = asyncio.Event()
        self.requests: deque[Generate] = deque(maxlen=MAX_REQUESTS)
        self.first_request_s = 0.0
        self.incarnation = secrets.token_hex(6)
        self.status = boasting(name, self.incarnation, info, model)
        self._context, self._address, self._security = context, address, security
        self._on_request, self._on_resend = on_request, on_resend
        self._received = 0
        self._closed = False
        self._detokenizers: dict[str, str] = {}
        self._pushes: dict[str, zmq.Socket[bytes]] = {}
        self._channel = self._connect()
        self._reporting = asyncio.create_task(self._report())

    def _connect(self) -> channels.Channel[Any, Any]:
        identity = f"{self.name}:{self.incarnation}"
        channel: channels.Channel[Any, Any] = channels.client(
            self._context, RouterToNode, self._address, identity, self._security
        )
        channel.attach(self._take)
        return channel

    def come_back(self) -> None:
        """Forget everything and be a new run; nothing if it is closed."""
        if self._closed:
            return
        self._channel.close()
        self.requests.clear()
        self._received = 0
        self.incarnation = secrets.token_hex(6)
        self.status = msgspec.structs.replace(self.status, incarnation=self.incarnation)
        self._channel = self._connect()

    def send(self, message: Any) -> None:
        """Send the router a message, or a frame of bytes as it is."""
        self._channel.send(msgspec.Raw(message) if isinstance(message, bytes) else message)

    def push(self, detokenizer: str, message: Any) -> None:
        """Send a detokenizer a message or a frame. It is not sent if the router has not told the
        detokenizer's address yet."""
        if (address := self._detokenizers.get(detokenizer)) is None:
            self._channel.unsent += 1
            return
        frame = message if isinstance(message, bytes) else msgspec.msgpack.encode(message)
        socket = self._pushes.get(detokenizer)
        if socket is None:
            socket = self._pushes[detokenizer] = self._context.socket(zmq.PUSH)
            socket.setsockopt(zmq.LINGER, 0)
            if self._security is not None:
                self._security.apply(socket)
            socket.connect(as_reached(address, self._address))
        try:
            socket.send(frame, zmq.NOBLOCK)
        except zmq.Again:
            self._channel.unsent += 1

    async def close(self) -> None:
        """Be gone."""
        self._closed = True
        self._reporting.cancel()
        # What was sent goes out first.
        await asyncio.sleep(0)
        self._channel.close()
        for socket in self._pushes.values():
            socket.close()

    def _take(self, _: bytes, message: Any) -> None:
        match message:
            case Welcome():
                self._detokenizers |= message.detokenizers
                self.joined.set()
            case Generate():
                self.first_request_s = self.first_request_s or time.monotonic()
                self._received += 1
                self.requests.append(message)
                self.asked.set()
                self._on_request(self, message)
            case Resend():
                asked = (message.rid, message.attempt)
                for request in self.requests:
                    if (request.rid, request.attempt) == asked:
                        self._on_resend(self, request, message.start)

    async def _report(self) -> None:
        while True:
            self.send(msgspec.structs.replace(self.status, received=self._received))
            await asyncio.sleep(REPORT_S)
