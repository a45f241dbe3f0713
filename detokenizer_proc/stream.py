"""One sequence's way from tokens to text."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from mlxfleet.common.messages import Finish, OpenStream, TokenLogprobs, TokenTextLogprobs
from mlxfleet.detokenizer_proc.entry_check import check_entry, highest_id
from mlxfleet.detokenizer_proc.incremental import make_decoder
from mlxfleet.detokenizer_proc.stop import StopMatcher
from mlxfleet.detokenizer_proc.token_text import describe
from mlxfleet.detokenizer_proc.vocabulary import Vocabulary


@dataclass(slots=True)
class Piece:
    """What some tokens gave: tokens from position `start`, text from character `offset`."""

    start: int
    offset: int
    ids: list[int] = field(default_factory=list)
    text: str = ""
    finish: Finish | None = None
    logprobs: list[TokenTextLogprobs] = field(default_factory=list)


class GapError(Exception):
    """Tokens are missing before the ones that came."""


class Stream:
    """Decodes a sequence's tokens, watches for stop strings, decides how the sequence ended.

    It takes tokens of one attempt only. Rebuilding a stream after a restart replays its tokens and
    skips the text that was sent.
    `tokens` and `chars` are those so far; it was opened at `opened_s` of time.monotonic().
    """

    def __init__(self, vocabulary: Vocabulary, opening: OpenStream) -> None:
        self.rid = opening.rid
        self.attempt = opening.attempt
        self.traceparent = opening.traceparent
        self.opened_s = time.monotonic()
        self._max_tokens = opening.max_tokens
        self._highest_id = highest_id(opening.vocab_size)
        self._vocabulary = vocabulary
        self._decoder = make_decoder(vocabulary, opening.prompt_tail)
        self._stop = StopMatcher(opening.stop)
        self.tokens = len(opening.output_ids)
        self.chars = opening.sent_chars
        replayed = "".join(self._decode(token) for token in opening.output_ids)
        self._unsent = replayed[opening.sent_chars :]
        self.finished = False

    def push(
        self,
        start: int,
        ids: list[int],
        finish: Finish | None,
        logprobs: list[TokenLogprobs],
    ) -> Piece | None:
        """Take tokens from position `start`; None if they are all known or nobody waits for
        them. GapError if some are missing before them, BrokenError if no node may send them."""
        if self.finished:
            return None
        check_entry(start, ids, finish, logprobs, self._max_tokens, self._highest_id)
        known = self.tokens - start
        if known < 0:
            raise GapError(self.rid)
        if known >= len(ids) and finish is None:
            return None
        piece = Piece(self.tokens, self.chars, text=self._unsent)
        self._unsent = ""
        for position in range(known, len(ids)):
            token = ids[position]
            ends = finish is not None and position == len(ids) - 1
            # The end-of-sequence token is not part of the text.
            if not (ends and finish is not None and finish.reason == "stop"):
                piece.text += self._decode(token)
            piece.ids.append(token)
            if logprobs:
                piece.logprobs.append(describe(self._vocabulary, token, logprobs[position]))
            if self._stop.stopped:
                break
        self._finish(piece, finish)
        self.tokens += len(piece.ids)
        self.chars += len(piece.text)
        return piece

    def _finish(self, piece: Piece, finish: Finish | None) -> None:
        if finish is not None and not self._stop.stopped:
            piece.text += self._stop.push(self._decoder.flush())
            piece.text += self._stop.flush()
            piece.finish = finish
        if self._stop.stopped:
            cached_tokens = finish.cached_tokens if finish else 0
            piece.finish = Finish("stop", cached_tokens)
        self.finished = piece.finish is not None

    def _decode(self, token: int) -> str:
        return self._stop.push(self._decoder.push(token))
