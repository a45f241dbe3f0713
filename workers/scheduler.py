"""The scheduler's decisions, free of sockets: who waits, who runs, which chunk comes next.

Messages for the worker come out of `schedule`; `on_step` turns what the worker did into tokens
for the detokenizers.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator

from mlxfleet.common.config import SchedulerOptions
from mlxfleet.common.messages import (
    Abort,
    Admit,
    Finish,
    Generate,
    ModelInfo,
    Prefill,
    Rejected,
    Resend,
    SchedulerToWorker,
    Step,
    TokenLogprobs,
    Tokens,
)
from mlxfleet.workers.chunking import ChunkSizer
from mlxfleet.workers.sequence import Sequence, State

CHUNKS_IN_FLIGHT = 2
MAX_FINISHED_KEPT = 4096


class Scheduler:
    """State of one node: a queue, the running sequences, and finished ones not yet released."""

    def __init__(self, options: SchedulerOptions) -> None:
        self._options = options
        self._sizer = ChunkSizer(options.itl_budget_ms / 1000, options.max_chunk_tokens)
        self._sequences: dict[str, Sequence] = {}
        self._waiting: deque[Sequence] = deque()
        self._running: dict[str, Sequence] = {}
        self._finished: OrderedDict[str, None] = OrderedDict()
        self._aborts: list[Abort] = []
        self._chunks_in_flight = 0
        self._model: ModelInfo | None = None
        self.kv_used_bytes = 0
        self.steps = 0

    @property
    def running(self) -> int:
        """Sequences in the worker."""
        return len(self._running)

    @property
    def queued(self) -> int:
        """Sequences waiting."""
        return len(self._waiting)

    # --- what the router asks for -------------------------------------------------------------

    def submit(self, message: Generate) -> Rejected | None:
        """Queue a request, or say why not. A request that is known already is left alone."""
        if message.rid in self._sequences:
            return None
        # Counted together: a scheduler that is restarted gets back what ran and what waited.
        if self.running + self.queued >= self._options.max_running + self._options.max_queue:
            return Rejected(message.rid, "queue_full", "the node's queue is full")
        sequence = Sequence.of(message)
        if self._model is not None and (why := too_long(sequence, self._model)):
            return Rejected(message.rid, "too_long", why)
        self._sequences[message.rid] = sequence
        self._waiting.append(sequence)
        return None

    def release(self, rid: str) -> None:
        """Stop and forget a sequence in any state."""
        sequence = self._sequences.pop(rid, None)
        if sequence is None:
            return
        if sequence.state is State.WAITING:
            self._waiting.remove(sequence)
        elif sequence.state is State.FINISHED:
            self._finished.pop(rid, None)
        else:
            self._leave(sequence)
            self._aborts.append(Abort(rid))

    def knows(self, rid: str) -> bool:
        """Whether a sequence is here, in any state."""
        return rid in self._sequences

    def release_all(self) -> None:
        """Forget everything: the router that asked is gone."""
        for rid in list(self._sequences):
            self.release(rid)

    def resend(self, message: Resend) -> tuple[str, Tokens] | Rejected | None:
        """The tokens of a sequence from a position on, with its detokenizer's name."""
        sequence = self._sequences.get(message.rid)
        if sequence is None:
            return Rejected(message.rid, "unknown", "the node does not know the request")
        sequence.detokenizer = message.detokenizer
        ids = sequence.output_ids[message.start :]
        if not ids and sequence.finish is None:
            return None
        # Tokens from before the sequence came here have none.
        logprobs = sequence.logprobs[-len(ids) :] if ids else []
        return sequence.detokenizer, Tokens(
            rids=[sequence.rid],
            starts=[message.start],
            ids=[ids],
            finish={0: sequence.finish} if sequence.finish else {},
            logprobs={0: logprobs} if logprobs and len(logprobs) == len(ids) else {},
        )

    # --- what the worker tells ----------------------------------------------------------------

    def worker_ready(self, model: ModelInfo) -> list[Rejected]:
        """A fresh worker: everything unfinished starts again as prompt + tokens so far.

        Returns the sequences given up: those that do not fit this worker, and those that were
        running each time a worker died.
        """
        self._model = model
        self._aborts.clear()
        self._chunks_in_flight = 0
        self.kv_used_bytes = 0
        for sequence in reversed(self._running.values()):
            sequence.to_waiting()
            self._waiting.appendleft(sequence)
        self._running.clear()
        rejected = []
        for sequence in list(self._waiting):
            if why := too_long(sequence, model):
                rejected.append(Rejected(sequence.rid, "too_long", why))
            elif sequence.attempts >= self._options.max_attempts:
                why = f"the worker died {sequence.attempts} times while it ran this request"
                rejected.append(Rejected(sequence.rid, "failed", why))
        for rejection in rejected:
            self.release(rejection.rid)
        return rejected

    def on_admitted(self, rid: str) -> None:
        """The worker runs a sequence from now on; if it dies, that may be the cause."""
        if (sequence := self._running.get(rid)) is not None:
            sequence.attempts += 1

    def on_step(self, step: Step) -> Iterator[tuple[str, Tokens]]:
        """Take in a step; yield its tokens per detokenizer."""
        self.steps += 1
        self._sizer.observe_decode(step.decode_s)
        self._take_prefill(step)
        columns: dict[str, Tokens] = {}
        for position, (rid, token) in enumerate(zip(step.rids, step.ids, strict=True)):
            sequence = self._running.get(rid)
            if sequence is None:
                continue
            logprobs = step.logprobs.get(position)
            reason = step.finish.get(position)
            finish = Finish(reason) if reason else None
            batch = columns.setdefault(sequence.detokenizer, Tokens([], [], [], {}, {}))
            append(batch, sequence, token, finish, logprobs)
            if finish is not None:
                self._finish(sequence, finish)
        yield from columns.items()

    # --- what comes next ----------------------------------------------------------------------

    def schedule(self) -> list[SchedulerToWorker]:
        """Commands for the worker: drop, admit, prefill."""
        if self._model is None:
            return []
        commands: list[SchedulerToWorker] = [*self._aborts]
        self._aborts.clear()
        commands += self._admit()
        commands += self._prefill()
        return commands

    def _admit(self) -> Iterator[Admit]:
        """Move sequences from the queue to the worker, in order, while their worst case fits."""
        assert self._model is not None
        while self._waiting and len(self._running) < self._options.max_running:
            sequence = self._waiting[0]
            alone = self._last_chance(sequence)
            if self._running and (alone or self._someone_runs_alone()):
                return
            kv_bytes = self._model.kv_bytes(sequence.worst_case_tokens)
            if self.kv_used_bytes + kv_bytes > self._model.kv_budget_bytes:
                return
            self._waiting.popleft()
            self._running[sequence.rid] = sequence
            sequence.admitted_tokens = len(sequence.prompt_ids) + len(sequence.output_ids)
            # A one-token prompt has nothing to prefill.
            sequence.state = State.PREFILLING if sequence.prefill_tokens else State.DECODING
            sequence.alone = alone
            sequence.kv_bytes = kv_bytes
            self.kv_used_bytes += kv_bytes
            yield Admit(
                rid=sequence.rid,
                token_ids=sequence.prompt_ids + sequence.output_ids,
                n_output=len(sequence.output_ids),
                sampling=sequence.sampling,
            )

    def _last_chance(self, sequence: Sequence) -> bool:
        """Whether this is a sequence's last attempt. It runs alone, so that one that kills its
        worker takes no others along."""
        return 0 < sequence.attempts == self._options.max_attempts - 1

    def _someone_runs_alone(self) -> bool:
        return next(iter(self._running.values())).alone

    def _prefill(self) -> Iterator[Prefill]:
        """Keep a few chunks ahead of the worker, oldest sequence first."""
        size = self._sizer.size(self._any_decoding())
        for sequence in self._running.values():
            while sequence.prefill_sent < sequence.prefill_tokens:
                if self._chunks_in_flight >= CHUNKS_IN_FLIGHT:
                    return
                chunk = min(size, sequence.prefill_tokens - sequence.prefill_sent)
                sequence.prefill_sent += chunk
                self._chunks_in_flight += 1
                yield Prefill(sequence.rid, chunk)

    def _any_decoding(self) -> bool:
        return any(s.state is State.DECODING for s in self._running.values())

    def _take_prefill(self, step: Step) -> None:
        for rid, tokens in step.prefilled:
            self._chunks_in_flight = max(0, self._chunks_in_flight - 1)
            self._sizer.observe_chunk(tokens, step.prefill_s)
            sequence = self._running.get(rid)
            if sequence is None:
                continue
            sequence.prefill_done += tokens
            if sequence.prefill_done >= sequence.prefill_tokens:
                sequence.state = State.DECODING

    def _finish(self, sequence: Sequence, finish: Finish) -> None:
        """The worker has dropped the row; keep the tokens until the router has them all."""
        self._leave(sequence)
        sequence.state = State.FINISHED
        sequence.finish = finish
        self._finished[sequence.rid] = None
        if len(self._finished) > MAX_FINISHED_KEPT:
            oldest, _ = self._finished.popitem(last=False)
            del self._sequences[oldest]

    def _leave(self, sequence: Sequence) -> None:
        del self._running[sequence.rid]
        self.kv_used_bytes -= sequence.kv_bytes


def append(
    batch: Tokens,
    sequence: Sequence,
    token: int,
    finish: Finish | None,
    logprobs: TokenLogprobs | None,
) -> None:
    """Add one token to a sequence and to the columns of its detokenizer's message."""
    position = len(batch.rids)
    batch.rids.append(sequence.rid)
    batch.starts.append(len(sequence.output_ids))
    batch.ids.append([token])
    if finish is not None:
        batch.finish[position] = finish
    if logprobs is not None:
        batch.logprobs[position] = [logprobs]
        sequence.logprobs.append(logprobs)
    sequence.output_ids.append(token)


def too_long(sequence: Sequence, model: ModelInfo) -> str | None:
    """Why a sequence can never run on this model and budget, or None."""
    tokens = sequence.worst_case_tokens
    if tokens > model.context_length:
        return f"{tokens} tokens with the answer, but the context has {model.context_length}"
    if (needed := model.kv_bytes(tokens)) > model.kv_budget_bytes:
        return (
            f"{tokens} tokens with the answer need {needed / 1e6:.0f} MB of KV cache,"
            f" but there are {model.kv_budget_bytes / 1e6:.0f} MB"
        )
    return None
