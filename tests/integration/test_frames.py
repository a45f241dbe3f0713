"""Garbage on every socket: counted, dropped, and nobody dies."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq

from mlxfleet.common import config
from mlxfleet.common.config import (
    DetokenizerProcess,
    SchedulerOptions,
    SchedulerProcess,
    TokenizerProcess,
    WorkerOptions,
    WorkerProcess,
)
from mlxfleet.common.errors import ExitCode
from mlxfleet.common.messages import Hello, NodeStatus, Refused, Text, WorkerLoading, WorkerStatus
from tests.integration.fleet import Fleet, wait_for

GOOD = msgspec.msgpack.encode(Text(["r"], ["1"], [0], [[1]], [0], ["x"], {}, {}))
GARBAGE = [
    b"",
    b"\x00",
    b"\xc1",
    GOOD[:-3],
    GOOD + b"\x00",
    b"\xff" * 1000,
    msgspec.msgpack.encode({"type": "no_such_message"}),
    msgspec.msgpack.encode({"type": "hello", "name": 5}),
    msgspec.msgpack.encode({"type": "step", "rids": ["a"], "ids": "b"}),
    msgspec.msgpack.encode([1, 2, 3]),
    msgspec.msgpack.encode("text"),
    b"\x91" * 100_000,
]
TOO_LARGE = b"\x00" * (65 * 1024 * 1024)
"""More than any link takes; where others than the router send, ZeroMQ does not even read it."""


def runtime_folder(fleet: Fleet) -> Path:
    connections = fleet.process_named("router").net_connections(kind="unix")
    return next(Path(str(c.laddr)).parent for c in connections if str(c.laddr).endswith(".sock"))


def send(folder: Path, socket_name: str, kind: int, frames: list[bytes]) -> None:
    """Send frames to a server's socket as a stranger would."""
    with zmq.Context() as context, context.socket(kind) as socket:
        socket.linger = 5000
        socket.connect(f"ipc://{folder}/{socket_name}.sock")
        for frame in frames:
            socket.send(frame)


SERVERS = [
    ("tokenizers", zmq.DEALER, "router"),
    ("detokenizers", zmq.DEALER, "router"),
    ("nodes", zmq.DEALER, "router"),
    ("tokens-0", zmq.PUSH, "detokenizer-0"),
    ("worker-0", zmq.DEALER, "scheduler"),
]


@pytest.mark.parametrize(("socket_name", "kind", "process"), SERVERS)
def test_servers_drop_garbage(tiny_fleet: Fleet, socket_name: str, kind: int, process: str) -> None:
    pids = {name: tiny_fleet.process_named(name).pid for name in ("router", "scheduler-0")}
    before = tiny_fleet.metric("mlxfleet_dropped_frames_total", process=process)
    send(runtime_folder(tiny_fleet), socket_name, kind, GARBAGE)
    wait_for(
        lambda: (
            tiny_fleet.metric("mlxfleet_dropped_frames_total", process=process)
            == before + len(GARBAGE)
        ),
        "the frames to be counted",
        deadline_s=20,
    )
    answer = tiny_fleet.client().completions.create(model="tiny", prompt="Hi", max_tokens=3)
    assert answer.usage.completion_tokens == 3
    assert pids == {name: tiny_fleet.process_named(name).pid for name in pids}


def test_frames_that_are_too_large_harm_nobody(tiny_fleet: Fleet) -> None:
    pids = {name: tiny_fleet.process_named(name).pid for name in ("router", "scheduler-0")}
    for socket_name, kind, _ in SERVERS:
        send(runtime_folder(tiny_fleet), socket_name, kind, [TOO_LARGE])
    answer = tiny_fleet.client().completions.create(model="tiny", prompt="Hi", max_tokens=3)
    assert answer.usage.completion_tokens == 3
    assert pids == {name: tiny_fleet.process_named(name).pid for name in pids}


def orders_of(process: str, folder: str, model_dir: Path) -> tuple[object, str, type]:
    """Orders, module and heartbeat of a process whose server is a socket of ours."""
    server = f"ipc://{folder}/server.sock"
    other = f"ipc://{folder}/other.sock"
    match process:
        case "tokenizer-0":
            tokenizer = TokenizerProcess(
                name=process, model_dir=model_dir, router_address=server, trust_remote_code=False
            )
            return tokenizer, "mlxfleet.tokenizer_proc", Hello
        case "detokenizer-0":
            detokenizer = DetokenizerProcess(
                name=process,
                model_dir=model_dir,
                router_address=server,
                token_address=other,
                trust_remote_code=False,
            )
            return detokenizer, "mlxfleet.detokenizer_proc", Hello
        case "scheduler-0":
            scheduler = SchedulerProcess(
                name=process,
                node="node-0",
                router_address=server,
                worker_address=other,
                options=SchedulerOptions(),
            )
            return scheduler, "mlxfleet.workers.scheduler_main", NodeStatus
        case _:
            worker = WorkerProcess(
                name=process,
                model_dir=model_dir,
                scheduler_address=server,
                max_rows=4,
                max_chunk_tokens=64,
                options=WorkerOptions(),
            )
            return worker, "mlxfleet.workers.worker_main", WorkerStatus


