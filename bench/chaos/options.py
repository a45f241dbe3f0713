"""What is run, what is done to it, and for how long."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cyclopts

from mlxfleet.bench.tiny_architectures import Architecture

Mode = Literal["launch", "tcp"]
Scenario = Literal["router-stop", "drain-swing", "rolling-restart"]
MODES: tuple[Mode, ...] = ("launch", "tcp")
ARCHITECTURES: tuple[Architecture, ...] = ("llama", "gemma3_text", "qwen3_next")
STREAMS = 24
LONGEST = 240


@cyclopts.Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the command. Faults and time are shared out evenly among models and modes."""

    model: Path | None = None
    """MLX model folder; or give --tiny."""

    tiny: Literal["llama", "gemma3_text", "qwen3_next", "all"] | None = None
    """Make a tiny random model of this architecture; all runs one after the other."""

    mode: Literal["launch", "tcp", "both"] = "both"
    """One machine (launch), or a router and nodes over TCP with keys and links that can be cut
    (Linux only), or one after the other."""

    faults: int = 50
    """Faults to make; of a pair, both count."""

    seconds: float | None = None
    """Make no more faults after so long, without start, reference and stop."""

    seed: int | None = None
    """Of requests and faults; random, and printed, if not given."""

    nodes: int = 3
    """Compute nodes."""

    streams: int | None = None
    """Requests at once; 24, or what a scenario has."""

    requests: int = 48
    """Different requests, each of which is first answered undisturbed and then again and again."""

    longest: int | None = None
    """Longest answer, in tokens; 240, or what a scenario has."""

    burners: int = 0
    """Processes beside it that take all the CPU time that they get."""

    pairs: float = 0.3
    """Share of faults that get a second one while they last."""

    deadline_s: float = 300.0
    """An answer that takes longer hangs."""

    noticing: bool = True
    """Whether node faults that /fleet shows too late are findings; for quiet machines."""

    scenario: Scenario | None = None
    """Instead of random faults, one of the named ones."""

    rounds: int = 20
    """Rounds of a scenario."""

    logs: Path | None = None
    """Folder for the output of the servers; a temporary one, kept after findings, if not given."""
