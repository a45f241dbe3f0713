"""A fleet sends its spans to a collector: one connected trace per request, whatever dies."""

from __future__ import annotations

import itertools
import os
import secrets
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.integration.collector import PROTOBUF, Collector, Span
from tests.integration.fleet import COMMAND, Fleet, wait_for

CLIENT_SPAN = "cd" * 8
# Clocks of processes are compared with the wall clock once each.
SLACK_NS = 2_000_000
STAGES = ["validate", "tokenize", "encode", "admission", "route", "generate"]
STAGES += ["queue", "prefill", "decode", "detokenize"]
SERVICES = ["router", "tokenizer", "detokenizer", "scheduler"]
SPEED = ["--sim-step-ms", "5", "--sim-row-ms", "0.2", "--sim-prefill-tokens-per-s", "20000"]


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector


@pytest.fixture(scope="module")
def fleet(tiny_model: Path, collector: Collector) -> Iterator[Fleet]:
    # A proxy that is not there must not be asked for what is on this machine.
    proxy = {"http_proxy": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}
    arguments = ["--model", str(tiny_model), "--engine", "sim", "--nodes", "2", *SPEED]
    endpoint = ["--otlp-endpoint", collector.url]
    with Fleet(*arguments, *endpoint, environment=proxy) as fleet:
        wait_for(lambda: all(ready(fleet, node) for node in ("node-0", "node-1")), "the nodes")
        yield fleet


def ready(fleet: Fleet, node: str) -> bool:
    return fleet.metric("mlxfleet_node_ready", node=node) == 1


def new_trace() -> str:
    return secrets.token_hex(16)


def context(trace: str, flags: str = "01") -> dict[str, str]:
    """Headers of a client that traces."""
    return {"traceparent": f"00-{trace}-{CLIENT_SPAN}-{flags}", "tracestate": "vendor=1"}


def stream(fleet: Fleet, trace: str, tokens: int) -> Iterator[Any]:
    return iter(
        fleet.client().chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "once upon a time " * 40}],
            max_tokens=tokens,
            temperature=0.5,
            stream=True,
            extra_headers=context(trace),
        )
    )


def root_of(spans: list[Span]) -> Span:
    """The one span whose parent is not of the fleet; every other hangs under it."""
    ids = {span.id for span in spans}
    [root] = [span for span in spans if span.parent not in ids]
    return root


def over(spans: list[Span], why: str) -> bool:
    """Whether a request's span, its last decode and its stream are there. A process sends a span
    when it is over, so the order in which they come is none."""
    ends = [span.attributes["mlxfleet.end"] for span in named(spans, "decode")]
    request = [span for span in spans if span.name.endswith(" tiny")]
    return bool(request and why in ends and named(spans, "detokenize"))


def named(spans: list[Span], name: str) -> list[Span]:
    found = [span for span in spans if span.name == name]
    return sorted(found, key=lambda span: span.began)


def test_a_stream_is_one_trace_under_the_clients_span(fleet: Fleet, collector: Collector) -> None:
    trace = new_trace()
    chunks = list(stream(fleet, trace, 12))
    wanted = {*STAGES, "chat tiny"}
    spans = collector.trace(trace, lambda spans: wanted <= {span.name for span in spans})
    assert Counter(span.name for span in spans) == dict.fromkeys(wanted, 1)
    assert {span.service for span in spans} == {f"mlxfleet-{name}" for name in SERVICES}
    assert all(not span.failed for span in spans)

    root = root_of(spans)
    assert (root.name, root.parent, root.tracestate) == ("chat tiny", CLIENT_SPAN, "vendor=1")
    assert root.attributes["gen_ai.request.model"] == "tiny"
    assert root.attributes["gen_ai.request.temperature"] == 0.5
    assert root.attributes["gen_ai.request.max_tokens"] == 12
    assert root.attributes["gen_ai.usage.input_tokens"] > 100
    assert root.attributes["gen_ai.usage.output_tokens"] == 12
    assert root.attributes["gen_ai.response.finish_reasons"] == ["length"]
    assert root.attributes["http.response.status_code"] == 200
    assert root.attributes["mlxfleet.outcome"] == "ok"
    assert chunks[0].id.endswith(root.attributes["mlxfleet.rid"])

    parents = {span.name: named_parent(spans, span) for span in spans if span is not root}
    assert parents["encode"] == "tokenize"
    assert {parents[name] for name in ("queue", "prefill", "decode")} == {"generate"}
    own = ("validate", "tokenize", "admission", "route", "generate", "detokenize")
    assert {parents[name] for name in own} == {"chat tiny"}


