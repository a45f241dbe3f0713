"""The detokenizer process: tokens from the nodes in, text for the router out."""

from __future__ import annotations

import time
from collections import OrderedDict

import zmq

from mlxfleet.common import channels
from mlxfleet.common.client_service import ClientService
from mlxfleet.common.config import DetokenizerProcess
from mlxfleet.common.curve import Gatekeeper
from mlxfleet.common.messages import (
    CloseStream,
    NodeToDetokenizer,
    OpenStream,
    RouterToDetokenizer,
    StreamLost,
    Text,
    Tokens,
)
from mlxfleet.common.process import run_service
from mlxfleet.common.tally import Tally
from mlxfleet.common.tokenizer_files import load_fast_tokenizer
from mlxfleet.common.tracing import make_tracer
from mlxfleet.detokenizer_proc.stream import GapError, Stream
from mlxfleet.detokenizer_proc.vocabulary import Vocabulary

MAX_STREAMS = 65536
MAX_REMEMBERED = 4096


class DetokenizerService(ClientService):
    """Keeps the open streams; everything in them can be rebuilt from an OpenStream."""

    def __init__(self, told: DetokenizerProcess) -> None:
        super().__init__(told.name)
        self._told = told
        self._gatekeeper: Gatekeeper | None = None
        self._steps = Tally()
        self._streams: OrderedDict[str, Stream] = OrderedDict()
        # With whether the last tokens have come since.
        self._closed_or_lost: OrderedDict[str, bool] = OrderedDict()

    async def startup(self) -> None:
        """Load the tokenizer, listen for tokens, then connect to the router."""
        told = self._told
        self._vocabulary = Vocabulary(
            load_fast_tokenizer(told.model_dir, trust_remote_code=told.trust_remote_code)
        )
        self._tracer = make_tracer(told.observe, "detokenizer", told.name)
        if told.security is not None:
            self._gatekeeper = Gatekeeper(self.context, told.security)
        self._tokens = channels.Channel[NodeToDetokenizer, None](
            self.context,
            zmq.PULL,
            NodeToDetokenizer,
            bind=told.token_address,
            security=told.security,
        )
        self._tokens.attach(lambda _, message: self._on_tokens(message))
        self.connect(
            RouterToDetokenizer,
            told.router_address,
            model=told.model,
            token_address=told.advertised_address or told.token_address,
        )

    async def shutdown(self) -> None:
        """Close the links, send the last spans."""
        self._tokens.close()
        if self._gatekeeper is not None:
            self._gatekeeper.close()
        await super().shutdown()
        self._tracer.close()

    def dropped_frames(self) -> int:
        """Malformed frames from the router and the nodes."""
        return self._tokens.dropped_frames + super().dropped_frames()

    def on_message(self, message: OpenStream | CloseStream) -> None:
        """Open or close a stream."""
        match message:
            case OpenStream():
                missed_end = self._closed_or_lost.pop(message.rid, False)
                self._close(message.rid, "opened again")
                self._streams[message.rid] = Stream(self._vocabulary, message)
                if len(self._streams) > MAX_STREAMS:
                    self._close(next(iter(self._streams)), "too many streams")
                if missed_end:
                    # Sent again by the node, they were faster than this; no gap would show it.
                    self._report_lost(message.rid, last=False)
            case CloseStream():
                self._close(message.rid, "closed")
                self._remember(message.rid)

    def steps(self) -> Tally:
        """From a node's message to the text for the router."""
        return self._steps

    def _on_tokens(self, tokens: Tokens) -> None:
        began = time.perf_counter()
        text = Text([], [], [], [], [], {}, {})
        for position, rid in enumerate(tokens.rids):
            stream = self._streams.get(rid)
            if stream is None:
                self._report_lost(rid, last=position in tokens.finish)
            else:
                self._push(stream, tokens, position, text)
        if text.rids:
            self.router.send(text)
        self._steps.observe(time.perf_counter() - began)

    def _push(self, stream: Stream, tokens: Tokens, position: int, text: Text) -> None:
        """Decode one entry of a step and append what it gave to the router's message."""
        try:
            piece = stream.push(
                tokens.starts[position],
                tokens.ids[position],
                tokens.finish.get(position),
                tokens.logprobs.get(position, []),
            )
        except GapError:
            self._report_lost(stream.rid, last=position in tokens.finish)
            return
        if piece is None:
            return
        row = len(text.rids)
        text.rids.append(stream.rid)
        text.starts.append(piece.start)
        text.ids.append(piece.ids)
        text.offsets.append(piece.offset)
        text.texts.append(piece.text)
        if piece.finish is not None:
            text.finish[row] = piece.finish
            if stream.traceparent:
                self._trace(stream, piece.finish.reason)
        if piece.logprobs:
            text.logprobs[row] = piece.logprobs

    def _close(self, rid: str, why: str) -> None:
        """Forget a stream, if there is one."""
        stream = self._streams.pop(rid, None)
        if stream is not None and stream.traceparent and not stream.finished:
            self._trace(stream, why)

    def _trace(self, stream: Stream, why: str) -> None:
        """Record the span of a stream that has ended."""
        self._tracer.record(
            "detokenize",
            stream.traceparent,
            stream.opened_s,
            time.monotonic(),
            {
                "mlxfleet.rid": stream.rid,
                "mlxfleet.end": why,
                "mlxfleet.characters": stream.chars,
                "mlxfleet.output_tokens": stream.tokens,
            },
        )

    def _report_lost(self, rid: str, *, last: bool) -> None:
        """Ask the router, once, to open a stream again that has a gap or is unknown here; `last` if
        its last tokens are among those that cannot be used."""
        if rid not in self._closed_or_lost:
            self._remember(rid)
            self.router.send(StreamLost(rid))
        elif last:
            self._closed_or_lost[rid] = True

    def _remember(self, rid: str) -> None:
        self._closed_or_lost[rid] = False
        if len(self._closed_or_lost) > MAX_REMEMBERED:
            self._closed_or_lost.popitem(last=False)


def main() -> None:
    """Run the detokenizer to its end."""
    run_service(DetokenizerProcess, DetokenizerService)
