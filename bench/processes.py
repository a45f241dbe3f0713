"""What the processes of a server take: memory and CPU time."""

from __future__ import annotations

import psutil
from msgspec import Struct

TITLE_PREFIX = "mlxfleet: "


class ProcessUse(Struct, frozen=True):
    """A process: resident memory, and CPU time since it was started."""

    name: str
    pid: int
    rss_bytes: int
    cpu_s: float


def process_tree(pid: int) -> list[ProcessUse]:
    """A process and its descendants; nothing if it has ended."""
    uses = []
    try:
        root = psutil.Process(pid)
        processes = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
    for process in processes:
        try:
            cpu = process.cpu_times()
            rss = process.memory_info().rss
            uses.append(ProcessUse(process_name(process), process.pid, rss, cpu.user + cpu.system))
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return uses


def process_name(process: psutil.Process) -> str:
    """mlxfleet's own name of a process, or the system's."""
    title = " ".join(process.cmdline()).strip()
    return title.removeprefix(TITLE_PREFIX) if title.startswith(TITLE_PREFIX) else process.name()


def tree_cpu_s(uses: list[ProcessUse]) -> float:
    """CPU time of all of them, and of this process, which is the client."""
    own = psutil.Process().cpu_times()
    return sum(use.cpu_s for use in uses) + own.user + own.system


def busy_cpu_s() -> float:
    """CPU time that all processes of the machine have taken so far, over all cores."""
    times = psutil.cpu_times()._asdict()
    guests = times.get("guest", 0.0) + times.get("guest_nice", 0.0)
    idle = times["idle"] + times.get("iowait", 0.0)
    # Linux counts guests in user and nice as well.
    return float(sum(times.values()) - idle - guests)
