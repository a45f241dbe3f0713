"""What a model folder's files say of a model, without loading it and without mlx."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxfleet.common.config import LEAST_CONTEXT
from mlxfleet.common.errors import ModelError

log = logging.getLogger(__name__)

CONTEXT_KEYS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "max_sequence_length",
    "n_ctx",
)
DEFAULT_CONTEXT = 32_768


@dataclass(frozen=True)
class Sizes:
    """Token ids and longest sequence of a model, 0 if they are not known."""

    vocab_size: int = 0
    context_length: int = 0


def known_sizes(folder: Path) -> Sizes:
    """What a folder says, which may have a tokenizer only. A configuration that is of no use is
    reported by who has to load the model."""
    try:
        config = read_config(folder)
        return Sizes(vocab_size(config) or 0, context_length(config, None))
    except ModelError as error:
        log.info("the sizes of the model are those that its nodes tell: %s", error)
        return Sizes()


def read_config(folder: Path) -> dict[str, Any]:
    """config.json, with the ends of a sequence from generation_config.json if they are there;
    ModelError if it cannot be read."""
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read {folder}/config.json: {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{folder}/config.json is not an object")
    try:
        generation = json.loads((folder / "generation_config.json").read_text())
    except (OSError, ValueError):
        generation = None
    if isinstance(generation, dict) and generation.get("eos_token_id"):
        config["eos_token_id"] = generation["eos_token_id"]
    return config


def vocab_size(config: dict[str, Any]) -> int | None:
    """How many token ids there are, if the configuration says it."""
    size = text_config(config).get("vocab_size") or config.get("vocab_size")
    return size if isinstance(size, int) and size > 0 else None


def context_length(config: dict[str, Any], max_context: int | None) -> int:
    """Longest sequence in tokens that the model was made for, at most `max_context`. ModelError if
    the model does not give a usable number."""
    places = (config, config.get("text_config") or {})
    found = ((key, place[key]) for place in places for key in CONTEXT_KEYS if place.get(key))
    key, length = next(found, ("", DEFAULT_CONTEXT))
    if not isinstance(length, int | float) or not LEAST_CONTEXT <= length < math.inf:
        raise ModelError(
            f"{key} in the model's config.json is {length!r}, not a number of tokens from"
            f" {LEAST_CONTEXT} on"
        )
    length = int(length)
    return min(length, max_context or length)


def eos_ids(folder: Path, config: dict[str, Any]) -> set[int]:
    """Every token id that ends a sequence, from the model's configuration and tokenizer's.
    ModelError if they are no numbers."""
    configured = config.get("eos_token_id")
    if configured is None:
        configured = (config.get("text_config") or {}).get("eos_token_id")
    ids = [configured] if type(configured) is int else configured or []
    if not isinstance(ids, list) or not all(type(token) is int and token >= 0 for token in ids):
        raise ModelError(
            f"eos_token_id in {folder}/config.json or generation_config.json is"
            f" {configured!r}, not a token id or a list of them"
        )
    return set(ids) | tokenizer_eos_ids(folder)


def tokenizer_eos_ids(folder: Path) -> set[int]:
    """The id of the tokenizer's `eos_token`, if the folder's files tell. ModelError if they are
    broken."""
    try:
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        tokenizer = json.loads((folder / "tokenizer.json").read_text())
        token = settings.get("eos_token")
        text = token.get("content") if isinstance(token, dict) else token
        added = tokenizer.get("added_tokens", [])
        return {int(token["id"]) for token in added if token["content"] == text}
    except OSError:
        return set()
    except (ValueError, AttributeError, LookupError, TypeError) as error:
        raise ModelError(
            f"cannot read the special tokens in {folder}/tokenizer.json and"
            f" tokenizer_config.json: {error!r}"
        ) from error


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a configuration that is about text, for models that have others."""
    return config.get("text_config") or config
