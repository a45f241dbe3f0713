"""Prompts of random words."""

from __future__ import annotations

from mlxfleet.bench.prompts import random_prompts


def test_prompts_are_the_same_for_a_seed_and_differ_otherwise() -> None:
    prompts = random_prompts(20, 64, seed="a")
    assert prompts == random_prompts(20, 64, seed="a")
    assert len({*prompts, *random_prompts(20, 64, seed="b")}) == 40
    assert all(len(prompt.split()) == 64 for prompt in prompts)
