"""The mixed load: requests of all kinds, each a function of the seed."""

from __future__ import annotations

import random
from typing import Any

from msgspec import Struct

from mlxfleet.bench.conversations import Endpoint

KEYS = 2
WORDS = (
    "river",
    "stone",
    "lamp",
    "winter",
    "engine",
    "paper",
    "signal",
    "garden",
    "violin",
    "harbor",
)
# Shared prefixes are shorter than a block, and over a few and many blocks.
STEM_WORDS = (4, 40, 160)
STEMS_OF_EACH = 2
SHORT_TOKENS = (1, 2, 3)


class Case(Struct, frozen=True, kw_only=True):
    """A request. `stop_at` is where in the text, as a share, its stop string is taken from.

    A client that leaves reads so many events of a stream, or waits so many seconds for an answer.
    Without `exact` there is no seed, so only counts and the end can be compared.
    """

    name: str
    endpoint: Endpoint
    body: dict[str, Any]
    key: int
    stop_at: float | None = None
    leaves_after_events: int | None = None
    leaves_after_s: float | None = None
    exact: bool = True

    @property
    def choices(self) -> int:
        """How many choices the answer has."""
        prompt = self.body.get("prompt")
        prompts = len(prompt) if isinstance(prompt, list) else 1
        return prompts * int(self.body.get("n", 1))

    @property
    def streamed(self) -> bool:
        """Whether the answer comes as events."""
        return bool(self.body.get("stream"))

    @property
    def leaves(self) -> bool:
        """Whether the client goes away before the end."""
        return self.leaves_after_events is not None or self.leaves_after_s is not None


def make_cases(rng: random.Random, count: int, longest: int) -> list[Case]:
    """So many requests; `longest` bounds their answers, in tokens."""
    stems = [sentence(rng, words) for words in STEM_WORDS for _ in range(STEMS_OF_EACH)]
    return [make_case(rng, index, stems, longest) for index in range(count)]


def make_case(rng: random.Random, index: int, stems: list[str], longest: int) -> Case:
    """One request."""
    endpoint: Endpoint = rng.choice(("completions", "chat"))
    exact = rng.random() < 0.95
    stop_at = rng.uniform(0.3, 0.9) if exact and rng.random() < 0.2 else None
    body: dict[str, Any] = {
        **prompt_fields(rng, endpoint, stems),
        **sampling_fields(rng, exact),
        **logprob_fields(rng, endpoint),
        "max_tokens": answer_tokens(rng, longest),
        "ignore_eos": not exact or rng.random() < 0.7,
    }
    if rng.random() < 0.2:
        body["n"] = rng.choice((2, 3))
    if rng.random() < 0.25:
        body["priority"] = "batch"
    leaving = rng.random() < 0.15 and stop_at is None
    if rng.random() < 0.65:
        body |= stream_fields(rng)
    events = rng.randrange(1, 30) if leaving and "stream" in body else None
    waits_s = rng.uniform(0.05, 1.0) if leaving and events is None else None
    return Case(
        name=f"request {index}",
        endpoint=endpoint,
        body=body,
        key=rng.randrange(KEYS),
        stop_at=stop_at,
        leaves_after_events=events,
        leaves_after_s=waits_s,
        exact=exact,
    )


def prompt_fields(rng: random.Random, endpoint: Endpoint, stems: list[str]) -> dict[str, Any]:
    """A stem that others share, and an end of its own."""
    text = f"{rng.choice(stems)} {sentence(rng, rng.randrange(1, 8))}"
    if endpoint == "chat":
        messages = [{"role": "user", "content": text}]
        if rng.random() < 0.5:
            messages.insert(0, {"role": "system", "content": rng.choice(stems)})
        return {"messages": messages}
    if rng.random() < 0.1:
        return {"prompt": [text, sentence(rng, 5)]}
    return {"prompt": text}


def sampling_fields(rng: random.Random, exact: bool) -> dict[str, Any]:
    """Greedy, or seeded with some of the parameters that bend the distribution."""
    if exact and rng.random() < 0.4:
        return {"temperature": 0}
    fields: dict[str, Any] = {"temperature": round(rng.uniform(0.5, 1.3), 2)}
    if exact:
        fields["seed"] = rng.getrandbits(40)
    extras = {
        "top_p": round(rng.uniform(0.5, 1.0), 2),
        "top_k": rng.randrange(5, 200),
        "min_p": round(rng.uniform(0.0, 0.1), 3),
        "presence_penalty": round(rng.uniform(-0.5, 1.0), 2),
        "frequency_penalty": round(rng.uniform(-0.3, 0.6), 2),
        "repetition_penalty": round(rng.uniform(1.0, 1.3), 2),
    }
    return fields | {name: value for name, value in extras.items() if rng.random() < 0.2}


def logprob_fields(rng: random.Random, endpoint: Endpoint) -> dict[str, Any]:
    """A third of the requests want log-probabilities."""
    if rng.random() > 0.33:
        return {}
    top = rng.randrange(4)
    return {"logprobs": True, "top_logprobs": top} if endpoint == "chat" else {"logprobs": top}


def stream_fields(rng: random.Random) -> dict[str, Any]:
    """Streams with and without token counts."""
    options: tuple[dict[str, bool], ...] = (
        {},
        {"include_usage": True},
        {"include_usage": True, "continuous_usage_stats": True},
    )
    chosen = rng.choices(options, weights=(1, 3, 1))[0]
    return {"stream": True, **({"stream_options": chosen} if chosen else {})}


def answer_tokens(rng: random.Random, longest: int) -> int:
    """Mostly short answers, some of a token or two, some long enough to meet a fault."""
    kind = rng.random()
    if kind < 0.1:
        return min(longest, rng.choice(SHORT_TOKENS))
    if kind < 0.5:
        return rng.randrange(1, max(2, longest // 5))
    return rng.randrange(max(1, longest // 3), longest + 1)


def sentence(rng: random.Random, words: int) -> str:
    """Some words."""
    return " ".join(rng.choice(WORDS) for _ in range(words))
