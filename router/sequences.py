"""One generated sequence as the router sees it: everything needed to show it, and to resume it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from mlxfleet.common.errors import RequestError
from mlxfleet.common.messages import Finish, FinishReason, Party, Sampling, TokenTextLogprobs
from mlxfleet.router.places import Place
from mlxfleet.router.sequence_trace import SequenceTrace
from mlxfleet.router.trials import Trials
from mlxfleet.router.wakeup import Wakeup

MAX_FAILED_WORKERS = 3
MAX_MOVES = 32


@dataclass(slots=True)
class Delta:
    """What is new for the client since it was last asked."""

    text: str = ""
    logprobs: list[TokenTextLogprobs] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    def __bool__(self) -> bool:
        return bool(self.text or self.logprobs or self.finish_reason)


@dataclass(eq=False)
class Sequence:
    """A sequence in flight.

    `attempt` identifies the last Generate; what carries another one is stale. `wakeup` is shared by
    all sequences of one HTTP request. `output_ids` and `chars` are what has arrived, whether the
    client has read it or not; `pending` is what it has not. `block_hashes` are those of the prompt,
    `session` what the client calls the conversation. It runs on behalf of `party`, at its `place`
    among those that share the nodes; `siblings` says that the request has other sequences with its
    prompt. It has `ended` when its final message has come. `moves` counts the nodes that were lost
    under it; `stranded_since` is when its node was last seen to be lost with no other to go to,
    `refused_since` when a node first had no room for it, both in time.monotonic(). Its request
    `arrived`, and the `last_token` came, in time.perf_counter().
    """

    rid: str
    prompt_ids: list[int]
    sampling: Sampling
    stop: list[str]
    wakeup: Wakeup
    model: str = ""
    block_hashes: list[int] = field(default_factory=list)
    session: str | None = None
    party: Party = field(default_factory=Party)
    siblings: bool = False
    place: Place | None = None
    node: str = ""
    attempt: str = ""
    detokenizer: str = ""
    output_ids: list[int] = field(default_factory=list)
    chars: int = 0
    pending: Delta = field(default_factory=Delta)
    ended: bool = False
    finish_reason: FinishReason | None = None
    cached_tokens: int = 0
    detokenizer_deaths: int = 0
    moves: int = 0
    stranded_since: float | None = None
    refused_since: float | None = None
    error: RequestError | None = None
    arrived: float = field(default_factory=time.perf_counter)
    last_token: float | None = None
    trials: Trials = field(default_factory=Trials)
    trace: SequenceTrace = field(default_factory=SequenceTrace)

    @property
    def most_tokens(self) -> int:
        """Prompt and answer, if that becomes as long as it may."""
        return len(self.prompt_ids) + self.sampling.max_tokens

    def fail(self, error: RequestError) -> None:
        """End it with an error."""
        if not self.ended:
            self.ended, self.error = True, error
            self._leave_place()
            self.wakeup.set()

    def finish(self, finish: Finish) -> None:
        """End it as it should."""
        self.ended = True
        self.finish_reason = self.pending.finish_reason = finish.reason
        self.cached_tokens = finish.cached_tokens
        self._leave_place()

    def _leave_place(self) -> None:
        """Others may have it at once, not only when the whole request has ended."""
        if self.place is not None:
            self.place.leave()

    def may_move(self, failed_workers: int) -> bool:
        """Count one more node lost under it, or that did not serve it though it could have; False
        if there were too many. Far fewer of their workers may have failed since its last token,
        because what they computed may be the cause."""
        self.moves += 1
        return failed_workers <= MAX_FAILED_WORKERS and self.moves <= MAX_MOVES

    def take(self) -> Delta:
        """What is new; raises the error if it failed."""
        if self.error is not None:
            raise self.error
        delta, self.pending = self.pending, Delta()
        return delta
