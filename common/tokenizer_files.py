"""Loading a model's tokenizer, for the processes that know text."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mlxfleet.common.errors import ModelError


def load_tokenizer(folder: Path, *, trust_remote_code: bool) -> Any:
    """The `transformers` tokenizer of a model folder; ModelError if there is none."""
    # The folder is complete; a look-up on the network would only delay or fail.
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise ModelError(f"cannot load the tokenizer in {folder}: {error}") from error


def load_fast_tokenizer(folder: Path, *, trust_remote_code: bool) -> Any:
    """The same tokenizer as a `tokenizers.Tokenizer`, without importing transformers if the
    folder holds it ready-made; ModelError if the model has no fast tokenizer."""
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if path.exists():
        return Tokenizer.from_file(str(path))
    backend = getattr(
        load_tokenizer(folder, trust_remote_code=trust_remote_code), "backend_tokenizer", None
    )
    if backend is None:
        raise ModelError(f"the tokenizer in {folder} has no fast version")
    return backend
