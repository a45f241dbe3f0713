"""All figures of the engine beside other servers, in one command.

Usage: `python -m mlxfleet.bench.engine_figures --peers-script PATH --model DIR --tiny DIR --out D`

`--model` is the demo model in float32, `--tiny` what `python -m mlxfleet.bench.tiny_model DIR`
makes. Every part runs the servers in turns; its tables go to a file in `--out`, and to the screen.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import cyclopts

from mlxfleet.bench.interrupts import run_to_end

CLI = ["mlxfleet.common.cli", "bench"]


@cyclopts.Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Options:
    """Where everything is."""

    peers_script: Path
    """Script that runs a peer: `bash SCRIPT serve NAME MODEL PORT`."""

    model: Path
    """The demo model, an MLX folder."""

    tiny: Path
    """The tiny model, an MLX folder."""

    out: Path
    """Folder for the tables; made if it is not there."""

    rounds: int = 3
    """How often every server is started and measured."""


def parts(options: Options) -> dict[str, list[str]]:
    """The commands, by the name of their file."""
    peers = [*CLI, "peers", "--peers-script", str(options.peers_script)]
    stall = ["mlxfleet.bench.stall", "--peers-script", str(options.peers_script)]
    offline = [*CLI, "offline"]
    tiny, model = ["--model", str(options.tiny)], ["--model", str(options.model)]
    rounds = ["--rounds", str(options.rounds)]
    # Few streams need more requests each: a machine's speed changes from second to second.
    few = ["--concurrency", "1,8", "--requests-per-stream", "32"]
    short = ["--concurrency", "8", "--max-tokens", "32"]
    sampled = ["--temperature", "0.7", "--top-p", "0.95", "--requests-per-stream", "1"]
    shared = ["--common-words", "400", "--prompt-words", "16", "--requests-per-stream", "4"]
    long = ["--prompt-words", "500", "--stream-tokens", "160", "--after-s", "1.5"]
    return {
        "tiny-few": [*peers, *tiny, *rounds, *few],
        "tiny-many": [*peers, *tiny, *rounds, "--concurrency", "32"],
        "tiny-borders": [*offline, *tiny],
        "model": [*peers, *model, *rounds, *short],
        "model-borders": [*offline, *model, *short],
        "sampled": [*peers, *tiny, *rounds, *sampled, "--concurrency", "32"],
        "stall": [*stall, *tiny, *rounds],
        "model-stall": [*stall, *model, *rounds, *long, "--budgets", "50"],
        "prefix": [*peers, *model, *rounds, *shared, "--concurrency", "4", "--max-tokens", "32"],
        "long-row": ["mlxfleet.bench.long_row", *tiny],
        "flat-memory": ["mlxfleet.bench.flat_memory", *tiny],
    }


def main(options: Options) -> None:
    """Run every part; the exit status is that of the first that failed."""
    options.out.mkdir(parents=True, exist_ok=True)
    failed = 0
    for name, command in parts(options).items():
        print(f"{name}: python -m {' '.join(command)}", flush=True)
        status, output = run_to_end([sys.executable, "-m", *command], keep_output=True)
        (options.out / f"{name}.txt").write_text(output)
        print(output, flush=True)
        failed = failed or status
    sys.exit(failed)


if __name__ == "__main__":
    cyclopts.run(main)
