"""Every error that crosses a function border on purpose, and the exit codes of every process."""

from __future__ import annotations

import enum
import errno
from typing import ClassVar


class ExitCode(enum.IntEnum):
    """What a process's exit status says about why it ended."""

    OK = 0
    INTERNAL = 1
    USAGE = 2
    CONFIG = 64
    MODEL = 65
    PORT_IN_USE = 66
    NETWORK = 67
    HOST = 68
    CRASH_LOOP = 70
    FORCED = 72
    REFUSED = 73
    GATE_FAILED = 74
    GATE_UNDECIDED = 75


class MlxfleetError(Exception):
    """Base of all errors raised on purpose; its text is meant for the user."""

    exit_code = ExitCode.INTERNAL


class ConfigError(MlxfleetError):
    """An option or a combination of options cannot be used."""

    exit_code = ExitCode.CONFIG


class ModelError(MlxfleetError):
    """The model folder cannot be found, fetched or loaded."""

    exit_code = ExitCode.MODEL


class NetworkError(MlxfleetError):
    """Something had to be downloaded and could not be."""

    exit_code = ExitCode.NETWORK


class PortInUseError(MlxfleetError):
    """The HTTP address is taken by another program."""

    exit_code = ExitCode.PORT_IN_USE


def listen_error(host: str, port: int, error: OSError, flag: str = "--port") -> MlxfleetError:
    """Why an HTTP address cannot be bound, and what to do."""
    if error.errno == errno.EADDRINUSE:
        return PortInUseError(f"port {port} on {host} is in use; choose another with {flag}")
    return ConfigError(f"cannot listen on {host}:{port}: {error}")


class RefusedError(MlxfleetError):
    """A peer process does not accept this one, for example for its protocol version."""

    exit_code = ExitCode.REFUSED


class RequestError(MlxfleetError):
    """A client's request cannot be served; carries the OpenAI error fields.

    `status` is the HTTP status, `param` the name of the offending parameter, `code` a short
    machine-readable word, `retry_after_s` the delay to announce with 429 and 503, `headers` what
    else the answer's head says.
    """

    status = 400
    type = "invalid_request_error"
    headers: ClassVar[dict[str, str]] = {}

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s

    def body(self) -> dict[str, dict[str, object]]:
        """As OpenAI's clients expect an error."""
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }


class InvalidRequestError(RequestError):
    """A parameter is missing, of the wrong type, out of range or not supported."""


class ContentEncodingError(RequestError):
    """The body is compressed, which is not accepted."""

    status = 415
    headers: ClassVar[dict[str, str]] = {"Accept-Encoding": "identity"}

    def __init__(self, message: str) -> None:
        super().__init__(message, code="unsupported_content_encoding")


class HeadTimeoutError(RequestError):
    """A request's line and headers came too slowly."""

    status = 408
    type = "timeout_error"

    def __init__(self, message: str) -> None:
        super().__init__(message, code="head_timeout")


class BodyTimeoutError(RequestError):
    """The body came too slowly."""

    status = 408
    type = "timeout_error"

    def __init__(self, message: str) -> None:
        super().__init__(message, code="body_timeout")


class AuthenticationError(RequestError):
    """No key or a wrong one."""

    status = 401
    type = "authentication_error"


class ForbiddenError(RequestError):
    """The request may come from a web page that is not allowed to use the server."""

    status = 403
    type = "permission_error"


class MisdirectedError(RequestError):
    """The request names a host that this server does not stand for."""

    status = 421


class UnsupportedMediaError(RequestError):
    """The body is not declared to be JSON."""

    status = 415


class ModelNotFoundError(RequestError):
    """The request names a model that is not served here."""

    status = 404


class MethodNotAllowedError(RequestError):
    """The path is there, but not for this method."""

    status = 405


class NodeNotFoundError(RequestError):
    """An operator names a node that the router does not know."""

    status = 404


class OverloadedError(RequestError):
    """Every queue is full; the client should come back later."""

    status = 429
    type = "rate_limit_error"


class UnavailableError(RequestError):
    """The server is draining, or no node can generate."""

    status = 503
    type = "service_unavailable_error"


class DeadlineError(RequestError):
    """The request did not end within the time that the client gave it."""

    status = 504
    type = "timeout_error"

    def __init__(self, message: str) -> None:
        super().__init__(message, code="deadline_exceeded")


class GenerationError(RequestError):
    """The request was accepted but could not be finished."""

    status = 500
    type = "server_error"
