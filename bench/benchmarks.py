"""Everything that docs/benchmarks.md says, in one command.

Usage: `python -m mlxfleet.bench.benchmarks --peers-script PATH --tiny DIR --out DIR`

mlxfleet and its peers side by side on the tiny model and on a small real one, and the engine at its
borders. Takes about a quarter of an hour; run nothing beside it, not even a linter. `--tiny` is
what `python -m mlxfleet.bench.tiny_model DIR` makes.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import cyclopts

from mlxfleet.bench.interrupts import run_to_end
from mlxfleet.common.demo_model import ensure_demo_model

CLI = [sys.executable, "-m", "mlxfleet.common.cli", "bench"]


@cyclopts.Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Options:
    """Where everything is."""

    peers_script: Path
    """Script that runs a peer: `bash SCRIPT serve NAME MODEL PORT`."""

    tiny: Path
    """The tiny model, an MLX folder."""

    out: Path
    """Folder for the records and the report; made if it is not there."""

    model: Path | None = None
    """A real model, an MLX folder; the demo model if not given."""

    peers: str = "mlx-lm,vllm-mlx"
    """Names of the peers, with commas."""

    rounds: int = 3
    """How often every server is started and measured."""

    page: Path = Path("docs/benchmarks.md")
    """The document to write."""

    quick: bool = False
    """As little as possible, to see that it works: one round of a few tokens. Its figures say
    nothing."""


def parts(options: Options, model: Path) -> dict[str, list[str]]:
    """The measurements, by the name of their file."""
    peers = ["peers", "--peers-script", str(options.peers_script), "--peers", options.peers]
    small = ["--max-tokens", "32", "--requests-per-stream", "8"]
    rounds = ["--rounds", "1" if options.quick else str(options.rounds)]
    tiny = ["--concurrency", "1,8,32", "--requests-per-stream", "12"]
    real = ["--concurrency", "8", *small]
    if options.quick:
        tiny = real = ["--concurrency", "2", "--max-tokens", "8", "--requests-per-stream", "1"]
    return {
        "peers-tiny": [*peers, "--model", str(options.tiny), *tiny, *rounds],
        "peers-model": [*peers, "--model", str(model), *real, *rounds],
        "offline-tiny": ["offline", "--model", str(options.tiny), *tiny, *rounds],
        "offline-model": ["offline", "--model", str(model), *real, *rounds],
    }


def main(options: Options) -> None:
    """Run every part, then write report and document; the exit status is that of the first part
    that failed."""
    options.out.mkdir(parents=True, exist_ok=True)
    model = options.model or ensure_demo_model()
    files = []
    for name, command in parts(options, model).items():
        file = options.out / f"{name}.jsonl"
        run([*command, "--out", str(file), "--overwrite"])
        files.append(str(file))
    report = ["--out", str(options.out / "report.html"), "--markdown", str(options.page)]
    run(["report", *files, *report])


def run(command: list[str]) -> None:
    """Run a command of `mlxfleet bench`; exit if it fails."""
    print(f"mlxfleet bench {' '.join(command)}", flush=True)
    status, _ = run_to_end([*CLI, *command])
    if status:
        sys.exit(status)


if __name__ == "__main__":
    cyclopts.run(main)
