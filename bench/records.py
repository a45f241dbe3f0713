"""What measurements leave behind: JSON lines, one record each, of one schema.

A file begins with a `run` record. `request` and `sample` records follow in the order in which they
happened, and a `summary` when the run is over. Where this tool has started the server, `use`
follows each run, and `start` all runs of one life of the server. A comparison is a file of its own:
a `comparison` record, every round's run with its records, a `round` record for each pair, and a
`verdict`.
Times are in seconds since the run's start unless a name says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from mlxfleet.bench.machine import Machine
from mlxfleet.bench.processes import ProcessUse
from mlxfleet.common.messages import Telemetry

SCHEMA = 1


class GitState(Struct, frozen=True, kw_only=True):
    """The checkout that the measured server, or this tool, was run from."""

    commit: str
    dirty: bool


class Run(Struct, tag="run", kw_only=True):
    """One load on one server. `arrival`, `data` and `slos` are the options as they were given,
    `server` what the server says of itself, `side` its name in a comparison."""

    schema: int = SCHEMA
    id: str
    began: str
    """ISO 8601, in UTC."""
    url: str
    endpoint: str
    model: str | None
    arrival: dict[str, Any]
    data: dict[str, Any]
    slos: dict[str, float] = {}
    """Limits in ms by `ttft`, `tpot`, `itl` or `e2e`."""
    seed: int
    command_line: list[str]
    machine: Machine
    versions: dict[str, str] = {}
    git: GitState | None = None
    server: dict[str, Any] = {}
    side: str = ""
    round: int = 0


class Failure(Struct, frozen=True):
    """Why a request failed: a kind to count by, such as `http_429` or `timeout`, and the text."""

    kind: str
    message: str


class Request(Struct, tag="request", kw_only=True):
    """One request. It was due at `due_s` and sent at `sent_s`; the later times count from its
    sending."""

    run: str
    index: int
    conversation: int = 0
    turn: int = 0
    due_s: float
    sent_s: float
    duration_s: float = 0.0
    token_times_s: list[float] = []
    """When each chunk with text arrived; chunks with a role only, or empty ones, have none."""
    planned_input_tokens: int | None = None
    """What the tokenizer counts of the prompt; of first turns only."""
    input_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    """As the server reports them; counted by the tokenizer, or else by chunks, if it does not."""
    tokens_counted_by: str = "usage"
    """`usage`, `tokenizer` or `chunks`."""
    finish_reason: str | None = None
    error: Failure | None = None


class Start(Struct, tag="start", kw_only=True):
    """One life of a server that this tool has started."""

    side: str
    round: int
    command: list[str]
    ready_s: float | None = None
    """From the start of the process to the end of its first answer."""
    versions: dict[str, str] = {}
    exit_status: int | None = None
    was_killed: bool = False
    error: str | None = None
    """Why it did not serve."""


class Use(Struct, tag="use", kw_only=True):
    """What a run took: the server's processes right after it, and who else took the cores."""

    run: str
    processes: list[ProcessUse]
    served_cpu_s: float
    """CPU time of the server and the client during the run."""
    other_cpu_share: float
    """CPU time of all other processes of the machine, as a share of all that the cores gave."""


class Sample(Struct, tag="sample", kw_only=True):
    """What the machine's sensors, or a node's, said at a time."""

    run: str
    at_s: float
    node: str = ""
    """"" is the machine that measures."""
    telemetry: Telemetry


class Distribution(Struct, frozen=True, kw_only=True):
    """Statistics of times, in ms."""

    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float


class Summary(Struct, tag="summary", kw_only=True):
    """A run in figures. Tokens and times are those of requests that did not fail.

    `goodput_per_s` counts requests inside all SLOs. `fairness` is Jain's index over the tokens/s
    of conversations, or of requests if each is one. `client` is what the client itself cost.
    """

    run: str
    requests: int
    completed: int
    duration_s: float
    requests_per_s: float
    input_tokens: int
    output_tokens: int
    cached_tokens: int | None
    input_tokens_per_s: float
    output_tokens_per_s: float
    cached_tokens_per_s: float | None
    tokens_counted_by: str
    ttft_ms: Distribution | None
    tpot_ms: Distribution | None
    itl_ms: Distribution | None
    e2e_ms: Distribution | None
    longest_gap_ms: float | None
    goodput_per_s: float | None = None
    within_slos: float | None = None
    """Share of the requests that were inside all SLOs."""
    fairness: float | None = None
    finish_reasons: dict[str, int]
    errors: dict[str, int]
    client: ClientCost


class ClientCost(Struct, frozen=True, kw_only=True):
    """What the client took itself. It is `saturated` when what was measured may be its own
    slowness; `why` says how that shows."""

    cpu_share: float
    """CPU time of the client's process by the run's duration; 1 is a whole core."""
    event_lag_p99_ms: float
    """How late the event loop was, which makes what it measures late."""
    late_sends_p99_ms: float
    """How late requests were sent, against when they were due."""
    saturated: bool
    why: str = ""


class Comparison(Struct, tag="comparison", kw_only=True):
    """A comparison of sides, the first of which the others are compared with."""

    schema: int = SCHEMA
    began: str
    command_line: list[str]
    sides: dict[str, str]
    """Each side's name, and its URL or command."""
    figure: str
    """What is compared: a field of Summary, with `.p50` and the like for distributions. If there
    are several, this is the first, and verdicts name theirs."""
    higher_is_better: bool
    options: dict[str, Any]
    machine: Machine
    git: GitState | None = None


class Round(Struct, tag="round", kw_only=True):
    """One side's turn in a round of a comparison; two rounds in mirrored order are a block.

    `value` is of the comparison's first figure. `thrown_out` says why the round does not count,
    `remarks` what was not as it should be in one that does.
    """

    number: int
    block: int
    side: str
    run: str
    value: float | None
    cooled_s: float
    thrown_out: str = ""
    remarks: list[str] = []


class Verdict(Struct, tag="verdict", kw_only=True):
    """What a comparison found for a side: `ratio` of its figure to the first side's, so arranged
    that more than 1 is better, and its confidence interval."""

    side: str
    against: str
    figure: str
    rounds: int
    ratio: float
    low: float
    high: float
    confidence: float
    verdict: str
    """`faster`, `slower` or `no difference shown`."""
    smallest_visible: float
    """The smallest difference, as a share, that 80 of 100 comparisons like this would show."""
    block_ratios: list[float] = []
    """The ratio in each block, of which `ratio` is the geometric mean."""


Record = Run | Start | Use | Request | Sample | Summary | Comparison | Round | Verdict


def read_records(path: Path) -> Iterator[Record]:
    """The records of a file; msgspec.ValidationError for a line that is none of them."""
    decoder = msgspec.json.Decoder(Record)
    with path.open("rb") as file:
        for line in file:
            if line.strip():
                yield decoder.decode(line)


def encode_line(record: Record) -> bytes:
    """A record as a line."""
    return msgspec.json.encode(record) + b"\n"
