"""The scheduler's decisions, free of sockets: who waits, who runs, which tokens come next.

Messages for the worker come out of `schedule`; `on_step` turns what the worker did into tokens
for the detokenizers.
"""

from __future__ import annotations

import itertools
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Many

from mlxfleet.common.config import SchedulerOptions
from mlxfleet.common.fair_queue import FairQueue
from mlxfleet.common.limits import reason as as_reason
from mlxfleet.common.messages import (
    Admit,
    Drop,
    Finish,
    Generate,
    ModelInfo,
    Prefill,
    Rejected,
    RejectedCode,
    Release,
    Resend,
    SchedulerToWorker,
    Step,
    Store,
    TokenLogprobs,
    Tokens,
)
from mlxfleet.workers.chunking import ChunkSizer, share_out
from mlxfleet.workers.cool_baseline import CoolBaseline
from mlxfleet.workers.kv_events import KvJournal
from mlxfleet.workers.phases import Phases, untraced
from mlxfleet.workers.prefix_tree import Lease, Match, PrefixTree, Write
from mlxfleet.workers.sequence import Sequence, State
from mlxfleet.workers.shared_prefixes import SharedPrefixes

# One that runs, one that is launched, and one for the worker to launch before it can have an answer
# to its report on the first.
PASSES_AHEAD = 3
MAX_FINISHED_KEPT = 4096
# How often the passes that were timed at load are learned, so that little is left of the first
# guess: a node that looks slow gets no requests, and without any it would never look faster.
TIMES_LEARNED = 5
# A running sequence has memory for this many tokens more than it has; it asks for more when half
# of that is used up, while the worker is a few tokens ahead of what the scheduler knows.
TOKENS_AHEAD = 64
GROWTH_MARGIN = TOKENS_AHEAD // 2
# A row yields to those who have had less only after so many tokens: it has to begin again, from
# what is stored, or where nothing is, from the first token.
LEAST_PROGRESS = 64
# With nothing decoding, a pass waits this share of its own time for prompts that come together with
# the first, but not longer than that, and not at all where timers are too coarse for it.
HELD_SHARE = 0.08
MAX_HELD_S = 0.02
MIN_HELD_S = 0.001
NOT_FINITE = (
    "the model computed NaN or infinite numbers for this request, so there is no next token;"
    " its weights or its precision may be at fault"
)
# Of the mean length of sequences in time, what the last one counts.
NEWEST_SHARE = 0.1


def ignore(seconds: float) -> None:
    """Do nothing with a time."""


