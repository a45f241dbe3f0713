"""Commands on other hosts by the system's ssh."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from mlxfleet.common.cluster.agent import Done, Failed, News, Order, Progress
from mlxfleet.common.cluster.file import Ssh
from mlxfleet.common.errors import ExitCode, MlxfleetError

SSH_FAILED = 255
NOT_FOUND = 127
LINE_LIMIT_BYTES = 4_000_000
LAST_WORDS = 2000
PERSIST_S = 30
# ssh makes a socket of this name with 17 more characters; macOS allows 104 bytes for its path.
CONTROL_PARENT = "/tmp"

T = TypeVar("T")


class HostError(MlxfleetError):
    """A host cannot be reached, or cannot do what it is asked."""

    exit_code = ExitCode.HOST


@dataclass(frozen=True)
class Shell:
    """How hosts are reached, and which Python they have."""

    ssh: Ssh
    identity: Path | None
    python: str
    control: Path | None

    def command(self, host: str, remote: str) -> list[str]:
        """The ssh command that runs `remote`, words for the host's shell."""
        options = ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={self.ssh.connect_timeout_s}"]
        # A host that vanishes is noticed.
        options += ["-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3"]
        if self.control is not None:
            options += ["-o", "ControlMaster=auto", "-o", f"ControlPersist={PERSIST_S}"]
            options += ["-o", f"ControlPath={self.control}/%C"]
        if self.ssh.port is not None:
            options += ["-p", str(self.ssh.port)]
        if self.ssh.user is not None:
            options += ["-l", self.ssh.user]
        if self.identity is not None:
            options += ["-i", str(self.identity), "-o", "IdentitiesOnly=yes"]
        for option in self.ssh.options:
            options += ["-o", option]
        return ["ssh", "-T", *options, "--", host, remote]

    def agent(self, *arguments: str) -> str:
        """Words for a host's shell that run the agent."""
        words = ["-m", "mlxfleet.common.cluster.agent", *arguments]
        return f"{remote_path(self.python)} {shlex.join(words)}"

    async def ask(
        self,
        host: str,
        order: Order,
        kind: type[T],
        show: Callable[[str], None] = lambda text: None,
    ) -> T:
        """Have a host's agent carry out an order; HostError says why it does not."""
        process = await asyncio.create_subprocess_exec(
            *self.command(host, self.agent()),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=LINE_LIMIT_BYTES,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        errors = asyncio.ensure_future(last_text(process.stderr, show))
        try:
            process.stdin.write(msgspec.json.encode(order))
            with contextlib.suppress(ConnectionError):
                await process.stdin.drain()
            process.stdin.close()
            end = await last_news(process.stdout, show)
            code = await process.wait()
            said = await errors
        finally:
            errors.cancel()
            if process.returncode is None:
                process.terminate()
                await process.wait()
        match end:
            case Done(result):
                return msgspec.json.decode(result, type=kind)
            case Failed(reason):
                raise HostError(reason)
            case _:
                raise HostError(why_silent(code, said, self.python))


async def last_news(stream: asyncio.StreamReader, show: Callable[[str], None]) -> News | None:
    """Read an agent's news; the last of them ends the order."""
    end: News | None = None
    async for line in stream:
        try:
            news = msgspec.json.decode(line, type=News)
        except msgspec.MsgspecError:
            # A shell's greeting, or a library that prints.
            continue
        if isinstance(news, Progress):
            show(news.text)
        else:
            end = news
    return end


async def last_text(stream: asyncio.StreamReader, show: Callable[[str], None]) -> str:
    """Read what a host says on standard error, progress bars among it; the end of it."""
    said = ""
    while chunk := await stream.read(4096):
        said = (said + chunk.decode(errors="replace"))[-LAST_WORDS:]
        newest = said.replace("\r", "\n").strip().rpartition("\n")[2]
        show(newest)
    return said.strip()


def why_silent(code: int, said: str, python: str) -> str:
    """Why an agent has given no answer, and what to do, from ssh's exit status and last words."""
    newest = said.rpartition("\n")[2]
    if code == SSH_FAILED:
        return f"ssh cannot reach it: {newest or 'no reason given'}"
    if code == NOT_FOUND or "No such file or directory" in newest:
        return f"there is no {python}; install mlxfleet there, or set `python` in [cluster]"
    if "No module named" in newest:
        return f"{python} there has no mlxfleet of this version ({newest}); install it there"
    return f"{python} exited with {code}: {said[-500:] or 'no reason given'}"


def remote_path(path: str) -> str:
    """A path as a word for the host's shell, which puts the home folder in the place of `~`."""
    return f"~/{shlex.quote(path[2:])}" if path.startswith("~/") else shlex.quote(path)


@contextlib.asynccontextmanager
async def opened(ssh: Ssh, identity: Path | None, python: str) -> AsyncIterator[Shell]:
    """A shell whose connections are shared, if wanted, and closed at the end."""
    if not ssh.multiplex:
        yield Shell(ssh, identity, python, None)
        return
    prefix = f"mlxfleet-ssh-{os.getpid()}-"
    with tempfile.TemporaryDirectory(prefix=prefix, dir=CONTROL_PARENT) as folder:
        try:
            yield Shell(ssh, identity, python, Path(folder))
        finally:
            for socket in sorted(os.listdir(folder)):
                await close_shared(f"{folder}/{socket}")


async def close_shared(control_path: str) -> None:
    """End a shared connection."""
    process = await asyncio.create_subprocess_exec(
        *("ssh", "-o", f"ControlPath={control_path}", "-O", "exit", "any"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    await process.wait()
