"""A request for each path that takes one, as a command to copy."""

from __future__ import annotations

import shlex

BODIES = {
    "/v1/chat/completions": '{"messages": [{"role": "user", "content": "Hello"}]}',
    "/v1/completions": '{"prompt": "Hello"}',
}


def curl(url: str, path: str, *, with_key: bool) -> str:
    """The command that asks at a URL, which ends in the path; the key comes out of a variable."""
    key = ' -H "Authorization: Bearer $MLXFLEET_API_KEY"' if with_key else ""
    body = shlex.quote(BODIES.get(path, "{}"))
    return f"curl {shlex.quote(url)} -H 'Content-Type: application/json'{key} -d {body}"
