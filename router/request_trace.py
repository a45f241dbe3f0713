"""One request as its trace shows it: a server span, and the stages of the router in it.

Attributes are those of OpenTelemetry's conventions for generative AI and HTTP, and mlxfleet's own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from aiohttp import web

from mlxfleet.common.errors import RequestError
from mlxfleet.common.tracing import NO_SPAN, Span, Tracer
from mlxfleet.router.generation import Generation
from mlxfleet.router.metrics import RequestRecord
from mlxfleet.router.parameters import Parameters
from mlxfleet.router.sequence_trace import SequenceTrace
from mlxfleet.router.sequences import Sequence

OPERATIONS = {"chat": "chat", "completions": "text_completion"}


class RequestTrace:
    """A request's span. Its stages follow each other; one that is still open when the request ends
    is ended with it. `status` is that of the answer, None if the client did not wait for it."""

    def __init__(self, tracer: Tracer, span: Span, operation: str, arrived: float) -> None:
        self._tracer = tracer
        self._operation = operation
        self._span = span
        self._arrived = arrived
        self._stage = NO_SPAN
        self._generation: Generation | None = None
        self.status: int | None = None

    @property
    def _recorded(self) -> bool:
        return self._span is not NO_SPAN

    def stage(self, name: str) -> str:
        """The next stage begins; returns its traceparent."""
        self.stage_over()
        self._stage = self._tracer.start(name, self._span)
        return self._stage.traceparent

    def stage_over(self) -> None:
        """The stage is over, and what follows is not one."""
        self._stage.end()

    def asks(self, request: Parameters, model: str) -> None:
        """Say what the request asks for."""
        if not self._recorded:
            return
        asked: dict[str, str | int | float | None] = {
            "gen_ai.request.model": model,
            "gen_ai.request.stream": bool(request.stream),
            "gen_ai.request.temperature": request.temperature,
            "gen_ai.request.top_p": request.top_p,
            "gen_ai.request.top_k": request.top_k,
            "gen_ai.request.seed": request.seed,
            "gen_ai.request.choice.count": request.n,
            "mlxfleet.priority": request.priority,
        }
        self._span.rename(f"{self._operation} {model}")
        self._span.set({name: value for name, value in asked.items() if value is not None})

    def runs(self, generation: Generation) -> None:
        """The request has become sequences, which are traced too."""
        self._generation = generation
        if not self._recorded:
            return
        most = generation.sequences[0].sampling.max_tokens
        self._span.set({"mlxfleet.rid": generation.rid, "gen_ai.request.max_tokens": most})
        for sequence in generation.sequences:
            sequence.trace = SequenceTrace(self._tracer, self._span, sequence.rid)

    def failed(self, error: BaseException) -> None:
        """The request ends without the answer that was asked for."""
        match error:
            case RequestError() | web.HTTPException():
                self.status = error.status
                why = str(error)
            case asyncio.CancelledError() | ConnectionError():
                self.status = None
                why = ""
            case _:
                # Its text may quote the request, which is nobody's business.
                self.status = 500
                why = type(error).__name__
        if self._recorded:
            self._span.set({"error.type": type(error).__name__})
            # What is the client's fault is no failure of a server's span.
            if self.status is not None and self.status >= 500:
                self._span.fail(why)

    def end(self, outcome: str) -> None:
        """The request is over."""
        if not self._recorded:
            return
        self.stage_over()
        self._span.set({"mlxfleet.outcome": outcome})
        if self.status is not None:
            self._span.set({"http.response.status_code": self.status})
        if self._generation is not None:
            self._tell_usage(self._generation)
            for sequence in self._generation.sequences:
                if sequence.error is not None and outcome == "error":
                    self._span.fail(str(sequence.error))
        self._span.end()

    def _tell_usage(self, generation: Generation) -> None:
        sequences = generation.sequences
        self._span.set(
            {
                "gen_ai.response.model": generation.model,
                "gen_ai.usage.input_tokens": generation.prompt_tokens,
                "gen_ai.usage.cache_read.input_tokens": generation.cached_tokens,
                "gen_ai.usage.output_tokens": generation.completion_tokens,
                "gen_ai.response.finish_reasons": [ending(s) for s in sequences],
            }
        )
        came = [s.trace.first_token for s in sequences if s.trace.first_token is not None]
        if came:
            first_s = min(came) - self._arrived
            self._span.set({"gen_ai.response.time_to_first_chunk": first_s})


def ending(sequence: Sequence) -> str:
    """Why a sequence ended, by itself or with its request."""
    return sequence.finish_reason or ("error" if sequence.error else "cancelled")


@contextmanager
def traced(
    tracer: Tracer, http: web.Request, endpoint: str, record: RequestRecord
) -> Iterator[RequestTrace]:
    """Trace a request from its arrival to its end, which `record` then says."""
    headers, operation = http.headers, OPERATIONS[endpoint]
    parents = headers.getall("traceparent", [])
    span = tracer.serve(
        operation,
        # Several are as good as none.
        parents[0] if len(parents) == 1 else "",
        ",".join(headers.getall("tracestate", [])),
        at=record.arrived,
        attributes={
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "mlxfleet",
            "http.request.method": http.method,
            "http.route": http.path,
            "url.path": http.path,
            "url.scheme": http.scheme,
        },
    )
    trace = RequestTrace(tracer, span, operation, record.arrived)
    try:
        yield trace
    except BaseException as error:
        trace.failed(error)
        raise
    finally:
        trace.end(record.outcome)
