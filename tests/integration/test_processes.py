"""The processes themselves: what there is, how they start, stop, and die with their parent."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from mlxfleet.common.errors import ExitCode
from tests.integration.fleet import COMMAND, Fleet, wait_for
from tests.integration.joined import Front, Node

NAMES = {"router", "tokenizer-0", "detokenizer-0", "scheduler-0", "worker-0"}


def children(fleet: Fleet) -> dict[str, psutil.Process]:
    return {name: fleet.process_named(name) for name in NAMES}


def maps(process: psutil.Process) -> str:
    return Path(f"/proc/{process.pid}/maps").read_text()


def launch_and_fail(
    *arguments: str,
    environment: dict[str, str] | None = None,
    before: Callable[[], None] | None = None,
) -> tuple[int, str]:
    """Exit code and standard error of a launch that cannot work; `before` runs in its process."""
    done = subprocess.run(
        [COMMAND, "launch", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=90,
        env={**os.environ, **(environment or {})},
        preexec_fn=before,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done.returncode, " ".join(done.stderr.split())


def test_processes_have_names_and_are_separate(tiny_fleet: Fleet) -> None:
    found = children(tiny_fleet)
    assert len({process.pid for process in found.values()}) == len(NAMES)
    shown = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    for name in NAMES:
        assert f"mlxfleet: {name}" in shown


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="maps are read from /proc")
def test_only_the_worker_maps_mlx(tiny_fleet: Fleet) -> None:
    tiny_fleet.post("/v1/completions", {"prompt": "Hi", "max_tokens": 2})
    with_mlx = {name for name, process in children(tiny_fleet).items() if "libmlx" in maps(process)}
    assert with_mlx == {"worker-0"}
    assert "libmlx" not in maps(psutil.Process(tiny_fleet.process.pid))


@pytest.mark.skipif(sys.platform != "linux", reason="the policy is Linux's")
def test_all_processes_give_way_to_the_worker(tiny_fleet: Fleet) -> None:
    processes = children(tiny_fleet)
    worker_nice = processes["worker-0"].nice()
    for name, process in processes.items():
        policies = [os.sched_getscheduler(thread.id) for thread in process.threads()]
        # Threads of a preloaded library are older than our code.
        batch = policies[0] == os.SCHED_BATCH and os.SCHED_BATCH in policies[1:]
        assert batch == (name != "worker-0"), name
        assert (process.nice() > worker_nice) == (name != "worker-0"), name


def test_sockets_are_private_and_short(tiny_fleet: Fleet) -> None:
    router = tiny_fleet.process_named("router")
    paths = {c.laddr for c in router.net_connections(kind="unix") if str(c.laddr).endswith(".sock")}
    assert len(paths) == 4
    for path in map(Path, map(str, paths)):
        assert len(str(path)) < 80
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    orders = Path(str(paths.pop())).parent / "router.json"
    assert stat.S_IMODE(orders.stat().st_mode) == 0o600


@contextlib.contextmanager
def busy_machine() -> Iterator[None]:
    """A process on every core, and one more, that want all the time there is."""
    burn = [sys.executable, "-S", "-c", "while True: pass"]
    burners = [subprocess.Popen(burn) for _ in range((os.cpu_count() or 1) + 1)]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


def test_no_child_survives_a_killed_parent_on_a_busy_machine(tiny_model: Path) -> None:
    with Fleet("--model", str(tiny_model)) as fleet:
        processes = list(children(fleet).values())
        # Keep the worker busy, so that it is in native code when it happens.
        busy = threading.Thread(target=ignore_errors, args=(fleet,))
        busy.start()
        wait_for(
            lambda: fleet.metric("mlxfleet_running_sequences", node="node-0") > 0, "a running row"
        )
        with busy_machine():
            fleet.process.kill()
            wait_for(lambda: not any(map(runs, processes)), "every child to end", deadline_s=2.0)
        busy.join(timeout=10)


WATCHES = """
import signal, threading
from mlxfleet.common.process import exit_with_parent
signal.signal(signal.SIGTERM, signal.SIG_IGN)
threading.Thread(target=exit_with_parent, daemon=True).start()
print("ready", flush=True)
while True:
    sum(range(1_000_000))
