"""`mlxfleet bench serve`."""

from __future__ import annotations

import asyncio
import sys

import uvloop
from rich.console import Console

from mlxfleet.bench.serve import serve
from mlxfleet.bench.serve_options import (
    ArrivalOptions,
    DataOptions,
    Options,
    ReportOptions,
    TargetOptions,
)
from mlxfleet.common.errors import ExitCode


def serve_command(
    url: str,
    /,
    *,
    target: TargetOptions = TargetOptions(),  # noqa: B008 - frozen
    arrival: ArrivalOptions = ArrivalOptions(),  # noqa: B008
    data: DataOptions = DataOptions(),  # noqa: B008
    report: ReportOptions = ReportOptions(),  # noqa: B008
) -> None:
    """Put load on an OpenAI-compatible server, and report what it did.

    Parameters
    ----------
    url
        The server's address, as http://HOST:PORT.
    """
    options = Options(url=url, target=target, arrival=arrival, data=data, report=report).checked()
    try:
        summaries = uvloop.run(serve(options, Console(stderr=True)))
    except (asyncio.CancelledError, KeyboardInterrupt):
        sys.exit(ExitCode.FORCED)
    if not any(summary.completed for summary in summaries):
        sys.exit(ExitCode.INTERNAL)
