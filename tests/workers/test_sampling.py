"""Each row gets the token that its own logits, parameters, seed and position call for."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxfleet.common.messages import Sampling, TokenLogprobs
from mlxfleet.workers.sampling import Sampled, Sampler, SamplingRow, read_logprobs

VOCAB = 50
STEPS = 8
PROMPT = [1, 2, 2, 3]


def sampling(**parameters: Any) -> Sampling:
    return Sampling(**{"seed": 5, "max_tokens": 100, "temperature": 0.0, **parameters})


def row(prompt: Sequence[int] = PROMPT, output: Sequence[int] = (), **parameters: Any) -> Any:
    return SamplingRow(sampling(**parameters), [*prompt, *output], len(output))


def logits_for(seed: int, steps: int = STEPS, vocab: int = VOCAB) -> np.ndarray:
    """Random logits [steps, vocabulary]."""
    return np.random.default_rng(seed).normal(0, 3, (steps, vocab)).astype(np.float32)


def sampler_of(*rows: SamplingRow, vocab: int = VOCAB) -> Sampler:
    sampler = Sampler()
    sampler.join(rows, vocab)
    return sampler


def tokens_of(sampled: Sampled) -> list[int]:
    return [int(token) for token in np.array(sampled.tokens)]


# --- greedy -------------------------------------------------------------------------------------


def test_greedy_takes_the_most_likely_token() -> None:
    logits = logits_for(0, steps=7)
    sampler = sampler_of(*(row() for _ in range(7)))
    assert tokens_of(sampler(mx.array(logits))) == logits.argmax(-1).tolist()


@pytest.mark.parametrize(
    "parameters",
    [
        {"top_k": 1},
        {"top_p": 0.0},
        {"top_p": 1e-6},
        {"min_p": 1.0},
        {"temperature": 1e-7},
        {"temperature": 1e-40},
    ],
    ids=str,
)
def test_the_narrowest_choice_is_greedy(parameters: dict[str, float]) -> None:
    logits = logits_for(1, steps=100)
    rows = [row(**{"temperature": 2.0, "seed": seed, **parameters}) for seed in range(100)]
    assert tokens_of(sampler_of(*rows)(mx.array(logits))) == logits.argmax(-1).tolist()


def test_other_number_formats_are_taken() -> None:
    logits = mx.array(logits_for(2, steps=3)).astype(mx.bfloat16)
    rows = [row(logprobs=2), row(temperature=1.0), row(frequency_penalty=1.0, logit_bias={7: 100})]
    sampled = sampler_of(*rows)(logits)
    greedy, drawn, biased = tokens_of(sampled)
    assert greedy == mx.argmax(logits[0]).item()
    assert 0 <= drawn < VOCAB
    assert biased == 7
    logprobs = read_logprobs(sampled, rows)[0]
    assert logprobs.logprob == pytest.approx(log_softmax(logits[0].astype(mx.float32))[greedy])


# --- independence of what else is in the batch --------------------------------------------------

VARIETY: list[dict[str, Any]] = [
    {},
    {"temperature": 1.0, "seed": 1},
    {"temperature": 0.7, "seed": 2, "top_p": 0.8},
    {"temperature": 1.5, "seed": 3, "top_k": 5},
    {"temperature": 1.5, "seed": 3, "top_k": 20, "top_p": 0.5, "min_p": 0.02},
    {"temperature": 1.0, "seed": 4, "min_p": 0.1, "logprobs": 3},
    {"repetition_penalty": 1.8, "logprobs": 0},
    {"temperature": 1.0, "seed": 6, "presence_penalty": 1.0, "frequency_penalty": 0.5},
    {"frequency_penalty": 2.0, "logit_bias": {3: 5.0, 4: -100.0}},
    {"temperature": 0.9, "seed": 7, "logit_bias": {9: 3.0}, "logprobs": 5},
    {"logprobs": 1},
]


def run_alone(index: int, steps: int = STEPS) -> list[tuple[int, TokenLogprobs | None]]:
    """Tokens and log-probabilities of one of VARIETY that has the sampler to itself."""
    mine = row(**VARIETY[index])
    sampler = sampler_of(mine)
    results = []
    for logits in logits_for(index, steps):
        sampled = sampler(mx.array(logits[None]))
        results.append((tokens_of(sampled)[0], read_logprobs(sampled, [mine]).get(0)))
    return results


ALONE = [run_alone(index) for index in range(len(VARIETY))]


@settings(derandomize=True, deadline=None, database=None, max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(range(len(VARIETY))),
            st.integers(min_value=0, max_value=6),
            st.integers(min_value=1, max_value=STEPS),
        ),
        min_size=1,
        max_size=12,
    )
)
def test_rows_are_alone_in_any_company(visits: list[tuple[int, int, int]]) -> None:
    """Rows join at one step and leave some steps later; each sees only itself."""
    sampler = Sampler()
    present: list[tuple[int, SamplingRow, int]] = []
    for step in range(6 + STEPS):
        keep = [i for i, (_, state, stay) in enumerate(present) if state.position < stay]
        present = [present[i] for i in keep]
        sampler.keep(keep)
        new = [(which, row(**VARIETY[which]), stay) for which, at, stay in visits if at == step]
        present += new
        sampler.join([state for _, state, _ in new], VOCAB)
        if not present:
            continue
        logits = [logits_for(which)[state.position] for which, state, _ in present]
        sampled = sampler(mx.array(np.stack(logits)))
        logprobs = read_logprobs(sampled, [state for _, state, _ in present])
        for i, (token, (which, state, _)) in enumerate(
            zip(tokens_of(sampled), present, strict=True)
        ):
            expected_token, expected_logprobs = ALONE[which][state.position - 1]
            assert token == expected_token
            assert_same_logprobs(logprobs.get(i), expected_logprobs)


def assert_same_logprobs(one: TokenLogprobs | None, other: TokenLogprobs | None) -> None:
    if one is None or other is None:
        assert one is other
        return
    assert one.logprob == pytest.approx(other.logprob, abs=1e-5)
    assert one.top_ids == other.top_ids
    assert one.top_logprobs == pytest.approx(other.top_logprobs, abs=1e-5)


@pytest.mark.parametrize("index", range(len(VARIETY)))
def test_a_row_continues_from_any_position(index: int) -> None:
    tokens = [token for token, _ in ALONE[index]]
    for done in (1, 3, STEPS - 1):
        sampler = sampler_of(row(output=tokens[:done], **VARIETY[index]))
        for position in range(done, STEPS):
            logits = mx.array(logits_for(index)[position][None])
            assert tokens_of(sampler(logits)) == [tokens[position]]


def test_rows_can_change_places() -> None:
    rows = [row(**parameters) for parameters in VARIETY]
    order = list(range(len(rows)))
    sampler = sampler_of(*rows)
    for step in range(STEPS):
        logits = np.stack([logits_for(index)[step] for index in order])
        assert tokens_of(sampler(mx.array(logits))) == [ALONE[index][step][0] for index in order]
        turn = [*range(4, len(order)), *range(4)]
        order = [order[place] for place in turn]
        sampler.keep(turn)


# --- distribution -------------------------------------------------------------------------------

DRAWS = 3000
SMALL = np.array([1.0, 0.5, 0.0, -0.5, 2.0, 1.9, -1.0, 0.2, -3.0, 0.9], dtype=np.float32)


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits.astype(np.float64) - logits.max())
    return np.asarray(weights / weights.sum())


def restricted(
    logits: np.ndarray, *, temperature: float, top_k: int = 0, top_p: float = 1, min_p: float = 0
) -> np.ndarray:
    """The distribution that the parameters ask for, one token at a time."""
    probabilities = softmax(logits / temperature)
    order = [int(token) for token in np.argsort(-probabilities)]
    allowed = order[: top_k or None]
    mass = sum(probabilities[token] for token in allowed)
    nucleus, before = [], 0.0
    for token in allowed:
        if not nucleus or top_p >= 1 or before < top_p * mass:
            nucleus.append(token)
        before += probabilities[token]
    kept = [t for t in nucleus if probabilities[t] >= min_p * probabilities[order[0]]]
    result = np.zeros_like(probabilities)
    result[kept] = probabilities[kept]
    return np.asarray(result / result.sum())


def assert_distributed(tokens: Sequence[int], expected: np.ndarray) -> None:
    """Pearson's chi-square at the 99.9th percentile (Wilson and Hilferty's approximation)."""
    possible = expected > 0
    counts = np.bincount(tokens, minlength=len(expected))
    assert counts[~possible].sum() == 0, "a token that was ruled out"
    wanted = expected[possible] * len(tokens)
    statistic = ((counts[possible] - wanted) ** 2 / wanted).sum()
    freedom = possible.sum() - 1
    if freedom:
        spread = 2 / (9 * freedom)
        assert statistic < freedom * (1 - spread + 3.09 * math.sqrt(spread)) ** 3


PARAMETERS: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 0.5},
    {"temperature": 2.0},
    {"temperature": 1.0, "top_k": 3},
    {"temperature": 1.0, "top_p": 0.6},
    {"temperature": 1.5, "min_p": 0.2},
    {"temperature": 0.8, "top_k": 6, "top_p": 0.9, "min_p": 0.05},
]


@pytest.mark.parametrize("parameters", PARAMETERS, ids=str)
def test_draws_of_many_seeds_follow_the_softmax(parameters: dict[str, Any]) -> None:
    rows = [row([1], seed=seed, **parameters) for seed in range(DRAWS)]
    sampler = sampler_of(*rows, vocab=len(SMALL))
    tokens = tokens_of(sampler(mx.array(np.tile(SMALL, (DRAWS, 1)))))
    assert_distributed(tokens, restricted(SMALL, **parameters))


def test_rows_of_one_batch_follow_their_own_distributions() -> None:
    each = 1000
    rows = [row([1], seed=seed, **p) for p in PARAMETERS for seed in range(each)]
    sampler = sampler_of(*rows, vocab=len(SMALL))
    tokens = tokens_of(sampler(mx.array(np.tile(SMALL, (len(rows), 1)))))
    for i, parameters in enumerate(PARAMETERS):
        mine = tokens[i * each : (i + 1) * each]
        assert_distributed(mine, restricted(SMALL, **parameters))


def test_draws_at_successive_positions_are_independent() -> None:
    rows = 100
    sampler = sampler_of(*(row([1], seed=seed, temperature=1.0) for seed in range(rows)))
    logits = mx.array(np.tile(SMALL[:4], (rows, 1)))
    drawn = np.array([tokens_of(sampler(logits)) for _ in range(41)])
    probabilities = softmax(SMALL[:4])
    pairs = np.outer(probabilities, probabilities).ravel()
    assert_distributed((drawn[:-1] * 4 + drawn[1:]).ravel().tolist(), pairs)
    assert_distributed((drawn[:, :-1] * 4 + drawn[:, 1:]).ravel().tolist(), pairs)


def test_a_large_vocabulary_is_drawn_from_evenly() -> None:
    vocab, rows, bins = 40_000, 50, 20
    sampler = sampler_of(*(row([1], seed=seed, temperature=1.0) for seed in range(rows)))
    logits = mx.zeros((rows, vocab))
    drawn = [token for _ in range(20) for token in tokens_of(sampler(logits))]
    assert_distributed([token * bins // vocab for token in drawn], np.full(bins, 1 / bins))


def test_equally_likely_tokens_at_the_border_of_top_k_are_all_kept() -> None:
    logits = mx.array([[3.0, 2.0, 2.0, 2.0, 1.0]])
    seen = set()
    for seed in range(200):
        sampler = sampler_of(row([1], seed=seed, temperature=1.0, top_k=2), vocab=5)
        seen |= set(tokens_of(sampler(logits)))
    assert seen == {0, 1, 2, 3}


# --- penalties and bias -------------------------------------------------------------------------


def penalized(
    logits: np.ndarray, parameters: Sampling, prompt: list[int], output: list[int]
) -> Any:
    """Penalties and bias one token at a time, as the OpenAI and CTRL papers define them."""
    counts = Counter(output)
    result = logits.astype(np.float64).copy()
    for token in range(len(logits)):
        if token in counts or token in prompt:
            factor = parameters.repetition_penalty
            result[token] = result[token] / factor if result[token] > 0 else result[token] * factor
        if token in counts:
            result[token] -= parameters.frequency_penalty * counts[token]
            result[token] -= parameters.presence_penalty
        result[token] += parameters.logit_bias.get(token, 0.0)
    return result


PENALTIES: list[dict[str, Any]] = [
    {"repetition_penalty": 1.5},
    {"repetition_penalty": 0.5},
    {"presence_penalty": 1.5},
    {"presence_penalty": -2.0},
    {"frequency_penalty": 0.8},
    {"frequency_penalty": -0.3},
    {"repetition_penalty": 1.2, "presence_penalty": 0.5, "frequency_penalty": 0.4},
    {"repetition_penalty": 1.2, "frequency_penalty": 0.4, "logit_bias": {0: 4.0, 5: -3.0}},
    {},
]


def test_penalties_follow_their_definitions_while_rows_come_and_go() -> None:
    # Few tokens and steps with similar logits, so that penalties decide.
    vocab, steps = 12, 20
    base = logits_for(9, steps=1, vocab=vocab)[0] / 3
    sampler = Sampler()
    present: list[tuple[SamplingRow, list[int], list[int]]] = []
    greedy_differs = 0
    for step in range(steps):
        if step % 4 == 3:
            keep = [i for i in range(len(present)) if (i + step) % 5]
            present = [present[i] for i in keep]
            sampler.keep(keep)
        if step < 12:
            prompt, output = [step % vocab, 2, 2], [step % 3, 4][: step % 3]
            for parameters in (PENALTIES[step % 9], PENALTIES[(2 * step + 1) % 9]):
                state = row(prompt, output, **parameters)
                present.append((state, prompt, list(output)))
                sampler.join([state], vocab)
        rng = np.random.default_rng(step)
        logits = (base + rng.normal(0, 0.3, (len(present), vocab))).astype(np.float32)
        tokens = tokens_of(sampler(mx.array(logits)))
        for mine, token, (state, prompt, output) in zip(logits, tokens, present, strict=True):
            expected = penalized(mine, state.sampling, prompt, output)
            assert token == expected.argmax()
            greedy_differs += token != mine.argmax()
            output.append(token)
    assert greedy_differs > 50


def test_drawn_rows_are_penalized_before_temperature_and_filters() -> None:
    parameters = {
        "temperature": 0.7,
        "top_k": 4,
        "repetition_penalty": 1.4,
        "presence_penalty": 1.0,
    }
    rows = [row([4, 5], [0, 4], seed=seed, **parameters) for seed in range(DRAWS)]
    tokens = tokens_of(sampler_of(*rows, vocab=len(SMALL))(mx.array(np.tile(SMALL, (DRAWS, 1)))))
    logits = penalized(SMALL, rows[0].sampling, [4, 5], [0, 4])
    assert_distributed(tokens, restricted(logits, temperature=0.7, top_k=4))


def test_a_bias_forces_or_forbids_and_touches_no_other_row() -> None:
    logits = logits_for(3, steps=4)
    best = logits.argmax(-1)
    rows = [
        row(),
        row(logit_bias={11: 100.0}),
        row(logit_bias={int(best[2]): -100.0}),
        row(temperature=1.0, seed=8, logit_bias={13: 100.0}),
    ]
    tokens = tokens_of(sampler_of(*rows)(mx.array(logits)))
    assert tokens[0] == best[0]
    assert tokens[1] == 11
    assert tokens[2] == np.argsort(-logits[2])[1]
    assert tokens[3] == 13


# --- log-probabilities --------------------------------------------------------------------------


def log_softmax(logits: Any) -> np.ndarray:
    values = np.array(logits).astype(np.float64)
    return np.asarray(values - values.max() - np.log(np.exp(values - values.max()).sum()))


def test_log_probabilities_are_those_of_the_model_whatever_changes_the_choice() -> None:
    logits = logits_for(4, steps=6)
    rows = [
        row(logprobs=3),
        row(),
        row(logprobs=5, temperature=1.8, seed=3),
        row(logprobs=2, logit_bias={17: 100.0}),
        row(logprobs=VOCAB, repetition_penalty=3.0),
        row(logprobs=0, temperature=1.0, top_k=2),
    ]
    sampled = sampler_of(*rows)(mx.array(logits))
    tokens = tokens_of(sampled)
    found = read_logprobs(sampled, rows)
    assert set(found) == {0, 2, 3, 4, 5}
    for i, logprobs in found.items():
        expected = log_softmax(logits[i])
        count = rows[i].sampling.logprobs
        assert logprobs.logprob == pytest.approx(expected[tokens[i]], abs=1e-4)
        assert logprobs.top_ids == np.argsort(-expected)[:count].tolist()
        assert logprobs.top_logprobs == pytest.approx(np.sort(expected)[::-1][:count], abs=1e-4)
    assert found[3].logprob < found[3].top_logprobs[-1]


def test_no_log_probabilities_unless_asked_for() -> None:
    rows = [row(), row(temperature=1.0)]
    sampled = sampler_of(*rows)(mx.array(logits_for(5, steps=2)))
    assert read_logprobs(sampled, rows) == {}
    assert len(sampled.arrays()) == 1
