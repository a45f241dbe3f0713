"""Sampling parameters of requests that do not give them: the API's defaults, or those that the
model's makers recommend in `generation_config.json`."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import msgspec
from msgspec import Meta, Struct

log = logging.getLogger(__name__)

FILE = "generation_config.json"
MAX_FILE_BYTES = 1_000_000
SHOWN_CHARS = 80

Temperature = Annotated[float, Meta(ge=0, le=2)]
Share = Annotated[float, Meta(ge=0, le=1)]
TopK = Annotated[int, Meta(ge=-1, le=2**63 - 1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
RepetitionPenalty = Annotated[float, Meta(gt=0, le=10)]


class SamplingDefaults(Struct, frozen=True, kw_only=True):
    """What a request is sampled with where it leaves a parameter out or gives null. These values
    are OpenAI's, and those that turn off what OpenAI's API does not have."""

    temperature: Temperature = 1.0
    top_p: Share = 1.0
    top_k: TopK = 0
    min_p: Share = 0.0
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    repetition_penalty: RepetitionPenalty = 1.0


LIMITS = get_type_hints(SamplingDefaults, include_extras=True)


def read_sampling_defaults(folder: Path) -> SamplingDefaults:
    """The defaults that a model folder's `generation_config.json` recommends.

    A value that cannot be used is left out with a warning that names it: a faulty file does not
    keep a model from being served. Fields that are not sampling parameters are ignored.
    """
    path = folder / FILE
    stated = read_object(path) if path.exists() else {}
    found: dict[str, Any] = {name: checked(path, name, stated.get(name)) for name in LIMITS}
    if asks_for_greedy(path, stated.get("do_sample")):
        found["temperature"] = 0.0
    return SamplingDefaults(**{name: v for name, v in found.items() if v is not None})


def read_object(path: Path) -> dict[str, Any]:
    """A file's JSON object; an empty one, with a warning, if it has none."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise ValueError(f"it has more than {MAX_FILE_BYTES} bytes")
        stated = json.loads(data)
        if not isinstance(stated, dict):
            raise ValueError("it is not a JSON object")
    except (OSError, ValueError, RecursionError) as error:
        log.warning("%s is not used for default sampling parameters: %s", path, error)
        return {}
    return stated


def checked(path: Path, name: str, value: object) -> float | None:
    """A parameter's value if it is a number within the API's limits; None if it is null, or, with
    a warning, if it is anything else."""
    if isinstance(value, float) and LIMITS[name] is TopK and value.is_integer():
        value = int(value)
    if value is None:
        return None
    try:
        usable: float = msgspec.convert(value, LIMITS[name])
    except msgspec.ValidationError as error:
        warn(path, name, value, str(error))
        return None
    return usable


def asks_for_greedy(path: Path, do_sample: object) -> bool:
    """Whether `do_sample` turns sampling off; saying nothing does not."""
    if do_sample is not None and not isinstance(do_sample, bool):
        warn(path, "do_sample", do_sample, "Expected `bool`")
    return do_sample is False


def warn(path: Path, name: str, value: object, reason: str) -> None:
    """Say which value is not used, and why."""
    log.warning("%s: %s is not used, it is %.*r: %s", path, name, SHOWN_CHARS, value, reason)
