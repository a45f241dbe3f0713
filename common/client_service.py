"""A service that serves the router: connected to it, presenting itself twice a second."""

from __future__ import annotations

import abc
import asyncio
from typing import Any

import zmq

from mlxfleet.common import channels
from mlxfleet.common.errors import RefusedError
from mlxfleet.common.liveness import HEARTBEAT_S, new_incarnation, resident_bytes
from mlxfleet.common.messages import Hello, Refused, Welcome
from mlxfleet.common.process import Service, fail
from mlxfleet.common.tally import Tally


class ClientService(Service):
    """Base of the tokenizer and detokenizer processes."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.context: zmq.Context[Any] = zmq.Context()
        self._incarnation = new_incarnation()

    def connect(self, receives: Any, address: str, *, model: str, token_address: str = "") -> None:
        """Connect to the router and start presenting ourselves."""
        identity = f"{self.name}:{self._incarnation}"
        self.router: channels.Channel[Any, Any] = channels.client(
            self.context, receives, address, identity
        )
        self.router.attach(lambda _, message: self._on_router(message))
        self._greeting = asyncio.create_task(self._greet_regularly(model, token_address))

    def dropped_frames(self) -> int:
        """Malformed frames on all our links."""
        return self.router.dropped_frames

    def steps(self) -> Tally | None:
        """How long its steps took, of a process that measures them."""
        return None

    @abc.abstractmethod
    def on_message(self, message: Any) -> None:
        """Handle a message of the router that is about work."""

    async def shutdown(self) -> None:
        """Close the link."""
        self._greeting.cancel()
        self.router.close()
        self.context.term()

    def _on_router(self, message: Any) -> None:
        match message:
            case Welcome():
                pass
            case Refused():
                fail(RefusedError(f"the router refused {self.name}: {message.reason}"))
            case _:
                self.on_message(message)

    async def _greet_regularly(self, model: str, token_address: str) -> None:
        while True:
            self.router.send(
                Hello(
                    name=self.name,
                    incarnation=self._incarnation,
                    dropped_frames=self.dropped_frames(),
                    rss_bytes=resident_bytes(),
                    token_address=token_address,
                    model=model,
                    steps=self.steps(),
                )
            )
            await asyncio.sleep(HEARTBEAT_S)
