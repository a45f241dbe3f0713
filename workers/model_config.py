"""What a model folder's files say of a model, without loading it and without mlx."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CONTEXT_KEYS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "max_sequence_length",
    "n_ctx",
)
DEFAULT_CONTEXT = 32_768


def context_length(config: dict[str, Any], max_context: int | None) -> int:
    """Longest sequence in tokens that the model was made for, at most `max_context`."""
    places = (config, config.get("text_config") or {})
    found = (place[key] for place in places for key in CONTEXT_KEYS if place.get(key))
    length = int(next(found, DEFAULT_CONTEXT))
    return min(length, max_context or length)


def eos_ids(folder: Path, config: dict[str, Any]) -> set[int]:
    """Every token id that ends a sequence, from the model's configuration and tokenizer's."""
    configured = config.get("eos_token_id")
    if configured is None:
        configured = (config.get("text_config") or {}).get("eos_token_id")
    ids = {configured} if isinstance(configured, int) else set(configured or ())
    return ids | tokenizer_eos_ids(folder)


def tokenizer_eos_ids(folder: Path) -> set[int]:
    """The id of the tokenizer's `eos_token`, if the folder's files tell."""
    try:
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        tokenizer = json.loads((folder / "tokenizer.json").read_text())
    except (OSError, ValueError):
        return set()
    token = settings.get("eos_token")
    text = token.get("content") if isinstance(token, dict) else token
    return {added["id"] for added in tokenizer.get("added_tokens", []) if added["content"] == text}


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a configuration that is about text, for models that have others."""
    return config.get("text_config") or config
