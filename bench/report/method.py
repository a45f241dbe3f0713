"""What was done, in words, as far as the records say it."""

from __future__ import annotations

from collections.abc import Iterable

from mlxfleet.bench.records import Run
from mlxfleet.bench.report.loaded import Loaded, LoadedComparison

BARE_LOOP = "bare loop"

TERMS = (
    "TTFT is the time from sending a request to its first text; chunks that only announce a role,"
    " and empty ones, do not count. TPOT is the mean time per token after the first. ITL is the gap"
    " between two chunks with text, of which each may hold several tokens. E2E is the whole"
    " request. Percentiles lie between neighbouring values. Tokens and times are those of requests"
    " that did not fail."
)
CLIENT = (
    "The client ran on the machine described below and measured itself: its share of a core, how"
    " late its event loop was, and how late it sent requests. A client that was too slow is"
    " reported at the top."
)
SENSORS = (
    "Temperature, power, frequency and memory were read about once a second while requests ran;"
    " what is not shown could not be read."
)
NO_SENSORS = "No sensor was read, so that heat and clock scaling can hide in these figures."
OFFLINE = (
    "The bare loop does the model's work alone: prompts in passes of 512 tokens, then all rows to"
    " the end of their answers with an argmax. Scheduler and worker are asked for tokens over their"
    " own sockets, the full path for text over HTTP. Of each border, a process was started anew in"
    " every round, one at a time, in rotating order, with the same prompts."
)
SIDES = (
    "The sides were measured in turns, one alive at a time, in another order in every round, with"
    " the same prompts. Tables have medians over the rounds, so ratios say more than absolute"
    " figures."
)


def method(loaded: Loaded) -> list[str]:
    """Paragraphs."""
    runs = [one.run for one in loaded.runs]
    has_samples = any(one.samples for one in loaded.runs)
    paragraphs = [arrivals(runs), *(compared(one) for one in loaded.comparisons)]
    if loaded.starts:
        paragraphs.append(SIDES)
    if any(run.side == BARE_LOOP for run in runs):
        paragraphs.append(OFFLINE)
    return [*filter(None, paragraphs), TERMS, CLIENT, SENSORS if has_samples else NO_SENSORS]


ARRIVALS = {
    "closed_loop": "Closed loop: each stream sent its next request when its last one had ended.",
    "open_loop": "Open loop: requests were sent at random times at the given mean rate, whether or"
    " not earlier ones had ended, so a server that is too slow shows as a queue.",
    "replay": "Requests were sent at the times of a recorded trace.",
}


def arrivals(runs: Iterable[Run]) -> str:
    """How requests came."""
    kinds = {run.arrival.get("kind") for run in runs}
    return " ".join(words for kind, words in ARRIVALS.items() if kind in kinds)


def compared(found: LoadedComparison) -> str:
    """How sides were compared."""
    out = sum(bool(one.thrown_out) for one in found.rounds)
    blocks = len({one.block for one in found.rounds})
    cooled = max((one.cooled_s for one in found.rounds), default=0.0)
    words = (
        f"Sides were compared in {len(found.rounds)} turns in {blocks} blocks. A block is two"
        " rounds, the second in the reverse order of the first, which is random, so that a machine"
        " that gets slower slows all sides alike."
    )
    sides = found.comparison.sides
    if len(set(sides.values())) == len(sides):
        words += " The requests of a round were the same for all sides."
    else:
        words += " Sides that are one server got other prompts, because of its prefix cache."
    if cooled:
        words += f" Before a turn the machine cooled down, for up to {cooled:.0f} s."
    if out:
        words += f" {out} turns were thrown out and repeated; they are marked and do not count."
    if found.verdicts:
        words += (
            f" The interval ({100 * found.verdicts[0].confidence:.4g}%) is of the blocks' ratios. A"
            " side is called faster or slower only if the interval does not hold 1."
        )
    return words