class Scheduler:
    """State of one node: a queue, the running sequences, and finished ones not yet released.

    `waited` is told how long each sequence was in the queue, `prefilled` how long it took from
    there to its next token, in seconds of the clock `now`. `phases` gives a request what records
    its spans.
    """

    def __init__(
        self,
        options: SchedulerOptions,
        *,
        waited: Callable[[float], None] = ignore,
        prefilled: Callable[[float], None] = ignore,
        phases: Callable[[Generate], Phases] = untraced,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._options = options
        self._waited = waited
        self._prefilled = prefilled
        self._phases = phases
        self._now = now
        self._sizer = ChunkSizer(options.itl_budget_ms / 1000, options.max_chunk_tokens)
        self._baseline = CoolBaseline(now)
        self._fit_is_fresh = True
        self._arrivals = itertools.count()
        self._admissions = itertools.count(1)
        self._sequences: dict[str, Sequence] = {}
        self._waiting: OrderedDict[str, Sequence] = OrderedDict()
        self._fair: FairQueue[str] = FairQueue()
        self._shared = SharedPrefixes()
        self._running: dict[str, Sequence] = {}
        self._finished: OrderedDict[str, None] = OrderedDict()
        self._commands: list[SchedulerToWorker] = []
        self._given_up: list[Rejected] = []
        # Of each pass that was sent and not reported: how many rows it is for.
        self._passes_ahead: deque[int] = deque()
        self._model: ModelInfo | None = None
        self.held_s = 0.0
        self.journal = KvJournal()
        self._tree = PrefixTree(0, self.journal)
        self.received = 0
        self.sequence_s = 0.0
        self.kv_used_bytes = 0
        self.steps = 0
        self.preemptions = 0
        self.generated_tokens = 0
        self.cached_tokens = 0
        self.prefilled_tokens = 0
        self.busy_s = 0.0
        self.idle_s = 0.0

    @property
    def running(self) -> int:
        """Sequences in the worker."""
        return len(self._running)

    @property
    def queued(self) -> int:
        """Sequences waiting."""
        return len(self._waiting)

    @property
    def cold_blocks_used(self) -> int:
        """Blocks of the cold store that hold something."""
        return self._tree.used

    @property
    def cold_age_s(self) -> float:
        """For how long the block has not been used that makes room next."""
        return self._tree.age_s

    @property
    def queued_prefill_tokens(self) -> int:
        """Tokens to be computed for those that wait, as expected when they came."""
        return sum(sequence.expected_tokens for sequence in self._waiting.values())

    @property
    def running_prefill_tokens(self) -> int:
        """Prompt tokens to be computed for those in the worker."""
        return sum(
            sequence.prefill_tokens - sequence.prefill_done
            for sequence in self._running.values()
            if sequence.state is State.PREFILLING
        )

    @property
    def prefill_tokens_per_s(self) -> float:
        """How fast prompts are computed beside the rows that decode now; 0 if unknown."""
        return self._sizer.prefill_rate(self._decoding) / self._baseline.relief

    @property
    def decode_step_s(self) -> float:
        """Seconds of a decode step with one row more than now."""
        return self._sizer.cost.decode_s(self._decoding + 1) * self._baseline.relief

    @property
    def decode_row_s(self) -> float:
        """Seconds that each row adds to a decode step."""
        return self._sizer.cost.parts.per_row_s * self._baseline.relief

    @property
    def slowdown(self) -> float:
        """How many times as long passes take as when the machine was cool."""
        return self._baseline.slowdown

    @property
    def _decoding(self) -> int:
        return sum(s.state is State.DECODING for s in self._running.values())

    def cached_blocks(self) -> Iterator[int]:
        """Hashes of all whole blocks in the cold store."""
        return self._tree.stored_hashes()

    # --- what the router asks for -------------------------------------------------------------

    def submit(self, message: Generate) -> Rejected | None:
        """Queue a request, or say why not. It takes the place of an earlier attempt; one that is
        known already is left alone."""
        self.received += 1
        known = self._sequences.get(message.rid)
        if known is not None:
            if known.attempt == message.attempt:
                return None
            self._forget(known)
        # Counted together: a scheduler that is restarted gets back what ran and what waited.
        if self.running + self.queued >= self._options.max_running + self._options.max_queue:
            return rejection(message, "queue_full", "the node's queue is full")
        sequence = Sequence.of(message)
        if self._model is not None and (why := too_long(sequence, self._model)):
            return rejection(message, "too_long", why)
        self._sequences[message.rid] = sequence
        self._shared.join(sequence)
        if sequence.complete:
            self._keep_finished(sequence, Finish("length"))
            return None
        sequence.arrival = next(self._arrivals)
        sequence.queued_s = self._now()
        sequence.phases = self._phases(message)
        sequence.phases.enter("queue", sequence.queued_s)
        self._expect(sequence)
        self._waiting[message.rid] = sequence
        self._fair.push(message.rid, message.party)
        return None

    def release(self, message: Release) -> None:
        """Stop and forget an attempt in any state."""
        if (sequence := self.find(message.rid, message.attempt)) is not None:
            self._forget(sequence)

    def _forget(self, sequence: Sequence) -> None:
        del self._sequences[sequence.rid]
        if sequence.state is State.WAITING:
            del self._waiting[sequence.rid]
            sequence.leave_phase(self._now(), "released")
        elif sequence.state is State.FINISHED:
            self._finished.pop(sequence.rid, None)
        else:
            self._leave(sequence, "released")
        self._fair.discard(sequence.rid)
        self._shared.leave(sequence, self._tree)

    def find(self, rid: str, attempt: str) -> Sequence | None:
        """The sequence that a message is about, in any state; None if the message is stale."""
        sequence = self._sequences.get(rid)
        return sequence if sequence is not None and sequence.attempt == attempt else None

    def resends_for(self, detokenizer: str) -> list[Resend]:
        """What brings a detokenizer all that may have been lost on the way to it: every token, or
        with log-probabilities those that have one, which are all that was sent from here."""
        return [
            Resend(
                s.rid,
                s.attempt,
                detokenizer,
                len(s.output_ids) - len(s.logprobs) if s.logprobs else 0,
            )
            for s in self._sequences.values()
            if s.detokenizer == detokenizer
        ]

    def release_all(self) -> None:
        """Forget everything: the router that asked is gone."""
        for sequence in list(self._sequences.values()):
            self._forget(sequence)

    def resend(self, message: Resend) -> tuple[str, Tokens] | Rejected | None:
        """The tokens of a sequence from a position on, with its detokenizer's name."""
        sequence = self.find(message.rid, message.attempt)
        if sequence is None:
            return rejection(message, "unknown", "the node does not know the request")
        sequence.detokenizer = message.detokenizer
        ids = sequence.output_ids[message.start :]
        if not ids and sequence.finish is None:
            return None
        # Tokens from before the sequence came here have none.
        logprobs = sequence.logprobs[-len(ids) :] if ids else []
        return sequence.detokenizer, Tokens(
            rids=[sequence.rid],
            attempts=[sequence.attempt],
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
        self._tree = PrefixTree(model.cold_blocks, self.journal)
        self._shared.forget_holds()
        self._learn_passes(model)
        self._commands.clear()
        self._passes_ahead.clear()
        self.kv_used_bytes = 0
        for sequence in reversed(self._running.values()):
            sequence.worker_deaths += sequence.started
            sequence.leave_phase(self._now(), "worker lost")
            self._wait_first(sequence)
        self._running.clear()
        rejected = []
        for sequence in list(self._waiting.values()):
            sequence.waits_for = None
            if why := too_long(sequence, model):
                rejected.append(rejection(sequence, "too_long", why))
            elif sequence.worker_deaths >= self._options.max_attempts:
                why = f"the worker died {sequence.worker_deaths} times while it ran this request"
                rejected.append(rejection(sequence, "failed", why))
        for refused in rejected:
            self._forget(self._sequences[refused.rid])
        return rejected

    def rest(self) -> None:
        """To be called now and then. A node that was slow when its last passes ran gets nothing to
        do, so it would never look faster: after a pause it knows what passes took at load."""
        if self._fit_is_fresh or self._running or not self._baseline.rested:
            return
        if self._model is not None and self._model.passes:
            self._sizer.forget()
            self._baseline.forget_fit()
            self._learn_passes(self._model)

    def _learn_passes(self, model: ModelInfo) -> None:
        for measured in model.passes * TIMES_LEARNED:
            self._sizer.observe(
                rows=measured.rows,
                tokens=measured.tokens,
                pairs=measured.tokens**2 / 2,
                seconds=measured.seconds,
            )
        self._fit_is_fresh = True

    def on_admitted(self, row: str) -> None:
        """The worker runs a sequence from now on; if it dies, that may be the cause."""
        if (sequence := self._running.get(row)) is not None:
            sequence.started = True

    def on_step(self, step: Step) -> Iterator[tuple[str, Tokens]]:
        """Take in a step; yield its tokens per detokenizer. Then see `take_given_up`."""
        self.steps += 1
        self.generated_tokens += len(step.ids) - len(step.failed)
        self.busy_s += step.pass_s
        self.idle_s += step.idle_s
        self._measure(step)
        self._take_prefill(step)
        columns: dict[str, Tokens] = {}
        for position, (row, token) in enumerate(zip(step.rids, step.ids, strict=True)):
            sequence = self._running.get(row)
            if sequence is None:
                continue
            if step.failed and position in step.failed:
                self._not_finite(sequence)
                continue
            logprobs = step.logprobs.get(position) if step.logprobs else None
            reason = step.finish.get(position)
            finish = Finish(reason, sequence.cached_tokens) if reason else None
            batch = columns.get(sequence.detokenizer)
            if batch is None:
                batch = columns[sequence.detokenizer] = Tokens([], [], [], [], {}, {})
            append(batch, sequence, token, finish, logprobs)
            self._fair.charge(sequence.rid, 1)
            if sequence.prefill_began_s is not None:
                now = self._now()
                self._prefilled(now - sequence.prefill_began_s)
                sequence.prefill_began_s = None
                sequence.begin_decode(now)
            if finish is not None:
                self._finish(sequence, finish)
        yield from columns.items()

    def take_given_up(self) -> list[Rejected]:
        """The sequences given up since this was last asked."""
        rejected, self._given_up = self._given_up, []
        return rejected

    def _not_finite(self, sequence: Sequence) -> None:
        """The model gave numbers of which none is the largest. They may come from what another
        sequence has left in memory, so it is computed once more, in memory that is cleared and
        without the prefix cache. The second time they are its own."""
        if not sequence.suspect:
            sequence.suspect = True
            self._preempt(sequence, computed=[])
            return
        self._leave(sequence, "not finite", computed=[])
        self._fair.discard(sequence.rid)
        self._shared.leave(sequence, self._tree)
        del self._sequences[sequence.rid]
        self._given_up.append(rejection(sequence, "not_finite", NOT_FINITE))

    def _measure(self, step: Step) -> None:
        """Learn from how long the pass took."""
        self._fit_is_fresh = False
        rows, seconds = step.decoded_rows, step.pass_s
        tokens = sum(tokens for _, tokens in step.prefilled)
        pairs = sum(self._pairs(row, tokens) for row, tokens in step.prefilled)
        context = sum(s.tokens for s in map(self._running.get, step.rids) if s is not None)
        self._sizer.observe(rows=rows, tokens=tokens, pairs=pairs, seconds=seconds)
        self._baseline.observe(
            rows=rows, tokens=tokens, context=context, pairs=pairs, seconds=seconds
        )

    def _pairs(self, row: str, tokens: int) -> float:
        """With how many tokens attention compared those that were just prefilled."""
        sequence = self._running.get(row)
        return tokens * (sequence.prefill_done + tokens / 2) if sequence else 0.0

    def _take_prefill(self, step: Step) -> None:
        # A step may report two passes: one that ran, and one whose rows are all gone.
        reported = len(step.prefilled)
        while reported > 0 and self._passes_ahead:
            reported -= self._passes_ahead.popleft()
        for row, tokens in step.prefilled:
            self.prefilled_tokens += tokens
            sequence = self._running.get(row)
            if sequence is None:
                continue
            sequence.prefill_done += tokens
            self._fair.charge(sequence.rid, tokens)
            sequence.chunks += 1
            if sequence.lease is not None:
                sequence.lease.computed = sequence.prefill_done
            if sequence.prefill_done >= sequence.prefill_tokens:
                sequence.state = State.DECODING

    # --- what comes next ----------------------------------------------------------------------

    def schedule(self) -> list[SchedulerToWorker]:
        """Commands for the worker: store, drop, admit, prefill. `held_s` then says in how many
        seconds there is more if nothing comes, 0 for never."""
        if self._model is None:
            return []
        self._grow(self._model)
        self._admit(self._model)
        self._prefill()
        commands, self._commands = self._commands, []
        return commands

    def _admit(self, model: ModelInfo) -> None:
        """Move sequences from the queue to the worker, in fair order, while they fit. One that
        waits for another's prefix lets later ones pass."""
        blocked: set[str] = set()
        while (sequence := self._next(model, blocked)) is not None:
            alone = self._last_chance(sequence)
            if self._running and (alone or self._someone_runs_alone()):
                return
            match = self._match(sequence)
            if match is not None and not self._fits(sequence, model):
                if not self._make_room(sequence, model):
                    return
                # What was stored for those that yielded may have taken the place of its prefix.
                match = self._match(sequence)
            if match is None:
                blocked.add(sequence.rid)
                continue
            self._run(sequence, model, match, alone=alone)

    def _next(self, model: ModelInfo, blocked: set[str]) -> Sequence | None:
        """Who is to be admitted: the next of the queue, if it fits, else one that has less than its
        share, for which others may have to make room."""
        if not self._waiting:
            return None
        rid = self._fair.first()
        if rid in blocked:
            rid = next((rid for rid in self._fair.in_order() if rid not in blocked), None)
        if rid is None:
            return None
        if not self._fits(self._waiting[rid], model):
            rid = self._fair.owed(self._places)
        return None if rid is None or rid in blocked else self._waiting[rid]

    @property
    def _places(self) -> int:
        """How many sequences can run at once: where memory is short, those that do."""
        return min(self._options.max_running, len(self._running))

    def _fits(self, sequence: Sequence, model: ModelInfo) -> bool:
        """Whether there is a row and memory for a sequence that waits."""
        if len(self._running) >= self._options.max_running:
            return False
        return self.kv_used_bytes + first_bytes(sequence, model) <= model.kv_budget_bytes

    def _make_room(self, sequence: Sequence, model: ModelInfo) -> bool:
        """Find a row and memory for a sequence that has less than its share; False if there are
        none yet. The first of its request may have a guest row, if that is all it needs; otherwise
        rows of those that have more than their share yield."""
        yielding = self._fair.yielding(sequence.rid, self._places)
        missing = self.kv_used_bytes + first_bytes(sequence, model) - model.kv_budget_bytes
        full = len(self._running) >= self._options.max_running
        guest = sequence.party.priority == "interactive" and self._fair.holds_none(sequence.rid)
        if guest and yielding and missing <= 0 and len(self._running) < self._options.rows:
            return True
        victims = []
        for victim in map(self._sequences.__getitem__, yielding):
            if not full and missing <= 0:
                break
            if victim.progress(prefill_counts=model.cold_blocks > 0) >= LEAST_PROGRESS:
                victims.append(victim)
                full = False
                missing -= victim.reserved_bytes
        if full or missing > 0:
            return False
        for victim in victims:
            self._preempt(victim)
        return True

    def _run(self, sequence: Sequence, model: ModelInfo, match: Match, *, alone: bool) -> None:
        """Give a sequence a row."""
        del self._waiting[sequence.rid]
        self._fair.start(sequence.rid)
        sequence.row = f"{sequence.rid}#{next(self._admissions)}"
        sequence.admissions += 1
        self._running[sequence.row] = sequence
        sequence.alone = alone
        sequence.reserve(first_tokens(sequence), GROWTH_MARGIN)
        sequence.reserved_bytes = first_bytes(sequence, model)
        self.kv_used_bytes += sequence.reserved_bytes
        self._commands.append(self._start(sequence, match))

    def _match(self, sequence: Sequence) -> Match | None:
        """What of a sequence is in the cold store; None if it should wait for more."""
        if sequence.waits_for is not None and sequence.waits_for.pending:
            owner = sequence.waits_for.owner
            if owner is None or not self._store_computed(owner):
                return None
        if sequence.suspect:
            return self._tree.match([])
        while True:
            match = self._tree.match(sequence.token_ids()[:-1])
            sequence.waits_for = match.pending
            if match.pending is None:
                return match
            owner = match.pending.owner
            if owner is None or not self._store_computed(owner):
                return None

    def _store_computed(self, lease: Lease) -> bool:
        """Store what a running sequence has computed; False if there is nothing."""
        return self._store(lease.rid, self._tree.store_computed(lease))

    def _store(self, rid: str, write: Write | None) -> bool:
        if write is None:
            return False
        self._commands.append(Store(rid, write.start, write.blocks))
        return True

    def _start(self, sequence: Sequence, match: Match) -> Admit:
        """A sequence begins where its stored prefix ends."""
        sequence.began_s = self.busy_s + self.idle_s
        sequence.prefill_began_s = self._now()
        self._waited(sequence.prefill_began_s - sequence.queued_s)
        sequence.phases.enter("prefill", sequence.prefill_began_s)
        token_ids = sequence.token_ids()
        lease = self._tree.begin(sequence.row, match, token_ids[:-1])
        sequence.lease = lease
        self._shared.stored(sequence, self._tree)
        sequence.prefill_tokens = len(token_ids) - 1
        sequence.prefill_sent = sequence.prefill_done = lease.cached_tokens
        # With all but the last token known there is nothing to prefill.
        done = lease.cached_tokens == sequence.prefill_tokens
        sequence.state = State.DECODING if done else State.PREFILLING
        self.cached_tokens += lease.cached_tokens
        if sequence.admissions == 1 and not sequence.output_ids:
            # Not what it had computed itself before it was preempted or moved.
            sequence.cached_tokens = lease.cached_tokens
        return Admit(
            rid=sequence.row,
            token_ids=token_ids,
            n_output=len(sequence.output_ids),
            sampling=sequence.sampling,
            cached_tokens=lease.cached_tokens,
            cached_blocks=lease.cached_blocks,
        )

    def _last_chance(self, sequence: Sequence) -> bool:
        """Whether this is a sequence's last attempt. It runs alone, so that one that kills its
        worker takes no others along."""
        return 0 < sequence.worker_deaths == self._options.max_attempts - 1

    def _someone_runs_alone(self) -> bool:
        return next(iter(self._running.values())).alone

    def _grow(self, model: ModelInfo) -> None:
        """Reserve memory for what sequences will have generated soon. Where there is none, those
        that have more than their share make room, else those that came last; they go on later, from
        the cold store if it has them."""
        needing = [s for s in self._running.values() if s.tokens >= s.grows_at]
        for sequence in sorted(needing, key=lambda s: s.arrival):
            tokens = min(sequence.tokens + TOKENS_AHEAD, sequence.worst_case_tokens)
            more_bytes = model.kv_bytes(tokens) - sequence.reserved_bytes
            while (
                sequence.row in self._running
                and self.kv_used_bytes + more_bytes > model.kv_budget_bytes
            ):
                self._preempt(self._first_to_yield(sequence))
            if sequence.row in self._running:
                sequence.reserve(tokens, GROWTH_MARGIN)
                sequence.reserved_bytes += more_bytes
                self.kv_used_bytes += more_bytes

    def _first_to_yield(self, sequence: Sequence) -> Sequence:
        """Who makes room for a running sequence; it may be that itself."""
        model = self._model
        reused = model is not None and model.cold_blocks > 0
        yielding = [self._sequences[rid] for rid in self._fair.yielding(sequence.rid, self._places)]
        for other in yielding:
            if other.progress(prefill_counts=reused) >= LEAST_PROGRESS:
                return other
        if yielding:
            return yielding[0]
        return max(self._running.values(), key=lambda s: self._fair.precedence(s.rid))

    def _preempt(self, sequence: Sequence, computed: list[int] | None = None) -> None:
        self.preemptions += 1
        self._leave(sequence, "preempted", computed)
        sequence.preemptions += 1
        self._wait_first(sequence)

    def _wait_first(self, sequence: Sequence) -> None:
        sequence.to_waiting()
        self._fair.put_back(sequence.rid)
        sequence.queued_s = self._now()
        sequence.phases.enter("queue", sequence.queued_s)
        self._expect(sequence)
        self._waiting[sequence.rid] = sequence
        self._waiting.move_to_end(sequence.rid, last=False)

    def _expect(self, sequence: Sequence) -> None:
        """Estimate what there is to compute for one that waits."""
        token_ids = sequence.token_ids()[:-1]
        sequence.expected_tokens = len(token_ids) - self._tree.expected(token_ids)

    def _prefill(self) -> None:
        """Keep a few passes' prefill ahead of the worker."""
        self.held_s = 0.0
        while len(self._passes_ahead) < PASSES_AHEAD:
            wanting = [s for s in self._running.values() if s.prefill_sent < s.prefill_tokens]
            if not wanting:
                return
            wanting.sort(key=lambda s: self._fair.order(s.rid))
            # Those that have all their prompt, and one that may get the rest of it with this pass.
            rows = len(self._running) - len(wanting)
            rows += rows > 0
            size = self._sizer.size(rows, wanting[0].prefill_sent)
            wanted = [s.prefill_tokens - s.prefill_sent for s in wanting]
            if rows == 0 and not self._passes_ahead and sum(wanted) < size:
                self.held_s = self._still_held_s(wanting, sum(wanted))
                if self.held_s > 0:
                    return
            shares = share_out(size, wanted)
            prefill = Prefill([], [], self._sizer.rests(rows, size, wanting[0].prefill_sent))
            for sequence, tokens in zip(wanting, shares, strict=True):
                if tokens > 0:
                    prefill.rids.append(sequence.row)
                    prefill.tokens.append(tokens)
                    sequence.prefill_sent += tokens
            self._passes_ahead.append(len(prefill.rids))
            self._commands.append(prefill)

    def _still_held_s(self, wanting: Many[Sequence], tokens: int) -> float:
        """Seconds that a pass with so many prompt tokens should still wait for more of them. Those
        that miss the pass of the first would be held to the inter-token budget of its stream."""
        pass_s = self._sizer.cost.pass_s(0, tokens, wanting[0].prefill_sent)
        held_s = min(HELD_SHARE * pass_s, MAX_HELD_S)
        began = [s.prefill_began_s for s in wanting if s.prefill_began_s is not None]
        if held_s < MIN_HELD_S or not began:
            return 0.0
        return max(0.0, min(began) + held_s - self._now())

    def _finish(self, sequence: Sequence, finish: Finish) -> None:
        """Keep the tokens until the router has them all."""
        self._leave(sequence, finish.reason)
        self._fair.discard(sequence.rid)
        ran_s = self.busy_s + self.idle_s - sequence.began_s
        share = NEWEST_SHARE if self.sequence_s else 1.0
        self.sequence_s += share * (ran_s - self.sequence_s)
        self._keep_finished(sequence, finish)

    def _keep_finished(self, sequence: Sequence, finish: Finish) -> None:
        sequence.state = State.FINISHED
        sequence.finish = finish
        self._finished[sequence.rid] = None
        if len(self._finished) > MAX_FINISHED_KEPT:
            oldest, _ = self._finished.popitem(last=False)
            self._shared.leave(self._sequences.pop(oldest), self._tree)

    def _leave(self, sequence: Sequence, why: str, computed: list[int] | None = None) -> None:
        """Out of the worker; what it has computed stays in the cold store, or the tokens `computed`
        alone."""
        if computed is None:
            computed = sequence.computed_ids()
        sequence.leave_phase(self._now(), why)
        del self._running[sequence.row]
        self.kv_used_bytes -= sequence.reserved_bytes
        assert sequence.lease is not None
        write = self._tree.end(sequence.lease, computed)
        self._shared.stored(sequence, self._tree)
        sequence.lease = None
        self._store(sequence.row, write)
        self._commands.append(Drop(sequence.row))


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
    batch.attempts.append(sequence.attempt)
    batch.starts.append(len(sequence.output_ids))
    batch.ids.append([token])
    if finish is not None:
        batch.finish[position] = finish
    if logprobs is not None:
        batch.logprobs[position] = [logprobs]
        sequence.logprobs.append(logprobs)
    sequence.append(token)


def rejection(message: Generate | Resend | Sequence, code: RejectedCode, why: str) -> Rejected:
    """The refusal of an attempt."""
    return Rejected(message.rid, message.attempt, code, as_reason(why))


def first_tokens(sequence: Sequence) -> int:
    """For how many tokens a sequence gets memory when it is admitted."""
    return min(sequence.tokens + TOKENS_AHEAD, sequence.worst_case_tokens)


def first_bytes(sequence: Sequence, model: ModelInfo) -> int:
    """Bytes of memory that a sequence gets when it is admitted."""
    return model.kv_bytes(first_tokens(sequence))


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
