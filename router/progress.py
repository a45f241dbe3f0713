"""Finds nodes that take requests and bring nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from collections.abc import Sequence as Many

from mlxfleet.router.detokenizers import Detokenizers
from mlxfleet.router.health import State
from mlxfleet.router.node_patience import node_patience_s, sequence_patience_s
from mlxfleet.router.nodes import Nodes
from mlxfleet.router.sequences import Sequence

# A detokenizer says hello twice a second. What a silent one holds is not its nodes' fault.
DETOKENIZER_SILENT_S = 1.2
# After this share of its patience the router asks for what may have been lost on the way.
ASK_AFTER = 0.6
PROVEN_FOR_S = 60.0


class Progress:
    """Looks at the sequences of each node. `ask` has a node send a sequence's rest once more,
    `take_away` moves it elsewhere, with the reason. `now` is time.monotonic()."""

    def __init__(
        self,
        nodes: Nodes,
        detokenizers: Detokenizers,
        *,
        ask: Callable[[Sequence], None],
        take_away: Callable[[Sequence, str], None],
    ) -> None:
        self._nodes = nodes
        self._detokenizers = detokenizers
        self._ask = ask
        self._take_away = take_away
        self._brought: dict[str, float] = {}

    def brought(self, sequence: Sequence, now: float) -> None:
        """A sequence's node has brought tokens of it."""
        trials = sequence.trials
        for node in trials.gave_up:
            self._nodes.doubt(node, "refusal", "no next token, it says where another node has one")
        trials.brought(now)
        self._brought[sequence.node] = now

    def restarted(self, node: str) -> None:
        """A node is a new process, which has shown nothing yet."""
        self._brought.pop(node, None)

    def proven(self, node: str, now: float) -> bool:
        """Whether a node has brought tokens lately."""
        return now - self._brought.get(node, -PROVEN_FOR_S) < PROVEN_FOR_S

    def forgive(self, sequences: Iterable[Sequence], now: float) -> None:
        """This process was held up: nobody is late for that."""
        for sequence in sequences:
            sequence.trials.heard = now

    def check(self, sequences: Iterable[Sequence], now: float) -> None:
        """Take sequences away from nodes that bring nothing, if there are others."""
        by_node: dict[str, list[Sequence]] = {}
        unheard = self._silent_detokenizers(now)
        for sequence in sequences:
            if sequence.ended or not sequence.node:
                continue
            if sequence.detokenizer in unheard:
                sequence.trials.heard = now
            by_node.setdefault(sequence.node, []).append(sequence)
        known = self._nodes.status
        self._brought = {node: at for node, at in self._brought.items() if node in known}
        ready = {model: self._ready(model) for model in {s[0].model for s in by_node.values()}}
        for node, theirs in by_node.items():
            beside = ready[theirs[0].model]
            has_other = len(beside) > (node in beside)
            if has_other and self._nodes.state(node).well:
                self._look_at(node, theirs, beside, now)

    def _silent_detokenizers(self, now: float) -> set[str]:
        return {
            peer.name
            for peer in self._detokenizers.pool.peers.values()
            if now - peer.last_seen > DETOKENIZER_SILENT_S
        }

    def _ready(self, model: str) -> set[str]:
        return {status.name for status in self._nodes.ready(model)}

    def _look_at(
        self,
        node: str,
        theirs: Many[Sequence],
        ready: set[str],
        now: float,
    ) -> None:
        status = self._nodes.status[node]
        to_compute = sum(
            len(s.prompt_ids) + len(s.output_ids) for s in theirs if not s.trials.answered
        )
        patience_s = node_patience_s(status, to_compute)
        oldest = min(sequence.trials.heard for sequence in theirs)
        silent_s = now - max(self._brought.get(node, 0.0), oldest)
        if silent_s > patience_s:
            for sequence in theirs:
                self._take_away(sequence, f"{node} brought nothing for {silent_s:.1f} s")
            self._nodes.breach(
                node, "silence", f"it took requests and brought nothing for {silent_s:.1f} s"
            )
            return
        self._ask_late(theirs, ASK_AFTER * patience_s, now)
        self._look_at_each(node, theirs, patience_s, ready, now)

    def _ask_late(self, theirs: Many[Sequence], after_s: float, now: float) -> None:
        for sequence in theirs:
            trials = sequence.trials
            if not trials.asked and now - trials.heard > after_s:
                trials.asked = True
                self._ask(sequence)

    def _look_at_each(
        self,
        node: str,
        theirs: Many[Sequence],
        patience_s: float,
        ready: set[str],
        now: float,
    ) -> None:
        status = self._nodes.status[node]
        limit_s = sequence_patience_s(status, patience_s, len(theirs))
        lost = status.running + status.queued < len(theirs)
        for sequence in theirs:
            silent_s = now - sequence.trials.heard
            if silent_s <= limit_s:
                continue
            if lost or not status.queued:
                self._take_away(sequence, f"{node} brought nothing of it for {silent_s:.1f} s")
                self._nodes.doubt(node, "silence", "it brings nothing of some of its requests")
            elif any(self._nodes.state(other) is State.READY for other in ready - {node}):
                self._take_away(sequence, f"it waited on {node} for {silent_s:.1f} s")
