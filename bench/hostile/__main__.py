"""The command: `python -m mlxfleet.bench.hostile`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import aiohttp
import cyclopts
from rich.console import Console

from mlxfleet.bench.attack_run import run_attack
from mlxfleet.bench.chaos.fleet import key_flag, readiness
from mlxfleet.bench.hostile.campaign import Result, barrage, send_only
from mlxfleet.bench.hostile.options import Options
from mlxfleet.bench.hostile.shots import ADMIN_KEY, API_KEYS
from mlxfleet.bench.hostile.watch import Watch
from mlxfleet.bench.servers import mlxfleet_spec, serving
from mlxfleet.bench.tiny_model import write_tiny_model

MOST_SHOWN = 40
LOG = "launch.log"
TRACEBACK = "Traceback (most recent call last)"
SHOWN_CHARACTERS = 1_500
# Answers whose length is not stated are short, and memory is found to grow sooner.
FLAGS = ("--memory-gb", "1", "--blas-threads", "1", "--default-max-tokens", "16")


def main(options: Options = Options()) -> None:  # noqa: B008 - frozen
    """Send hostile requests; the exit status is 1 if anything was found."""
    run_attack("hostile", partial(run, options), seed=options.seed, logs=options.logs)


async def run(options: Options, seed: int, folder: Path, console: Console) -> int:
    """Everything; the number of findings."""
    async with target(options, folder) as (url, watch):
        if options.only is not None:
            result = await send_only(url, seed, options.only, console)
        else:
            result = await barrage(url, seed, options, watch, console)
        if options.url is None:
            result.findings += tracebacks((folder / LOG).read_text(errors="replace"))
        show(result, watch)
    return len(result.findings)


@asynccontextmanager
async def target(options: Options, folder: Path) -> AsyncIterator[tuple[str, Watch | None]]:
    """The server's address, and a watch of its processes if they are ours."""
    if options.url is not None:
        yield options.url, None
        return
    model = prepare(options, folder)
    keys = [*key_flag(folder, "api", API_KEYS), *key_flag(folder, "admin", [ADMIN_KEY])]
    spec = mlxfleet_spec(model, [*keys, *FLAGS])
    async with aiohttp.ClientSession() as session:
        ask = readiness(session)
        async with serving(spec, folder / LOG, ask=lambda: ask(spec.url)) as server:
            yield spec.url, Watch(server.pid)


def prepare(options: Options, folder: Path) -> Path:
    """Make the folder; the model's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    model = options.model or folder / "model"
    if not model.exists():
        write_tiny_model(model)
    return model


def tracebacks(log: str) -> Iterator[str]:
    """A client's fault is not a bug of the server, and nobody should be able to fill its log."""
    if count := log.count(TRACEBACK):
        first = log[log.index(TRACEBACK) :][:SHOWN_CHARACTERS]
        yield f"{count} tracebacks in the server's log, the first:\n{first}"


def show(result: Result, watch: Watch | None) -> None:
    """Print what was answered and found."""
    console = Console(width=110)
    if watch is not None and watch.start:
        console.print(watch.table())
    answered = ", ".join(f"{count} {what}" for what, count in sorted(result.statuses.items()))
    print(f"answers: {answered}; {result.good} good requests beside them")
    for finding in result.findings[:MOST_SHOWN]:
        print(finding)
    if len(result.findings) > MOST_SHOWN:
        print(f"... and {len(result.findings) - MOST_SHOWN} more")


if __name__ == "__main__":
    cyclopts.run(main)
