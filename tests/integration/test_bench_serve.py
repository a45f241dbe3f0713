"""`mlxfleet bench serve`, as it is run, on a simulated fleet."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlxfleet.bench.records import Record, Request, Run, Summary, read_records
from tests.integration.fleet import COMMAND, Fleet, wait_for

TIMEOUT_S = 60
SPEED = ["--sim-step-ms", "5", "--sim-row-ms", "0.1", "--sim-prefill-tokens-per-s", "50000"]


@pytest.fixture(scope="module")
def sim_fleet(tiny_model: Path) -> Iterator[Fleet]:
    with Fleet("--model", str(tiny_model), "--engine", "sim", *SPEED) as fleet:
        yield fleet


def bench(fleet: Fleet, *arguments: str) -> list[str]:
    return [COMMAND, "bench", "serve", fleet.url, *arguments]


def run(fleet: Fleet, out: Path, *arguments: str) -> tuple[list[Record], str]:
    """The records and what was printed; both in order."""
    command = bench(fleet, *arguments, "--out", str(out))
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stderr
    return list(read_records(out)), done.stdout


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
def test_lengths_are_exact_as_the_server_counts_them(
    sim_fleet: Fleet, tiny_model: Path, tmp_path: Path, endpoint: str
) -> None:
    arguments = ["--tokenizer", str(tiny_model), "--endpoint", endpoint, "--concurrency", "4"]
    lengths = ["--input-tokens", "uniform:50:90", "--output-tokens", "uniform:3:9"]
    limits = ["--requests", "12", "--slo", "ttft:60000"]
    records, printed = run(sim_fleet, tmp_path / "out", *arguments, *lengths, *limits)
    assert isinstance(records[0], Run)
    requests = [record for record in records if isinstance(record, Request)]
    assert len(requests) == 12
    assert all(50 <= (r.planned_input_tokens or 0) <= 90 for r in requests)
    assert all(r.input_tokens == r.planned_input_tokens for r in requests)
    assert all(3 <= (r.output_tokens or 0) <= 9 for r in requests)
    [summary] = [record for record in records if isinstance(record, Summary)]
    assert summary.within_slos == 1.0
    assert summary.errors == {}
    assert "lengths" not in printed


def test_a_sweep_of_conversations_leaves_a_run_for_each_rate(
    sim_fleet: Fleet, tiny_model: Path, tmp_path: Path
) -> None:
    arguments = ["--tokenizer", str(tiny_model), "--request-rate", "50,inf", "--turns", "2"]
    more = ["--requests", "6", "--output-tokens", "3", "--input-tokens", "20", "--warmup", "2"]
    records, _ = run(sim_fleet, tmp_path / "out", *arguments, *more)
    runs = [record for record in records if isinstance(record, Run)]
    assert [one.arrival["request_rate"] for one in runs] == [50.0, "inf"]
    for one in runs:
        requests = [r for r in records if isinstance(r, Request) and r.run == one.id]
        assert sorted((r.conversation, r.turn) for r in requests) == [
            (number, turn) for number in range(3) for turn in range(2)
        ]
        assert all((r.input_tokens or 0) > 40 for r in requests if r.turn)


def test_ctrl_c_leaves_what_there_is(sim_fleet: Fleet, tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["--tokenizer", str(tiny_model), "--requests", "2000", "--concurrency", "2"]
    command = bench(
        sim_fleet, *arguments, "--input-tokens", "9", "--output-tokens", "2", "--out", str(out)
    )
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        wait_for(lambda: out.exists() and b'"request"' in out.read_bytes(), "a request's record")
        process.send_signal(signal.SIGINT)
        printed, errors = process.communicate(timeout=TIMEOUT_S)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 72
    assert b"Traceback" not in errors
    assert b"streams at once" in printed
    records = list(read_records(out))
    assert isinstance(records[-1], Summary)
    assert 0 < records[-1].completed < 2000


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--requests", "1"], "--tokenizer DIR"),
        (["--model", "other", "--requests", "1"], "does not answer a first request: http_404"),
        (["--concurrency", "1", "--request-rate", "1"], "not both"),
    ],
)
def test_what_cannot_be_run_is_told(sim_fleet: Fleet, arguments: list[str], said: str) -> None:
    command = bench(sim_fleet, *arguments)
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode != 0
    assert said in done.stderr
    assert "Traceback" not in done.stderr
