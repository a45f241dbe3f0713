"""How far a loading model is, in words: "loading 98 GB, 31 of 98, about 40 s"."""

from __future__ import annotations

from mlxfleet.common.messages import LoadProgress, LoadStage

GB, MB = 1e9, 1e6
WORDS: dict[LoadStage, str] = {
    "starting": "loading, starting",
    "reading": "loading",
    "quantizing": "loading and quantizing",
    "testing": "loading, testing the model",
    "measuring": "loading, measuring passes",
}


def describe(progress: LoadProgress) -> str:
    """The stage, and of weights how much of them is there and how long the rest may take."""
    words = WORDS[progress.stage]
    if not progress.total_bytes or progress.stage not in ("reading", "quantizing"):
        return words
    unit, name = (GB, "GB") if progress.total_bytes >= GB else (MB, "MB")
    loaded, total = progress.loaded_bytes / unit, progress.total_bytes / unit
    digits = 0 if total >= 10 else 1
    text = f"{words} {total:.{digits}f} {name}, {loaded:.{digits}f} of {total:.{digits}f}"
    if progress.remaining_s is not None:
        text += f", about {duration(progress.remaining_s)}"
    return text


def duration(seconds: float) -> str:
    """A length of time, to the second below two minutes."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
