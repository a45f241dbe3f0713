"""A tiny model with random weights and the demo model's tokenizer, which shows a server's overhead.

Usage: `python -m mlxfleet.bench.tiny_model OUT [--architecture llama] [--seed 0]`

Its forward pass costs so little that what is left is the server's own work. Written without mlx,
which only the MLX worker may import.
"""

from __future__ import annotations

import array
import json
import shutil
import sys
from pathlib import Path

import cyclopts

from mlxfleet.bench.tiny_architectures import Architecture, Shape, model_config, random_weights
from mlxfleet.common.demo_model import ensure_demo_model, refuse_if_taken
from mlxfleet.common.errors import MlxfleetError

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")


def write_tiny_model(out: Path, seed: int = 0, architecture: Architecture = "llama") -> None:
    """Write the MLX folder `out`, which must be empty or not exist; the same seed, the same bytes.

    Takes the tokenizer from the cached demo model and raises what `ensure_demo_model` raises, and
    ConfigError if `out` is taken.
    """
    refuse_if_taken(out)
    demo = ensure_demo_model()
    out.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        shutil.copyfile(demo / name, out / name)
    (out / "config.json").write_text(json.dumps(model_config(architecture), indent=2) + "\n")
    save_safetensors(out / "model.safetensors", dict(random_weights(architecture, seed)))


def save_safetensors(path: Path, tensors: dict[str, tuple[Shape, array.array[float]]]) -> None:
    """Write float32 tensors: the header's length (8 bytes), the header (JSON), the data.

    The format is documented in the README of huggingface/safetensors.
    """
    header: dict[str, object] = {"__metadata__": {"format": "mlx"}}
    end = 0
    for name, (shape, values) in tensors.items():
        start, end = end, end + len(values) * values.itemsize
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, values in tensors.values():
            values.tofile(file)


def main(out: Path, *, architecture: Architecture = "llama", seed: int = 0) -> None:
    """Write the tiny random model.

    Parameters
    ----------
    out:
        Folder to write; empty or not there yet.
    architecture:
        What its rows remember: keys and values of all tokens (llama), of a window as well
        (gemma3_text), or a recurrent state as well (qwen3_next).
    seed:
        Seed of the random weights.
    """
    try:
        write_tiny_model(out, seed, architecture)
    except MlxfleetError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    cyclopts.run(main)
