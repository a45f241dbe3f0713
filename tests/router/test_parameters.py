"""What request bodies are accepted, and that everything else is a refusal that names the
parameter."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxfleet.common.errors import InvalidRequestError
from mlxfleet.common.messages import Sampling
from mlxfleet.common.request_content import split_prompt
from mlxfleet.common.sampling_defaults import SamplingDefaults
from mlxfleet.router.parameters import (
    MAX_CHOICES,
    MAX_STOPS,
    MAX_TOP_LOGPROBS,
    UNSUPPORTED,
    ChatRequest,
    CompletionRequest,
    chat_logprobs,
    chat_max_tokens,
    make_sampling,
    parse,
    parse_logit_bias,
)

VOCAB_SIZE = 100
RECOMMENDED = SamplingDefaults(
    temperature=0.7,
    top_p=0.8,
    top_k=20,
    min_p=0.05,
    presence_penalty=1.5,
    frequency_penalty=0.25,
    repetition_penalty=1.05,
)
USER = {"role": "user", "content": "Hi"}


def chat(**parameters: Any) -> ChatRequest:
    """A parsed chat request."""
    return parse(ChatRequest, json.dumps({"messages": [USER], **parameters}).encode())


def completion(**parameters: Any) -> CompletionRequest:
    """A parsed completion request."""
    return parse(CompletionRequest, json.dumps({"prompt": "Hi", **parameters}).encode())


def refusal(make: Any, **parameters: Any) -> InvalidRequestError:
    """Why a request is refused."""
    with pytest.raises(InvalidRequestError) as caught:
        make(**parameters)
    return caught.value


def sampling(request: ChatRequest | CompletionRequest) -> Sampling:
    """The sampling of a request for 10 tokens."""
    return make_sampling(
        request, max_tokens=10, logprobs=None, vocab_size=VOCAB_SIZE, defaults=SamplingDefaults()
    )


# --- what is accepted -----------------------------------------------------------------------------


def test_a_chat_needs_only_messages() -> None:
    request = chat()
    assert request.model is None
    assert not request.stream
    assert request.stops == []
    assert not request.include_usage


def test_defaults_are_openais() -> None:
    made = sampling(completion(seed=5))
    assert made == Sampling(seed=5, max_tokens=10)
    assert (made.temperature, made.top_p, made.top_k, made.min_p) == (1.0, 1.0, 0, 0.0)
    assert made.repetition_penalty == 1.0


def test_null_means_the_default() -> None:
    names = [
        "model",
        "stream",
        "stream_options",
        "max_tokens",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "stop",
        "n",
        "presence_penalty",
        "frequency_penalty",
        "repetition_penalty",
        "logit_bias",
        "logprobs",
        "ignore_eos",
        "user",
    ]
    nulls = dict.fromkeys(names)
    assert sampling(completion(**nulls, seed=1)) == sampling(completion(seed=1))
    assert sampling(chat(**nulls, top_logprobs=None, seed=1)) == sampling(chat(seed=1))


def test_every_sampling_parameter_is_honoured() -> None:
    request = completion(
        seed=-7,
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        min_p=0.1,
        presence_penalty=-2,
        frequency_penalty=2,
        repetition_penalty=1.1,
        logit_bias={"7": -100, "99": 1.5},
        ignore_eos=True,
    )
    made = make_sampling(
        request, max_tokens=3, logprobs=2, vocab_size=VOCAB_SIZE, defaults=RECOMMENDED
    )
    assert made == Sampling(
        seed=-7,
        max_tokens=3,
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        min_p=0.1,
        presence_penalty=-2.0,
        frequency_penalty=2.0,
        repetition_penalty=1.1,
        logit_bias={7: -100.0, 99: 1.5},
        logprobs=2,
        ignore_eos=True,
    )


@pytest.mark.parametrize("given", [{}, dict.fromkeys(RECOMMENDED.__struct_fields__)])
def test_a_model_recommends_what_a_request_leaves_out(given: dict[str, None]) -> None:
    made = make_sampling(
        completion(**given, seed=1),
        max_tokens=3,
        logprobs=None,
        vocab_size=VOCAB_SIZE,
        defaults=RECOMMENDED,
    )
    names = RECOMMENDED.__struct_fields__
    assert {n: getattr(made, n) for n in names} == {n: getattr(RECOMMENDED, n) for n in names}


def test_stated_zeros_win_over_the_models_recommendations() -> None:
    stated = {"temperature": 0, "top_p": 0, "top_k": 0, "min_p": 0, "presence_penalty": 0}
    made = make_sampling(
        completion(**stated, seed=1),
        max_tokens=3,
        logprobs=None,
        vocab_size=VOCAB_SIZE,
        defaults=RECOMMENDED,
    )
    assert {name: getattr(made, name) for name in stated} == stated


def test_a_request_without_a_seed_gets_a_random_one() -> None:
    assert sampling(chat()).seed != sampling(chat()).seed
    assert 0 <= sampling(chat()).seed < 2**63


@pytest.mark.parametrize(("given_top_k", "honoured"), [(-1, 0), (0, 0), (5, 5), (10**9, 100)])
def test_top_k_is_off_or_within_the_vocabulary(given_top_k: int, honoured: int) -> None:
    assert sampling(completion(top_k=given_top_k)).top_k == honoured


def test_limits_belong_to_what_is_accepted() -> None:
    completion(temperature=2, top_p=0, min_p=1, n=MAX_CHOICES, logprobs=MAX_TOP_LOGPROBS)
    completion(seed=2**63 - 1, stop=["x"] * MAX_STOPS)
    completion(seed=-(2**63), max_tokens=1)


def test_stop_is_a_string_or_a_list() -> None:
    assert completion(stop="END").stops == ["END"]
    assert completion(stop=["a", "b"]).stops == ["a", "b"]


def test_usage_is_included_when_asked_for() -> None:
    assert chat(stream=True, stream_options={"include_usage": True}).include_usage
    assert not chat(stream=True, stream_options={"include_usage": False}).include_usage
    assert not chat(stream=True, stream_options={}).include_usage


def test_counts_in_every_chunk_need_the_last_ones() -> None:
    both = {"include_usage": True, "continuous_usage_stats": True}
    assert chat(stream=True, stream_options=both).continuous_usage
    assert not chat(stream=True, stream_options={"include_usage": True}).continuous_usage
    alone = {"continuous_usage_stats": True}
    assert refusal(chat, stream=True, stream_options=alone).param == "stream_options"


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_a_chat_states_its_limit_under_either_name(name: str) -> None:
    assert chat_max_tokens(chat(**{name: 7})) == 7


def test_a_chat_may_state_its_limit_twice_or_not_at_all() -> None:
    assert chat_max_tokens(chat(max_tokens=7, max_completion_tokens=7)) == 7
    assert chat_max_tokens(chat()) is None


def test_a_chat_that_states_two_limits_is_refused() -> None:
    request = chat(max_tokens=7, max_completion_tokens=8)
    assert refusal(chat_max_tokens, request=request).param == "max_completion_tokens"


@pytest.mark.parametrize(
    ("parameters", "alternatives"),
    [
        ({}, None),
        ({"logprobs": False}, None),
        ({"logprobs": True}, 0),
        ({"logprobs": True, "top_logprobs": 3}, 3),
    ],
)
def test_chat_log_probabilities(parameters: dict[str, Any], alternatives: int | None) -> None:
    assert chat_logprobs(chat(**parameters)) == alternatives


def test_top_logprobs_needs_logprobs() -> None:
    assert refusal(chat_logprobs, request=chat(top_logprobs=3)).param == "top_logprobs"


# --- messages -------------------------------------------------------------------------------------


def for_template(message: dict[str, Any]) -> dict[str, str]:
    """A message as the chat template gets it."""
    return chat(messages=[message]).messages[0].for_template()


def test_messages_reach_the_template_as_they_are() -> None:
    assert for_template({"role": "user", "content": "Hi"}) == {"role": "user", "content": "Hi"}


def test_text_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert for_template({"role": "user", "content": parts})["content"] == "ab"


def test_a_developer_is_the_system() -> None:
    assert for_template({"role": "developer", "content": "x"})["role"] == "system"


def test_a_name_is_passed_on() -> None:
    assert for_template({"role": "user", "content": "x", "name": "Ann"})["name"] == "Ann"


def test_an_answer_can_be_sent_back_as_it_came() -> None:
    answer = {
        "role": "assistant",
        "content": "x",
        "refusal": None,
        "audio": None,
        "annotations": [],
        "function_call": None,
        "tool_calls": None,
    }
    assert for_template(answer) == {"role": "assistant", "content": "x"}


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"content": "x"}, "messages[0].role"),
        ({"role": "user"}, "messages[0].content"),
        ({"role": "tool", "content": "x"}, "messages[0].role"),
        ({"role": "user", "content": 1}, "messages[0].content"),
        ({"role": "user", "content": "x", "weight": 1}, "messages[0].weight"),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {}}]},
            "messages[0].content[0].type",
        ),
        ({"role": "assistant", "content": "x", "tool_calls": [{}]}, "messages[0].tool_calls"),
        ("Hi", "messages[0]"),
    ],
)
def test_a_wrong_message_is_named(message: Any, param: str) -> None:
    refused = refusal(chat, messages=[message])
    assert refused.param == param
    assert param in refused.message


def test_a_conversation_has_messages() -> None:
    assert refusal(chat, messages=[]).param == "messages"


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", 2.1),
        ("temperature", -0.1),
        ("temperature", "hot"),
        ("temperature", True),
        ("top_p", 1.1),
        ("top_p", -0.1),
        ("top_k", -2),
        ("top_k", 1.5),
        ("min_p", 2),
        ("n", 0),
        ("n", MAX_CHOICES + 1),
        ("max_tokens", 0),
        ("max_tokens", -1),
        ("max_tokens", "5"),
        ("seed", 2**63),
        ("seed", 0.5),
        ("stop", ""),
        ("stop", 1),
        ("stop", ["x"] * (MAX_STOPS + 1)),
        ("presence_penalty", 2.1),
        ("frequency_penalty", -2.1),
        ("repetition_penalty", 0),
        ("repetition_penalty", 11),
        ("logit_bias", []),
        ("ignore_eos", 1),
        ("stream", "yes"),
        ("user", 5),
        ("model", 5),
    ],
)
def test_a_value_out_of_range_names_its_parameter(name: str, value: object) -> None:
    for make in (chat, completion):
        refused = refusal(make, **{name: value})
        assert refused.param == name
        assert refused.message.startswith(f"{name}: ")
        assert refused.code == "invalid_value"


def test_a_value_within_a_list_or_map_names_its_parameter() -> None:
    for parameters, param in (
        ({"stop": ["x", ""]}, "stop"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options"),
    ):
        refused = refusal(completion, **parameters)
        assert refused.param is not None
        assert refused.param.startswith(param)


def test_an_unknown_parameter_is_named() -> None:
    refused = refusal(chat, temprature=0.5)
    assert (refused.param, refused.code) == ("temprature", "unknown_parameter")
    assert refusal(chat, stream=True, stream_options={"x": 1}).param == "stream_options.x"


def test_a_missing_parameter_is_named() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse(ChatRequest, b"{}")
    assert (caught.value.param, caught.value.code) == ("messages", "missing_required_parameter")


def test_stream_options_need_a_stream() -> None:
    assert refusal(chat, stream_options={"include_usage": True}).param == "stream_options"


def test_parameters_of_the_other_endpoint_are_unknown() -> None:
    assert refusal(completion, max_completion_tokens=5).param == "max_completion_tokens"
    assert refusal(completion, messages=[USER]).param == "messages"
    assert refusal(chat, prompt="Hi").param == "prompt"


@pytest.mark.parametrize("name", sorted(UNSUPPORTED))
def test_an_unsupported_parameter_is_named(name: str) -> None:
    refused = refusal(completion, **{name: "something"})
    assert (refused.param, refused.code) == (name, "unsupported_parameter")
    assert name in refused.message


@pytest.mark.parametrize(
    ("name", "value"), [(name, v) for name, harmless in UNSUPPORTED.items() for v in harmless]
)
def test_a_value_that_asks_for_nothing_is_accepted(name: str, value: object) -> None:
    chat(**{name: value})
    completion(**{name: value})


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff", b'{"prompt": "\xff"}', b'"\\ud800"', b"1e999"]
)
def test_a_body_that_is_not_json_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequestError, match="not valid JSON"):
        parse(CompletionRequest, body)


@pytest.mark.parametrize("body", [b"[]", b"null", b'"text"', b"1"])
def test_a_body_that_is_not_an_object_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequestError, match="JSON object"):
        parse(CompletionRequest, body)


@pytest.mark.parametrize("depth", [500, 990, 1_000, 100_000])
def test_deep_nesting_kills_nobody(depth: int) -> None:
    for name in (b"prompt", b"tools", b"metadata", b"stop"):
        nested = b"[" * depth + b"]" * depth
        with contextlib.suppress(InvalidRequestError):
            parse(CompletionRequest, b'{"' + name + b'": ' + nested + b"}")


def test_huge_numbers_kill_nobody() -> None:
    for digits in (30, 400, 5_000):
        for name in ("seed", "n", "temperature", "logprobs"):
            body = f'{{"prompt": "x", "{name}": 1{"0" * digits}}}'
            with pytest.raises(InvalidRequestError):
                parse(CompletionRequest, body.encode())


NAMES = [
    *ChatRequest.__struct_fields__,
    *CompletionRequest.__struct_fields__,
    *UNSUPPORTED,
    "unknown",
]
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5)
    | st.sampled_from(["user", "system", "text", "auto", "none", " - at `$.x`", "`"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "type", "text", "include_usage", "1"])
            | st.text(max_size=5),
            inner,
            max_size=3,
        )
    ),
    max_leaves=6,
)
BODIES = st.one_of(
    JSON,
    st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=5), JSON, max_size=6),
    st.dictionaries(st.sampled_from(NAMES), JSON, max_size=4).map(
        lambda body: {"messages": [USER], **body}
    ),
    st.dictionaries(st.sampled_from(NAMES), JSON, max_size=4).map(
        lambda body: {"prompt": "Hi", **body}
    ),
)


@given(body=BODIES)
def test_any_json_is_a_request_or_a_refusal(body: Any) -> None:
    encoded = json.dumps(body).encode()
    with contextlib.suppress(InvalidRequestError):
        as_chat = parse(ChatRequest, encoded)
        chat_max_tokens(as_chat)
        chat_logprobs(as_chat)
        sampling(as_chat)
        for message in as_chat.messages:
            message.for_template()
    with contextlib.suppress(InvalidRequestError):
        as_completion = parse(CompletionRequest, encoded)
        split_prompt(as_completion.prompt, VOCAB_SIZE)
        sampling(as_completion)


@given(body=st.binary(max_size=40))
def test_any_bytes_are_a_request_or_a_refusal(body: bytes) -> None:
    for kind in (ChatRequest, CompletionRequest):
        with pytest.raises(InvalidRequestError):
            parse(kind, body)


# --- prompts --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        ("Hi", ["Hi"]),
        ("", [""]),
        (["a", "b"], ["a", "b"]),
        ([1, 2, 3], [[1, 2, 3]]),
        ([[1], [2, 99]], [[1], [2, 99]]),
    ],
)
def test_a_prompt_has_four_forms(prompt: Any, parts: list[Any]) -> None:
    assert split_prompt(prompt, VOCAB_SIZE) == parts


@pytest.mark.parametrize(
    "prompt",
    [
        [],
        [[]],
        [[1], []],
        [VOCAB_SIZE],
        [-1],
        [[1], [VOCAB_SIZE]],
        [True],
        [1.0],
        [None],
        ["a", 1],
        [[1], "a"],
        [["a"]],
        [[[1]]],
        [{}],
    ],
)
def test_any_other_prompt_is_refused(prompt: Any) -> None:
    refused = refusal(split_prompt, prompt=prompt, vocab_size=VOCAB_SIZE)
    assert refused.param == "prompt"
    assert str(VOCAB_SIZE) in refused.message


# --- logit bias -----------------------------------------------------------------------------------


def test_logit_bias_becomes_token_ids() -> None:
    assert parse_logit_bias({"0": 1.0, "99": -1.0}, VOCAB_SIZE) == {0: 1.0, 99: -1.0}


@pytest.mark.parametrize("key", ["100", "-1", "1.0", "x", "", " 1", "+1", "1_0", "²", "٣"])
def test_a_logit_bias_for_no_token_is_refused(key: str) -> None:
    refused = refusal(parse_logit_bias, bias={key: 1.0}, vocab_size=VOCAB_SIZE)
    assert refused.param == "logit_bias"
    assert repr(key) in refused.message


def test_a_logit_bias_with_thousands_of_digits_is_refused() -> None:
    refused = refusal(parse_logit_bias, bias={"1" * 5_000: 1.0}, vocab_size=VOCAB_SIZE)
    assert refused.param == "logit_bias"
    assert len(refused.message) < 1_000
