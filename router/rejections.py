"""What comes of a node's refusal of a request.

A refusal is checked against what the node has said of itself and what it was sent. One that does
not fit is held against the node, and the request goes elsewhere. No client sees a node's own words.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from mlxfleet.common.errors import GenerationError, InvalidRequestError
from mlxfleet.common.limits import reason
from mlxfleet.common.messages import ModelInfo, Rejected
from mlxfleet.router.nodes import Nodes
from mlxfleet.router.sequences import Sequence
from mlxfleet.router.trials import FAULT_PAUSE_S

log = logging.getLogger(__name__)

# A node that restarts loses what it was sent; not three times over without a token between.
MAX_DENIALS = 2
DENIED_PAUSE_S = 1.0
MAX_FAILURES = 3


class Rejections:
    """Handles the refusals of one sequence each.

    `on_node` counts the sequences that a node was sent and not released from. `again` gives a
    sequence to its node once more, `leave` takes it away, with a word for the trace.
    """

    def __init__(
        self,
        nodes: Nodes,
        *,
        on_node: Callable[[str], int],
        again: Callable[[Sequence], None],
        leave: Callable[[Sequence, str], None],
    ) -> None:
        self._nodes = nodes
        self._on_node = on_node
        self._again = again
        self._leave = leave

    def take(self, sequence: Sequence, message: Rejected) -> None:
        """Handle a refusal of the sequence's current attempt by its node."""
        log.info("%s refused %s: %s", sequence.node, sequence.rid, reason(message.message))
        match message.code:
            case "unknown":
                self._unknown(sequence)
            case "queue_full":
                self._queue_full(sequence)
            case "too_long":
                self._too_long(sequence)
            case "failed":
                self._failed(sequence)
            case "not_finite":
                self._not_finite(sequence)

    def _unknown(self, sequence: Sequence) -> None:
        """The node restarted between our messages; it continues from what we have."""
        sequence.trials.denials += 1
        if sequence.trials.denials == 1:
            self._again(sequence)
            return
        node, denials = sequence.node, sequence.trials.denials
        why = "it does not know what it is sent, again and again"
        self._give_away(sequence, "denied", DENIED_PAUSE_S)
        if denials > MAX_DENIALS:
            self._nodes.breach(node, "denial", why)
        else:
            self._nodes.doubt(node, "denial", why)

    def _queue_full(self, sequence: Sequence) -> None:
        """Counts and reports cross, but a node has no more than it was sent."""
        node = sequence.node
        status = self._nodes.status[node]
        if self._on_node(node) <= status.max_running + status.max_queue:
            self._nodes.doubt(node, "refusal", "its queue is full, it says, but it was sent less")
        self._give_away(sequence, "refused, the queue is full")

    def _too_long(self, sequence: Sequence) -> None:
        node = sequence.node
        if fits(sequence, self._nodes.status[node].model):
            self._nodes.doubt(node, "refusal", "too long, it says of what fits by its own figures")
        ready = self._nodes.ready(sequence.model)
        if any(other.name != node and fits(sequence, other.model) for other in ready):
            self._give_away(sequence, "refused, too long", FAULT_PAUSE_S)
            return
        prompt, answer = len(sequence.prompt_ids), sequence.sampling.max_tokens
        sequence.fail(
            InvalidRequestError(
                f"{prompt} prompt tokens and {answer} of the answer are more than any node can"
                " take now",
                code="context_length_exceeded",
            )
        )

    def _failed(self, sequence: Sequence) -> None:
        """A node gives up what its worker died of again and again."""
        self._nodes.failed(sequence.node)
        self._give_up(sequence, "failed", "the request's node could not finish it")

    def _not_finite(self, sequence: Sequence) -> None:
        """The model has no next token: it computed NaN."""
        sequence.trials.gave_up.append(sequence.node)
        why = "the model computed values that are not numbers, so there is no next token"
        self._give_up(sequence, "not finite", why)

    def _give_up(self, sequence: Sequence, word: str, why: str) -> None:
        """A node cannot finish a sequence. Two others may see whether that is the request's
        own doing; what a node says of itself is no proof."""
        trials = sequence.trials
        trials.failures += 1
        others = any(s.name != sequence.node for s in self._nodes.ready(sequence.model))
        if not others or trials.failures >= MAX_FAILURES:
            sequence.fail(GenerationError(why))
            return
        self._give_away(sequence, word, FAULT_PAUSE_S)

    def _give_away(self, sequence: Sequence, why: str, pause_s: float | None = None) -> None:
        now = time.monotonic()
        if pause_s is None:
            sequence.trials.avoid(sequence.node, now)
        else:
            sequence.trials.avoid(sequence.node, now, pause_s)
        self._leave(sequence, why)
        sequence.refused_since = sequence.refused_since or now


def fits(sequence: Sequence, model: ModelInfo | None) -> bool:
    """Whether a model can hold a sequence with its whole answer."""
    if model is None:
        return False
    tokens = len(sequence.prompt_ids) + sequence.sampling.max_tokens
    return tokens <= model.context_length and model.kv_bytes(tokens) <= model.kv_budget_bytes
