"""Servers to measure: how each is started, waited for and stopped."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import time
from asyncio.subprocess import DEVNULL, STDOUT, Process
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import psutil
from msgspec import Struct

from mlxfleet.bench.load import run_load
from mlxfleet.bench.prompt_load import prompt_load
from mlxfleet.common.errors import MlxfleetError

MLXFLEET = "mlxfleet"
HOST = "127.0.0.1"
READY_TIMEOUT_S = 180.0
READY_POLL_S = 0.05
# mlxfleet's own drain takes up to 30 s and its worker's stop a few more.
STOP_GRACE_S = 45.0
ORPHAN_GRACE_S = 2.0
STOP_POLL_S = 0.05
LOG_TAIL_CHARACTERS = 2000


class ServerError(MlxfleetError):
    """A server did not start, died, or does not answer as it should."""


class ServerSpec(Struct, frozen=True):
    """How to start a server. `model` is what requests call it, None to say nothing."""

    name: str
    command: list[str]
    url: str
    model: str | None = None


class Server(Struct):
    """A running server; the last two are known when it has been stopped."""

    spec: ServerSpec
    pid: int
    ready_s: float
    """From the start of the process to the end of its first answer."""
    exit_status: int | None = None
    was_killed: bool = False


def mlxfleet_spec(model: Path, flags: Sequence[str] = ()) -> ServerSpec:
    """`mlxfleet launch` of the same installation as this code."""
    port = free_port()
    command = [console_script(), "launch", "--model", str(model), "--host", HOST]
    return ServerSpec(MLXFLEET, [*command, "--port", str(port), *flags], f"http://{HOST}:{port}")


def peer_spec(script: Path, name: str, model: Path) -> ServerSpec:
    """A server that `bash SCRIPT serve NAME MODEL PORT` runs; it calls the model by its path."""
    port = free_port()
    command = ["bash", str(script), "serve", name, str(model), str(port)]
    return ServerSpec(name, command, f"http://{HOST}:{port}", str(model))


def console_script() -> str:
    """The `mlxfleet` command next to this Python."""
    script = Path(sys.executable).with_name("mlxfleet")
    if not script.exists():
        raise ServerError(f"there is no {script}; is mlxfleet installed?")
    return str(script)


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


@contextlib.asynccontextmanager
async def serving(
    spec: ServerSpec,
    log: Path,
    *,
    ready_timeout_s: float = READY_TIMEOUT_S,
    ask: Callable[[], Awaitable[str]] | None = None,
) -> AsyncIterator[Server]:
    """Start a server in a process group of its own, wait until it answers, and stop it in the end.

    Its output goes to `log`. `ask` says what is wrong with its answer, "" if nothing is; by default
    a token is asked for. Raises ServerError if it does not answer in time.
    """
    began = time.perf_counter()
    process = await start(spec, log)
    server = Server(spec, process.pid, 0.0)
    try:
        await wait_until_it_answers(spec, process, log, ready_timeout_s, ask or token_asker(spec))
        server.ready_s = time.perf_counter() - began
        yield server
    finally:
        server.was_killed = await stop(process)
        server.exit_status = process.returncode


async def start(spec: ServerSpec, log: Path) -> Process:
    """Start the process."""
    # A key in the environment would have to be sent with every request.
    environment = {name: value for name, value in os.environ.items() if name != "MLXFLEET_API_KEY"}
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        return await asyncio.create_subprocess_exec(
            *spec.command,
            stdin=DEVNULL,
            stdout=output,
            stderr=STDOUT,
            env=environment,
            start_new_session=True,
        )
    finally:
        os.close(output)


async def wait_until_it_answers(
    spec: ServerSpec,
    process: Process,
    log: Path,
    timeout_s: float,
    ask: Callable[[], Awaitable[str]],
) -> None:
    """Ask until the answer is right; ServerError if the process ends or time is over."""
    deadline = time.perf_counter() + timeout_s
    wrong = ""
    while (left_s := deadline - time.perf_counter()) > 0:
        if process.returncode is not None:
            raise ServerError(f"{spec.name} ended with {process.returncode}:\n{tail(log)}")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(left_s):
                wrong = await ask()
                if not wrong:
                    return
        await asyncio.sleep(READY_POLL_S)
    raise ServerError(f"{spec.name} gave no answer in {timeout_s:.0f} s ({wrong}):\n{tail(log)}")


def token_asker(spec: ServerSpec) -> Callable[[], Awaitable[str]]:
    """Asks the server for a token."""

    async def ask() -> str:
        load = prompt_load(
            url=spec.url, prompts=["Hello"], concurrency=1, max_tokens=1, model=spec.model
        )
        return ", ".join((await run_load(load)).summary.errors)

    return ask


async def stop(process: Process, grace_s: float = STOP_GRACE_S) -> bool:
    """SIGTERM, then SIGKILL for it and its descendants; whether that was needed."""
    if process.returncode is not None:
        return False
    children = descendants(process.pid)
    process.terminate()
    left = True
    try:
        async with asyncio.timeout(grace_s):
            await process.wait()
        async with asyncio.timeout(ORPHAN_GRACE_S):
            for child in children:
                await wait_for_end(child)
        left = False
    except TimeoutError:
        pass
    finally:
        if left:
            kill(process, children)
            await process.wait()
    return left


async def wait_for_end(process: psutil.Process) -> None:
    """Wait for a process that is not our own child."""
    while still_runs(process):  # noqa: ASYNC110 - only a parent is told
        await asyncio.sleep(STOP_POLL_S)


def kill(process: Process, children: list[psutil.Process]) -> None:
    """SIGKILL for a process and those of its descendants that still run."""
    if process.returncode is None:
        process.kill()
    for child in filter(still_runs, children):
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()


def descendants(pid: int) -> list[psutil.Process]:
    """Children and theirs; psutil will not mistake a later process with the same id for one."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def still_runs(process: psutil.Process) -> bool:
    """Whether it has neither ended nor waits to be reaped."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def tail(log: Path) -> str:
    """The end of a server's output."""
    return log.read_text(errors="replace")[-LOG_TAIL_CHARACTERS:].strip()
