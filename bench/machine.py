"""Where and with what something was measured."""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec
import psutil
from msgspec import Struct

BLAS_PREFIX = "OPENBLAS_"
VERSIONS_TIMEOUT_S = 30.0
VERSIONS_SCRIPT = """
import json, sys
from importlib.metadata import PackageNotFoundError, version
found = {"python": sys.version.split()[0]}
for name in sys.argv[1:]:
    try:
        found[name] = version(name)
    except PackageNotFoundError:
        pass
print(json.dumps(found))
"""


class Machine(Struct, frozen=True, kw_only=True):
    """The machine and how busy it was."""

    platform: str
    processor: str
    cpu_count: int
    usable_cpus: int
    memory_bytes: int
    load_average: tuple[float, float, float]
    blas_settings: dict[str, str] = {}
    """OPENBLAS_* of the environment, which every server that is started here inherits."""


def describe_machine() -> Machine:
    """This machine, now."""
    count = os.cpu_count() or 1
    # macOS has no affinity.
    usable = len(os.sched_getaffinity(0)) if sys.platform == "linux" else count
    return Machine(
        platform=platform.platform(),
        processor=processor(),
        cpu_count=count,
        usable_cpus=usable,
        memory_bytes=psutil.virtual_memory().total,
        load_average=os.getloadavg(),
        blas_settings={k: v for k, v in sorted(os.environ.items()) if k.startswith(BLAS_PREFIX)},
    )


def command_line() -> list[str]:
    """What was typed to start this, however it was started."""
    return ["mlxfleet", *sys.argv[1:]]


def processor() -> str:
    """The processor's name, as far as the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def own_versions(packages: Sequence[str]) -> dict[str, str]:
    """Versions of Python and of those of `packages` that this process has."""
    found = {"python": platform.python_version()}
    for name in packages:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


async def installed_versions(python: str, packages: list[str]) -> dict[str, str]:
    """Versions of those of `packages` that this Python has; none if it does not answer."""
    process = await asyncio.create_subprocess_exec(
        python,
        "-c",
        VERSIONS_SCRIPT,
        *packages,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(VERSIONS_TIMEOUT_S):
            output, _ = await process.communicate()
        return msgspec.json.decode(output, type=dict[str, str])
    except (TimeoutError, msgspec.DecodeError):
        return {}
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def python_of(pid: int) -> str | None:
    """The Python that runs this process, with its virtual environment."""
    try:
        command = psutil.Process(pid).cmdline()
    except psutil.Error:
        return None
    return command[0] if command and Path(command[0]).name.startswith("python") else None
