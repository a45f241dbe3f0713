"""One sequence as the router's spans show it: a `generate` for each time it is given to a node."""

from __future__ import annotations

import time

from mlxfleet.common.tracing import NO_SPAN, NO_TRACER, Attributes, Span, Tracer


class SequenceTrace:
    """The spans of a sequence of a request. Each `generate` is linked to the one before it, whose
    work it goes on with; the spans of the node are its children."""

    def __init__(self, tracer: Tracer = NO_TRACER, request: Span = NO_SPAN, rid: str = "") -> None:
        self._tracer = tracer
        self._request = request
        self._rid = rid
        self._attempt = NO_SPAN
        self._attempts = 0
        self._on_node = False
        self.first_token: float | None = None

    @property
    def traceparent(self) -> str:
        """Of the request, for what outlives a node: the stream of its text."""
        return self._request.traceparent

    def routed(self, began: float, node: str, figures: Attributes) -> None:
        """A node was chosen, which `began` at a time.perf_counter()."""
        attributes = {"mlxfleet.rid": self._rid, "mlxfleet.node": node, **figures}
        self._tracer.record("route", self._request, began, time.perf_counter(), attributes)

    def sent(self, node: str, known_tokens: int) -> str:
        """It is given to a node, with the tokens that are known already; returns the traceparent
        of the node's spans."""
        self.left("the node lost it", failed=True)
        self._attempts += 1
        self._attempt = self._tracer.start(
            "generate",
            self._request,
            kind="client",
            attributes={
                "mlxfleet.rid": self._rid,
                "mlxfleet.node": node,
                "mlxfleet.attempt": self._attempts,
                "mlxfleet.known_tokens": known_tokens,
            },
            after=self._attempt,
        )
        self._on_node = True
        return self._attempt.traceparent

    def moved(self, before: str, state: str, node: str, *, lost: bool) -> None:
        """It goes on on another node: the one before is `lost`, or is draining."""
        self.left(f"moved, the node is {state}", failed=lost)
        attributes = {"mlxfleet.node": before, "mlxfleet.state": state, "mlxfleet.to": node}
        self._request.event("failover", attributes)

    def recovered(self) -> None:
        """Its stream of text is opened again."""
        self._attempt.event("stream recovered")

    def answered(self, at: float) -> None:
        """Its first token is here, at a time.perf_counter()."""
        self.first_token = at
        self._attempt.event("first token")

    def finished(self, reason: str, tokens: int) -> None:
        """It has all its tokens."""
        self._end({"mlxfleet.end": reason, "mlxfleet.output_tokens": tokens})

    def left(self, why: str, *, failed: bool = False) -> None:
        """It leaves its node, if it is still there, without having finished; by the node's fault
        if that `failed`."""
        if failed and self._on_node:
            self._attempt.fail(why)
        self._end({"mlxfleet.end": why})

    def _end(self, attributes: Attributes) -> None:
        if self._on_node:
            self._on_node = False
            self._attempt.set(attributes)
            self._attempt.end()
