"""Why a prompt cannot be encoded."""

from __future__ import annotations


class PromptError(Exception):
    """The prompt cannot be encoded: a text for the client, and the API's word if there is one."""

    def __init__(self, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.code = code
