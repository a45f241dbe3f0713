"""Errors that task groups have put into groups."""

from __future__ import annotations

from collections.abc import Iterator


def leaves(errors: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    """The single errors of a group of groups."""
    for error in errors.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from leaves(error)
        else:
            yield error
