"""What a node's spans say of a sequence, from its way through the scheduler."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import msgspec
import pytest

from mlxfleet.common.config import SchedulerOptions
from mlxfleet.common.messages import FinishReason, Generate, ModelInfo, Sampling, Step
from mlxfleet.common.tracing import NO_ATTRIBUTES, Attributes, Span, Tracer
from mlxfleet.workers.phases import Phases
from mlxfleet.workers.scheduler import Scheduler
from tests.workers.attempts import ATTEMPT, release, row_of

MODEL = ModelInfo(
    vocab_size=100,
    context_length=200,
    eos_ids=[0],
    kv_budget_bytes=1000,
    fixed_bytes=0,
    bytes_per_token=1,
    windowed=[],
    weights_bytes=0,
)


@dataclass(frozen=True)
class Recorded:
    name: str
    began: float
    ended: float
    attributes: Attributes


@dataclass
class Recorder(Tracer):
    """Keeps what is recorded."""

    spans: list[Recorded] = field(default_factory=list)

    def record(
        self,
        name: str,
        parent: Span | str,
        began: float,
        ended: float,
        attributes: Attributes = NO_ATTRIBUTES,
    ) -> None:
        assert parent == "parent"
        self.spans.append(Recorded(name, began, ended, attributes))

    def ways(self) -> list[tuple[str, object]]:
        """Each span's name and how it ended."""
        return [(span.name, span.attributes.get("mlxfleet.end")) for span in self.spans]


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def scheduler(recorder: Recorder) -> Scheduler:
    """Its clock is one second later whenever it is read."""
    seconds = itertools.count()
    scheduler = Scheduler(
        SchedulerOptions(max_chunk_tokens=8, max_running=2),
        phases=lambda message: Phases(recorder, message.traceparent, {"rid": message.rid}),
        now=lambda: float(next(seconds)),
    )
    assert scheduler.worker_ready(MODEL) == []
    return scheduler


def submit(scheduler: Scheduler, rid: str, *, traceparent: str = "parent", **more: int) -> None:
    message = Generate(
        rid=rid,
        attempt=ATTEMPT,
        detokenizer="d",
        prompt_ids=list(range(1, 1 + more.get("prompt", 12))),
        output_ids=[],
        sampling=Sampling(seed=1, max_tokens=more.get("max_tokens", 10)),
        traceparent=traceparent,
    )
    assert scheduler.submit(message) is None
    scheduler.schedule()


def prefill(scheduler: Scheduler, rid: str, *pieces: int) -> None:
    for tokens in pieces:
        list(scheduler.on_step(Step(epoch="", prefilled=[(row_of(scheduler, rid), tokens)])))
        scheduler.schedule()


def decode(scheduler: Scheduler, rid: str, count: int, finish: FinishReason | None = None) -> None:
    for left in reversed(range(count)):
        ends: dict[int, FinishReason] = {0: finish} if finish and not left else {}
        list(scheduler.on_step(Step(epoch="", rids=[row_of(scheduler, rid)], ids=[7], finish=ends)))
        scheduler.schedule()


def test_the_phases_of_a_sequence(scheduler: Scheduler, recorder: Recorder) -> None:
    submit(scheduler, "a")
    prefill(scheduler, "a", 8, 3)
    decode(scheduler, "a", 4, "stop")
    release(scheduler, "a")
    assert recorder.ways() == [("queue", None), ("prefill", None), ("decode", "stop")]
    for before, after in itertools.pairwise(recorder.spans):
        assert before.began < before.ended == after.began
    _, prefilling, decoding = recorder.spans
    assert prefilling.attributes["mlxfleet.chunks"] == 2
    assert prefilling.attributes["mlxfleet.prefilled_tokens"] == 11
    assert prefilling.attributes["mlxfleet.cached_tokens"] == 0
    assert decoding.attributes["mlxfleet.decoded_tokens"] == 4
    assert all(span.attributes["rid"] == "a" for span in recorder.spans)


@pytest.mark.parametrize(
    ("pieces", "tokens", "ended"),
    [((), 0, "prefill"), ((8,), 0, "prefill"), ((8, 3), 2, "decode")],
)
def test_a_release_ends_the_phase(
    scheduler: Scheduler, recorder: Recorder, pieces: tuple[int, ...], tokens: int, ended: str
) -> None:
    submit(scheduler, "a")
    prefill(scheduler, "a", *pieces)
    decode(scheduler, "a", tokens)
    release(scheduler, "a")
    assert recorder.ways()[-1] == (ended, "released")


def test_a_release_in_the_queue(scheduler: Scheduler, recorder: Recorder) -> None:
    for rid in ("a", "b", "c"):
        submit(scheduler, rid)
    release(scheduler, "c")
    [span] = [span for span in recorder.spans if span.attributes["rid"] == "c"]
    assert (span.name, span.attributes["mlxfleet.end"]) == ("queue", "released")


def test_a_lost_worker_sends_it_back_to_the_queue(scheduler: Scheduler, recorder: Recorder) -> None:
    submit(scheduler, "a")
    prefill(scheduler, "a", 8, 3)
    decode(scheduler, "a", 2)
    assert scheduler.worker_ready(MODEL) == []
    scheduler.schedule()
    prefill(scheduler, "a", 8, 5)
    decode(scheduler, "a", 1, "length")
    ways = [("queue", None), ("prefill", None), ("decode", "worker lost")]
    assert recorder.ways() == [*ways, *ways[:2], ("decode", "length")]
    assert recorder.spans[-1].attributes["mlxfleet.decoded_tokens"] == 1


def test_a_preemption_shows(recorder: Recorder, scheduler: Scheduler) -> None:
    small = msgspec.structs.replace(MODEL, kv_budget_bytes=160)
    assert scheduler.worker_ready(small) == []
    submit(scheduler, "old", prompt=4, max_tokens=150)
    submit(scheduler, "young", prompt=4, max_tokens=150)
    for rid in ("old", "young"):
        prefill(scheduler, rid, 3)
        decode(scheduler, rid, 1)
    while not scheduler.preemptions:
        decode(scheduler, "old", 1)
    young = [span for span in recorder.spans if span.attributes["rid"] == "young"]
    assert [span.name for span in young] == ["queue", "prefill", "decode"]
    assert young[-1].attributes["mlxfleet.end"] == "preempted"


def test_nothing_is_recorded_of_a_request_that_is_not_traced(
    scheduler: Scheduler, recorder: Recorder
) -> None:
    submit(scheduler, "a", traceparent="")
    prefill(scheduler, "a", 8, 3)
    decode(scheduler, "a", 2, "stop")
    assert recorder.spans == []
