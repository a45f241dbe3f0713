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
        # By rid and attempt, with whether the last tokens have come since.
        self._closed_or_lost: OrderedDict[tuple[str, str], bool] = OrderedDict()

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
                missed_end = self._closed_or_lost.pop((message.rid, message.attempt), False)
                self._replace(message)
                if len(self._streams) > MAX_STREAMS:
                    self._close(next(iter(self._streams)), "too many streams")
                if missed_end:
                    # Sent again by the node, they were faster than this; no gap would show it.
                    self._report_lost(message.rid, message.attempt, last=False)
            case CloseStream():
                stream = self._streams.get(message.rid)
                if stream is not None and stream.attempt == message.attempt:
                    self._close(message.rid, "closed")
                self._remember(message.rid, message.attempt)

    def steps(self) -> Tally:
        """From a node's message to the text for the router."""
        return self._steps

    def _on_tokens(self, tokens: Tokens) -> None:
        began = time.perf_counter()
        text = Text([], [], [], [], [], [], {}, {})
        for position, (rid, attempt) in enumerate(zip(tokens.rids, tokens.attempts, strict=True)):
            stream = self._streams.get(rid)
            if stream is None or stream.attempt != attempt:
                self._report_lost(rid, attempt, last=position in tokens.finish)
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
            self._report_lost(stream.rid, stream.attempt, last=position in tokens.finish)
            return
        if piece is None:
            return
        row = len(text.rids)
        text.rids.append(stream.rid)
        text.attempts.append(stream.attempt)
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

    def _replace(self, opening: OpenStream) -> None:
        """Open a stream, in the place of one that is rebuilt or of an earlier attempt."""
        known = self._streams.get(opening.rid)
        if known is not None and known.attempt != opening.attempt:
            # Its node may still send tokens, of which the router need not hear.
            self._remember(known.rid, known.attempt)
        self._close(opening.rid, "opened again")
        self._streams[opening.rid] = Stream(self._vocabulary, opening)

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

    def _report_lost(self, rid: str, attempt: str, *, last: bool) -> None:
        """Ask the router, once, to open a stream again that has a gap or is unknown here; `last` if
        its last tokens are among those that cannot be used. Tokens of an attempt that is unknown
        here are stale, which the router then sees, or have outrun their OpenStream."""
        key = rid, attempt
        if key not in self._closed_or_lost:
            self._remember(rid, attempt)
            self.router.send(StreamLost(rid, attempt))
        elif last:
            self._closed_or_lost[key] = True

    def _remember(self, rid: str, attempt: str) -> None:
        self._closed_or_lost[rid, attempt] = False
        if len(self._closed_or_lost) > MAX_REMEMBERED:
            self._closed_or_lost.popitem(last=False)


def main() -> None:
    """Run the detokenizer to its end."""
    run_service(DetokenizerProcess, DetokenizerService)
