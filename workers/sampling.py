"""Next tokens for all rows of a batch in one graph, each row with parameters of its own.

Nothing is computed that no row asked for: greedy rows cost an argmax, log-probabilities and
penalties only touch the rows that want them. A row's token depends on its own logits, parameters,
seed and position alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

from mlxfleet.common.messages import Sampling, TokenLogprobs
from mlxfleet.workers.cpu_argmax import argmax, marked
from mlxfleet.workers.drawing import Filters, column, draw
from mlxfleet.workers.randomness import row_key

# Close enough to greedy; logits divided by much less are infinite.
LEAST_TEMPERATURE = 1e-6


@dataclass
class SamplingRow:
    """A row's parameters and what its penalties need: `token_ids` are prompt and output so far,
    the last `n_output` of them output. `position` is that of the next output token."""

    sampling: Sampling
    token_ids: Sequence[int]
    n_output: int
    position: int = field(init=False)

    def __post_init__(self) -> None:
        self.position = self.n_output

    @property
    def penalized(self) -> bool:
        """Whether any penalty is on."""
        s = self.sampling
        return bool(s.presence_penalty or s.frequency_penalty) or s.repetition_penalty != 1.0


@dataclass
class Sampled:
    """Tokens of one step, not yet evaluated: `tokens` [rows], NOT_FINITE where a row's logits are
    not. For the rows in `logprob_rows`: `chosen` [n], `top_ids` and `top_logprobs` [n, k] in
    falling order."""

    tokens: mx.array
    logprob_rows: list[int]
    chosen: mx.array | None = None
    top_ids: mx.array | None = None
    top_logprobs: mx.array | None = None

    def arrays(self) -> list[mx.array]:
        """All that has to be evaluated."""
        optional = (self.chosen, self.top_ids, self.top_logprobs)
        return [self.tokens, *(array for array in optional if array is not None)]


class Sampler:
    """Parameters of the rows of a running batch as arrays, rebuilt only when the rows change."""

    def __init__(self) -> None:
        self._rows: list[SamplingRow] = []
        self._penalties: Penalties | None = None
        self._changed = False

    def join(self, rows: Sequence[SamplingRow], vocab_size: int) -> None:
        """Append rows."""
        first = len(self._rows)
        self._rows.extend(rows)
        self._changed = True
        penalized = [first + i for i, row in enumerate(rows) if row.penalized]
        if penalized:
            more = Penalties.of(penalized, [self._rows[i] for i in penalized], vocab_size)
            self._penalties = self._penalties.extend(more) if self._penalties else more

    def keep(self, rows: Sequence[int]) -> None:
        """Keep only these rows, in this order."""
        self._rows = [self._rows[row] for row in rows]
        self._changed = True
        if self._penalties is not None:
            self._penalties = self._penalties.keep(rows)

    def __call__(self, padded: mx.array) -> Sampled:
        """Choose a token for each row of `padded` [rows or more, vocabulary], whose further rows
        mean nothing."""
        if self._changed:
            self._build()
        raw = first_rows(padded, len(self._rows))
        logits = self._adjusted(raw)
        # Whole, logits that were not adjusted are in one piece, which argmax is fastest with.
        tokens = self._choose(logits, padded if logits is raw else logits)
        if self._penalties is not None:
            self._penalties.observe(tokens)
        for row in self._rows:
            row.position += 1
        return self._with_logprobs(raw, tokens)

    def _adjusted(self, logits: mx.array) -> mx.array:
        """With penalties and biases, if there are any."""
        if self._penalties is not None:
            logits = self._penalties.apply(logits)
        if self._bias is not None:
            rows, ids, values = self._bias
            logits = logits.at[rows, ids].add(values.astype(logits.dtype))
        return logits

    def _build(self) -> None:
        """Gather the parameters of all rows into arrays."""
        self._changed = False
        drawn = [i for i, row in enumerate(self._rows) if row.sampling.temperature > 0]
        self._drawn = drawn
        self._drawn_rows = mx.array(drawn, dtype=mx.int32) if drawn else None
        chosen = [self._rows[i].sampling for i in drawn]
        self._temperature = column([max(s.temperature, LEAST_TEMPERATURE) for s in chosen])
        self._filters = Filters.of(chosen)
        self._logprob_rows = [
            i for i, row in enumerate(self._rows) if row.sampling.logprobs is not None
        ]
        self._top = max(
            (self._rows[i].sampling.logprobs or 0 for i in self._logprob_rows), default=0
        )
        entries = [
            (i, token, value)
            for i, row in enumerate(self._rows)
            for token, value in row.sampling.logit_bias.items()
        ]
        self._bias = None
        if entries:
            rows, ids, values = zip(*entries, strict=True)
            self._bias = (mx.array(rows), mx.array(ids), mx.array(values, dtype=mx.float32))

    def _choose(self, logits: mx.array, padded: mx.array) -> mx.array:
        """Argmax for greedy rows, a draw for the others: token ids [rows]. `padded` begins with
        the rows of `logits`."""
        if self._drawn_rows is None:
            return first_rows(argmax(padded), len(self._rows))
        everything = len(self._drawn) == len(self._rows)
        some = logits if everything else logits[self._drawn_rows]
        numbers = [
            row_key(self._rows[i].sampling.seed, self._rows[i].position) for i in self._drawn
        ]
        keys = mx.array(numbers, dtype=mx.uint32)
        scaled = some.astype(mx.float32) / self._temperature
        highest = mx.max(scaled, axis=-1, keepdims=True)
        drawn = marked(draw(scaled, highest, self._filters, keys), highest.reshape(-1))
        if everything:
            return drawn
        tokens = first_rows(argmax(padded), len(self._rows))
        tokens[self._drawn_rows] = drawn
        return tokens

    def _with_logprobs(self, logits: mx.array, tokens: mx.array) -> Sampled:
        sampled = Sampled(tokens, self._logprob_rows)
        if not self._logprob_rows:
            return sampled
        index = mx.array(self._logprob_rows)
        some = logits[index].astype(mx.float32)
        logprobs = some - mx.logsumexp(some, axis=-1, keepdims=True)
        sampled.chosen = mx.take_along_axis(logprobs, tokens[index][:, None], axis=-1)[:, 0]
        if self._top > 0:
            top = mx.argpartition(-logprobs, self._top - 1, axis=-1)[:, : self._top]
            values = mx.take_along_axis(logprobs, top, axis=-1)
            order = mx.argsort(-values, axis=-1)
            sampled.top_ids = mx.take_along_axis(top, order, axis=-1)
            sampled.top_logprobs = mx.take_along_axis(values, order, axis=-1)
        return sampled


class Penalties:
    """Repetition (Keskar et al. 2019), presence and frequency penalties of some rows.

    Presence and frequency count output tokens, repetition counts the prompt too. `rows` are
    positions in the batch; `counts` [n, vocabulary] of output tokens; `in_prompt` likewise.
    """

    def __init__(
        self,
        rows: list[int],
        counts: mx.array,
        in_prompt: mx.array,
        factors: mx.array,
    ) -> None:
        self._rows = rows
        self._index = mx.array(rows, dtype=mx.int32)
        self._counts = counts
        self._in_prompt = in_prompt
        self._factors = factors

    @classmethod
    def of(cls, rows: list[int], states: Sequence[SamplingRow], vocab_size: int) -> Penalties:
        """Penalties for rows that join; `rows` are their positions in the batch."""
        counts, in_prompt = [], []
        for state in states:
            split = len(state.token_ids) - state.n_output
            output, prompt = list(state.token_ids[split:]), list(state.token_ids[:split])
            zeros = mx.zeros(vocab_size)
            counts.append(zeros.at[mx.array(output)].add(1.0) if output else zeros)
            in_prompt.append(zeros.at[mx.array(prompt)].add(1.0) > 0 if prompt else zeros > 0)
        factors = [
            (s.repetition_penalty, s.presence_penalty, s.frequency_penalty)
            for s in (state.sampling for state in states)
        ]
        return cls(rows, mx.stack(counts), mx.stack(in_prompt), mx.array(factors))

    def extend(self, other: Penalties) -> Penalties:
        """Both, one after the other."""
        return Penalties(
            self._rows + other._rows,
            mx.concatenate([self._counts, other._counts]),
            mx.concatenate([self._in_prompt, other._in_prompt]),
            mx.concatenate([self._factors, other._factors]),
        )

    def keep(self, rows: Sequence[int]) -> Penalties | None:
        """Only the batch rows that stay, under their new positions."""
        mine = {row: i for i, row in enumerate(self._rows)}
        staying = [(new, mine[old]) for new, old in enumerate(rows) if old in mine]
        if not staying:
            return None
        index = mx.array([i for _, i in staying])
        return Penalties(
            [new for new, _ in staying],
            self._counts[index],
            self._in_prompt[index],
            self._factors[index],
        )

    def apply(self, logits: mx.array) -> mx.array:
        """Logits [rows, vocabulary] with the penalties of these rows."""
        repetition, presence, frequency = mx.split(self._factors, 3, axis=-1)
        some = logits[self._index].astype(mx.float32)
        said = self._counts > 0
        repeated = mx.where(some > 0, some / repetition, some * repetition)
        some = mx.where(said | self._in_prompt, repeated, some)
        some = some - frequency * self._counts - presence * said
        result = mx.array(logits)
        result[self._index] = some.astype(logits.dtype)
        return result

    def observe(self, tokens: mx.array) -> None:
        """Count the tokens [rows] just chosen."""
        mine = mx.arange(len(self._rows))
        self._counts = self._counts.at[mine, tokens[self._index]].add(1.0)


def first_rows(padded: mx.array, rows: int) -> mx.array:
    """The first rows of an array; itself if it has no more, which saves an operation a pass."""
    return padded if padded.shape[0] == rows else padded[:rows]


def read_logprobs(sampled: Sampled, rows: Sequence[SamplingRow]) -> dict[int, TokenLogprobs]:
    """Evaluated log-probabilities by batch row, cut to as many alternatives as the row wants."""
    if sampled.chosen is None:
        return {}
    chosen: Any = sampled.chosen.tolist()
    top_ids: Any = sampled.top_ids.tolist() if sampled.top_ids is not None else [[]] * len(chosen)
    tops: Any = sampled.top_logprobs.tolist() if sampled.top_logprobs is not None else top_ids
    result = {}
    for i, row in enumerate(sampled.logprob_rows):
        count = rows[row].sampling.logprobs or 0
        result[row] = TokenLogprobs(chosen[i], top_ids[i][:count], tops[i][:count])
    return result
