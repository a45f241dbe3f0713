"""What a server says of itself, and which optional fields of a request it takes."""

from __future__ import annotations

from typing import Any

import aiohttp
import msgspec
from msgspec import Struct

from mlxfleet.bench.client import STREAM_OPTIONS, Target, ask
from mlxfleet.bench.conversations import Conversation, History, Turn
from mlxfleet.bench.records import Request
from mlxfleet.bench.servers import ServerError
from mlxfleet.common.errors import ConfigError

IGNORE_EOS = "ignore_eos"
REFUSALS = ("http_400", "http_422")
SAID_TIMEOUT = aiohttp.ClientTimeout(total=10)
MOST_BYTES = 2**20


class Model(Struct):
    """What is read of a model in /v1/models."""

    id: str


class Models(Struct):
    """What is read of /v1/models."""

    data: list[Model] = []


async def said(session: aiohttp.ClientSession, target: Target) -> dict[str, Any]:
    """JSON that the server has at /v1/models and /fleet, by their names, and its software. What it
    does not have is left out; ServerError if nobody listens."""
    found: dict[str, Any] = {}
    for name, path in (("models", "/v1/models"), ("fleet", "/fleet")):
        try:
            async with session.get(target.url + path, timeout=SAID_TIMEOUT) as response:
                if software := response.headers.get("Server"):
                    found["software"] = software
                if response.status == 200:
                    body = await response.content.read(MOST_BYTES)
                    found[name] = msgspec.json.decode(body)
        except aiohttp.ClientConnectorError as error:
            raise ServerError(f"nobody answers at {target.url}: {error}") from error
        except (aiohttp.ClientError, OSError, TimeoutError, msgspec.DecodeError):
            continue
    return found


def model_of(words: dict[str, Any]) -> str | None:
    """The name of the only model, None if the server names none, as mlx-lm's does; it may have one
    all the same. ConfigError if there is more than one."""
    try:
        models = msgspec.convert(words.get("models", {}), Models).data
    except msgspec.ValidationError:
        models = []
    if len(models) > 1:
        names = ", ".join(model.id for model in models)
        raise ConfigError(f"the server says it has {names}: choose one with --model")
    return models[0].id if models else None


async def probe(session: aiohttp.ClientSession, target: Target) -> Target:
    """Ask for a token, and if the server refuses that, again without fields that not all servers
    take. ServerError if it gives none."""
    optional = [name for name in (IGNORE_EOS, STREAM_OPTIONS) if name in target.fields()]
    failure = None
    for dropped in range(len(optional) + 1):
        tried = msgspec.structs.replace(target, without=tuple(optional[:dropped]))
        question = Conversation((Turn(text="Hello", max_tokens=1),))
        body = tried.encode(History(question, target.endpoint).ask("Hello"), 1)
        record = Request(run="", index=0, due_s=0.0, sent_s=0.0)
        await ask(session, tried, body, record)
        if record.error is None:
            return tried
        failure = failure or record.error
        if record.error.kind not in REFUSALS:
            break
    what = f"{failure.kind}: {failure.message}" if failure else "nothing"
    raise ServerError(f"{target.url} does not answer a first request: {what}")
