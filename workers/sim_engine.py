"""The simulated engine: rows and passes as in `engine.py`, with a clock in the place of a model.

A pass takes as long as the options say and passes follow each other, one at a time. What a row has
computed is kept as the token ids themselves, in the cold store too, and its output is drawn from
them: a scheduler that reuses the wrong block gets the wrong tokens, as it would on a Mac.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from mlxfleet.common.kv_sizes import BLOCK_TOKENS
from mlxfleet.common.messages import Admit, ModelInfo, Prefill, Sampling, Step, Store
from mlxfleet.workers.prefill_queue import PrefillQueue
from mlxfleet.workers.sim_faults import Faults
from mlxfleet.workers.sim_times import SimTimes
from mlxfleet.workers.sim_tokens import Vocabulary, sequence_key

IDS: Final = "I"
# A host that is late with a pass makes up for it with the next ones; this much, so that a process
# that was stopped does not go through in a moment what it has missed.
CATCH_UP_S = 0.05


@dataclass(eq=False)
class SimRow:
    """`token_ids` are those in the KV cache, and the last one, the next input."""

    rid: str
    token_ids: array[int]
    prompt_tokens: int
    sampling: Sampling
    prefill_tokens: int
    prefilled: int
    generated: int
    key: int = 0
    done: bool = False

    def computed_ids(self) -> array[int]:
        """The tokens that are in the KV cache."""
        done = self.prefilled == self.prefill_tokens
        return self.token_ids[: len(self.token_ids) - 1 if done else self.prefilled]


@dataclass(frozen=True)
class SimPass:
    """A pass that ends at `ends_s` on the clock, `seconds` after it began."""

    rows: list[SimRow]
    prefilled: list[tuple[str, int]]
    seconds: float
    idle_s: float
    ends_s: float


class SimEngine:
    """Runs rows on `clock`, in seconds. `step` never waits; `due_s` says when there is something
    to read."""

    def __init__(
        self,
        model: ModelInfo,
        times: SimTimes,
        faults: Faults,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._model = model
        self._times = times
        self._faults = faults
        self._clock = clock
        self._started_s = clock()
        self._vocabulary = Vocabulary(model.vocab_size, model.eos_ids)
        self.reset()

    @property
    def busy(self) -> bool:
        """Whether a step would do anything, now or later."""
        return bool(self._running or self._joining or self._prefills or self._pass)

    @property
    def memory_bytes(self) -> int:
        """What weights, rows and stored prefixes would take."""
        rows = sum(self._model.kv_bytes(len(row.token_ids)) for row in self._rows.values())
        cold = len(self._cold) * BLOCK_TOKENS * self._model.bytes_per_token
        return self._model.weights_bytes + rows + cold

    @property
    def cache_bytes(self) -> int:
        """None is kept."""
        return 0

    @property
    def peak_bytes(self) -> int:
        """Not simulated."""
        return 0

    def due_s(self) -> float:
        """Seconds until the pass is over, 0 if there is something to do now. Looks for faults."""
        now = self._clock()
        look_s = self._faults.look(now)
        if self._faults.now.hang:
            return look_s
        if self._pass is not None:
            return min(max(0.0, self._pass.ends_s - now), look_s)
        return 0.0 if self.busy else look_s

    def reset(self) -> None:
        """Drop every row and every stored prefix."""
        self._rows: dict[str, SimRow] = {}
        self._prefills: PrefillQueue[SimRow] = PrefillQueue()
        self._joining: list[SimRow] = []
        self._running: list[SimRow] = []
        self._pass: SimPass | None = None
        self._cold: dict[int, array[int]] = {}
        self._idle_since: float | None = None

    def close(self) -> None:
        """Give the memory back."""
        self.reset()

    def admit(self, message: Admit) -> None:
        """Take a new row; it decodes as soon as its prompt is prefilled."""
        self.drop(message.rid)
        token_ids = array(IDS)
        for block in message.cached_blocks:
            token_ids += self._cold.get(block, array(IDS))
        # A block that does not hold what it should leaves zeros.
        del token_ids[message.cached_tokens :]
        token_ids.extend([0] * (message.cached_tokens - len(token_ids)))
        token_ids.extend(message.token_ids[message.cached_tokens :])
        prefill_tokens = len(message.token_ids) - 1
        row = SimRow(
            rid=message.rid,
            token_ids=token_ids,
            prompt_tokens=len(message.token_ids) - message.n_output,
            sampling=message.sampling,
            prefill_tokens=prefill_tokens,
            prefilled=min(message.cached_tokens, prefill_tokens),
            generated=message.n_output,
        )
        row.key = sequence_key(token_ids[: row.prompt_tokens], row.sampling)
        self._rows[row.rid] = row
        if row.prefilled == row.prefill_tokens:
            self._joining.append(row)

    def prefill(self, message: Prefill) -> None:
        """Queue a pass's prefill."""
        self._prefills.add(message, self._rows)

    def store(self, message: Store) -> None:
        """Copy a row's tokens to the cold store. A row that has ended is here until `drop`."""
        row = self._rows.get(message.rid)
        if row is None:
            return
        computed = row.computed_ids()
        for i, block in enumerate(message.blocks):
            if not 0 <= block < self._model.cold_blocks:
                raise ValueError(f"block {block} is outside the store")
            start = message.start + i * BLOCK_TOKENS
            self._cold[block] = computed[start : start + BLOCK_TOKENS]

    def drop(self, rid: str) -> None:
        """Forget a row in any state."""
        if (row := self._rows.pop(rid, None)) is not None:
            row.done = True

    def step(self, epoch: str) -> Step:
        """Report the pass that is over, and begin the next. Does nothing during a pass."""
        now = self._clock()
        step = Step(epoch=epoch)
        ended = self._pass
        if self._faults.now.hang or (ended is not None and ended.ends_s > now):
            return step
        self._pass = None
        if ended is not None:
            self._report(ended, step)
        self._begin(now, ended, step)
        return step

    def _report(self, ended: SimPass, step: Step) -> None:
        step.prefilled = ended.prefilled
        step.decoded_rows = len(ended.rows)
        step.pass_s = ended.seconds
        step.idle_s = ended.idle_s
        for row in ended.rows:
            if not row.done:
                self._decode(row, step)

    def _decode(self, row: SimRow, step: Step) -> None:
        """The next token of a row."""
        token = self._vocabulary.token(row.key, row.generated)
        position = len(step.rids)
        step.rids.append(row.rid)
        step.ids.append(token)
        if (alternatives := row.sampling.logprobs) is not None:
            step.logprobs[position] = self._vocabulary.logprobs(
                row.key, row.generated, alternatives
            )
        row.token_ids.append(token)
        row.generated += 1
        if row.generated >= row.sampling.max_tokens:
            step.finish[position] = "length"
            row.done = True

    def _begin(self, now: float, ended: SimPass | None, step: Step) -> None:
        """Begin the next pass when the last one ended, or now if there was nothing to do."""
        decoding = any(not row.done for row in self._running)
        pieces, prefilled = self._prefills.take(decoding=decoding)
        self._joining += [row for row, _, end in pieces if end == row.prefill_tokens]
        self._running = [row for row in self._running + self._joining if not row.done]
        self._joining = []
        if not self._running and not pieces:
            step.prefilled = step.prefilled + prefilled
            waiting = any(not row.done for row in self._rows.values())
            if not waiting:
                self._idle_since = None
            elif self._idle_since is None:
                self._idle_since = now
            return
        begins_s = now if ended is None else max(ended.ends_s, now - CATCH_UP_S)
        idle_s = now - self._idle_since if self._idle_since is not None else 0.0
        self._idle_since = None
        tokens = sum(end - start for _, start, end in pieces)
        slow = self._faults.now.slow
        seconds = slow * self._times.pass_s(
            len(self._running), tokens, since_start_s=begins_s - self._started_s
        )
        self._pass = SimPass(
            list(self._running), prefilled, seconds, idle_s, ends_s=begins_s + seconds
        )
