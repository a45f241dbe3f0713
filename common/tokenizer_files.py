"""Loading a model's tokenizer, for the processes that know text."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from mlxfleet.common.errors import ModelError

VOCABULARY_FILES = (
    "tokenizer.model",
    "tiktoken.model",
    "*.tiktoken",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
)
"""What says which token an id is, in a folder without tokenizer.json."""


def tokenizer_hash(folder: Path) -> str:
    """SHA-256 of the files that say which token an id is, in hex. ModelError if there are none.

    tokenizer.json says all of it alone; chat templates and the like may differ between nodes.
    """
    paths = [folder / "tokenizer.json"]
    if not paths[0].exists():
        paths = sorted({path for pattern in VOCABULARY_FILES for path in folder.glob(pattern)})
    digest = hashlib.sha256()
    try:
        for path in paths:
            data = path.read_bytes()
            digest.update(f"{path.name} {len(data)}\n".encode())
            digest.update(data)
    except OSError as error:
        raise ModelError(f"cannot read the tokenizer in {folder}: {error}") from error
    if not paths:
        raise ModelError(f"there is no tokenizer in {folder}")
    return digest.hexdigest()


def load_tokenizer(folder: Path, *, trust_remote_code: bool) -> Any:
    """The `transformers` tokenizer of a model folder; ModelError if there is none."""
    # The folder is complete; a look-up on the network would only delay or fail.
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    # What a broken file raises is whatever the code trips over; the Rust side raises Exception.
    except Exception as error:
        raise broken_tokenizer(folder, error) from error


def broken_tokenizer(folder: Path, error: Exception) -> ModelError:
    """What to say of a tokenizer that cannot be loaded: the file, if it is known which."""
    ready_made = folder / "tokenizer.json"
    place = ready_made if ready_made.exists() else folder
    reason = str(error) or type(error).__name__
    return ModelError(f"cannot load the tokenizer in {place}: {reason}")


def load_fast_tokenizer(folder: Path, *, trust_remote_code: bool) -> Any:
    """The same tokenizer as a `tokenizers.Tokenizer`, without importing transformers if the
    folder holds it ready-made; ModelError if the model has no fast tokenizer."""
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if path.exists():
        try:
            return Tokenizer.from_file(str(path))
        except Exception as error:
            raise broken_tokenizer(folder, error) from error
    backend = getattr(
        load_tokenizer(folder, trust_remote_code=trust_remote_code), "backend_tokenizer", None
    )
    if backend is None:
        raise ModelError(f"the tokenizer in {folder} has no fast version")
    return backend
