"""The supervisor with real, tiny processes; and how it decides to wait and to give up."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from mlxfleet.common import supervisor as supervisor_module
from mlxfleet.common.errors import ExitCode
from mlxfleet.common.supervisor import (
    BACKOFF_FIRST_S,
    CRASH_LOOP_DEATHS,
    SERIES_GAP_S,
    ChildFailedError,
    ProcessSpec,
    Supervisor,
    as_exit_code,
    backoff_s,
    describe_exit,
    looping,
)

DEADLINE_S = 5.0
TURNS_TO_CLOSE = 10
PRELUDE = """
import os, signal, sys, time
def report(line):
    os.write(int(os.environ["MLXFLEET_STATUS_FD"]), line.encode() + b"\\n")
def note(line):
    with open(os.environ["NOTES"], "a") as file:
        file.write(line + "\\n")
def wait():
    while True:
        signal.pause()
"""
PATIENT = "report('ready'); wait()"
STUBBORN = "signal.signal(signal.SIGTERM, signal.SIG_IGN); report('ready'); wait()"


class Notes:
    """A file in which children leave notes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def lines(self) -> list[str]:
        """What they have written."""
        return self.path.read_text().splitlines()

    def add(self, line: str) -> None:
        """Leave them a note."""
        with self.path.open("a") as file:
            file.write(line + "\n")


@pytest.fixture
def notes(tmp_path: Path) -> Notes:
    """A file in which children leave notes."""
    return Notes(tmp_path / "notes")


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses and patience that suit a test."""
    monkeypatch.setattr(supervisor_module, "BACKOFF_FIRST_S", 0.001)
    monkeypatch.setattr(supervisor_module, "STOP_GRACE_S", 0.1)


def spec(name: str, program: str, notes: Notes, **options: Any) -> ProcessSpec:
    """A process that runs a few lines of Python."""
    return ProcessSpec(
        name=name,
        command=[sys.executable, "-I", "-S", "-c", PRELUDE + program],
        environment={"NOTES": str(notes.path)},
        **{"stop_order": 0, "stop_grace_s": 0.1, **options},
    )


def run(test: Callable[[Supervisor], Awaitable[None]]) -> None:
    """Run a test with a supervisor whose processes end with it."""

    async def supervised() -> None:
        supervisor = Supervisor()
        try:
            await asyncio.wait_for(test(supervisor), 2 * DEADLINE_S)
        finally:
            supervisor.force()
            await supervisor.stop()
            if supervisor.failure.done():
                supervisor.failure.exception()
            await close_pipes()

    asyncio.run(supervised())


async def close_pipes() -> None:
    """Let the loop see that the pipes of ended processes are closed; nothing announces it."""
    for _ in range(TURNS_TO_CLOSE):
        await asyncio.sleep(0)


async def until(condition: Callable[[], Any], what: str) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, f"still waiting for {what}"
        await asyncio.sleep(0.005)


def alive(pid: int) -> bool:
    """Whether a process is there."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


# --- start ----------------------------------------------------------------------------------------


def test_start_waits_until_each_is_ready(notes: Notes) -> None:
    late = """
note("started")
while "go" not in open(os.environ["NOTES"]).read():
    time.sleep(0.005)
report("ready"); wait()
"""

    async def test(supervisor: Supervisor) -> None:
        start = asyncio.create_task(
            supervisor.start([spec("a", PATIENT, notes), spec("b", late, notes)])
        )
        await until(lambda: notes.lines() == ["started"], "b")
        assert not start.done()
        notes.add("go")
        await start
        assert sorted(supervisor.pids) == ["a", "b"]
        assert all(map(alive, supervisor.pids.values()))

    run(test)


def test_readiness_may_come_in_pieces(notes: Notes) -> None:
    program = """
fd = int(os.environ["MLXFLEET_STATUS_FD"])
for piece in (b"something else\\nrea", b"dy", b"\\n"):
    os.write(fd, piece)
wait()
"""
    run(lambda supervisor: supervisor.start([spec("a", program, notes)]))