def named_parent(spans: list[Span], span: Span) -> str:
    [parent] = [other for other in spans if other.id == span.parent]
    return parent.name


def test_stages_follow_each_other_inside_the_request(fleet: Fleet, collector: Collector) -> None:
    trace = new_trace()
    for _ in stream(fleet, trace, 8):
        pass
    spans = collector.trace(trace, lambda spans: len(spans) == len(STAGES) + 1)
    root = root_of(spans)
    for span in spans:
        assert root.began - SLACK_NS <= span.began <= span.ended <= root.ended + SLACK_NS
    order = ["validate", "tokenize", "admission", "route", "queue", "prefill", "decode"]
    for before, after in itertools.pairwise(order):
        [first], [second] = named(spans, before), named(spans, after)
        assert first.ended <= second.began + SLACK_NS
    [decode] = named(spans, "decode")
    assert decode.attributes["mlxfleet.decoded_tokens"] == 8
    # Simulated passes take their time, so the spans must show it. From the start of prefill: how
    # soon the scheduler reads the first token, where decode begins, is up to the machine.
    [prefill] = named(spans, "prefill")
    assert decode.ended - prefill.began > 8 * 5_000_000
    assert decode.began < decode.ended
    first_s = root.attributes["gen_ai.response.time_to_first_chunk"]
    assert abs(root.began + first_s * 1e9 - decode.began) < decode.ended - decode.began


def test_a_stream_that_moves_stays_one_trace(fleet: Fleet, collector: Collector) -> None:
    trace = new_trace()
    chunks = stream(fleet, trace, 500)
    next(chunks)
    busy = wait_for(
        lambda: [
            node
            for node in ("node-0", "node-1")
            if fleet.metric("mlxfleet_running_sequences", node=node)
        ],
        "the node of the stream",
    )
    fleet.kill(busy[0].replace("node", "scheduler"))
    with ThreadPoolExecutor(1) as pool:
        pool.submit(list, chunks).result(timeout=90)
    spans = collector.trace(trace, lambda spans: over(spans, "length"))
    root = root_of(spans)
    assert root.attributes["gen_ai.usage.output_tokens"] == 500
    assert not root.failed

    lost, resumed = named(spans, "generate")
    assert lost.attributes["mlxfleet.node"] == busy[0]
    assert lost.failed
    assert not resumed.failed
    assert resumed.links == [lost.id]
    assert resumed.attributes["mlxfleet.known_tokens"] > 0
    if resumed.attributes["mlxfleet.node"] != busy[0]:
        assert root.events == ["failover"]
    [decode] = [span for span in named(spans, "decode") if span.parent == resumed.id]
    assert decode.attributes["mlxfleet.node"] == resumed.attributes["mlxfleet.node"]
    wait_for(lambda: ready(fleet, busy[0]), "the node to be back")


def test_a_worker_that_dies_shows_in_the_nodes_spans(fleet: Fleet, collector: Collector) -> None:
    trace = new_trace()
    chunks = stream(fleet, trace, 300)
    next(chunks)
    for worker in ("worker-0", "worker-1"):
        fleet.kill(worker)
    assert sum(1 for chunk in chunks if chunk.choices and chunk.choices[0].finish_reason) == 1
    spans = collector.trace(trace, lambda spans: over(spans, "length"))
    root_of(spans)
    assert len(named(spans, "queue")) > 1
    ends = [span.attributes["mlxfleet.end"] for span in named(spans, "decode")]
    assert ends[-1] == "length"
    assert len(ends) > 1
    wait_for(lambda: fleet.get("/ready")[0] == 200, "ready again")


def test_a_refused_request_has_a_span_with_its_status(fleet: Fleet, collector: Collector) -> None:
    trace = new_trace()
    status, _, _ = fleet.post("/v1/completions", {"prompt": "Hi", "n": -1}, context(trace))
    assert status == 400
    [validate, root] = collector.trace(trace, lambda spans: len(spans) == 2)
    assert (validate.name, root.name) == ("validate", "text_completion")
    assert root.attributes["http.response.status_code"] == 400
    assert root.attributes["mlxfleet.outcome"] == "client_error"
    assert root.attributes["error.type"] == "InvalidRequestError"
    assert not root.failed


