"""A model that computes NaN for some prompts: those end with an error, and all others are right."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from tests.integration.fleet import Fleet, wait_for

BAD_TOKEN = 20_000
GOOD = {"prompt": [5000, 6000, 7000], "max_tokens": 6, "temperature": 0, "logprobs": 1}
BAD = {**GOOD, "prompt": [5000, BAD_TOKEN, 7000]}


@pytest.fixture(scope="module")
def fleet(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """The tiny model, with a head of its own and one embedding that is NaN."""
    folder = tmp_path_factory.mktemp("models") / "broken"
    folder.mkdir()
    for file in tiny_model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    weights = load_file(folder / "model.safetensors")
    embedding = weights["model.embed_tokens.weight"]
    weights["lm_head.weight"] = embedding.copy()
    embedding = embedding.copy()
    embedding[BAD_TOKEN] = math.nan
    weights["model.embed_tokens.weight"] = embedding
    save_file(weights, folder / "model.safetensors", {"format": "mlx"})
    with Fleet("--model", str(folder), "--memory-gb", "1") as fleet:
        yield fleet


def the_node(fleet: Fleet) -> dict[str, Any]:
    return dict(json.loads(fleet.get("/fleet")[1])["nodes"][0])


def test_the_request_ends_with_an_error_and_the_node_stays_in_service(fleet: Fleet) -> None:
    _, before, _ = fleet.post("/v1/completions", GOOD)
    for _ in range(5):
        status, body, _ = fleet.post("/v1/completions", BAD)
        assert (status, body["error"]["type"]) == (500, "server_error")
        assert "values that are not numbers" in body["error"]["message"]
    status, after, _ = fleet.post("/v1/completions", GOOD)
    assert status == 200
    assert after["choices"] == before["choices"]
    wait_for(lambda: the_node(fleet)["running"] == 0, "a report of an idle node")
    node = the_node(fleet)
    assert (node["state"], node["breaker"], node["worker_restarts"]) == ("ready", "closed", 0)


def test_a_prompt_beside_it_is_answered_as_if_alone(fleet: Fleet) -> None:
    _, alone, _ = fleet.post("/v1/completions", GOOD)
    both = {**GOOD, "prompt": [GOOD["prompt"], BAD["prompt"]]}
    assert fleet.post("/v1/completions", both)[0] == 500
    stream = fleet.client().completions.create(model="broken", stream=True, **GOOD)
    text = "".join(chunk.choices[0].text for chunk in stream)
    assert text == alone["choices"][0]["text"]
