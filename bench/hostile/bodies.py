"""Bodies of which one thing is wrong, or nothing."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

from mlxfleet.bench.hostile.shots import Shot, once, request
from mlxfleet.bench.hostile.values import INVALID, VALID, valid_value

PLACEHOLDER = "@@here@@"
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"

COMMON: dict[str, Any] = {
    "stream": False,
    "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    "max_tokens": 3,
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 20,
    "min_p": 0.01,
    "seed": 7,
    "stop": ["never said"],
    "n": 2,
    "presence_penalty": 0.1,
    "frequency_penalty": 0.1,
    "repetition_penalty": 1.1,
    "logit_bias": {"17": 1.5},
    "ignore_eos": True,
    "user": "somebody",
    "priority": "batch",
}
"""Every parameter that both endpoints take, but for the model's name."""
CHAT_BODY: dict[str, Any] = {
    "messages": [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "hello"}], "name": "somebody"},
        {"role": "assistant", "content": "hi", "refusal": None, "tool_calls": []},
        {"role": "user", "content": "again"},
    ],
    "max_completion_tokens": 3,
    "logprobs": True,
    "top_logprobs": 2,
}
COMPLETION_BODY: dict[str, Any] = {"prompt": "hello", "logprobs": 2}
PROMPTS: tuple[Any, ...] = ("hello", ["a", "b"], [1, 2, 3], [[1, 2], [3]])
NOT_HONOURED = ("tools", "tool_choice", "response_format", "best_of", "echo", "suffix", "audio")

Edit = Callable[[random.Random, dict[str, Any]], tuple[bytes, bool]]


def mutated_body(rng: random.Random) -> Shot:
    """A body with something wrong in it."""
    chat = rng.random() < 0.5
    path, body = (CHAT, chat_body(rng)) if chat else (COMPLETIONS, completion_body(rng))
    edit = rng.choices(tuple(EDITS), weights=tuple(EDITS.values()))[0]
    data, refused = edit(rng, body)
    return Shot(
        kind=f"body: {edit.__name__}",
        pieces=once(request(data, target=path.encode())),
        path=path,
        refused=refused,
    )


def chat_body(rng: random.Random) -> dict[str, Any]:
    """A chat request that is right."""
    return some_of(rng, CHAT_BODY | COMMON, always=("messages", "max_tokens"))


def completion_body(rng: random.Random) -> dict[str, Any]:
    """A completion request that is right."""
    body = some_of(rng, COMPLETION_BODY | COMMON, always=("prompt", "max_tokens"))
    return body | {"prompt": rng.choice(PROMPTS)}


def some_of(rng: random.Random, body: dict[str, Any], always: tuple[str, ...]) -> dict[str, Any]:
    """A few of the parameters; those that need another have it."""
    chosen = {name: v for name, v in body.items() if name in always or rng.random() < 0.3}
    if "top_logprobs" in chosen:
        chosen["logprobs"] = True
    if "stream_options" in chosen:
        chosen["stream"] = True
    return chosen


def replace(rng: random.Random, body: dict[str, Any]) -> tuple[bytes, bool]:
    """Any value for a parameter, also for one that it does not have."""
    everything = (*COMMON, *CHAT_BODY, *COMPLETION_BODY, *NOT_HONOURED, "model")
    return with_text(body | {rng.choice(everything): PLACEHOLDER}, valid_value(rng)), False


def replace_inside(rng: random.Random, body: dict[str, Any]) -> tuple[bytes, bool]:
    """Any value for something deeper in the body."""
    copy = json.loads(json.dumps(body))
    places = list(containers(copy))
    place = rng.choice(places)
    key = rng.choice(list(place) if isinstance(place, dict) else range(len(place)))
    place[key] = PLACEHOLDER
    return with_text(copy, valid_value(rng)), False


def containers(value: Any) -> Any:
    """All dictionaries and lists in a value that have something in them."""
    if isinstance(value, dict | list) and value:
        yield value
        for inner in value.values() if isinstance(value, dict) else value:
            yield from containers(inner)


def no_json(rng: random.Random, body: dict[str, Any]) -> tuple[bytes, bool]:
    """A value that is no JSON."""
    name = rng.choice(list(body))
    return with_text(body | {name: PLACEHOLDER}, rng.choice(INVALID)), True


def missing(rng: random.Random, body: dict[str, Any]) -> tuple[bytes, bool]:
    """Without what the request is about."""
    copy = {name: v for name, v in body.items() if name not in ("messages", "prompt")}
    return json.dumps(copy).encode(), True


def unknown(rng: random.Random, body: dict[str, Any]) -> tuple[bytes, bool]:
    """A parameter with a name that nobody knows."""
    names = ("x", "", "a" * 100_000, "\u0000", "\r\nX: y", "__class__", "🙂", "self", "Temperature")
    return with_text(body | {rng.choice(names): PLACEHOLDER}, valid_value(rng)), False


def duplicate(rng: random.Random, body: dict[str, Any]) -> tuple[bytes, bool]:
    """A key twice."""
    text = json.dumps(body).encode()
    name = rng.choice(list(body))
    return text[:-1] + b', "%s": %s}' % (name.encode(), rng.choice(VALID)), False


def scramble(rng: random.Random, body: dict[str, Any]) -> tuple[bytes, bool]:
    """Bytes changed, lost and added."""
    data = bytearray(json.dumps(body).encode())
    for _ in range(rng.randrange(1, 5)):
        at = rng.randrange(len(data))
        match rng.randrange(3):
            case 0:
                data[at] = rng.randrange(256)
            case 1:
                del data[at : at + rng.randrange(1, 8)]
            case _:
                data[at:at] = rng.randbytes(rng.randrange(1, 8))
        data = data or bytearray(b"{")
    return bytes(data), False


def something_else(rng: random.Random, body: dict[str, Any]) -> tuple[bytes, bool]:
    """No JSON object in UTF-8."""
    text = json.dumps(body)
    wrong = (
        b"",
        b" ",
        b"null",
        b"[]",
        b'"text"',
        b"1",
        text.encode("utf-16"),
        text.encode("utf-32"),
        text.encode() + b"{}",
        text.encode()[:-1],
        b"\x00" + text.encode(),
        b"[" + text.encode() + b"]",
        b"prompt=hello",
        rng.randbytes(64),
        b"[" * 100_000,
        b'{"a":' * 100_000,
    )
    return rng.choice(wrong), True


def unchanged(rng: random.Random, body: dict[str, Any]) -> tuple[bytes, bool]:
    """Nothing wrong."""
    return json.dumps(body).encode(), False


def with_text(body: dict[str, Any], text: bytes) -> bytes:
    """The body as JSON, with this text in place of the placeholder."""
    return json.dumps(body).encode().replace(b'"%s"' % PLACEHOLDER.encode(), text)


EDITS: dict[Edit, float] = {
    replace: 4,
    replace_inside: 3,
    no_json: 1.5,
    missing: 0.3,
    unknown: 0.7,
    duplicate: 0.7,
    scramble: 1.5,
    something_else: 1,
    unchanged: 0.7,
}
