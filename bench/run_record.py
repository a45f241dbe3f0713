"""The record that a run begins with."""

from __future__ import annotations

import uuid
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlxfleet.bench.client import Target
from mlxfleet.bench.git_state import git_state
from mlxfleet.bench.machine import command_line, describe_machine, own_versions
from mlxfleet.bench.plans import Plan
from mlxfleet.bench.records import Run
from mlxfleet.bench.serve_options import Options
from mlxfleet.bench.server_words import IGNORE_EOS

PACKAGES = ("mlxfleet", "aiohttp", "uvloop", "msgspec", "tokenizers")
# What a plan says for each run of a sweep.
SWEPT = ("concurrency", "request_rate", "burstiness", "trace_speed")


def run_record(options: Options, target: Target, plan: Plan, server: dict[str, Any]) -> Run:
    """Of a run that begins now; `server` is what the server says of itself."""
    arrival = plain(asdict(options.arrival))
    more = {name: value for name, value in arrival.items() if name not in SWEPT}
    data = {
        **plain(asdict(options.data)),
        "ignore_eos": IGNORE_EOS in target.fields(),
        "extra_body": options.target.body(),
    }
    return Run(
        id=uuid.uuid4().hex[:12],
        began=datetime.now(UTC).isoformat(timespec="seconds"),
        url=target.url,
        endpoint=target.endpoint,
        model=target.model,
        arrival={**plan.described(options.arrival), **more},
        data=data,
        slos=options.report.slos_ms(),
        seed=plan.seed,
        command_line=command_line(),
        machine=describe_machine(),
        versions=own_versions(PACKAGES),
        git=git_state(),
        server=server,
        side=options.report.side,
    )


def plain(options: dict[str, Any]) -> dict[str, Any]:
    """Options as JSON has them."""
    return {name: str(v) if isinstance(v, Path) else v for name, v in options.items()}


def title_of(run: Run) -> str:
    """What is special about a run."""
    match run.arrival["kind"]:
        case "closed_loop":
            return f"{run.arrival['concurrency']} streams at once"
        case "open_loop":
            return f"{run.arrival['request_rate']} requests/s"
        case _:
            return f"trace, {run.arrival['trace_speed']:g} times as fast"