"""


def test_a_child_that_never_gets_to_its_end_is_ended_by_the_kernel() -> None:
    """What a Mac's processes rely on, where the kernel does not watch the parent."""
    with subprocess.Popen(
        [sys.executable, "-c", WATCHES], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdin is not None
        assert child.stdout.readline() == b"ready\n"
        child.stdin.close()
        assert child.wait(timeout=10) == -signal.SIGALRM


def runs(process: psutil.Process) -> bool:
    """Whether a process still does anything; nobody may reap it here."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def ignore_errors(fleet: Fleet) -> None:
    """A long request whose connection will break."""
    try:
        fleet.post(
            "/v1/completions", {"prompt": "x " * 4000, "max_tokens": 2000, "ignore_eos": True}
        )
    except OSError:
        return


def test_drain_finishes_running_requests_and_refuses_new_ones(tiny_model: Path) -> None:
    with Fleet("--model", str(tiny_model)) as fleet:
        client = fleet.client()
        stream = client.completions.create(
            model="tiny",
            prompt="Once",
            max_tokens=300,
            temperature=0,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        first = next(iter(stream))
        runtime = Path(str(router_socket(fleet))).parent
        fleet.process.send_signal(signal.SIGTERM)
        status, body, headers = wait_for(
            lambda: (
                found
                if (found := fleet.post("/v1/completions", {"prompt": "late"}))[0] == 503
                else None
            ),
            "new requests to be refused",
        )
        assert status == 503
        assert "shutting down" in body["error"]["message"]
        assert int(headers["Retry-After"]) > 0
        assert fleet.get("/ready")[0] == 503
        assert fleet.get("/health")[0] == 200
        text = first.choices[0].text + "".join(chunk.choices[0].text for chunk in stream)
        assert text
        assert fleet.process.wait(timeout=30) == ExitCode.OK
        assert not runtime.exists()


def router_socket(fleet: Fleet) -> str:
    connections = fleet.process_named("router").net_connections(kind="unix")
    return next(str(c.laddr) for c in connections if str(c.laddr).endswith(".sock"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_second_signal_forces(tiny_model: Path, number: signal.Signals) -> None:
    with Fleet("--model", str(tiny_model)) as fleet:
        processes = list(children(fleet).values())
        stream = fleet.client().completions.create(
            model="tiny",
            prompt="Once",
            max_tokens=8000,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        next(iter(stream))
        fleet.process.send_signal(number)
        wait_for(lambda: fleet.get("/ready")[0] == 503, "draining")
        fleet.process.send_signal(number)
        assert fleet.process.wait(timeout=10) == ExitCode.OK
        stream.close()
        assert not any(map(runs, processes))


def test_drain_limit(tiny_model: Path) -> None:
    with Fleet("--model", str(tiny_model), "--drain-timeout-s", "0.2") as fleet:
        stream = fleet.client().completions.create(
            model="tiny",
            prompt="Once",
            max_tokens=8000,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        next(iter(stream))
        fleet.process.send_signal(signal.SIGTERM)
        assert fleet.process.wait(timeout=10) == ExitCode.OK
        stream.close()


def test_several_tokenizers_and_detokenizers(tiny_model: Path) -> None:
    with Fleet("--model", str(tiny_model), "--tokenizers", "2", "--detokenizers", "2") as fleet:
        for name in ("tokenizer-1", "detokenizer-1"):
            assert fleet.process_named(name)
        prompts = [f"number {i}" for i in range(6)]
        answer = fleet.client().completions.create(model="tiny", prompt=prompts, max_tokens=5)
        assert answer.usage.completion_tokens == 30
        fleet.kill("detokenizer-1")
        answer = fleet.client().completions.create(model="tiny", prompt=prompts, max_tokens=5)
        assert answer.usage.completion_tokens == 30


def test_a_process_that_keeps_dying_ends_the_launch(tiny_model: Path) -> None:
    with Fleet("--model", str(tiny_model)) as fleet:
        seen: set[int] = set()
        while fleet.process.poll() is None:
            for child in psutil.Process(fleet.process.pid).children():
                if child.pid not in seen and "detokenizer-0" in " ".join(child.cmdline()):
                    seen.add(child.pid)
                    child.kill()
            wait_for(lambda: True, "nothing")
            if len(seen) >= 6:
                break
        assert fleet.process.wait(timeout=30) == ExitCode.CRASH_LOOP
        assert "detokenizer-0 was killed by SIGKILL, again and again" in fleet.output


def test_port_in_use() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, output = launch_and_fail("--port", str(port))
    assert code == ExitCode.PORT_IN_USE
    assert f"port {port} on 127.0.0.1 is in use" in output


def test_wrong_flags_and_values() -> None:
    code, output = launch_and_fail("--prot", "1")
    assert code == ExitCode.USAGE
    assert "--port" in output
    code, output = launch_and_fail("--port", "70000")
    assert code == ExitCode.CONFIG
    assert "--port" in output
    code, output = launch_and_fail("--max-running", "0")
    assert code == ExitCode.CONFIG
    assert "--max-running" in output


def test_wrong_model(tmp_path: Path) -> None:
    code, output = launch_and_fail("--port", "0", "--model", str(tmp_path / "nothing"))
    assert (code, "there is no folder" in output) == (ExitCode.MODEL, True)
    code, output = launch_and_fail("--port", "0", "--model", str(tmp_path))
    assert (code, "no config.json" in output) == (ExitCode.MODEL, True)


def test_broken_model_says_why(tiny_model: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(tiny_model / name)
    (tmp_path / "config.json").write_text('{"model_type": "no_such_architecture"}')
    code, output = launch_and_fail("--port", "0", "--model", str(tmp_path))
    assert code == ExitCode.MODEL
    assert "no_such_architecture" in output


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tokenizer.json", "{ not json"),
        ("tokenizer.json", '{"a": 1}'),
        ("tokenizer.json", "[]"),
        ("config.json", "{ not json"),
        ("config.json", "[]"),
        ("generation_config.json", '{"eos_token_id": "x"'),
        ("tokenizer_config.json", "null"),
    ],
)
def test_a_broken_file_of_a_model_is_named(
    tiny_model: Path, tmp_path: Path, name: str, text: str
) -> None:
    for file in tiny_model.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / name).unlink()
    (tmp_path / name).write_text(text)
    code, output = launch_and_fail("--port", "0", "--model", str(tmp_path))
    assert code == ExitCode.MODEL
    assert name in output.partition("error:")[2]


def test_a_context_too_short_for_anything_is_refused(tiny_model: Path) -> None:
    code, output = launch_and_fail("--port", "0", "--model", str(tiny_model), "--max-context", "1")
    assert code == ExitCode.CONFIG
    assert "--max-context" in output


def test_few_open_files_are_refused_with_what_to_do(tiny_model: Path) -> None:
    code, output = launch_and_fail(
        *("--port", "0", "--model", str(tiny_model)),
        before=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)),
    )
    assert code == ExitCode.CONFIG
    assert "64 files" in output
    assert "ulimit" in output


def test_a_temporary_folder_that_is_not_there_is_named(tiny_model: Path, tmp_path: Path) -> None:
    gone = str(tmp_path / "gone")
    code, output = launch_and_fail(
        "--port", "0", "--model", str(tiny_model), environment={"TMPDIR": gone}
    )
    assert code == ExitCode.CONFIG
    assert "TMPDIR" in output
    assert gone in output


def trouble(fleet: Fleet) -> list[str]:
    """Lines of a log that ask for attention."""
    words = (" WARNING ", " ERROR ", " CRITICAL ", "Traceback")
    return [line for line in fleet.lines if any(word in line for word in words)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_planned_stop_logs_no_trouble(tiny_model: Path, number: signal.Signals) -> None:
    with Fleet("--model", str(tiny_model), "--memory-gb", "1") as fleet:
        fleet.process.send_signal(number)
        assert fleet.process.wait(timeout=60) == ExitCode.OK
    assert trouble(fleet) == []


def test_planned_stops_of_nodes_and_router_log_no_trouble(tiny_model: Path) -> None:
    model = ("--model", str(tiny_model))
    with Front(*model) as front:
        join = ("--router", front.node_address, *model)
        with Node(*join, "--name", "a") as first, Node(*join, "--name", "b") as last:
            first.process.send_signal(signal.SIGTERM)
            assert first.process.wait(timeout=60) == ExitCode.OK
            wait_for(lambda: "a has left" in front.output, "the router to notice")
            front.process.send_signal(signal.SIGTERM)
            assert front.process.wait(timeout=60) == ExitCode.OK
            wait_for(lambda: "the router has stopped" in last.output, "the node to notice")
            last.process.send_signal(signal.SIGINT)
            assert last.process.wait(timeout=60) == ExitCode.OK
    assert [trouble(fleet) for fleet in (front, first, last)] == [[], [], []]


def test_a_second_signal_ends_a_start_at_once(tiny_model: Path) -> None:
    fleet = Fleet("--model", str(tiny_model), "--memory-gb", "1")
    try:
        fleet.process_named("worker-0")
        fleet.process.send_signal(signal.SIGINT)
        wait_for(lambda: "once more to stop at once" in fleet.output, "the first to be heard")
        fleet.process.send_signal(signal.SIGINT)
        assert fleet.process.wait(timeout=30) == ExitCode.OK
    finally:
        fleet.__exit__()
    assert trouble(fleet) == [], fleet.output


def test_model_that_does_not_fit(tiny_model: Path) -> None:
    code, output = launch_and_fail(
        "--port", "0", "--model", str(tiny_model), "--memory-gb", "0.001"
    )
    assert code == ExitCode.MODEL
    assert "--memory-gb" in output


def test_hub_without_network() -> None:
    code, output = launch_and_fail(
        "--port", "0", "--model", "org/name", environment={"HF_HUB_OFFLINE": "1"}
    )
    assert code == ExitCode.NETWORK
    assert "org/name" in output


def test_public_address_needs_a_key(tiny_model: Path, tmp_path: Path) -> None:
    code, output = launch_and_fail("--port", "0", "--host", "0.0.0.0")
    assert code == ExitCode.CONFIG
    assert "--api-key-file" in output
    empty = tmp_path / "keys"
    empty.write_text("# none\n")
    empty.chmod(0o600)
    code, output = launch_and_fail("--port", "0", "--api-key-file", str(empty))
    assert code == ExitCode.CONFIG


@pytest.mark.parametrize("flag", ["--api-key-file", "--admin-key-file"])
def test_a_key_file_that_others_can_read_is_refused(tmp_path: Path, flag: str) -> None:
    keys = tmp_path / "keys"
    keys.write_text("secret-key\n")
    keys.chmod(0o640)
    code, output = launch_and_fail("--port", "0", flag, str(keys))
    assert code == ExitCode.CONFIG
    assert f"{flag}: others can read {keys}; chmod 600 it" in output
    assert "secret-key" not in output


def test_api_keys(tiny_model: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("# team\nfirst-key\nsecond-key\n")
    keys.chmod(0o600)
    with Fleet(
        "--model",
        str(tiny_model),
        "--api-key-file",
        str(keys),
        environment={"MLXFLEET_API_KEY": "third-key"},
    ) as fleet:
        body = {"prompt": "Hi", "max_tokens": 1}
        for key in ("first-key", "second-key", "third-key"):
            assert fleet.client(api_key=key).models.list().data
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "first-key"}):
            status, answer, _ = fleet.post("/v1/completions", body, headers)
            assert (status, answer["error"]["code"]) == (401, "invalid_api_key")
        assert fleet.get("/health")[0] == fleet.get("/ready")[0] == 200
        for process in (*children(fleet).values(), psutil.Process(fleet.process.pid)):
            assert "-key" not in " ".join(process.cmdline()).replace("--api-key-file", "")
        for name in NAMES:
            assert "third-key" not in str(fleet.process_named(name).environ())
