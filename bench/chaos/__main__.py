"""The command: `python -m mlxfleet.bench.chaos`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated

import cyclopts
from rich.console import Console

from mlxfleet.bench.attack_run import run_attack
from mlxfleet.bench.chaos.campaign import Result, Subject, attack
from mlxfleet.bench.chaos.options import ARCHITECTURES, MODES, Mode, Options
from mlxfleet.bench.chaos.report import show
from mlxfleet.bench.chaos.scenarios import play
from mlxfleet.bench.tiny_model import write_tiny_model
from mlxfleet.common.errors import ConfigError


def main(
    *flags: Annotated[str, cyclopts.Parameter(allow_leading_hyphen=True)],
    options: Options = Options(),  # noqa: B008 - frozen
) -> None:
    """Attack fleets; the exit status is 1 if anything was found. FLAGS are options of nodes."""
    run_attack("chaos", partial(run, options, flags), seed=options.seed, logs=options.logs)


async def run(
    options: Options, flags: tuple[str, ...], seed: int, folder: Path, console: Console
) -> int:
    """Everything, one fleet after the other; the number of findings."""
    results: list[Result] = []
    for subject in subjects(options, seed, folder, flags):
        if options.scenario is None:
            results.append(await attack(subject, options, console))
        else:
            results.append(await play(options.scenario, subject, options, console))
    return show(results, Console(width=110))


def subjects(
    options: Options, seed: int, folder: Path, flags: tuple[str, ...]
) -> Iterator[Subject]:
    """Every model in every mode. ConfigError without a model."""
    chosen = [(model, mode) for model in models(options, folder) for mode in modes(options)]
    for number, ((name, model), mode) in enumerate(chosen):
        logs = folder / f"{name}-{mode}"
        logs.mkdir(parents=True, exist_ok=True)
        yield Subject(
            name=f"{name}, {mode}",
            model=model,
            mode=mode,
            seed=f"{seed} {name} {mode}",
            faults=share(options.faults, len(chosen), number),
            seconds=options.seconds and options.seconds / len(chosen),
            logs=logs,
            flags=flags,
        )


def models(options: Options, folder: Path) -> list[tuple[str, Path]]:
    """Names and folders; tiny models are made here."""
    if (options.model is None) == (options.tiny is None):
        raise ConfigError("give either --model or --tiny")
    if options.model is not None:
        return [(options.model.name, options.model)]
    wanted = [name for name in ARCHITECTURES if options.tiny in (name, "all")]
    for name in wanted:
        if not (folder / "models" / name).exists():
            write_tiny_model(folder / "models" / name, architecture=name)
    return [(name, folder / "models" / name) for name in wanted]


def modes(options: Options) -> list[Mode]:
    """The modes to run in. Scenarios are over TCP unless another mode is asked for and can be."""
    if options.scenario is None:
        return [mode for mode in MODES if options.mode in (mode, "both")]
    if options.mode == "launch" and options.scenario != "drain-swing":
        raise ConfigError(f"--scenario {options.scenario} needs --mode tcp")
    return ["launch" if options.mode == "launch" else "tcp"]


def share(total: int, parts: int, index: int) -> int:
    """One of almost equal parts of a number."""
    return total * (index + 1) // parts - total * index // parts


if __name__ == "__main__":
    cyclopts.run(main)
