"""The state of the checkout in which something is measured."""

from __future__ import annotations

import subprocess

from mlxfleet.bench.records import GitState

TIMEOUT_S = 10.0


def git_state() -> GitState | None:
    """Of the current folder; None outside of any checkout, or without git."""
    commit, status = git("rev-parse", "HEAD"), git("status", "--porcelain")
    if commit is None or status is None:
        return None
    return GitState(commit=commit, dirty=bool(status))


def git(*arguments: str) -> str | None:
    """What git answers; None if it fails."""
    try:
        done = subprocess.run(
            ["git", *arguments], capture_output=True, text=True, check=True, timeout=TIMEOUT_S
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