def test_a_process_gets_its_own_group_and_only_its_environment(
    notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_SECRET", "secret")
    program = "note(' '.join(sorted(os.environ))); report('ready'); wait()"

    async def test(supervisor: Supervisor) -> None:
        await supervisor.start([spec("a", program, notes)])
        pid = supervisor.pids["a"]
        assert os.getpgid(pid) == pid
        assert {"MLXFLEET_STATUS_FD", "NOTES"} <= set(notes.lines()[0].split())
        assert "SOME_SECRET" not in notes.lines()[0]

    run(test)


@pytest.mark.parametrize(
    ("program", "text", "code"),
    [
        (
            "report('failed the model is broken'); sys.exit(65)",
            "a: the model is broken",
            ExitCode.MODEL,
        ),
        ("sys.exit(66)", "a exited with PORT_IN_USE (66)", ExitCode.PORT_IN_USE),
        ("sys.exit(99)", "a exited with 99", ExitCode.INTERNAL),
        ("sys.exit(0)", "a exited with OK (0)", ExitCode.INTERNAL),
        ("os.kill(os.getpid(), 9)", "a was killed by SIGKILL", ExitCode.INTERNAL),
    ],
)
def test_a_death_before_readiness_ends_the_start(
    notes: Notes, program: str, text: str, code: ExitCode
) -> None:
    async def test(supervisor: Supervisor) -> None:
        with pytest.raises(ChildFailedError) as caught:
            await supervisor.start([spec("a", program, notes)])
        assert str(caught.value) == text
        assert caught.value.exit_code == code

    run(test)


def test_the_reason_counts_even_if_it_is_read_after_the_end_is_noticed(notes: Notes) -> None:
    program = """
if os.fork():
    sys.exit(65)
time.sleep(0.05)
report("failed the model is broken")
os.close(int(os.environ["MLXFLEET_STATUS_FD"]))
note("reported")
os._exit(0)
"""

    async def test(supervisor: Supervisor) -> None:
        with pytest.raises(ChildFailedError) as caught:
            await supervisor.start([spec("a", program, notes)])
        await until(notes.lines, "the report")
        assert str(caught.value) == "a: the model is broken"

    run(test)


def test_a_process_that_is_never_ready_does_not_hide_a_death(notes: Notes) -> None:
    async def test(supervisor: Supervisor) -> None:
        with pytest.raises(ChildFailedError, match="b exited"):
            await supervisor.start([spec("a", "wait()", notes), spec("b", "sys.exit(3)", notes)])

    run(test)


@pytest.mark.usefixtures("_quick")
@pytest.mark.parametrize("end", ["os.kill(os.getpid(), 9)", "raise ValueError", "sys.exit(73)"])
def test_one_that_is_not_awaited_does_not_end_the_start_and_is_started_again(
    notes: Notes, end: str
) -> None:
    program = f"note('run'); {end}"

    async def test(supervisor: Supervisor) -> None:
        extra = spec("extra", program, notes, vital=False, awaited=False)
        await supervisor.start([extra, spec("a", PATIENT, notes)])
        await until(lambda: notes.lines().count("run") >= 3, "two restarts")
        assert not supervisor.failure.done()

    run(test)


def test_one_that_is_not_awaited_does_not_hold_up_the_start(notes: Notes) -> None:
    async def test(supervisor: Supervisor) -> None:
        extra = spec("extra", "wait()", notes, vital=False, awaited=False)
        await asyncio.wait_for(supervisor.start([extra, spec("a", PATIENT, notes)]), DEADLINE_S)

    run(test)


@pytest.mark.parametrize("awaited", [True, False])
def test_what_cannot_be_executed_ends_the_start_only_if_it_is_awaited(
    notes: Notes, awaited: bool
) -> None:
    async def test(supervisor: Supervisor) -> None:
        nothing = ProcessSpec(
            name="x", command=["/nonexistent"], environment={}, stop_order=0, awaited=awaited
        )
        start = supervisor.start([nothing, spec("a", PATIENT, notes)])
        if awaited:
            with pytest.raises(ChildFailedError, match="cannot start x"):
                await start
        else:
            await start

    run(test)


# --- restart --------------------------------------------------------------------------------------


def test_a_process_that_dies_is_started_again(notes: Notes) -> None:
    async def test(supervisor: Supervisor) -> None:
        await supervisor.start([spec("a", PATIENT, notes), spec("b", PATIENT, notes)])
        before = supervisor.pids
        os.kill(before["a"], signal.SIGKILL)
        await until(lambda: supervisor.pids["a"] != before["a"], "the restart")
        assert supervisor.pids["b"] == before["b"]
        assert not alive(before["a"])

    run(test)


def test_pauses_between_restarts_grow(notes: Notes, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[float] = []
    spawn = supervisor_module.spawn

    async def timed(spec: ProcessSpec) -> supervisor_module.Run:
        now = time.monotonic()
        run = await spawn(spec)
        started.append(now)
        return run

    monkeypatch.setattr(supervisor_module, "spawn", timed)
    monkeypatch.setattr(supervisor_module, "BACKOFF_FIRST_S", 0.05)

    async def test(supervisor: Supervisor) -> None:
        await supervisor.start([spec("a", "report('ready'); sys.exit(1)", notes)])
        await until(lambda: len(started) == 4, "three restarts")

    run(test)
    pauses = [later - earlier for earlier, later in itertools.pairwise(started)]
    assert all(p >= least for p, least in zip(pauses, (0.05, 0.1, 0.2), strict=True))


@pytest.mark.usefixtures("_quick")
def test_a_restart_that_is_never_ready_is_tried_again(notes: Notes) -> None:
    program = """
note(str(os.getpid()))
runs = len(open(os.environ["NOTES"]).read().split())
if runs in (2, 3):
    sys.exit(1)
report("ready")
if runs == 1:
    sys.exit(1)
wait()
"""

    async def test(supervisor: Supervisor) -> None:
        await supervisor.start([spec("a", program, notes)])
        await until(lambda: notes.lines()[3:] == [str(supervisor.pids["a"])], "the fourth run")
        assert not supervisor.failure.done()

    run(test)


@pytest.mark.usefixtures("_quick")
def test_a_process_that_keeps_dying_is_given_up(notes: Notes) -> None:
    program = "note('run'); report('ready'); report('failed so it is'); sys.exit(65)"

    async def test(supervisor: Supervisor) -> None:
        await supervisor.start([spec("a", program, notes)])
        with pytest.raises(ChildFailedError, match=r"so it is.*again and again") as caught:
            await supervisor.failure
        assert caught.value.exit_code == ExitCode.CRASH_LOOP
        assert notes.lines().count("run") == CRASH_LOOP_DEATHS

    run(test)


@pytest.mark.usefixtures("_quick")
def test_a_process_that_was_refused_is_not_started_again(notes: Notes) -> None:
    program = "note('run'); report('ready'); report('failed another has its name'); sys.exit(73)"

    async def test(supervisor: Supervisor) -> None:
        await supervisor.start([spec("a", program, notes)])
        with pytest.raises(ChildFailedError, match="another has its name") as caught:
            await supervisor.failure
        assert caught.value.exit_code == ExitCode.REFUSED
        assert notes.lines().count("run") == 1

    run(test)


@pytest.mark.usefixtures("_quick")
def test_a_process_that_cannot_be_started_again_is_given_up(notes: Notes, tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.symlink_to(sys.executable)

    async def test(supervisor: Supervisor) -> None:
        await supervisor.start(
            [
                ProcessSpec(
                    name="a",
                    command=[str(program), "-I", "-S", "-c", PRELUDE + PATIENT],
                    environment={"NOTES": str(notes.path)},
                    stop_order=0,
                )
            ]
        )
        program.unlink()
        os.kill(supervisor.pids["a"], signal.SIGKILL)
        await until(supervisor.failure.done, "the failure")

    run(test)


# --- stop -----------------------------------------------------------------------------------------


def test_lower_orders_end_before_higher_ones_are_told(notes: Notes) -> None:
    def program(name: str) -> str:
        return f"""
def end(*_):
    note("{name} told"); time.sleep(0.02); note("{name} ends"); sys.exit(0)
signal.signal(signal.SIGTERM, end)
report("ready"); wait()
"""

    async def test(supervisor: Supervisor) -> None:
        orders = {"late": 2, "early": 0, "middle": 1}
        await supervisor.start(
            [
                spec(name, program(name), notes, stop_order=order, stop_grace_s=None)
                for name, order in orders.items()
            ]
        )
        await supervisor.stop()
        names = ("early", "middle", "late")
        wanted = [f"{name} {what}" for name in names for what in ("told", "ends")]
        assert notes.lines() == wanted

    run(test)


@pytest.mark.usefixtures("_quick")
def test_a_process_that_ignores_sigterm_is_killed(notes: Notes) -> None:
    async def test(supervisor: Supervisor) -> None:
        await supervisor.start([spec("a", STUBBORN, notes), spec("b", PATIENT, notes)])
        pids = supervisor.pids.values()
        await supervisor.stop()
        assert not any(map(alive, pids))

    run(test)


TWICE = """
told = 0
def end(*_):
    global told
    told += 1
    note("told")
    if told == 2:
        sys.exit(0)
signal.signal(signal.SIGTERM, end)
report("ready"); wait()
"""


def test_without_a_grace_period_a_process_may_take_its_time_until_forced(notes: Notes) -> None:
    async def test(supervisor: Supervisor) -> None:
        await supervisor.start([spec("a", TWICE, notes, stop_grace_s=None)])
        stop = asyncio.create_task(supervisor.stop())
        await until(lambda: "told" in notes.lines(), "the first signal")
        assert not stop.done()
        supervisor.force()
        await stop
        assert notes.lines() == ["told", "told"]

    run(test)


def test_a_second_sigterm_comes_before_a_kill(notes: Notes) -> None:
    async def test(supervisor: Supervisor) -> None:
        await supervisor.start([spec("a", TWICE, notes)])
        await supervisor.stop()
        assert notes.lines() == ["told", "told"]

    run(test)


@pytest.mark.usefixtures("_quick")
def test_force_ends_even_what_ignores_sigterm(notes: Notes) -> None:
    async def test(supervisor: Supervisor) -> None:
        await supervisor.start([spec("a", STUBBORN, notes, stop_grace_s=None)])
        pid = supervisor.pids["a"]
        supervisor.force()
        await supervisor.stop()
        assert not alive(pid)

    run(test)


def test_stopping_does_not_wait_for_a_restart(
    notes: Notes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(supervisor_module, "BACKOFF_FIRST_S", 5.0)

    async def test(supervisor: Supervisor) -> None:
        await supervisor.start([spec("a", "note('run'); report('ready'); sys.exit(1)", notes)])
        await until(lambda: "starting it again" in caplog.text, "the death")
        await asyncio.wait_for(supervisor.stop(), 1.0)
        assert notes.lines() == ["run"]

    run(test)


@pytest.mark.usefixtures("_quick")
def test_a_process_that_is_being_started_again_is_stopped_too(
    notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    pids: list[int] = []
    spawn = supervisor_module.spawn

    async def slow(spec: ProcessSpec) -> supervisor_module.Run:
        run = await spawn(spec)
        pids.append(run.process.pid)
        # As slow as executing a process can be on a busy machine.
        await asyncio.sleep(0.02)
        return run

    monkeypatch.setattr(supervisor_module, "spawn", slow)

    async def test(supervisor: Supervisor) -> None:
        await supervisor.start([spec("a", PATIENT, notes)])
        os.kill(pids[0], signal.SIGKILL)
        await until(lambda: len(pids) == 2, "the restart")
        await supervisor.stop()
        left = list(filter(alive, pids))
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        await until(lambda: not any(map(alive, pids)), "the end of what was left")
        assert left == []

    run(test)


def test_stopping_twice_or_before_a_start_does_nothing(notes: Notes) -> None:
    async def test(supervisor: Supervisor) -> None:
        await supervisor.stop()
        await supervisor.stop()

    run(test)


@pytest.mark.usefixtures("_quick")
def test_a_process_that_dies_while_others_drain_is_started_again(notes: Notes) -> None:
    async def test(supervisor: Supervisor) -> None:
        draining = spec("a", TWICE, notes, stop_grace_s=None)
        needed = spec("b", PATIENT, notes, stop_order=1)
        await supervisor.start([draining, needed])
        stop = asyncio.create_task(supervisor.stop())
        await until(lambda: "told" in notes.lines(), "the drain")
        before = supervisor.pids["b"]
        os.kill(before, signal.SIGKILL)
        try:
            await until(lambda: supervisor.pids["b"] != before, "the restart")
        finally:
            supervisor.force()
            await stop

    run(test)


# --- decisions ------------------------------------------------------------------------------------


def test_pauses_double_within_a_series() -> None:
    deaths = [100.0, 101.0, 102.0]
    assert [backoff_s(deaths[:count]) for count in (1, 2, 3)] == [
        BACKOFF_FIRST_S,
        2 * BACKOFF_FIRST_S,
        4 * BACKOFF_FIRST_S,
    ]


def test_a_death_long_after_the_others_starts_a_new_series() -> None:
    assert backoff_s([1.0, 2.0, 3.0 + SERIES_GAP_S]) == BACKOFF_FIRST_S


def test_many_deaths_in_a_row_are_a_loop() -> None:
    assert not looping([100.0] * (CRASH_LOOP_DEATHS - 1))
    assert looping([100.0] * CRASH_LOOP_DEATHS)


def test_a_process_that_starts_slowly_can_loop_too() -> None:
    apart_s = SERIES_GAP_S - 1
    assert looping([number * apart_s for number in range(CRASH_LOOP_DEATHS)])


def test_many_deaths_far_apart_are_no_loop() -> None:
    assert not looping([number * SERIES_GAP_S for number in range(CRASH_LOOP_DEATHS)])


def test_an_exit_is_described_in_words() -> None:
    assert describe_exit(-signal.SIGSEGV) == "was killed by SIGSEGV"
    assert describe_exit(ExitCode.MODEL) == "exited with MODEL (65)"
    assert describe_exit(42) == "exited with 42"


@pytest.mark.parametrize(
    ("code", "passed_on"),
    [(0, ExitCode.INTERNAL), (64, ExitCode.CONFIG), (42, ExitCode.INTERNAL), (-9, 1)],
)
def test_a_childs_exit_code_is_passed_on(code: int, passed_on: int) -> None:
    assert as_exit_code(code) == passed_on
