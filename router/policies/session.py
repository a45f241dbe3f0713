"""All requests of a session to one node."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

from mlxfleet.router.policies.base import Candidate, Policy, Prompt


class Session:
    """Rendezvous hashing: a node that comes or goes moves only the sessions that it gets or had.
    Requests that name no session are placed by another policy. Weights move no session, because it
    would lose what it has cached."""

    def __init__(self, otherwise: Policy) -> None:
        self._otherwise = otherwise

    def pick(self, prompt: Prompt, nodes: Sequence[Candidate]) -> str:
        """The node with the highest hash together with the session."""
        session = prompt.session
        if session is None:
            return self._otherwise.pick(prompt, nodes)
        return max((node.name for node in nodes), key=lambda name: affinity(session, name))


def affinity(session: str, node: str) -> bytes:
    """A random number that is always the same for the two."""
    key = blake2b(session.encode(errors="surrogatepass"), digest_size=16).digest()
    return blake2b(node.encode(), digest_size=8, key=key).digest()
