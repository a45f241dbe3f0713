"""The options of the comparison with other servers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter, Token

from mlxfleet.bench.out_file import check_out
from mlxfleet.common.errors import ConfigError


def split_commas(kind: Any, tokens: Sequence[Token]) -> tuple[Any, ...]:
    """`1,8,32` as a tuple of what `kind`, a tuple type, holds."""
    item = kind.__args__[0]
    return tuple(item(part) for part in tokens[0].value.split(",") if part)


Commas = Parameter(converter=split_commas, n_tokens=1, negative=())


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Options:
    """What is measured, and how."""

    peers_script: Path
    """Script that runs a peer: `bash SCRIPT serve NAME MODEL PORT`."""

    model: Path
    """MLX model folder."""

    peers: Annotated[tuple[str, ...], Commas] = ("mlx-lm", "vllm-mlx")
    """Names of the peers, with commas."""

    concurrency: Annotated[tuple[int, ...], Commas] = (1, 8, 32)
    """Streams at once, with commas."""

    requests_per_stream: int = 8
    """Requests that each stream sends, one after the other."""

    prompt_words: int = 64
    """Length of a prompt, in words."""

    common_words: int = 0
    """Words that all prompts of a load begin with, before those of --prompt-words."""

    max_tokens: int = 64
    """Tokens to generate for each request."""

    temperature: float = 0.0
    """0 is greedy."""

    top_p: float = 1.0
    """Nucleus sampling; 1 is off."""

    rounds: int = 3
    """How often every server is started and measured."""

    seed: int = 0
    """Of the prompts."""

    launch_flag: Annotated[tuple[str, ...], Parameter(allow_leading_hyphen=True, negative=())] = ()
    """A flag for `mlxfleet launch`; may be repeated."""

    out: Path | None = None
    """File to write: JSON lines, as docs/benchmarking.md describes them."""

    overwrite: Annotated[bool, Parameter(negative=())] = False
    """Write the file anew if it is there."""

    logs: Path | None = None
    """Folder for the servers' output; a new temporary one if not given."""

    def validated(self) -> Options:
        """Check what can be checked before anything starts; paths become absolute."""
        if not (self.model / "config.json").is_file():
            raise ConfigError(f"--model: there is no config.json in {self.model}")
        if not self.peers_script.is_file():
            raise ConfigError(f"--peers-script: there is no file {self.peers_script}")
        check_out(self.out, overwrite=self.overwrite)
        counts = [*self.concurrency, self.requests_per_stream, self.prompt_words]
        if not self.concurrency or min([*counts, self.max_tokens, self.rounds]) < 1:
            raise ConfigError("concurrency, requests, words, tokens and rounds must be at least 1")
        return replace(self, model=self.model.resolve(), peers_script=self.peers_script.resolve())
