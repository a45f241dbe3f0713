"""The detokenizer process: tokens from the nodes in, text for the router out."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict

import msgspec
import zmq

from mlxfleet.common import channels
from mlxfleet.common.buckets import Bucket
from mlxfleet.common.client_service import ClientService
from mlxfleet.common.config import DetokenizerProcess
from mlxfleet.common.curve import Gatekeeper
from mlxfleet.common.limits import reason
from mlxfleet.common.messages import (
    CloseStream,
    NodeToDetokenizer,
    OpenStream,
    RouterToDetokenizer,
    StreamBroken,
    StreamLost,
    Text,
    Tokens,
    TokensOf,
)
from mlxfleet.common.process import run_service
from mlxfleet.common.tally import Tally
from mlxfleet.common.tokenizer_files import load_fast_tokenizer
from mlxfleet.common.tracing import make_tracer
from mlxfleet.detokenizer_proc.entry_check import BrokenError
from mlxfleet.detokenizer_proc.losses import Losses
from mlxfleet.detokenizer_proc.stream import GapError, Stream
from mlxfleet.detokenizer_proc.vocabulary import Vocabulary

MAX_STREAMS = 65536
# A step of 1,024 rows, or 1,024 tokens of one, with 20 alternatives each has less than 1 MB. So at
# most 256 MB of one node can wait here: 32 frames of the size at which its connection is closed.
LINK = channels.Limits(frame_bytes=2 * 1024 * 1024, messages=32)
# Logs about what nobody here can hold against a node.
STRANGERS_PER_S = 0.2

log = logging.getLogger(__name__)


class DetokenizerService(ClientService):
    """Keeps the open streams; everything in them can be rebuilt from an OpenStream."""

    def __init__(self, told: DetokenizerProcess) -> None:
        super().__init__(told.name)
        self._told = told
        self._gatekeeper: Gatekeeper | None = None
        self._steps = Tally()
        self._streams: OrderedDict[str, Stream] = OrderedDict()
        self._losses = Losses(lambda rid, attempt: self._send(StreamLost(rid, attempt)))
        self._strangers = Bucket(STRANGERS_PER_S, 5)

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
            limits=LINK,
            on_malformed=self._on_malformed,
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
                missed_end = self._losses.opened(message.rid, message.attempt)
                self._replace(message)
                if len(self._streams) > MAX_STREAMS:
                    self._close(next(iter(self._streams)), "too many streams")
                if missed_end:
                    # Sent again by the node, they were faster than this; no gap would show it.
                    self._losses.lost(message.rid, message.attempt, last=False, open_here=True)
            case CloseStream():
                stream = self._streams.get(message.rid)
                if stream is not None and stream.attempt == message.attempt:
                    self._close(message.rid, "closed")
                self._losses.closed(message.rid, message.attempt)

    def steps(self) -> Tally:
        """From a node's message to the text for the router."""
        return self._steps

    def _on_tokens(self, tokens: Tokens) -> None:
        began = time.perf_counter()
        text = Text([], [], [], [], [], [], {}, {})
        for position, (rid, attempt) in enumerate(zip(tokens.rids, tokens.attempts, strict=True)):
            stream = self._streams.get(rid)
            if stream is None or stream.attempt != attempt:
                last = position in tokens.finish
                self._losses.lost(rid, attempt, last=last, open_here=False)
                continue
            try:
                self._push(stream, tokens, position, text)
            except Exception as error:  # noqa: BLE001 - it is logged there
                self._not_taken_in(error, stream, tokens, position)
        if text.rids:
            self.router.send(text)
        self._steps.observe(time.perf_counter() - began)

    def _not_taken_in(
        self, error: Exception, stream: Stream, tokens: Tokens, position: int
    ) -> None:
        """One entry could not be taken in. One that cannot be is its node's fault, and nobody
        else's."""
        match error:
            case GapError():
                last = position in tokens.finish
                self._losses.lost(stream.rid, stream.attempt, last=last, open_here=True)
            case BrokenError():
                self._break(stream, error.why, sick=error.sick)
            case _:
                log.error("could not take in tokens of %s", stream.rid, exc_info=error)
                self._break(stream, f"tokens cannot be decoded: {error!r}", sick=True)

    def _break(self, stream: Stream, why: str, *, sick: bool = False) -> None:
        """Tell the router what an attempt did, and take nothing more of it."""
        self._close(stream.rid, "broken")
        self._losses.closed(stream.rid, stream.attempt)
        self._send(StreamBroken(stream.rid, stream.attempt, reason(why), sick))

    def _on_malformed(self, _: bytes, why: str, frame: bytes) -> None:
        """Only who has a stream's attempt can have made a message about it, malformed or not."""
        try:
            named = msgspec.msgpack.decode(frame, type=TokensOf)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
            named = TokensOf([], [])
        broken = 0
        for rid, attempt in zip(named.rids, named.attempts, strict=False):
            stream = self._streams.get(rid)
            if stream is not None and stream.attempt == attempt:
                self._break(stream, f"a malformed message of tokens: {why}")
                broken += 1
        if not broken and self._strangers.take():
            log.warning("dropped a malformed frame of an unknown node: %s", reason(why))

    def _send(self, message: StreamLost | StreamBroken) -> None:
        self.router.send(message)

    def _push(self, stream: Stream, tokens: Tokens, position: int, text: Text) -> None:
        """Decode one entry of a step and append what it gave to the router's message."""
        piece = stream.push(
            tokens.starts[position],
            tokens.ids[position],
            tokens.finish.get(position),
            tokens.logprobs.get(position, []),
        )
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
            self._losses.closed(known.rid, known.attempt)
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


def main() -> None:
    """Run the detokenizer to its end."""
    run_service(DetokenizerProcess, DetokenizerService)
