"""Sequences in flight: started, followed, resumed when a process behind them dies, released."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import Counter
from collections.abc import Callable
from collections.abc import Sequence as Many
from functools import partial

import zmq

from mlxfleet.common.config import ServedModel
from mlxfleet.common.curve import CurveServer
from mlxfleet.common.errors import (
    GenerationError,
    OverloadedError,
    UnavailableError,
)
from mlxfleet.common.messages import (
    CloseStream,
    Finish,
    Generate,
    NodeStatus,
    OpenStream,
    Rejected,
    Release,
    Resend,
    StreamBroken,
    Text,
)
from mlxfleet.router.catalog import Catalog
from mlxfleet.router.detokenizers import Detokenizers
from mlxfleet.router.health import State
from mlxfleet.router.metrics import Metrics
from mlxfleet.router.nodes import Nodes
from mlxfleet.router.patience import Patience
from mlxfleet.router.progress import Progress
from mlxfleet.router.rejections import Rejections
from mlxfleet.router.routing import Routing
from mlxfleet.router.sequences import Sequence
from mlxfleet.router.trials import FAULT_PAUSE_S

log = logging.getLogger(__name__)

PROMPT_TAIL_TOKENS = 8
# Fewer than the deaths in a row at which the parent gives up the fleet.
MAX_DETOKENIZER_DEATHS = 4
RETRY_AFTER_S = 1
WATCH_S = 0.1
HELD_UP_S = 0.3
# An attempt is asked so often for what is missing before the tokens that came.
MAX_GAPS = 8
# A node that starts again loses what it was sent; not so often without a token between.
MAX_RETURNS = 3
# Of a stream that two nodes cannot make, nobody can say whose fault it is.
MAX_SICK = 2


class Dispatcher:
    """Owns every sequence between its start and its release."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        *,
        node_address: str,
        detokenizer_address: str,
        session: str,
        node_wait_s: float,
        metrics: Metrics,
        routing: Routing,
        on_nodes_changed: Callable[[], None] = lambda: None,
        models: Many[ServedModel] = (ServedModel(),),
        security: CurveServer | None = None,
    ) -> None:
        self._sequences: dict[str, Sequence] = {}
        self._node_wait_s = node_wait_s
        self._metrics = metrics
        self._routing = routing
        self.detokenizers = Detokenizers(
            context,
            detokenizer_address,
            session,
            on_text=self._on_text,
            on_lost=self._on_lost,
            on_broken=self._on_broken,
            stages=metrics.stages,
            on_fresh=self._on_fresh_detokenizer,
        )
        self.nodes = Nodes(
            context,
            node_address,
            session,
            catalog=Catalog(models),
            detokenizers=self.detokenizers.addresses,
            on_rejected=self._on_rejected,
            on_fresh=self._on_fresh_node,
            routing=routing,
            on_change=on_nodes_changed,
            on_state=lambda: self.patience.notify(),
            on_refused=lambda why: metrics.refused_nodes.labels(why).inc(),
            on_fenced=lambda node, why: metrics.fences.labels(node, why).inc(),
            on_forgotten=metrics.forget_node,
            security=security,
        )
        self.patience = Patience(node_wait_s, self.nodes.loads)
        self._rejections = Rejections(
            self.nodes, on_node=self._sent_to, again=self._generate, leave=self._leave
        )
        self._progress = Progress(
            self.nodes, self.detokenizers, ask=self._recover, take_away=self._take_away
        )

    async def start(self, sequences: Many[Sequence], beside: Sequence | None = None) -> None:
        """Send sequences of one model to nodes, those of one prompt to the same, also if that was
        begun with `beside`. They end by themselves; `release` them in any case."""
        node = ""
        prompt: list[int] | None = None
        if beside is not None and self.nodes.takes_requests(beside.node):
            node, prompt = beside.node, beside.prompt_ids
        for sequence in sequences:
            if sequence.prompt_ids != prompt:
                node = await self._pick(sequence)
                prompt = sequence.prompt_ids
            sequence.detokenizer = await self.patience.until(
                sequence.model,
                partial(self.detokenizers.assign, sequence.model),
                "no detokenizer is there",
            )
            self._sequences[sequence.rid] = sequence
            with self._metrics.stages.timed(sequence.model, "send"):
                self._send_to(sequence, node)

    async def _pick(self, sequence: Sequence) -> str:
        """The node for a sequence, when there is one."""
        model, tokens = sequence.model, sequence.most_tokens
        ready = await self.patience.until(
            model,
            lambda: self.nodes.ready(model, tokens) or None,
            "no node can generate now",
            tokens,
        )
        return self._choose(sequence, ready)

    def release(self, sequence: Sequence) -> None:
        """Stop a sequence wherever it is, and forget it everywhere."""
        if self._sequences.pop(sequence.rid, None) is not None:
            sequence.trace.left("error" if sequence.error else "released")
            self._routing.over(sequence)
            self._leave_node(sequence)
            closing = CloseStream(sequence.rid, sequence.attempt)
            self.detokenizers.send(sequence.detokenizer, closing)

    async def watch_nodes(self) -> None:
        """Look at the nodes and move sequences away from those that cannot go on; runs until it is
        cancelled."""
        looked = time.monotonic()
        while True:
            await asyncio.sleep(WATCH_S)
            now = time.monotonic()
            # When this process was held up itself, reports may be waiting that it has not read.
            if now - looked < HELD_UP_S:
                try:
                    self.look(now)
                except Exception:
                    # One look is lost; the next is soon.
                    log.exception("could not look at the nodes")
            else:
                self._progress.forgive(self._sequences.values(), now)
            looked = now

    def look(self, now: float) -> None:
        """Look at the nodes once."""
        self.nodes.look(now)
        self._routing.keep(self.nodes.present())
        self.move_stranded(now)
        self._progress.check(list(self._sequences.values()), now)

    def move_stranded(self, now: float) -> None:
        """Continue every sequence whose node is lost or draining on another. Without another, one
        that is lost waits as long as a request may wait for a node, not counting the time while one
        gets on with loading. `now` is time.monotonic()."""
        for sequence in list(self._sequences.values()):
            if sequence.ended:
                continue
            try:
                self._see_to(sequence, now)
            except Exception:
                log.exception("could not see to %s", sequence.rid)
                sequence.fail(GenerationError("the request could not be placed"))

    def _see_to(self, sequence: Sequence, now: float) -> None:
        """Move a sequence if it cannot go on where it is."""
        refused_s = now - (sequence.refused_since or now)
        if not sequence.node and refused_s > self._node_wait_s:
            sequence.fail(OverloadedError("every node is full", retry_after_s=RETRY_AFTER_S))
            return
        state = self.nodes.state(sequence.node)
        if state in (State.READY, State.BUSY):
            sequence.stranded_since = None
            return
        tokens = sequence.most_tokens
        ready = self.nodes.ready(sequence.model, tokens)
        others = [status for status in ready if status.name != sequence.node]
        open_to = [s for s in others if not sequence.trials.avoids(s.name, now)]
        if sequence.moves or sequence.trials.failures:
            # Once lost is bad luck; then it goes where others are served.
            open_to = [s for s in open_to if self._progress.proven(s.name, now)] or open_to
        if open_to:
            self._move(sequence, self._choose(sequence, open_to), state)
        elif state.well or others:
            sequence.stranded_since = None
        elif sequence.stranded_since is None or self.nodes.loads(sequence.model, tokens):
            sequence.stranded_since = now
        elif now - sequence.stranded_since > self._node_wait_s:
            why = "the request's node is lost, and there is no other"
            sequence.fail(UnavailableError(why, retry_after_s=RETRY_AFTER_S))

    def _move(self, sequence: Sequence, node: str, state: State) -> None:
        """Continue on another node: prompt and tokens so far, with the same random numbers."""
        failed = self._failed_workers(sequence, state)
        if not state.well and sequence.node and not sequence.may_move(failed):
            why = f"nodes were lost under this request {sequence.moves} times"
            sequence.fail(GenerationError(why))
            return
        if sequence.node:
            log.info("%s goes on on %s: %s is %s", sequence.rid, node, sequence.node, state)
            self._metrics.failovers.labels(sequence.node).inc()
            sequence.trace.moved(sequence.node, state, node, lost=not state.well)
        self._routing.over(sequence)
        # It may only be stuck, and go on later.
        self._leave_node(sequence)
        sequence.stranded_since = None
        self._send_to(sequence, node)

    def _failed_workers(self, sequence: Sequence, state: State) -> int:
        """How many workers have failed under a sequence since its last token. Those that only
        seemed to hang, because their machine was busy, are not counted any more."""
        trials = sequence.trials
        failed = self.nodes.worker_failed
        if state is not State.FENCED and failed(sequence.node, trials.restarts):
            trials.suspected.append((sequence.node, trials.restarts))
        return sum(failed(node, restarts) for node, restarts in trials.suspected)

    def _leave_node(self, sequence: Sequence) -> None:
        """Have the node stop; what it has sent already is stale from here on."""
        self.nodes.send(sequence.node, Release(sequence.rid, sequence.attempt))
        self.nodes.probe_ended(sequence.node, sequence.rid)

    def _leave(self, sequence: Sequence, why: str) -> None:
        """Take a sequence from its node; `move_stranded` finds it another place."""
        sequence.trace.left(why)
        self._routing.over(sequence)
        self._leave_node(sequence)
        sequence.node = ""

    def _take_away(self, sequence: Sequence, why: str) -> None:
        """Take a sequence from a node that does not serve it."""
        log.warning("%s leaves %s: %s", sequence.rid, sequence.node, why)
        self._metrics.failovers.labels(sequence.node).inc()
        sequence.trials.avoid(sequence.node, time.monotonic(), FAULT_PAUSE_S)
        self._leave(sequence, why)
        if not sequence.may_move(failed_workers=0):
            why = f"nodes were lost under this request {sequence.moves} times"
            sequence.fail(GenerationError(why))

    def _sent_to(self, node: str) -> int:
        """How many sequences a node was sent and not released from."""
        return sum(sequence.node == node for sequence in self._sequences.values())

    def _send_to(self, sequence: Sequence, node: str) -> None:
        sequence.node = node
        self.nodes.requested(node, sequence.rid)
        self._generate(sequence)

    def loads(self) -> Counter[str]:
        """How many sequences each node has."""
        return Counter(s.node for s in self._sequences.values() if not s.ended)

    def weights(self) -> dict[str, float]:
        """The weight of each node that is not dead, among those of its model."""
        by_model: dict[str, list[str]] = {}
        for node in sorted(self.nodes.present()):
            by_model.setdefault(self.nodes.model_of(node), []).append(node)
        weights: dict[str, float] = {}
        for names in by_model.values():
            weights |= self._routing.weights.among(names)
        return weights

    def _choose(self, sequence: Sequence, ready: list[NodeStatus]) -> str:
        began = time.perf_counter()
        with self._metrics.stages.timed(sequence.model, "route"):
            node = self._routing.choose(sequence, ready)
        if sequence.trace.traceparent:
            figures = {
                "mlxfleet.policy": self._routing.policy_name,
                "mlxfleet.candidates": len(ready),
                "mlxfleet.cached_tokens": self._routing.cached_on(node, sequence),
            }
            sequence.trace.routed(began, node, figures)
        return node

    def _open(self, sequence: Sequence) -> None:
        self.detokenizers.send(
            sequence.detokenizer,
            OpenStream(
                rid=sequence.rid,
                attempt=sequence.attempt,
                prompt_tail=sequence.prompt_ids[-PROMPT_TAIL_TOKENS:],
                output_ids=sequence.output_ids,
                sent_chars=sequence.chars,
                stop=sequence.stop,
                max_tokens=sequence.sampling.max_tokens,
                vocab_size=self._vocab_size(sequence.node),
                traceparent=sequence.trace.traceparent,
            ),
        )

    def _vocab_size(self, node: str) -> int:
        """Below which a node's token ids are, by its own word; 0 if it has not said that."""
        status = self.nodes.status.get(node)
        return status.model.vocab_size if status is not None and status.model is not None else 0

    def _generate(self, sequence: Sequence) -> None:
        """Give the sequence to its node as a new attempt, whose tokens go on after those that are
        here."""
        sequence.attempt = new_attempt()
        status = self.nodes.status.get(sequence.node)
        sequence.trials.was_sent(time.monotonic(), status.worker_restarts if status else 0)
        self._open(sequence)
        sent = self.nodes.send(
            sequence.node,
            Generate(
                rid=sequence.rid,
                attempt=sequence.attempt,
                detokenizer=sequence.detokenizer,
                prompt_ids=sequence.prompt_ids,
                output_ids=sequence.output_ids,
                sampling=sequence.sampling,
                party=sequence.party,
                siblings=sequence.siblings,
                traceparent=sequence.trace.sent(sequence.node, len(sequence.output_ids)),
            ),
        )
        if sent:
            to_compute = self._routing.sent(sequence)
            if sequence.place is not None:
                sequence.place.computed(to_compute)

    def _recover(self, sequence: Sequence) -> None:
        """Open the stream again with what we have, and have the rest sent once more."""
        self._metrics.recoveries.inc()
        sequence.trace.recovered()
        self._open(sequence)
        start = len(sequence.output_ids)
        resend = Resend(sequence.rid, sequence.attempt, sequence.detokenizer, start)
        self.nodes.send(sequence.node, resend)

    def _on_fresh_detokenizer(self, name: str) -> None:
        self.patience.notify()
        for sequence in self._sequences.values():
            if sequence.detokenizer != name or sequence.ended:
                continue
            sequence.detokenizer_deaths += 1
            if sequence.detokenizer_deaths > MAX_DETOKENIZER_DEATHS:
                why = f"the detokenizer died {sequence.detokenizer_deaths} times under this request"
                sequence.fail(GenerationError(why))
            else:
                self._recover(sequence)

    def _on_fresh_node(self, name: str) -> None:
        self._progress.restarted(name)
        self._metrics.failovers.labels(name)
        lost = [s for s in self._sequences.values() if s.node == name and not s.ended]
        # A node that has not loaded its model yet would only lose them to another again.
        self.move_stranded(time.monotonic())
        gave_nothing = False
        for sequence in lost:
            if sequence.node != name or sequence.ended:
                continue
            sequence.trials.returns += 1
            if sequence.trials.returns > MAX_RETURNS:
                gave_nothing = True
                self._take_away(sequence, f"{name} starts again and again")
            else:
                self._metrics.recoveries.inc()
                self._generate(sequence)
        if gave_nothing:
            self.nodes.doubt(name, "silence", "it starts again and again, and brings nothing")

    def _current(self, rid: str, attempt: str) -> Sequence | None:
        """The unfinished sequence that a message is about; None if the message is stale."""
        sequence = self._sequences.get(rid)
        if sequence is None or sequence.ended or sequence.attempt != attempt:
            return None
        return sequence

    def _on_lost(self, rid: str, attempt: str) -> None:
        if (sequence := self._current(rid, attempt)) is None:
            return
        sequence.trials.gaps += 1
        if sequence.trials.gaps <= MAX_GAPS or not sequence.node:
            self._recover(sequence)
            return
        node = sequence.node
        self._take_away(sequence, f"{node} leaves gaps again and again")
        self.nodes.doubt(node, "tokens", "gaps in its tokens, again and again")

    def _on_broken(self, broken: StreamBroken) -> None:
        """The sequence goes on elsewhere. Where the model itself may be the cause, as for NaN, it
        is no breach, and a request that has the same effect twice is given up."""
        sequence = self._current(broken.rid, broken.attempt)
        if sequence is None or not sequence.node:
            return
        node = sequence.node
        if broken.sick:
            sequence.trials.breaks += 1
            self.nodes.failed(node)
        self._take_away(sequence, broken.why)
        if not broken.sick:
            self.nodes.breach(node, "tokens", broken.why)
        elif sequence.trials.breaks >= MAX_SICK:
            sequence.fail(GenerationError("the model's log-probabilities are not numbers"))

    def _on_rejected(self, node: str, message: Rejected) -> None:
        sequence = self._current(message.rid, message.attempt)
        if sequence is not None and sequence.node == node:
            self._rejections.take(sequence, message)

    def _on_text(self, text: Text) -> None:
        now, heard = time.perf_counter(), time.monotonic()
        came: dict[str, int] = {}
        for position, (rid, attempt) in enumerate(zip(text.rids, text.attempts, strict=True)):
            # As `_current`, without a call: this is the path of every token.
            sequence = self._sequences.get(rid)
            if sequence is None or sequence.ended or sequence.attempt != attempt:
                continue
            try:
                tokens = self._deliver(sequence, text, position, now, heard)
                came[sequence.model] = came.get(sequence.model, 0) + tokens
            except Exception:
                log.exception("could not take in text of %s", rid)
                sequence.fail(GenerationError("the request's text could not be taken in"))
        for model, tokens in came.items():
            self._metrics.output_tokens.labels(model).inc(tokens)

    def _deliver(
        self, sequence: Sequence, text: Text, position: int, now: float, heard: float
    ) -> int:
        """Take in what is new of an entry, and count its tokens; ask again if something is missing
        before it. It is `now` by time.perf_counter() and was `heard` at a time.monotonic()."""
        known_ids = len(sequence.output_ids) - text.starts[position]
        known_chars = sequence.chars - text.offsets[position]
        if known_ids < 0 or known_chars < 0:
            self._recover(sequence)
            return 0
        ids = text.ids[position][known_ids:]
        piece = text.texts[position][known_chars:]
        pending = sequence.pending
        sequence.output_ids.extend(ids)
        sequence.chars += len(piece)
        pending.text += piece
        if logprobs := text.logprobs.get(position):
            pending.logprobs.extend(logprobs[known_ids:])
        if ids:
            if sequence.place is not None:
                sequence.place.computed(len(ids))
            if not sequence.trials.answered:
                sequence.refused_since = None
                self.nodes.brought_tokens(sequence.node, sequence.rid)
            self._progress.brought(sequence, heard)
            if sequence.last_token is None:
                self._routing.answered(sequence)
                sequence.trace.answered(now)
            self._metrics.observe_tokens(sequence, len(ids), now)
        if (finish := text.finish.get(position)) is not None:
            cached = min(finish.cached_tokens, len(sequence.prompt_ids))
            if cached < finish.cached_tokens:
                why = "it says that more of a prompt was cached than there is"
                self.nodes.breach(sequence.node, "tokens", why)
            sequence.finish(Finish(finish.reason, cached))
            sequence.trace.finished(finish.reason, len(sequence.output_ids))
            self._metrics.cached_tokens.labels(sequence.model).inc(cached)
        if pending:
            sequence.wakeup.set()
        return len(ids)


def new_rid() -> str:
    """An id that no other request has."""
    return secrets.token_hex(12)


def new_attempt() -> str:
    """An identity of a Generate that nobody can guess."""
    return secrets.token_hex(8)
