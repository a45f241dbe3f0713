"""One request as the scheduler sees it."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from mlxfleet.common.messages import Finish, Generate, Sampling, TokenLogprobs


class State(enum.Enum):
    """Where a sequence is."""

    WAITING = "waiting"
    PREFILLING = "prefilling"
    DECODING = "decoding"
    FINISHED = "finished"


@dataclass
class Sequence:
    """Prompt, output so far, and progress. `logprobs` has one entry per token that this node
    generated itself, so it is aligned with the end of `output_ids`."""

    rid: str
    detokenizer: str
    prompt_ids: list[int]
    output_ids: list[int]
    sampling: Sampling
    state: State = State.WAITING
    attempts: int = 0
    admitted_tokens: int = 1
    prefill_sent: int = 0
    prefill_done: int = 0
    alone: bool = False
    kv_bytes: int = 0
    finish: Finish | None = None
    logprobs: list[TokenLogprobs] = field(default_factory=list)

    @classmethod
    def of(cls, message: Generate) -> Sequence:
        """A new sequence for a request."""
        return cls(
            rid=message.rid,
            detokenizer=message.detokenizer,
            prompt_ids=message.prompt_ids,
            output_ids=list(message.output_ids),
            sampling=message.sampling,
        )

    @property
    def prefill_tokens(self) -> int:
        """Tokens to run before decoding: all but the last, which is the first decode input.
        Fixed when the sequence is admitted: output that decoding adds is not prefilled."""
        return self.admitted_tokens - 1

    @property
    def worst_case_tokens(self) -> int:
        """Longest that the sequence can become."""
        return len(self.prompt_ids) + self.sampling.max_tokens

    def to_waiting(self) -> None:
        """Back to the queue, after its worker is lost."""
        self.state = State.WAITING
        self.prefill_sent = self.prefill_done = self.kv_bytes = 0
