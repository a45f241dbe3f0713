"""The scheduler process: one per compute node, between the router and the MLX worker."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterator

import zmq

from mlxfleet.common import channels
from mlxfleet.common.addresses import as_reached
from mlxfleet.common.config import SchedulerProcess
from mlxfleet.common.errors import RefusedError
from mlxfleet.common.limits import (
    LEAST_SLOWDOWN,
    MAX_ENTRY_TOKENS,
    MOST_PER_S,
    MOST_SLOWDOWN,
    clipped,
)
from mlxfleet.common.liveness import (
    HUNG_AFTER_S,
    PROBE_AFTER_S,
    new_incarnation,
    resident_bytes,
)
from mlxfleet.common.messages import (
    PROTOCOL_VERSION,
    Admitted,
    Generate,
    Leaving,
    MachineSample,
    NodeStatus,
    NodeToDetokenizer,
    NodeToRouter,
    Ping,
    Refused,
    Rejected,
    Release,
    Resend,
    Reset,
    RouterToNode,
    SchedulerToWorker,
    SendKvSnapshot,
    Step,
    Tokens,
    Welcome,
    WorkerLoading,
    WorkerState,
    WorkerStatus,
    WorkerToScheduler,
)
from mlxfleet.common.metrics_address import shown_address
from mlxfleet.common.metrics_server import MetricsServer
from mlxfleet.common.process import Service, fail, run_service
from mlxfleet.common.telemetry.latest import LatestTelemetry
from mlxfleet.common.tracing import Tracer, make_tracer
from mlxfleet.workers.machine_metrics import MachineCollector
from mlxfleet.workers.node_metrics import NodeCollector, NodeMetrics
from mlxfleet.workers.phases import Phases
from mlxfleet.workers.scheduler import Scheduler

log = logging.getLogger(__name__)

STATUS_S = 0.25
# Events of the cache are collected for so long.
KV_EVENTS_S = 0.02
FIRST_PAUSE_S = 0.25
MAX_PAUSE_S = 5.0
LINK_EVENTS = (
    zmq.Event.DISCONNECTED
    | zmq.Event.HANDSHAKE_SUCCEEDED
    | zmq.Event.HANDSHAKE_FAILED_NO_DETAIL
    | zmq.Event.HANDSHAKE_FAILED_PROTOCOL
    | zmq.Event.HANDSHAKE_FAILED_AUTH
)
LINK_TROUBLE = {
    zmq.Event.DISCONNECTED: "it closed the connection; router.public may not be its key",
    zmq.Event.HANDSHAKE_FAILED_NO_DETAIL: "the handshake failed; router.public may not be its key",
    zmq.Event.HANDSHAKE_FAILED_PROTOCOL: "only one side has keys, or they do not fit together",
    zmq.Event.HANDSHAKE_FAILED_AUTH: "our public key is not among those that it accepts",
}


class SchedulerService(Service):
    """Wires a Scheduler to its three links. `context` and `tracer` are given if others in the
    process share them, who then also end them."""

    def __init__(
        self,
        told: SchedulerProcess,
        context: zmq.Context[zmq.Socket[bytes]] | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        super().__init__()
        self._owns_context = context is None
        self._context = context or zmq.Context()
        self._owns_tracer = tracer is None
        self._tracer = tracer or make_tracer(told.observe, "scheduler", told.name)
        self._told = told
        self._telemetry = LatestTelemetry(told.node)
        self._metrics = self._make_metrics(told.info.model)
        self._metrics_server = MetricsServer(lambda: self._metrics.render())
        self._metrics_address = ""
        self._scheduler = Scheduler(
            told.options,
            waited=lambda seconds: self._metrics.waited(seconds),
            prefilled=lambda seconds: self._metrics.prefilled(seconds),
            phases=self._phases,
        )
        self._incarnation = ""
        self._router_session = ""
        self._router_leaves = False
        self._rejoin_pause_s = 0.0
        self._rejoining: asyncio.TimerHandle | None = None
        self.joined = asyncio.Event()
        self._epoch = ""
        self._worker: WorkerStatus | None = None
        self._worker_identity = b""
        self._worker_seen = 0.0
        self._worker_gone = False
        self._worker_restarts = 0
        # A worker that loads, and who it is; None when it has its model, or is gone.
        self._loading: WorkerLoading | None = None
        self._loading_identity = b""
        self._detokenizers: dict[str, tuple[str, channels.Channel[None, NodeToDetokenizer]]] = {}
        self._undelivered: dict[str, Resend] = {}
        self._router_dropped = 0
        self._telling: asyncio.TimerHandle | None = None
        self._pumping: asyncio.Handle | None = None

    def _make_metrics(self, model: str) -> NodeMetrics:
        """Metrics under the name that a model has in the API."""
        metrics = NodeMetrics(self._told.node, model)
        collector = NodeCollector(metrics.labels, self._status, lambda: self._worker)
        metrics.registry.register(collector)
        metrics.registry.register(MachineCollector(metrics.labels, self._telemetry))
        return metrics

    def _phases(self, message: Generate) -> Phases:
        """What records the spans of a request."""
        attributes = {"mlxfleet.node": self._told.node, "mlxfleet.rid": message.rid}
        return Phases(self._tracer, message.traceparent, attributes)

    async def startup(self) -> None:
        """Show metrics, connect, and wait for the router and the worker."""
        await self.connect()
        await self.joined.wait()

    async def connect(self) -> None:
        """Bind for metrics and for the worker, connect to the router; `joined` is set when worker
        and router are there."""
        host = self._told.metrics_host
        port = await self._metrics_server.listen(host, self._told.metrics_port)
        self._metrics_address = shown_address(host, port, self._told.router_address)
        self._workers: channels.Channel[WorkerToScheduler, SchedulerToWorker] = channels.server(
            self._context, WorkerToScheduler, self._told.worker_address
        )
        self._workers.attach(self._on_worker)
        if address := self._told.telemetry_address:
            self._sensors: channels.Channel[MachineSample, None] = channels.subscriber(
                self._context, MachineSample, address
            )
            self._sensors.attach(lambda _, sample: self._telemetry.take(sample))
        self._connect_router()
        self._reporting = asyncio.create_task(self._report_regularly())

    async def shutdown(self) -> None:
        """Close the links."""
        await self._metrics_server.close()
        self._reporting.cancel()
        if self._rejoining is not None:
            self._rejoining.cancel()
        if self._telling is not None:
            self._telling.cancel()
        if self._pumping is not None:
            self._pumping.cancel()
        for _, channel in self._detokenizers.values():
            channel.close()
        if self._told.telemetry_address:
            self._sensors.close()
        self._workers.close()
        self._router.send(Leaving())
        self._router.close(linger_s=channels.GOODBYE_S)
        if self._owns_context:
            self._context.term()
        if self._owns_tracer:
            self._tracer.close()

    def _connect_router(self) -> None:
        """Present ourselves as new: after a lost connection neither side knows what the other has
        of what was sent, so the router sends all of ours again, as after a restart."""
        self._incarnation = new_incarnation()
        self._router: channels.Channel[RouterToNode, NodeToRouter] = channels.Channel(
            self._context,
            zmq.DEALER,
            RouterToNode,
            connect=self._told.router_address,
            identity=f"{self._told.name}:{self._incarnation}",
            security=self._told.security,
            immediate=True,
        )
        self._router.watch(LINK_EVENTS, self._on_router_link)
        self._router.attach(lambda _, message: self._on_router(message))

    def _on_router_link(self, event: zmq.Event) -> None:
        """Report at once to a router that is there; come again to one that is lost."""
        if event is zmq.Event.HANDSHAKE_SUCCEEDED:
            self._send_status()
            return
        if self._rejoining is not None:
            return
        if self._router_session:
            if self._router_leaves:
                log.info("the router has stopped; waiting for it")
            else:
                log.warning("the connection to the router is lost")
            self._rejoin_pause_s = 0.0
        else:
            self._rejoin_pause_s = min(MAX_PAUSE_S, 2 * self._rejoin_pause_s or FIRST_PAUSE_S)
            # A router that stops may cut off those who try again meanwhile.
            level = logging.INFO if self._router_leaves else logging.ERROR
            trouble = LINK_TROUBLE[event]
            log.log(level, "%s does not let us in: %s", self._told.router_address, trouble)
        self._rejoining = asyncio.get_running_loop().call_later(self._rejoin_pause_s, self._rejoin)

    def _rejoin(self) -> None:
        self._rejoining = None
        self._router_session = ""
        self._undelivered.clear()
        self._scheduler.release_all()
        self._router_dropped += self._router.dropped_frames
        self._router.close()
        self._connect_router()
        self._pump()

    def _on_router(self, message: RouterToNode) -> None:
        match message:
            case Generate():
                self._submit(message)
            case Release():
                self._scheduler.release(message)
            case Resend():
                self._resend(message)
            case SendKvSnapshot():
                self._scheduler.journal.ask_snapshot()
            case Welcome():
                self._welcome(message)
            case Leaving():
                self._router_leaves = True
            case Refused():
                fail(RefusedError(f"the router refused this node: {message.reason}"))
        self._pump_soon()

    def _on_worker(self, sender: bytes, message: WorkerToScheduler) -> None:
        match message:
            case WorkerLoading():
                self._worker_loading(sender, message)
            case WorkerStatus():
                self._worker_status(sender, message)
            case Admitted() if message.epoch == self._epoch:
                self._scheduler.on_admitted(message.rid)
            case Step() if message.epoch == self._epoch:
                self._worker_seen = time.monotonic()
                self._metrics.on_step(message)
                for detokenizer, tokens in self._scheduler.on_step(message):
                    self._forward(detokenizer, tokens)
                self._give_up(self._scheduler.take_given_up())
        self._pump()

    def _pump_soon(self) -> None:
        """Pump when all messages that are here were taken in: requests that came together are
        planned together."""
        if self._pumping is not None:
            self._pumping.cancel()
        self._pumping = asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        """Give the worker what it should do next."""
        if self._pumping is not None:
            self._pumping.cancel()
            self._pumping = None
        for command in self._scheduler.schedule():
            self._workers.send(command, to=self._worker_identity)
        if (held_s := self._scheduler.held_s) > 0:
            self._pumping = asyncio.get_running_loop().call_later(held_s, self._pump)
        if self._telling is None and not self._scheduler.journal.empty:
            self._telling = asyncio.get_running_loop().call_later(KV_EVENTS_S, self._tell_cache)

    def _tell_cache(self) -> None:
        """Tell the router what has changed in the cache."""
        if self._telling is not None:
            self._telling.cancel()
            self._telling = None
        for message in self._scheduler.journal.take(self._scheduler.cached_blocks):
            self._router.send(message)

    def _speaks_our_protocol(self, sender: bytes, message: WorkerLoading | WorkerStatus) -> bool:
        """Refuse a worker of another version."""
        if message.version == PROTOCOL_VERSION:
            return True
        reason = f"it speaks protocol {message.version}, this scheduler {PROTOCOL_VERSION}"
        log.error("refused the worker: %s", reason)
        self._workers.send(Refused(reason), to=sender)
        return False

    def _worker_loading(self, sender: bytes, message: WorkerLoading) -> None:
        """A new worker has got on with loading; its first message is reported at once."""
        if not self._speaks_our_protocol(sender, message):
            return
        known, self._loading = self._loading, message
        self._loading_identity = sender
        if known is None or known.incarnation != message.incarnation:
            self._send_status()

    def _worker_status(self, sender: bytes, status: WorkerStatus) -> None:
        if not self._speaks_our_protocol(sender, status):
            return
        if self._loading is not None and self._loading.incarnation == status.incarnation:
            self._loading = None
        self._worker_seen = time.monotonic()
        self._worker_gone = False
        known = self._worker
        self._worker = status
        if known is not None and known.incarnation == status.incarnation:
            return
        self._worker_restarts += known is not None
        self._worker_identity = sender
        self._epoch = new_incarnation()
        self._workers.send(Reset(self._epoch), to=sender)
        self._give_up(self._scheduler.worker_ready(status.model))
        self._send_status()
        self._note_joined()

    def _welcome(self, welcome: Welcome) -> None:
        if welcome.session != self._router_session:
            # A router that restarted has lost its clients.
            self._scheduler.release_all()
            self._router_session = welcome.session
            self._router_leaves = False
            log.info("%s has joined %s", self._told.node, self._told.router_address)
        self._rejoin_pause_s = 0.0
        if welcome.model not in ("", self._metrics.model):
            self._metrics = self._make_metrics(welcome.model)
        for name, told in welcome.detokenizers.items():
            address = as_reached(told, self._told.router_address)
            known = self._detokenizers.get(name)
            if known is None or known[0] != address:
                if known is not None:
                    known[1].close()
                self._detokenizers[name] = (address, self._connect_detokenizer(name, address))
        self._note_joined()

    def _note_joined(self) -> None:
        if self._router_session and self._worker is not None:
            self.joined.set()

    def _connect_detokenizer(
        self, name: str, address: str
    ) -> channels.Channel[None, NodeToDetokenizer]:
        channel = channels.Channel[None, NodeToDetokenizer](
            self._context, zmq.PUSH, None, connect=address, security=self._told.security
        )

        def on_link(event: zmq.Event) -> None:
            # What was on its way may be lost, and for a last token no gap would ever show it.
            for resend in self._scheduler.resends_for(name):
                self._undelivered[resend.rid] = resend
            if event is not zmq.Event.DISCONNECTED:
                log.error("%s does not let us in: %s", address, LINK_TROUBLE[event])
                # ZeroMQ does not try again; the next Welcome makes us do so.
                self._detokenizers.pop(name, None)
                channel.close()

        channel.watch(LINK_EVENTS & ~zmq.Event.HANDSHAKE_SUCCEEDED, on_link)
        return channel

    def _submit(self, message: Generate) -> None:
        if rejected := self._scheduler.submit(message):
            self._router.send(rejected)
            return
        sequence = self._scheduler.find(message.rid, message.attempt)
        if sequence is not None and sequence.finish is not None:
            # No step of the worker will bring the finish.
            start = len(sequence.output_ids)
            self._resend(Resend(message.rid, message.attempt, message.detokenizer, start))

    def _resend(self, message: Resend) -> None:
        match self._scheduler.resend(message):
            case None:
                pass
            case (str(detokenizer), Tokens() as tokens):
                for part in in_parts(tokens):
                    self._forward(detokenizer, part)
            case rejected:
                self._router.send(rejected)

    def _forward(self, detokenizer: str, tokens: Tokens) -> None:
        """Send tokens on. What cannot be sent now is sent with the next status report."""
        known = self._detokenizers.get(detokenizer)
        if known is not None and known[1].send(tokens):
            return
        for rid, attempt, start in zip(tokens.rids, tokens.attempts, tokens.starts, strict=True):
            earlier = self._undelivered.get(rid)
            if earlier is None or earlier.attempt != attempt:
                self._undelivered[rid] = Resend(rid, attempt, detokenizer, start)

    def _give_up(self, rejected: list[Rejected]) -> None:
        """Tell the router of sequences that do not go on here."""
        for rejection in rejected:
            if rejection.code == "not_finite":
                log.error("%s: %s", rejection.rid, rejection.message)
            self._router.send(rejection)

    def _deliver_again(self) -> None:
        late, self._undelivered = self._undelivered, {}
        for message in late.values():
            if self._scheduler.find(message.rid, message.attempt) is not None:
                self._resend(message)

    async def _report_regularly(self) -> None:
        while True:
            self._probe_worker()
            self._scheduler.rest()
            self._send_status()
            self._deliver_again()
            await asyncio.sleep(STATUS_S)

    def _probe_worker(self) -> None:
        """Find out soon whether a worker that is silent, or loads, is gone."""
        if self._loading is not None and not self._workers.send(Ping(), to=self._loading_identity):
            self._loading = None
        if self._worker is not None and time.monotonic() - self._worker_seen > PROBE_AFTER_S:
            self._worker_gone = not self._workers.send(Ping(), to=self._worker_identity)

    def _worker_state(self) -> WorkerState:
        if self._worker is None or self._loading is not None:
            return "loading"
        if self._worker_gone:
            return "dead"
        return "hung" if time.monotonic() - self._worker_seen > HUNG_AFTER_S else "ready"

    def _send_status(self) -> None:
        # Before the report, which has the number of the last message.
        self._tell_cache()
        self._router.send(self._status())

    def _status(self) -> NodeStatus:
        """How the node is now."""
        worker = self._worker
        return NodeStatus(
            name=self._told.node,
            incarnation=self._incarnation,
            model=worker.model if worker else None,
            worker=self._worker_state(),
            running=self._scheduler.running,
            queued=self._scheduler.queued,
            max_running=self._told.options.max_running,
            max_queue=self._told.options.max_queue,
            kv_used_bytes=self._scheduler.kv_used_bytes,
            steps=self._scheduler.steps,
            busy_s=clipped(self._scheduler.busy_s),
            idle_s=clipped(self._scheduler.idle_s),
            preemptions=self._scheduler.preemptions,
            generated_tokens=self._scheduler.generated_tokens,
            prefilled_tokens=self._scheduler.prefilled_tokens,
            cached_tokens=self._scheduler.cached_tokens,
            cold_blocks_used=self._scheduler.cold_blocks_used,
            worker_restarts=self._worker_restarts,
            dropped_frames=self._router_dropped
            + self._router.dropped_frames
            + self._workers.dropped_frames,
            worker_dropped_frames=worker.dropped_frames if worker else 0,
            worker_memory_bytes=worker.memory_bytes + worker.mlx_cache_bytes if worker else 0,
            rss_bytes=resident_bytes(),
            received=self._scheduler.received,
            queued_prefill_tokens=self._scheduler.queued_prefill_tokens,
            running_prefill_tokens=self._scheduler.running_prefill_tokens,
            prefill_tokens_per_s=clipped(self._scheduler.prefill_tokens_per_s, most=MOST_PER_S),
            decode_step_s=clipped(self._scheduler.decode_step_s),
            decode_row_s=clipped(self._scheduler.decode_row_s),
            sequence_s=clipped(self._scheduler.sequence_s),
            cold_age_s=clipped(self._scheduler.cold_age_s),
            kv_sequence=self._scheduler.journal.sequence,
            info=self._told.info,
            slowdown=clipped(self._scheduler.slowdown, LEAST_SLOWDOWN, MOST_SLOWDOWN),
            telemetry=self._telemetry.fresh,
            metrics_address=self._metrics_address,
            loading=self._loading.progress if self._loading is not None else None,
        )


def in_parts(tokens: Tokens) -> Iterator[Tokens]:
    """A message about one sequence as messages of bounded size; only the last has the finish."""
    ids, logprobs = tokens.ids[0], tokens.logprobs.get(0, [])
    for at in range(0, max(len(ids), 1), MAX_ENTRY_TOKENS):
        end = at + MAX_ENTRY_TOKENS
        yield Tokens(
            rids=tokens.rids,
            attempts=tokens.attempts,
            starts=[tokens.starts[0] + at],
            ids=[ids[at:end]],
            finish=tokens.finish if end >= len(ids) else {},
            logprobs={0: logprobs[at:end]} if logprobs else {},
        )


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        run_service(SchedulerProcess, SchedulerService)
