"""Sequences in flight: started, followed, resumed when a process behind them dies, released."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Sequence as Many

import zmq

from mlxfleet.common.config import ServedModel
from mlxfleet.common.curve import CurveServer
from mlxfleet.common.errors import (
    GenerationError,
    InvalidRequestError,
    OverloadedError,
    RequestError,
    UnavailableError,
)
from mlxfleet.common.messages import (
    CloseStream,
    Generate,
    OpenStream,
    Rejected,
    Release,
    Resend,
    Text,
)
from mlxfleet.router.catalog import Catalog
from mlxfleet.router.detokenizers import Detokenizers
from mlxfleet.router.metrics import Metrics
from mlxfleet.router.nodes import Nodes
from mlxfleet.router.sequences import Sequence

log = logging.getLogger(__name__)

PROMPT_TAIL_TOKENS = 8
# Fewer than the deaths in a row at which the parent gives up the fleet.
MAX_DETOKENIZER_DEATHS = 4
RETRY_AFTER_S = 1
# More nodes than that are not lost under one request by accident.
MAX_MOVES = 3
WATCH_S = 0.1


class Dispatcher:
    """Owns every sequence between its start and its release."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        *,
        node_address: str,
        detokenizer_address: str,
        session: str,
        max_sequences: int,
        node_wait_s: float,
        metrics: Metrics,
        models: Many[ServedModel] = (ServedModel(),),
        security: CurveServer | None = None,
    ) -> None:
        self._sequences: dict[str, Sequence] = {}
        self._reserved = 0
        self._max_sequences = max_sequences
        self._node_wait_s = node_wait_s
        self._metrics = metrics
        self.detokenizers = Detokenizers(
            context,
            detokenizer_address,
            session,
            on_text=self._on_text,
            on_lost=self._on_lost,
            on_fresh=self._on_fresh_detokenizer,
        )
        self.nodes = Nodes(
            context,
            node_address,
            session,
            catalog=Catalog(models),
            detokenizers=self.detokenizers.addresses,
            on_rejected=self._on_rejected,
            on_fresh=self._on_fresh_node,
            on_refused=lambda why: metrics.refused_nodes.labels(why).inc(),
            security=security,
        )

    @property
    def in_flight(self) -> int:
        """Sequences that are reserved or running."""
        return self._reserved

    def reserve(self, count: int) -> None:
        """Make room for `count` sequences, to be given back with `unreserve`."""
        if count > self._max_sequences:
            raise InvalidRequestError(
                f"the request asks for {count} sequences, at most {self._max_sequences} fit",
                param="n",
            )
        if self._reserved + count > self._max_sequences:
            raise OverloadedError("too many requests are in flight", retry_after_s=RETRY_AFTER_S)
        self._reserved += count

    def unreserve(self, count: int) -> None:
        """Give room back."""
        self._reserved -= count

    async def start(self, sequences: Many[Sequence]) -> None:
        """Send sequences of one model to a node. They end by themselves; `release` them in any
        case."""
        node = await self.nodes.pick(sequences[0].model, self._load, self._node_wait_s)
        for sequence in sequences:
            detokenizer = self.detokenizers.assign(sequence.model)
            if detokenizer is None:
                raise UnavailableError("no detokenizer is there", retry_after_s=RETRY_AFTER_S)
            sequence.node, sequence.detokenizer = node, detokenizer
            self._sequences[sequence.rid] = sequence
            self._open(sequence)
            self._generate(sequence)

    def release(self, sequence: Sequence) -> None:
        """Stop a sequence wherever it is, and forget it everywhere."""
        if self._sequences.pop(sequence.rid, None) is not None:
            self.nodes.send(sequence.node, Release(sequence.rid))
            self.detokenizers.send(sequence.detokenizer, CloseStream(sequence.rid))

    async def watch_nodes(self) -> None:
        """Move sequences away from nodes that cannot go on; runs until it is cancelled."""
        while True:
            self.move_stranded(time.monotonic())
            await asyncio.sleep(WATCH_S)

    def move_stranded(self, now: float) -> None:
        """Continue every sequence whose node is lost on another. Without another it waits, as long
        as a request may wait for a node. `now` is time.monotonic()."""
        ready_by_model: dict[str, list[str]] = {}
        for status in self.nodes.ready():
            ready_by_model.setdefault(self.nodes.model_of(status.name), []).append(status.name)
        for sequence in list(self._sequences.values()):
            if sequence.ended:
                continue
            ready = ready_by_model.get(sequence.model, [])
            if sequence.node in ready:
                sequence.stranded_since = None
            elif ready:
                self._move(sequence, min(ready, key=self._load))
            elif sequence.stranded_since is None:
                sequence.stranded_since = now
            elif now - sequence.stranded_since > self._node_wait_s:
                why = "the request's node is lost, and there is no other"
                sequence.fail(UnavailableError(why, retry_after_s=RETRY_AFTER_S))

    def _move(self, sequence: Sequence, node: str) -> None:
        """Continue on another node: prompt and tokens so far, with the same random numbers."""
        sequence.moves += 1
        if sequence.moves > MAX_MOVES:
            why = f"{sequence.moves} nodes were lost under this request"
            sequence.fail(GenerationError(why))
            return
        log.warning("%s goes on on %s, because %s is lost", sequence.rid, node, sequence.node)
        self._metrics.failovers.inc()
        # It may only be stuck, and go on later.
        self.nodes.send(sequence.node, Release(sequence.rid))
        sequence.node = node
        sequence.stranded_since = None
        self._generate(sequence)

    def _load(self, node: str) -> int:
        return sum(s.node == node and not s.ended for s in self._sequences.values())

    def _open(self, sequence: Sequence) -> None:
        self.detokenizers.send(
            sequence.detokenizer,
            OpenStream(
                rid=sequence.rid,
                prompt_tail=sequence.prompt_ids[-PROMPT_TAIL_TOKENS:],
                output_ids=sequence.output_ids,
                sent_chars=sequence.chars,
                stop=sequence.stop,
            ),
        )

    def _generate(self, sequence: Sequence) -> None:
        self.nodes.send(
            sequence.node,
            Generate(
                rid=sequence.rid,
                detokenizer=sequence.detokenizer,
                prompt_ids=sequence.prompt_ids,
                output_ids=sequence.output_ids,
                sampling=sequence.sampling,
            ),
        )

    def _recover(self, sequence: Sequence) -> None:
        """Open the stream again with what we have, and have the rest sent once more."""
        self._metrics.recoveries.inc()
        self._open(sequence)
        start = len(sequence.output_ids)
        self.nodes.send(sequence.node, Resend(sequence.rid, sequence.detokenizer, start))

    def _on_fresh_detokenizer(self, name: str) -> None:
        for sequence in self._sequences.values():
            if sequence.detokenizer != name or sequence.ended:
                continue
            sequence.detokenizer_deaths += 1
            if sequence.detokenizer_deaths > MAX_DETOKENIZER_DEATHS:
                why = f"the detokenizer died {sequence.detokenizer_deaths} times under this request"
                sequence.fail(GenerationError(why))
            else:
                self._recover(sequence)

    def _on_fresh_node(self, name: str) -> None:
        for sequence in self._sequences.values():
            if sequence.node == name and not sequence.ended:
                self._metrics.recoveries.inc()
                self._generate(sequence)

    def _on_lost(self, rid: str) -> None:
        sequence = self._sequences.get(rid)
        if sequence is not None and not sequence.ended:
            self._recover(sequence)

    def _on_rejected(self, node: str, message: Rejected) -> None:
        sequence = self._sequences.get(message.rid)
        if sequence is None or sequence.ended or sequence.node != node:
            return
        if message.code == "unknown":
            # The node restarted between our messages; it continues from what we have.
            self._generate(sequence)
        else:
            sequence.fail(rejection_error(message))

    def _on_text(self, text: Text) -> None:
        now = time.perf_counter()
        for position, rid in enumerate(text.rids):
            sequence = self._sequences.get(rid)
            if sequence is not None and not sequence.ended:
                self._deliver(sequence, text, position, now)

    def _deliver(self, sequence: Sequence, text: Text, position: int, now: float) -> None:
        """Take in what is new of an entry; ask again if something is missing before it."""
        known_ids = len(sequence.output_ids) - text.starts[position]
        known_chars = sequence.chars - text.offsets[position]
        if known_ids < 0 or known_chars < 0:
            self._recover(sequence)
            return
        ids = text.ids[position][known_ids:]
        piece = text.texts[position][known_chars:]
        pending = sequence.pending
        sequence.output_ids.extend(ids)
        sequence.chars += len(piece)
        pending.text += piece
        if logprobs := text.logprobs.get(position):
            pending.logprobs.extend(logprobs[known_ids:])
        if ids:
            self._metrics.observe_tokens(sequence, len(ids), now)
        if (finish := text.finish.get(position)) is not None:
            sequence.finish_reason = pending.finish_reason = finish.reason
            sequence.cached_tokens = finish.cached_tokens
        if pending:
            sequence.wakeup.set()


def new_rid() -> str:
    """An id that no other request has."""
    return secrets.token_hex(12)


def rejection_error(message: Rejected) -> RequestError:
    """What the client is told when a node refuses."""
    match message.code:
        case "queue_full":
            return OverloadedError(message.message, retry_after_s=RETRY_AFTER_S)
        case "too_long":
            return InvalidRequestError(message.message, code="context_length_exceeded")
        case _:
            return GenerationError(message.message)
