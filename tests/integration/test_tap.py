"""Looking at a running fleet, and at what crashes leave."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import msgspec
import pytest
from msgspec import Struct

from mlxfleet.common.errors import ExitCode
from mlxfleet.common.messages import Admit, Generate, Refused, Sampling, Store, Welcome
from mlxfleet.common.node_identity import STATE_ENV
from tests.integration.fleet import COMMAND, Fleet, wait_for
from tests.integration.test_frames import against_false_server, runtime_folder

PROMPT = "The butler did it"
SECRET = "butler"
SECRET_ID = 98_765
MANY_TOKENS = 200


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="module")
def fleet(tiny_model: Path, state: Path) -> Iterator[Fleet]:
    arguments = ["--model", str(tiny_model), "--engine", "sim"]
    with Fleet(*arguments, environment={STATE_ENV: str(state)}) as made:
        yield made


class LiveTap(Fleet):
    """`mlxfleet tap --json` on a fleet."""

    command = ("tap", "--json")

    def __init__(self, fleet: Fleet, *arguments: str) -> None:
        super().__init__("--fleet", str(fleet.process.pid), *arguments)

    def __enter__(self) -> LiveTap:
        return self

    def seen(self) -> list[dict[str, Any]]:
        """What it has shown so far."""
        return [json.loads(line) for line in self.lines]

    def interrupt(self) -> int:
        """Ctrl-C; the exit status."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(timeout=30)


