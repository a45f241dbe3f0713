"""Settings of a cluster file: fields of the option structures, which also check them.

A setting is called what the flag is called, with `_` for `-`. What it may be, and what it means,
is in `common/config.py`.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from mlxfleet.common.allowed import check_allowed
from mlxfleet.common.config import (
    FrontOptions,
    LinkOptions,
    MachineOptions,
    ObserveOptions,
    RouterOptions,
    SchedulerOptions,
    SimOptions,
    WorkerOptions,
    decode_path,
)
from mlxfleet.common.errors import ConfigError

FRONT_STRUCTURES: tuple[type, ...] = (RouterOptions, FrontOptions, LinkOptions, ObserveOptions)
"""What `mlxfleet router` takes."""

NODE_STRUCTURES: tuple[type, ...] = (
    SchedulerOptions,
    WorkerOptions,
    SimOptions,
    ObserveOptions,
    MachineOptions,
)
"""What `mlxfleet node` takes."""

FILE_SUFFIX = "_file"
"""Settings that end so name a file on this machine, which is copied to the host."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """What is wrong with the value at a key."""

    path: tuple[str | int, ...]
    text: str


def names(structures: Iterable[type]) -> dict[str, type]:
    """The settings that structures have, each with its structure."""
    return {
        field.name: structure for structure in structures for field in dataclasses.fields(structure)
    }


def problems(
    values: Mapping[str, Any], structures: Sequence[type], path: tuple[str | int, ...]
) -> list[Problem]:
    """What is wrong with a table of settings that stands at `path`."""
    known = names(structures)
    found = [
        Problem((*path, name), f"unknown setting {name}{suggestion(name, known)}")
        for name in values
        if name not in known
    ]
    for name, value in values.items():
        if name in known:
            text = misfit(known[name], name, value)
            found += [Problem((*path, name), text)] if text else []
    return found


def misfit(structure: type, name: str, value: Any) -> str | None:
    """Why a value cannot be a field of a structure, or None if it can."""
    try:
        made: object = msgspec.convert({name: value}, structure, dec_hook=decode_path)
        if isinstance(made, RouterOptions):
            check_allowed(made)
    except msgspec.ValidationError as error:
        return str(error).partition(" - at `")[0].replace("Expected", "expected", 1)
    except ConfigError as error:
        return str(error).partition(": ")[2]
    return None


def suggestion(name: str, known: Iterable[str]) -> str:
    """What may have been meant, as the end of a sentence."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else f"; known are {', '.join(sorted(known))}"


def chosen(values: Mapping[str, Any], structures: Sequence[type]) -> dict[str, Any]:
    """Those settings that one of the structures has."""
    known = names(structures)
    return {name: value for name, value in values.items() if name in known}


def flags(values: Mapping[str, Any], structures: Iterable[type]) -> list[str]:
    """Settings of the structures as arguments of a command."""
    arguments: list[str] = []
    known = names(structures)
    for name, value in sorted(values.items()):
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            if value != getattr(known[name](), name):
                arguments.append(flag if value else flag.replace("--", "--no-", 1))
            continue
        items = value if isinstance(value, list) else [value]
        arguments += [f"{flag}={item}" for item in items]
    return arguments
