"""A model whose makers recommend sampling parameters."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlxfleet.common.sampling_defaults import FILE
from tests.integration.fleet import Fleet

QUESTION = [{"role": "user", "content": "Tell me a story."}]


@pytest.fixture(scope="module")
def fleet(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A fleet with a model that is to be greedy, and one of whose values is not usable."""
    folder = tmp_path_factory.mktemp("models") / "greedy"
    shutil.copytree(tiny_model, folder)
    stated = json.loads((folder / FILE).read_text())
    stated |= {"do_sample": False, "repetition_penalty": 1.3, "top_k": "many"}
    (folder / FILE).write_text(json.dumps(stated))
    with Fleet("--model", str(folder), "--memory-gb", "2") as fleet:
        yield fleet


def answer(fleet: Fleet, **parameters: Any) -> str:
    """The text of an answer of 24 tokens."""
    extra = {"ignore_eos": True, **parameters}
    chat = fleet.client().chat.completions.create(
        model="greedy", messages=QUESTION, max_tokens=24, extra_body=extra
    )
    return str(chat.choices[0].message.content)


def test_requests_that_do_not_say_are_sampled_as_the_model_recommends(fleet: Fleet) -> None:
    recommended = answer(fleet, temperature=0, repetition_penalty=1.3)
    assert answer(fleet) == answer(fleet, temperature=None) == recommended


def test_a_stated_value_wins(fleet: Fleet) -> None:
    assert answer(fleet, temperature=2, seed=1) != answer(fleet, temperature=2, seed=2)


def test_the_models_list_shows_what_is_in_effect(fleet: Fleet) -> None:
    (model,) = json.loads(fleet.get("/v1/models")[1])["data"]
    assert model["default_sampling"] == {
        "temperature": 0.0,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "repetition_penalty": 1.3,
    }


def test_a_value_that_is_not_usable_is_logged_by_its_name(fleet: Fleet) -> None:
    assert [line for line in fleet.lines if "WARNING" in line and "top_k is not used" in line]


def test_the_printed_request_is_greedy(fleet: Fleet) -> None:
    (line,) = [line for line in fleet.lines if line.startswith("try: curl ")]
    assert json.loads(line[line.index("{") : line.rindex("}") + 1])["temperature"] == 0
