"""The router's side of the detokenizer processes."""

from __future__ import annotations

from collections.abc import Callable

import zmq

from mlxfleet.common import channels
from mlxfleet.common.messages import (
    DetokenizerToRouter,
    Hello,
    RouterToDetokenizer,
    StreamBroken,
    StreamLost,
    Text,
)
from mlxfleet.common.tally import Tally
from mlxfleet.router.pool import Greeting, Pool
from mlxfleet.router.stages import Stages


class Detokenizers:
    """Spreads streams over the detokenizers.

    `on_text` takes new text; `on_lost` the rid and attempt of a stream that has to be opened again;
    `on_broken` what an attempt did that no node may do;
    `on_fresh` the name of a detokenizer that has restarted. `stages` is where their times go.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        address: str,
        session: str,
        *,
        on_text: Callable[[Text], None],
        on_lost: Callable[[str, str], None],
        on_broken: Callable[[StreamBroken], None],
        on_fresh: Callable[[str], None],
        stages: Stages,
    ) -> None:
        self.pool = Pool(channels.server(context, DetokenizerToRouter, address), session)
        self._addresses: dict[str, str] = {}
        self._models: dict[str, str] = {}
        self._on_text = on_text
        self._on_lost = on_lost
        self._on_broken = on_broken
        self._on_fresh = on_fresh
        self._stages = stages
        self._step_times: dict[str, Tally] = {}
        self._next = 0
        self.pool.channel.attach(self._on_message)

    def addresses(self, model: str) -> dict[str, str]:
        """Where each detokenizer of a model takes tokens from nodes."""
        return {n: address for n, address in self._addresses.items() if self._models[n] == model}

    def alive(self, model: str) -> list[str]:
        """Names of a model's detokenizers that were heard from lately."""
        return sorted(p.name for p in self.pool.alive() if self._models[p.name] == model)

    def assign(self, model: str) -> str | None:
        """The detokenizer for a model's next stream, in turn; None if none is there."""
        names = self.alive(model) or sorted(self.addresses(model))
        if not names:
            return None
        self._next += 1
        return names[self._next % len(names)]

    def send(self, detokenizer: str, message: RouterToDetokenizer) -> bool:
        """Send to a detokenizer; False if it is gone. Its streams are opened again later."""
        return self.pool.send(detokenizer, message)

    def _on_message(self, sender: bytes, message: DetokenizerToRouter) -> None:
        match message:
            case Text():
                self._on_text(message)
            case StreamLost():
                self._on_lost(message.rid, message.attempt)
            case StreamBroken():
                self._on_broken(message)
            case Hello():
                self._on_hello(sender, message)

    def _on_hello(self, sender: bytes, hello: Hello) -> None:
        greeting = self.pool.greet(sender, hello)
        if greeting is Greeting.REFUSED:
            return
        self._addresses[hello.name] = hello.token_address
        self._models[hello.name] = hello.model
        if greeting is Greeting.FRESH:
            self._step_times[hello.name] = Tally()
            self._on_fresh(hello.name)
        if hello.steps is not None:
            before, self._step_times[hello.name] = self._step_times[hello.name], hello.steps
            self._stages.grow(hello.model, "detokenize", before, hello.steps)