def test_a_client_that_goes_away_ends_the_trace(fleet: Fleet, collector: Collector) -> None:
    trace = new_trace()
    client = fleet.client()
    answer = client.completions.create(
        model="tiny", prompt="Hi", max_tokens=4000, stream=True, extra_headers=context(trace)
    )
    next(iter(answer))
    answer.close()
    spans = collector.trace(trace, lambda spans: over(spans, "released"))
    root = root_of(spans)
    assert root.attributes["mlxfleet.outcome"] == "cancelled"
    assert root.attributes["gen_ai.response.finish_reasons"] == ["cancelled"]
    assert named(spans, "decode")[0].attributes["mlxfleet.end"] == "released"
    assert named(spans, "detokenize")[0].attributes["mlxfleet.end"] == "closed"


def test_the_clients_choice_of_samples_is_kept(fleet: Fleet, collector: Collector) -> None:
    """Spans of one process are sent in order, so a later trace shows that none came before."""
    unsampled, sampled = new_trace(), new_trace()
    body = {"prompt": "Hi", "max_tokens": 2}
    assert fleet.post("/v1/completions", body, context(unsampled, "00"))[0] == 200
    assert fleet.post("/v1/completions", body, context(sampled))[0] == 200
    collector.trace(sampled, lambda spans: len(spans) == len(STAGES) + 1)
    assert not [span for span in collector.spans if span.trace == unsampled]


def test_a_request_without_a_context_starts_a_trace(fleet: Fleet, collector: Collector) -> None:
    before = len(collector.spans)
    headers = {"traceparent": f"00-{'0' * 32}-{CLIENT_SPAN}-01"}
    assert fleet.post("/v1/completions", {"prompt": "Hi", "max_tokens": 2}, headers)[0] == 200

    def root() -> list[Span]:
        return [span for span in collector.spans[before:] if span.name == "text_completion tiny"]

    [span] = wait_for(root, "the root span")
    assert span.parent == ""
    assert int(span.trace, 16) != 0


def test_the_exporter_is_loaded_where_there_are_spans(fleet: Fleet) -> None:
    if not Path("/proc/self/maps").exists():
        pytest.skip("maps are read from /proc")
    loaded = {
        name
        for name in ("router", "tokenizer-0", "detokenizer-0", "scheduler-0", "worker-0")
        if PROTOBUF in Path(f"/proc/{fleet.process_named(name).pid}/maps").read_text()
    }
    assert loaded == {"router", "tokenizer-0", "detokenizer-0", "scheduler-0"}


def test_without_a_collector_requests_go_on_and_the_last_spans_wait_for_nobody(
    tiny_model: Path,
) -> None:
    arguments = ["--model", str(tiny_model), "--engine", "sim", *SPEED]
    with Fleet(*arguments, "--otlp-endpoint", "http://127.0.0.1:9") as fleet:
        for _ in range(5):
            assert fleet.post("/v1/completions", {"prompt": "Hi", "max_tokens": 4})[0] == 200
        lost = "http://127.0.0.1:9 takes no traces"
        wait_for(lambda: said(fleet, "router", lost), "the router to say so")
        for _ in range(5):
            assert fleet.post("/v1/completions", {"prompt": "Hi", "max_tokens": 4})[0] == 200
        fleet.process.send_signal(signal.SIGTERM)
        fleet.process.wait(timeout=60)
    assert said(fleet, "router", lost) == 1
    assert "Transient error" not in fleet.output
    assert "Traceback" not in fleet.output


def said(fleet: Fleet, process: str, text: str) -> int:
    return sum(f" {process} " in line and text in line for line in fleet.lines)


def test_a_clear_error_without_the_extra(tmp_path: Path) -> None:
    (tmp_path / "opentelemetry").mkdir()
    (tmp_path / "opentelemetry" / "__init__.py").touch()
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    ended = subprocess.run(
        [COMMAND, "launch", "--port", "0", "--otlp-endpoint", "http://127.0.0.1:4318"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 64
    assert "pip install 'mlxfleet[tracing]'" in ended.stderr
