"""Whatever is wrong with a request, the answer says what, in OpenAI's shape."""

from __future__ import annotations

import http.client
import json

import pytest

from tests.integration.fleet import Fleet

CHAT = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
COMPLETION = {"prompt": "Hi", "max_tokens": 4}

BAD_CHAT = [
    ({"temperature": "hot"}, "temperature"),
    ({"temperature": 2.5}, "temperature"),
    ({"top_p": -0.1}, "top_p"),
    ({"top_k": 1.5}, "top_k"),
    ({"min_p": 2}, "min_p"),
    ({"n": 0}, "n"),
    ({"n": 1000}, "n"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": True}, "max_tokens"),
    ({"max_tokens": 100_000}, "messages"),
    ({"max_tokens": 4, "max_completion_tokens": 5}, "max_completion_tokens"),
    ({"seed": 2**70}, "seed"),
    ({"stop": ""}, "stop"),
    ({"stop": ["a"] * 17}, "stop"),
    ({"stop": [1]}, "stop[0]"),
    ({"presence_penalty": 3}, "presence_penalty"),
    ({"frequency_penalty": "x"}, "frequency_penalty"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"logit_bias": {"x": 1}}, "logit_bias"),
    ({"logit_bias": {"99999999": 1}}, "logit_bias"),
    ({"logit_bias": {"1": 101}}, "logit_bias[...]"),
    ({"logprobs": 3}, "logprobs"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
    ({"tools": [{"type": "function"}]}, "tools"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"store": True}, "store"),
    ({"reasoning_effort": "high"}, "reasoning_effort"),
    ({"made_up": 1}, "made_up"),
    ({"echo": True}, "echo"),
    ({"messages": []}, "messages"),
    ({"messages": "hello"}, "messages"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "text": "x"}]}]},
        "messages[0].content[0].type",
    ),
    ({"messages": [{"role": "user", "content": "x", "weight": 1}]}, "messages[0].weight"),
    ({"ignore_eos": 1}, "ignore_eos"),
]

BAD_COMPLETION = [
    ({"prompt": []}, "prompt"),
    ({"prompt": ""}, "prompt"),
    ({"prompt": [[]]}, "prompt"),
    ({"prompt": [1, "a"]}, "prompt"),
    ({"prompt": [1.5]}, "prompt"),
    ({"prompt": [True]}, "prompt"),
    ({"prompt": [-1]}, "prompt"),
    ({"prompt": [49152]}, "prompt"),
    ({"prompt": {"a": 1}}, "prompt"),
    ({"prompt": [1] * 9000}, "prompt"),
    ({"prompt": "word " * 9000}, "prompt"),
    ({"best_of": 3}, "best_of"),
    ({"echo": True}, "echo"),
    ({"suffix": "x"}, "suffix"),
    ({"logprobs": True}, "logprobs"),
    ({"logprobs": 21}, "logprobs"),
    ({"messages": []}, "messages"),
]


@pytest.mark.parametrize(("change", "param"), BAD_CHAT)
def test_chat_names_the_parameter(tiny_fleet: Fleet, change: dict, param: str) -> None:
    status, body, _ = tiny_fleet.post("/v1/chat/completions", {**CHAT, **change})
    assert (status, body["error"]["param"]) == (400, param)
    assert body["error"]["type"] == "invalid_request_error"
    assert body["error"]["message"]


@pytest.mark.parametrize(("change", "param"), BAD_COMPLETION)
def test_completion_names_the_parameter(tiny_fleet: Fleet, change: dict, param: str) -> None:
    status, body, _ = tiny_fleet.post("/v1/completions", {**COMPLETION, **change})
    assert (status, body["error"]["param"]) == (400, param)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b'{"messages": ' + b"[" * 100_000]
)
def test_bad_json(tiny_fleet: Fleet, body: bytes) -> None:
    status, answer, _ = tiny_fleet.post("/v1/chat/completions", body)
    assert status == 400
    assert "JSON" in answer["error"]["message"]


def test_missing_fields(tiny_fleet: Fleet) -> None:
    _, body, _ = tiny_fleet.post("/v1/chat/completions", {})
    assert body["error"]["param"] == "messages"
    _, body, _ = tiny_fleet.post("/v1/completions", {})
    assert body["error"]["param"] == "prompt"


def test_unknown_model_and_paths(tiny_fleet: Fleet) -> None:
    status, body, _ = tiny_fleet.post("/v1/chat/completions", {**CHAT, "model": "gpt-9"})
    assert (status, body["error"]["param"]) == (404, "model")
    status, body, _ = tiny_fleet.post("/v1/nothing", {})
    assert (status, body["error"]["code"]) == (404, "not_found")


def test_a_method_that_a_path_does_not_take_is_told_from_an_unknown_path(
    tiny_fleet: Fleet,
) -> None:
    status, body, headers = tiny_fleet.post("/health", {})
    assert (status, body["error"]["code"]) == (405, "method_not_allowed")
    assert headers["Allow"] == "GET, HEAD"
    status, text = tiny_fleet.get("/v1/chat/completions")
    assert (status, json.loads(text)["error"]["code"]) == (405, "method_not_allowed")


def test_oversized_body(tiny_fleet: Fleet) -> None:
    status, body, _ = tiny_fleet.post("/v1/completions", b'{"prompt": "' + b"x" * 17_000_000)
    assert status == 413
    assert body["error"]["code"] == "body_too_large"


def test_harmless_values_of_unsupported_parameters(tiny_fleet: Fleet) -> None:
    harmless = {"tools": [], "response_format": {"type": "text"}, "store": False, "user": "me"}
    status, _, _ = tiny_fleet.post("/v1/chat/completions", {**CHAT, **harmless})
    assert status == 200


def test_serving_goes_on_after_all_that(tiny_fleet: Fleet) -> None:
    status, body, _ = tiny_fleet.post("/v1/chat/completions", CHAT)
    assert status == 200
    assert body["usage"]["completion_tokens"] == 4
    assert tiny_fleet.metric("mlxfleet_sequences_in_flight") == 0


def test_half_a_request_is_no_request(tiny_fleet: Fleet) -> None:
    host = tiny_fleet.url.removeprefix("http://")
    connection = http.client.HTTPConnection(host, timeout=10)
    connection.putrequest("POST", "/v1/completions")
    connection.putheader("Content-Length", "1000")
    connection.endheaders(b'{"prompt": "half')
    connection.close()
    assert tiny_fleet.get("/health")[0] == 200
