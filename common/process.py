"""The bootstrap that every child process shares: four phases, signals, and news for the parent.

A child is started as `python -m mlxfleet.<folder> <process file>`. It reads its orders from that
file, tells the parent through an inherited pipe when it is ready or why it cannot be, and ends
when its standard input closes, because then the parent is gone.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import ctypes
import faulthandler
import gc
import logging
import os
import resource
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import setproctitle

from mlxfleet.common import config
from mlxfleet.common.errors import ExitCode, MlxfleetError
from mlxfleet.common.tap import flight

log = logging.getLogger(__name__)

STATUS_FD_ENV = "MLXFLEET_STATUS_FD"
PARENT_GONE_GRACE_S = 1.0
# From <sys/prctl.h>.
PR_SET_PDEATHSIG = 1

# Enough to matter, and no starving: beside a busy thread that is not nice, a tenth of a core.
NICE = 10
# Sockets and files of a process: a client connection, or about ten for a simulated node.
MAX_FILES = 16_384

T = TypeVar("T")


class Service(abc.ABC):
    """A long-lived asyncio process: startup, main loop, drain, shutdown."""

    def __init__(self) -> None:
        self.stopping = asyncio.Event()

    @abc.abstractmethod
    async def startup(self) -> None:
        """Open sockets and load what is needed; returning means ready."""

    async def main_loop(self) -> None:
        """Work until asked to stop."""
        await self.stopping.wait()

    async def drain(self) -> None:  # noqa: B027 - most services have nothing to finish
        """Finish what was accepted. Cut short by a second signal."""

    @abc.abstractmethod
    async def shutdown(self) -> None:
        """Close everything."""


def run_service(process_type: type[T], make: Callable[[T], Service]) -> None:
    """Run a service to its end, then exit the process."""
    import uvloop

    # Before there are threads, which inherit it.
    give_way_to_passes()
    told = bootstrap(process_type)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(die_of_exception)
        service = make(told)
        await service.startup()
        drained = asyncio.Event()

        def on_terminate() -> None:
            if service.stopping.is_set():
                drained.set()
            service.stopping.set()

        loop.add_signal_handler(signal.SIGTERM, on_terminate)
        report_ready()
        await service.main_loop()
        drain = asyncio.ensure_future(service.drain())
        forced = asyncio.ensure_future(drained.wait())
        await asyncio.wait({drain, forced}, return_when=asyncio.FIRST_COMPLETED)
        for task in (drain, forced):
            task.cancel()
        await service.shutdown()

    try:
        uvloop.run(main())
    except MlxfleetError as error:
        fail(error)
    sys.exit(ExitCode.OK)


def bootstrap(process_type: type[T]) -> T:
    """Set up logging, title, signals and the watch on the parent; return what we are told."""
    told = config.load(process_type, Path(sys.argv[1]))
    name = str(getattr(told, "name", "process"))
    configure_logging(name)
    setproctitle.setproctitle(f"mlxfleet: {name}")
    # The parent turns Ctrl-C into an orderly stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Ends the process, see `exit_with_parent`.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    faulthandler.enable()
    observe = getattr(told, "observe", config.ObserveOptions())
    flight.start(name, Path(sys.argv[1]).parent, observe.recorder_mb)
    allow_many_files()
    threading.Thread(target=exit_with_parent, name="parent-watch", daemon=True).start()
    if STATUS_FD_ENV in os.environ:
        die_with_parent()
    return told


def give_way_to_passes() -> None:
    """On Linux, let this process not interrupt others for every message, and the worker interrupt
    it: where they share few cores, passes that need not wait serve a tenth more tokens."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        os.nice(NICE)


def allow_many_files() -> None:
    """Raise the number of open files as far as this user may; by default macOS allows 256."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_FILES if hard == resource.RLIM_INFINITY else min(MAX_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def configure_logging(name: str) -> None:
    """One line a record on standard error, with the process's name."""
    level = os.environ.get("MLXFLEET_LOG_LEVEL", "INFO").upper()
    logging.basicConfig(
        level=level, format=f"%(asctime)s {name} %(levelname)s %(message)s", stream=sys.stderr
    )
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)


def exit_with_parent() -> None:
    """Wait for the parent's end of our standard input to close, then stop within a second: the
    kernel sees to that, so that it does not matter whether Python gets to run until then."""
    while os.read(0, 1024):
        pass
    signal.setitimer(signal.ITIMER_REAL, PARENT_GONE_GRACE_S)
    os.kill(os.getpid(), signal.SIGTERM)


def die_with_parent() -> None:
    """On Linux, be killed at once when the parent is gone, which takes no turn of this process on
    a busy machine. A Mac's worker gets the time to give its wired memory back instead."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            log.warning("this process may outlive its parent: %s", os.strerror(ctypes.get_errno()))


def report(news: str) -> None:
    """Tell the parent one line, if there is one listening."""
    descriptor = os.environ.get(STATUS_FD_ENV)
    if descriptor is not None:
        os.write(int(descriptor), (news.replace("\n", " ") + "\n").encode())


def report_ready() -> None:
    """Tell the parent that this process can work. What was made until now stays to the end, so the
    garbage collector need not look at it again."""
    gc.collect()
    gc.freeze()
    report("ready")


def fail(error: MlxfleetError) -> None:
    """Tell the parent why this process cannot go on, and exit with the error's code."""
    report(f"failed {error}")
    log.error("%s", error)
    flight.save("error", str(error))
    sys.exit(error.exit_code)


def die_of_exception(loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
    """An exception nobody handled is a bug: end, loudly, and let the parent restart us."""
    error = context.get("exception")
    if not isinstance(error, BaseException):
        log.error("%s", context.get("message"))
        return
    log.critical("%s", context.get("message"))
    traceback.print_exception(error)
    flight.save_crash(error)
    os._exit(ExitCode.INTERNAL)
