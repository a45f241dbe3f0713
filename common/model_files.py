"""Finding the folder of a model: the demo model, a local folder, or a hub id."""

from __future__ import annotations

import json
from pathlib import Path

from mlxfleet.common.demo_model import ensure_demo_model
from mlxfleet.common.errors import ModelError, NetworkError

WEIGHT_FILES = "model*.safetensors"
SETTINGS_FILES = ("config.json", "generation_config.json", "tokenizer_config.json")
WANTED_FILES = [
    "*.json",
    WEIGHT_FILES,
    "*.py",
    "tokenizer.model",
    "*.tiktoken",
    "tiktoken.model",
    "*.txt",
    "*.jsonl",
    "*.jinja",
]
"""What mlx-lm fetches from a hub repository."""

DEMO_NAME = "SmolLM2-135M-Instruct"


def resolve_model(model: str | None, *, weights: bool = True) -> tuple[Path, str]:
    """A model's folder and name. `model` is None for the demo model, a folder, or a hub id, of
    which a front end needs no `weights`.

    ModelError if there is no such folder, NetworkError if the hub cannot be reached.
    """
    if model is None:
        return ensure_demo_model(), DEMO_NAME
    folder = Path(model).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").exists():
            raise ModelError(f"{folder} is not a model folder: it has no config.json")
        check_settings(folder)
        return folder.resolve(), folder.resolve().name
    if folder.is_absolute() or model.startswith((".", "~")) or model.count("/") != 1:
        raise ModelError(
            f"there is no folder {model}; give a model folder, or a hub id like ORG/NAME"
        )
    return fetch_from_hub(model, weights=weights), model


def check_settings(folder: Path) -> None:
    """ModelError that names the file if one of a folder's small JSON files is broken."""
    for name in SETTINGS_FILES:
        path = folder / name
        try:
            if path.exists() and not isinstance(json.loads(path.read_bytes()), dict):
                raise ModelError(f"{path} is broken: it is not a JSON object")
        except (OSError, ValueError, RecursionError) as error:
            raise ModelError(f"{path} is broken: {error}") from error


def fetch_from_hub(hub_id: str, *, weights: bool = True) -> Path:
    """Download a hub repository, or find it in the hub's cache, with a progress bar."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    wanted = [pattern for pattern in WANTED_FILES if weights or pattern != WEIGHT_FILES]
    try:
        return Path(snapshot_download(hub_id, allow_patterns=wanted))
    except (HFValidationError, RepositoryNotFoundError) as error:
        raise ModelError(
            f"there is no folder {hub_id}, and no model of that name on the hub"
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise NetworkError(
            f"cannot download {hub_id}: {reason}\nCheck the network, or give --model a local folder"
        ) from error
