"""The engine's bookkeeping: chunks, aborts, ends. What it computes is in test_architectures."""

from __future__ import annotations

from typing import Any

import pytest

from mlxfleet.common.messages import Admit, Prefill, Sampling, Step
from mlxfleet.workers.engine import Engine
from tests.workers.engine_driver import Driver, Request, engine_for, generate_alone
from tests.workers.tiny_models import VOCAB_SIZE, build

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]


@pytest.fixture(scope="module")
def model() -> Any:
    return build("llama")


@pytest.fixture
def engine(model: Any) -> Engine:
    return engine_for(model)


def admit(engine: Engine, rid: str, prompt: list[int], max_tokens: int = 4) -> None:
    sampling = Sampling(seed=0, temperature=0.0, max_tokens=max_tokens)
    engine.admit(Admit(rid=rid, token_ids=prompt, n_output=0, sampling=sampling))


def run(engine: Engine) -> list[Step]:
    steps = []
    while engine.busy:
        steps.append(engine.step("e"))
        assert len(steps) < 100
    return steps


def tokens_of(steps: list[Step], rid: str) -> list[int]:
    return [
        token for step in steps for r, token in zip(step.rids, step.ids, strict=True) if r == rid
    ]


def prefilled(steps: list[Step]) -> list[tuple[str, int]]:
    return [chunk for step in steps for chunk in step.prefilled]


def test_nothing_to_do_at_first(engine: Engine) -> None:
    assert not engine.busy
    step = engine.step("an epoch")
    assert (step.epoch, step.rids, step.prefilled) == ("an epoch", [], [])


def test_a_row_waits_for_all_of_its_prompt(engine: Engine) -> None:
    admit(engine, "a", PROMPT)
    engine.prefill(Prefill(["a"], [3]))
    assert prefilled(run(engine)) == [("a", 3)]
    assert not engine.busy
    engine.prefill(Prefill(["a"], [4]))
    steps = run(engine)
    assert prefilled(steps) == [("a", 4)]
    assert len(tokens_of(steps, "a")) == 4


def test_one_command_runs_per_pass_beside_decoding(engine: Engine, model: Any) -> None:
    admit(engine, "a", [7], max_tokens=20)
    engine.step("e")
    admit(engine, "b", PROMPT)
    for _ in range(7):
        engine.prefill(Prefill(["b"], [1]))
    assert engine.step("e").rids == ["a"]
    for _ in range(7):
        step = engine.step("e")
        assert step.rids[0] == "a"
        assert step.prefilled == [("b", 1)]
    # The pass of the last chunk has decoded the last token of the prompt.
    assert step.rids == ["a", "b"]
    steps = [step, *run(engine)]
    assert tokens_of(steps, "b") == generate_alone(model, PROMPT, 4).ids


def test_a_chunk_for_an_unknown_row_is_reported_with_no_tokens(engine: Engine) -> None:
    engine.prefill(Prefill(["nobody"], [5]))
    assert prefilled(run(engine)) == [("nobody", 0)]


def test_more_chunks_than_needed_do_no_harm(engine: Engine, model: Any) -> None:
    admit(engine, "a", PROMPT)
    for tokens in (100, 5):
        engine.prefill(Prefill(["a"], [tokens]))
    steps = run(engine)
    assert prefilled(steps) == [("a", 7), ("a", 0)]
    assert tokens_of(steps, "a") == generate_alone(model, PROMPT, 4).ids


def test_chunks_of_an_aborted_row_do_not_run_for_its_successor(engine: Engine, model: Any) -> None:
    admit(engine, "a", [8, 8, 8, 8])
    engine.prefill(Prefill(["a"], [3]))
    engine.drop("a")
    admit(engine, "a", PROMPT)
    engine.prefill(Prefill(["a"], [7]))
    steps = run(engine)
    assert prefilled(steps) == [("a", 0), ("a", 7)]
    assert tokens_of(steps, "a") == generate_alone(model, PROMPT, 4).ids


def test_an_aborted_row_gives_no_more_tokens(engine: Engine) -> None:
    admit(engine, "a", [7], max_tokens=50)
    admit(engine, "b", [8], max_tokens=5)
    engine.step("e")
    assert engine.step("e").rids == ["a", "b"]
    engine.drop("a")
    steps = run(engine)
    assert tokens_of(steps, "a") == []
    assert len(tokens_of(steps, "b")) == 4


def test_a_row_can_be_aborted_before_it_joins(engine: Engine) -> None:
    admit(engine, "a", [7])
    engine.drop("a")
    assert tokens_of(run(engine), "a") == []
    assert not engine.busy


def test_aborting_a_row_that_is_gone_does_nothing(engine: Engine) -> None:
    admit(engine, "a", [7])
    run(engine)
    engine.drop("a")
    engine.drop("nobody")
    assert not engine.busy


def test_reset_drops_everything(engine: Engine, model: Any) -> None:
    admit(engine, "a", [7], max_tokens=50)
    admit(engine, "b", PROMPT)
    engine.prefill(Prefill(["b"], [3]))
    engine.step("e")
    engine.reset()
    assert not engine.busy
    admit(engine, "a", [9])
    assert tokens_of(run(engine), "a") == generate_alone(model, [9], 4).ids


def test_an_end_of_sequence_token_is_reported_and_ends_the_row(model: Any) -> None:
    ids = generate_alone(model, PROMPT, 20).ids
    eos = ids[6]
    engine = engine_for(model, {eos, VOCAB_SIZE + 1})
    requests = [
        Request(
            rid=rid,
            prompt=PROMPT,
            sampling=Sampling(seed=0, temperature=0.0, max_tokens=20, ignore_eos=ignore),
        )
        for rid, ignore in (("stops", False), ("goes on", True))
    ]
    results = Driver(engine, requests, chunks=[4]).run()
    assert results["stops"].ids == ids[: ids.index(eos) + 1]
    assert results["stops"].finish == "stop"
    assert results["goes on"].ids == ids
    assert results["goes on"].finish == "length"


def test_an_end_of_sequence_token_in_the_last_place_is_a_stop(model: Any) -> None:
    ids = generate_alone(model, PROMPT, 20).ids
    first = ids.index(ids[6])
    engine = engine_for(model, {ids[6]})
    sampling = Sampling(seed=0, temperature=0.0, max_tokens=first + 1)
    results = Driver(engine, [Request(rid="a", prompt=PROMPT, sampling=sampling)], [4]).run()
    assert results["a"].finish == "stop"


def test_log_probabilities_only_for_rows_that_ask(engine: Engine) -> None:
    requests = [
        Request(
            rid=str(count),
            prompt=PROMPT,
            sampling=Sampling(seed=0, temperature=0.0, max_tokens=3, logprobs=count),
        )
        for count in (None, 0, 2, 5)
    ]
    results = Driver(engine, requests, chunks=[7]).run()
    assert results["None"].logprobs == []
    for count in (0, 2, 5):
        result = results[str(count)]
        assert [len(token.top_ids) for token in result.logprobs] == [count] * 3
        if count:
            assert [token.top_ids[0] for token in result.logprobs] == result.ids
            assert all(token.top_logprobs[0] == token.logprob for token in result.logprobs)