@contextmanager
def against_false_server(
    process: str, model_dir: Path
) -> Iterator[tuple[subprocess.Popen[bytes], zmq.Socket[bytes], type]]:
    """The real process, the socket that it takes for its server, and its heartbeat's type."""
    with (
        tempfile.TemporaryDirectory(prefix="mf-", dir="/tmp") as folder,
        zmq.Context() as context,
        context.socket(zmq.ROUTER) as server,
    ):
        orders, module, heartbeat = orders_of(process, folder, model_dir)
        config.save(orders, Path(folder) / "orders.json")
        server.linger = 0
        server.bind(f"ipc://{folder}/server.sock")
        with subprocess.Popen(
            [sys.executable, "-m", module, f"{folder}/orders.json"],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as child:
            yield child, server, heartbeat
            assert child.stdin is not None
            child.stdin.close()
            child.wait(timeout=10)


@pytest.mark.parametrize("process", ["tokenizer-0", "detokenizer-0", "scheduler-0", "worker-0"])
def test_clients_drop_garbage(tiny_model: Path, process: str) -> None:
    with against_false_server(process, tiny_model) as (child, server, heartbeat):
        dropped = partial(dropped_by, server, msgspec.msgpack.Decoder(heartbeat | WorkerLoading))
        sender, count = dropped()
        assert count == 0
        for garbage in GARBAGE:
            server.send_multipart([sender, garbage])
        server.send_multipart([sender, GOOD, GOOD])
        wait_for(
            lambda: dropped()[1] == len(GARBAGE) + 1, "the frames to be counted", deadline_s=20
        )
        assert child.poll() is None


@pytest.mark.parametrize("process", ["tokenizer-0", "detokenizer-0", "scheduler-0", "worker-0"])
def test_a_refused_process_says_why_and_ends(tiny_model: Path, process: str) -> None:
    with against_false_server(process, tiny_model) as (child, server, _):
        assert server.poll(60_000), "the process is silent"
        sender = server.recv_multipart()[0]
        server.send_multipart([sender, msgspec.msgpack.encode(Refused("too old"))])
        # Not communicate(): it closes the standard input, which ends the process too.
        assert child.wait(timeout=20) == ExitCode.REFUSED
        assert child.stderr is not None
        assert b"too old" in child.stderr.read()


@pytest.mark.parametrize(
    ("socket_name", "hello"),
    [
        ("tokenizers", Hello(name="x", incarnation="i", version=99)),
        ("detokenizers", Hello(name="x", incarnation="i", version=99)),
        (
            "nodes",
            NodeStatus(
                name="x",
                incarnation="i",
                version=99,
                model=None,
                worker="ready",
                running=0,
                queued=0,
                max_running=1,
                max_queue=1,
                kv_used_bytes=0,
                steps=0,
                busy_s=0.0,
                idle_s=0.0,
                preemptions=0,
                generated_tokens=0,
                prefilled_tokens=0,
                cached_tokens=0,
                cold_blocks_used=0,
                worker_restarts=0,
                dropped_frames=0,
                worker_dropped_frames=0,
                worker_memory_bytes=0,
            ),
        ),
    ],
)
def test_another_protocol_version_is_refused(
    tiny_fleet: Fleet, socket_name: str, hello: Hello | NodeStatus
) -> None:
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.connect(f"ipc://{runtime_folder(tiny_fleet)}/{socket_name}.sock")
        socket.send(msgspec.msgpack.encode(hello))
        assert socket.poll(20_000), "no answer"
        answer = msgspec.msgpack.decode(socket.recv(), type=Refused)
    assert "protocol 99" in answer.reason
    assert tiny_fleet.metric("mlxfleet_node_ready", node="x") == 0


def dropped_by(
    server: zmq.Socket[bytes], decoder: msgspec.msgpack.Decoder[Any]
) -> tuple[bytes, int]:
    """The identity and count of dropped frames in a process's next heartbeat."""
    while True:
        assert server.poll(60_000), "the process is silent"
        sender, frame = server.recv_multipart()
        # A worker says how far it has loaded before its first heartbeat.
        if not isinstance(message := decoder.decode(frame), WorkerLoading):
            return sender, message.dropped_frames
