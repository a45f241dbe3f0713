"""One request as the scheduler sees it."""

from __future__ import annotations

import enum
import sys
from dataclasses import dataclass, field

from mlxfleet.common.messages import Finish, Generate, Party, Sampling, TokenLogprobs
from mlxfleet.workers.phases import Phases
from mlxfleet.workers.prefix_tree import Lease, Node


class State(enum.Enum):
    """Where a sequence is."""

    WAITING = "waiting"
    PREFILLING = "prefilling"
    DECODING = "decoding"
    FINISHED = "finished"


@dataclass
class Sequence:
    """Prompt, output so far, and progress. `attempt` identifies the Generate that it came with;
    `row` is its name in the worker, a new one each time it is admitted. It runs on behalf of
    `party`; `siblings` says that others have its prompt. `logprobs` has one entry
    per token that this node generated itself, so it is aligned with the end of `output_ids`.
    `arrival` is the order in which sequences came; `waits_for` a block that another sequence is
    about to compute; `worker_deaths` counts the workers that died while it ran, `started` says that
    this one has taken it, `suspect` that its logits have been other than finite numbers.
    `tokens` counts prompt and output so far, `prefill_tokens` those to run before decoding: all
    but the last, which is the first decode input, as they were when it was admitted. When it has
    `grows_at` tokens, it needs more memory.
    `expected_tokens` are those to be prefilled when it leaves the queue, `began_s` is when it did,
    in seconds of the worker's running. It came into the queue at `queued_s` and left it at
    `prefill_began_s`, None when the next token after that has come; by the scheduler's clock.
    `chunks` are the pieces in which its prompt was prefilled since then."""

    rid: str
    attempt: str
    detokenizer: str
    prompt_ids: list[int]
    output_ids: list[int]
    sampling: Sampling
    party: Party = field(default_factory=Party)
    siblings: bool = False
    state: State = State.WAITING
    row: str = ""
    admissions: int = 0
    worker_deaths: int = 0
    preemptions: int = 0
    suspect: bool = False
    started: bool = False
    tokens: int = field(init=False)
    prefill_tokens: int = 0
    prefill_sent: int = 0
    prefill_done: int = 0
    alone: bool = False
    arrival: int = 0
    expected_tokens: int = 0
    began_s: float = 0.0
    queued_s: float = 0.0
    prefill_began_s: float | None = None
    grows_at: int = sys.maxsize
    reserved_bytes: int = 0
    cached_tokens: int = 0
    lease: Lease | None = None
    waits_for: Node | None = None
    finish: Finish | None = None
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    phases: Phases = field(default_factory=Phases)
    chunks: int = 0

    def __post_init__(self) -> None:
        self.tokens = len(self.prompt_ids) + len(self.output_ids)

    @classmethod
    def of(cls, message: Generate) -> Sequence:
        """A new sequence for a request."""
        return cls(
            rid=message.rid,
            attempt=message.attempt,
            detokenizer=message.detokenizer,
            prompt_ids=message.prompt_ids,
            output_ids=list(message.output_ids),
            sampling=message.sampling,
            party=message.party,
            siblings=message.siblings,
        )

    @property
    def worst_case_tokens(self) -> int:
        """Longest that the sequence can become."""
        return len(self.prompt_ids) + self.sampling.max_tokens

    @property
    def complete(self) -> bool:
        """Whether it has all the tokens that it may have: it only came here for its finish."""
        return len(self.output_ids) >= self.sampling.max_tokens

    def append(self, token: int) -> None:
        """One more token of the output."""
        self.output_ids.append(token)
        self.tokens += 1

    @property
    def decoded_tokens(self) -> int:
        """Tokens of the output since it was admitted."""
        return self.tokens - self.prefill_tokens - 1

    def progress(self, *, prefill_counts: bool) -> int:
        """Tokens computed since it was admitted, with or without those of the prompt."""
        if not prefill_counts or self.lease is None:
            return self.decoded_tokens
        return self.decoded_tokens + self.prefill_done - self.lease.cached_tokens

    def reserve(self, tokens: int, margin: int) -> None:
        """It has memory for so many tokens, and needs more when fewer than `margin` of them are
        left, unless it cannot become longer."""
        more = tokens < self.worst_case_tokens
        self.grows_at = tokens - margin + 1 if more else sys.maxsize

    def token_ids(self) -> list[int]:
        """Prompt and output so far."""
        return self.prompt_ids + self.output_ids

    def computed_ids(self) -> list[int]:
        """The tokens whose keys and values are in the worker for certain."""
        if self.state is State.PREFILLING:
            return self.token_ids()[: self.prefill_done]
        return self.token_ids()[:-1]

    def begin_decode(self, now: float) -> None:
        """Its first token since it left the queue has come: the end of a span."""
        self.phases.enter("decode", now, self._prefill_figures())

    def leave_phase(self, now: float, why: str) -> None:
        """It leaves the queue or the worker: the end of a span."""
        if self.state is State.WAITING:
            figures = {}
        elif self.prefill_began_s is not None:
            figures = self._prefill_figures()
        else:
            figures = {"mlxfleet.decoded_tokens": self.decoded_tokens}
        figures["mlxfleet.preemptions"] = self.preemptions
        self.phases.leave(now, why, figures)

    def _prefill_figures(self) -> dict[str, int]:
        cached = self.lease.cached_tokens if self.lease is not None else 0
        return {
            "mlxfleet.cached_tokens": cached,
            "mlxfleet.prefilled_tokens": self.prefill_done - cached,
            "mlxfleet.chunks": self.chunks,
        }

    def to_waiting(self) -> None:
        """Back to the queue: its worker is lost, or its memory is needed."""
        self.state = State.WAITING
        self.prefill_sent = self.prefill_done = self.chunks = 0
        self.reserved_bytes = 0
        self.started = False
        self.lease = self.waits_for = None
