"""The engine measured at its borders, and a report of it."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from mlxfleet.bench.report.groups import groups_of
from mlxfleet.bench.report.loaded import load_files
from mlxfleet.common.errors import ExitCode

BENCH = [sys.executable, "-m", "mlxfleet.common.cli", "bench"]
SHORT = ["--max-tokens", "8", "--requests-per-stream", "2", "--memory-gb", "1"]


def test_every_border_gives_all_tokens_and_a_report(tiny_model: Path, tmp_path: Path) -> None:
    results, html = tmp_path / "offline.jsonl", tmp_path / "report.html"
    flags = ["--model", str(tiny_model), "--rounds", "1", "--concurrency", "1,3", *SHORT]
    subprocess.run([*BENCH, "offline", *flags, "--out", str(results)], check=True, timeout=120)
    [group] = groups_of(load_files([results]))
    assert group.sides == ["bare loop", "scheduler and worker", "full path"]
    assert [load.words for load in group.loads] == ["1 stream", "3 streams"]
    for one, summary in group.runs:
        assert summary.completed == 2 * one.run.arrival["concurrency"]
        assert summary.output_tokens == 8 * summary.completed
    assert any(one.samples for one, _ in group.runs), "no sensor was recorded"
    prompts = {sum(request.input_tokens or 0 for request in one.requests) for one, _ in group.runs}
    assert len(prompts) == 2
    subprocess.run([*BENCH, "report", str(results), "--out", str(html)], check=True, timeout=60)
    assert "bare loop" in html.read_text()


def test_interrupted_it_leaves_what_there_is(tiny_model: Path, tmp_path: Path) -> None:
    results = tmp_path / "offline.jsonl"
    flags = ["--model", str(tiny_model), "--rounds", "50", "--concurrency", "1", *SHORT]
    command = [*BENCH, "offline", *flags, "--out", str(results)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while "tokens/s" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        process.stderr.read()
        assert process.wait(60) == ExitCode.FORCED
    assert len(load_files([results]).finished) >= 1