def tap(*arguments: str) -> str:
    """What `mlxfleet tap` prints; it has to end by itself, and well."""
    done = subprocess.run(
        [COMMAND, "tap", *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def types_by_process(seen: list[dict[str, Any]]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for line in seen:
        found.setdefault(line["process"], set()).add(line["type"])
    return found


def complete(fleet: Fleet, max_tokens: int = 3) -> tuple[str, str]:
    """The id and the text of an answer."""
    answer = fleet.client().completions.create(model="tiny", prompt=PROMPT, max_tokens=max_tokens)
    return answer.id, answer.choices[0].text


def test_a_running_request_is_followed_through_every_process(fleet: Fleet) -> None:
    client = fleet.client()
    other = client.completions.create(
        model="tiny", prompt=PROMPT, max_tokens=MANY_TOKENS, stream=True
    )
    stream = client.completions.create(
        model="tiny", prompt=PROMPT, max_tokens=MANY_TOKENS, stream=True
    )
    rid = next(iter(stream)).id
    with LiveTap(fleet, "--last", "--rid", rid) as live:
        wait_for(lambda: any(line["type"] == "generate" for line in live.seen()), "the beginning")
        for _ in stream:
            pass
        wait_for(
            lambda: any(line["type"] == "release" for line in live.seen()), "the request's end"
        )
        assert live.interrupt() == 0
    other.close()
    by_process = types_by_process(live.seen())
    assert {"generate", "open_stream", "text", "release"} <= by_process["router"]
    assert {"generate", "admit", "prefill", "step", "tokens"} <= by_process["scheduler-0"]
    assert {"open_stream", "tokens", "text"} <= by_process["detokenizer-0"]
    assert {"admit", "prefill", "step", "drop"} <= by_process["worker-0"]
    name = rid.removeprefix("cmpl-")
    assert {r.partition("#")[0] for line in live.seen() for r in line["rids"]} == {f"{name}-0"}
    positions = [
        line["message"]["starts"][0]
        for line in live.seen()
        if line["process"] == "detokenizer-0" and line["type"] == "tokens"
    ]
    assert positions == list(range(MANY_TOKENS))
    assert not any("lost" in line for line in live.seen())


def test_prompts_are_hidden_unless_they_are_asked_for(fleet: Fleet) -> None:
    rid, text = complete(fleet)
    now = ["--fleet", str(fleet.process.pid), "--no-follow"]
    for hidden in (tap(*now), tap(*now, "--json")):
        assert rid.removeprefix("cmpl-") in hidden
        assert SECRET not in hidden
    texts = [
        line["message"]["texts"]
        for line in map(json.loads, hidden.splitlines())
        if line["type"] == "text"
    ]
    assert texts
    assert all(set(text) == {"hidden"} for text in texts)
    shown = [json.loads(line) for line in tap(*now, "--json", "--show-prompts").splitlines()]
    asked = [line["message"] for line in shown if line["type"] == "tokenize_text"]
    assert [PROMPT] in [message["texts"] for message in asked]
    of_it = [line for line in shown if line["type"] == "text" and line["process"] == "router"]
    ours = [line["message"] for line in of_it if line["rids"][0].startswith(rid[5:])]
    assert "".join(message["texts"][0] for message in ours) == text


def read_dump(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A dump, read with nothing but the msgpack package."""
    with path.open("rb") as file:
        process, *frames = msgpack.Unpacker(file)
    for frame in frames:
        frame["message"] = msgpack.unpackb(frame["frame"], strict_map_key=False)
    return process, frames


def test_a_signal_has_all_processes_write_what_they_have(fleet: Fleet, state: Path) -> None:
    rid, _ = complete(fleet)
    fleet.process.send_signal(signal.SIGUSR1)
    node = {"scheduler-0", "worker-0", "telemetry"}
    names = {"router", "tokenizer-0", "detokenizer-0", *node}

    def dumps() -> dict[str, Path] | None:
        paths = (state / "dumps").glob("*-asked.msgpack")
        found = {read_dump(path)[0]["process"]: path for path in paths}
        return found if set(found) == names else None

    found = wait_for(dumps, "dumps of all processes")
    for name, path in found.items():
        assert path.stat().st_mode & 0o777 == 0o600
        wait_for(lambda path=path: str(path) in fleet.output, f"{name} to log where its dump is")
    _, frames = read_dump(found["scheduler-0"])
    [generate] = [
        frame
        for frame in frames
        if frame["message"]["type"] == "generate" and frame["message"]["rid"].startswith(rid[5:])
    ]
    assert (generate["direction"], generate["link"]) == ("received", "nodes")
    assert len(generate["message"]["prompt_ids"]) > 0


def test_a_tap_has_dumps_written_and_reads_them(fleet: Fleet) -> None:
    rid, _ = complete(fleet)
    paths = tap("--fleet", str(fleet.process.pid), "--dump", "router", "worker-*").split()
    processes = [read_dump(Path(path))[0]["process"] for path in paths]
    assert processes == ["router", "worker-0"]
    shown = tap(*(f"--file={path}" for path in paths), "--rid", rid, "--json")
    assert set(types_by_process([json.loads(line) for line in shown.splitlines()])) == set(
        processes
    )


def test_what_a_killed_process_cannot_tell_its_neighbours_do(fleet: Fleet, state: Path) -> None:
    rid, _ = complete(fleet)
    before = set((state / "dumps").glob("*-scheduler-0-*"))
    worker = fleet.process_named("worker-0")
    worker.send_signal(signal.SIGABRT)
    [path] = wait_for(
        lambda: set((state / "dumps").glob("*-scheduler-0-*.msgpack")) - before, "a witness's dump"
    )
    _, frames = read_dump(path)
    exchanged = [frame for frame in frames if frame["link"] == "worker-0"]
    assert any(
        frame["direction"] == "received"
        and any(r.startswith(rid[5:]) for r in frame["message"].get("rids", []))
        for frame in exchanged
    )
    assert "worker-0 was killed by SIGABRT" in fleet.output
    assert "Fatal Python error: Aborted" in fleet.output
    wait_for(lambda: fleet.get("/ready")[0] == 200, "ready again")


# What nobody should send, and what no process checks for.
CRASHES: dict[str, list[Struct]] = {
    "scheduler-0": [
        Generate(
            rid="bad-0",
            attempt="1",
            detokenizer="d",
            prompt_ids=[SECRET_ID],
            output_ids=[],
            sampling=Sampling(seed=1, max_tokens=2),
        ),
        Welcome("session", {"d": "nowhere"}),
    ],
    "worker-0": [
        Admit(rid="bad-0", token_ids=[1, 2], n_output=0, sampling=Sampling(seed=1, max_tokens=2)),
        Store("bad-0", 0, [10**9]),
    ],
}


@pytest.mark.parametrize("process", CRASHES)
def test_a_process_that_crashes_leaves_its_last_frames(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, process: str
) -> None:
    monkeypatch.setenv(STATE_ENV, str(tmp_path))
    with against_false_server(process, tiny_model) as (child, server, _):
        assert server.poll(60_000), "the process is silent"
        sender = server.recv_multipart()[0]
        for message in CRASHES[process]:
            server.send_multipart([sender, msgspec.msgpack.encode(message)])
        assert child.wait(timeout=30) == ExitCode.INTERNAL
        assert child.stderr is not None
        log = child.stderr.read().decode()
    [path] = (tmp_path / "dumps").iterdir()
    assert path.name.endswith(f"-{process}-{child.pid}-crash.msgpack")
    assert str(path) in log
    dump, frames = read_dump(path)
    assert dump["reason"] in ("unhandled ZMQError", "unhandled ValueError")
    assert frames[0]["direction"] in ("sent", "unsent")
    assert frames[-1]["message"] == msgpack.unpackb(msgspec.msgpack.encode(CRASHES[process][-1]))
    shown = tap("--file", str(path), "--rid", "bad-0")
    assert "bad-0" in shown
    assert str(SECRET_ID) not in shown


def test_a_process_that_gives_up_leaves_its_last_frames(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(STATE_ENV, str(tmp_path))
    with against_false_server("tokenizer-0", tiny_model) as (child, server, _):
        assert server.poll(60_000), "the process is silent"
        sender = server.recv_multipart()[0]
        server.send_multipart([sender, msgspec.msgpack.encode(Refused("too old"))])
        assert child.wait(timeout=30) == ExitCode.REFUSED
    [path] = (tmp_path / "dumps").iterdir()
    dump, frames = read_dump(path)
    assert dump["reason"] == "the router refused tokenizer-0: too old"
    assert frames[-1]["message"]["type"] == "refused"


def test_nothing_is_recorded_without_a_recorder(tiny_model: Path, tmp_path: Path) -> None:
    arguments = ["--model", str(tiny_model), "--engine", "sim", "--recorder-mb", "0"]
    with Fleet(*arguments, environment={STATE_ENV: str(tmp_path)}) as fleet:
        assert not list(runtime_folder(fleet).glob("tap-*"))
        fleet.process.send_signal(signal.SIGUSR1)
        complete(fleet)
        done = subprocess.run(
            [COMMAND, "tap", "--fleet", str(fleet.process.pid)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode != 0
        assert "--recorder-mb 0" in done.stderr
    assert not list(tmp_path.iterdir())
