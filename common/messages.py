"""The messages of every link: one tagged union each, MessagePack on the wire.

A union is named after its direction. Receivers decode once and dispatch with `match`. Data that
flows every step is columnar: one message per step, parallel lists with one entry per request,
sparse columns as dicts from an entry's position in those lists.

`rid` names one sequence (one choice of one HTTP request) on every link. `attempt` is the random
identity of one Generate: a sequence that is given to a node again gets a new one, and messages that
carry an older one are stale and are dropped. Between scheduler and worker, `rid` names a row: the
sequence's name and the number of its admission, so no name is used for two rows.
`traceparent` is the W3C context of the span that a receiver's spans belong to, "" without tracing.
`Hello`-like messages are repeated as heartbeats; `incarnation` changes when a process restarts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sized
from typing import Annotated, Literal, get_args

from msgspec import Meta, Struct

from mlxfleet.common.kv_sizes import capacity_for
from mlxfleet.common.limits import (
    MAX_ALTERNATIVES,
    MAX_ENTRIES,
    MAX_ENTRY_TOKENS,
    Attempt,
    BlockHash,
    Context,
    Count,
    Hashes,
    Level,
    ModelName,
    PerSecond,
    Queued,
    Reading,
    Reason,
    Rid,
    Rows,
    Seconds,
    Slowdown,
    TokenId,
    Vocabulary,
    Word,
)
from mlxfleet.common.tally import Tally

PROTOCOL_VERSION = 4

FinishReason = Literal["stop", "length"]
RejectedCode = Literal["queue_full", "too_long", "failed", "not_finite", "unknown"]
FailReason = Literal["not_finite"]
"""Why a row has no next token: the model computed NaN or infinite logits."""
WorkerState = Literal["loading", "ready", "hung", "dead"]
LoadStage = Literal["starting", "reading", "quantizing", "testing", "measuring"]
Priority = Literal["interactive", "batch"]
PRIORITIES: tuple[Priority, ...] = get_args(Priority)


def check_columns(first: Sized, *others: Sized) -> None:
    """Refuse columns of unequal length."""
    if any(len(other) != len(first) for other in others):
        raise ValueError("columns differ in length")


def check_positions(column: Sized, *sparse: Iterable[int]) -> None:
    """Refuse sparse columns that point outside the others."""
    if any(not 0 <= position < len(column) for keys in sparse for position in keys):
        raise ValueError("a position is outside the columns")


class Sampling(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """How to choose tokens. `temperature` 0 is greedy; `logprobs` is the number of alternatives
    to report beside the chosen token, None for no log-probabilities at all."""

    seed: int
    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = {}
    logprobs: int | None = None
    ignore_eos: bool = False


class TokenLogprobs(Struct, frozen=True):
    """Natural log-probabilities at one position, from the model's own distribution."""

    logprob: float
    top_ids: Annotated[list[int], Meta(max_length=MAX_ALTERNATIVES)]
    top_logprobs: Annotated[list[float], Meta(max_length=MAX_ALTERNATIVES)]


class Finish(Struct, frozen=True):
    """Why a sequence ended, and how many of its prompt tokens came out of a cache."""

    reason: FinishReason
    cached_tokens: Count = 0


class PassTime(Struct, frozen=True, array_like=True):
    """How long a pass of so many decoding rows and tokens of a fresh prompt takes."""

    rows: Count
    tokens: Count
    seconds: Seconds


class ModelInfo(Struct, frozen=True, kw_only=True):
    """What a loaded model can do and costs. Bytes of KV cache for n tokens are
    `fixed_bytes + n * bytes_per_token + sum(min(n, window) * bytes for window, bytes in windowed)`,
    where n is rounded up to a slot of a slab if the model runs `in_slabs`. `cold_blocks` is the
    size of the cold store, 0 if prefixes cannot be reused; `passes` were measured at load.
    """

    vocab_size: Vocabulary
    context_length: Context
    eos_ids: Annotated[list[TokenId], Meta(max_length=1024)]
    kv_budget_bytes: Count
    fixed_bytes: Count
    bytes_per_token: Count
    windowed: Annotated[list[tuple[Count, Count]], Meta(max_length=64)]
    weights_bytes: Count
    in_slabs: bool = False
    cold_blocks: Count = 0
    passes: Annotated[list[PassTime], Meta(max_length=64)] = []

    def kv_bytes(self, tokens: int) -> int:
        """Bytes of KV cache that `tokens` positions of one sequence occupy."""
        if self.in_slabs:
            tokens = capacity_for(tokens)
        windowed = sum(min(tokens, window) * size for window, size in self.windowed)
        return self.fixed_bytes + tokens * self.bytes_per_token + windowed


class LoadProgress(Struct, frozen=True, kw_only=True):
    """How far a worker is with loading its model. Weights are read, and quantized if that is asked
    for, while `loaded_bytes` grow to `total_bytes`, 0 until that is known; then the model is tested
    and passes are measured. `done` counts the pieces of work that are done in this stage.
    `remaining_s` are the seconds until the weights are there at the rate so far, None if unknown;
    `context_length` is the model's, in tokens, 0 until its configuration has been read."""

    stage: LoadStage
    done: Count = 0
    loaded_bytes: Count = 0
    total_bytes: Count = 0
    remaining_s: Seconds | None = None
    context_length: Count = 0


class Welcome(Struct, tag="welcome", frozen=True):
    """Server's answer to a Hello. A changed `session` means the server has restarted and knows
    nothing of earlier requests. `detokenizers` maps names to the addresses that take tokens; in
    `tcp://*:PORT` the host is the one under which the node reached the router. `model` is what the
    node's model is called in the API."""

    session: str
    detokenizers: dict[str, str] = {}
    model: str = ""


class Refused(Struct, tag="refused", frozen=True):
    """Server's answer to a Hello that it does not accept; the peer exits."""

    reason: str


class Hello(Struct, tag="hello", frozen=True, kw_only=True):
    """A tokenizer or detokenizer presents itself, twice a second; `model` is the one it is for.
    `steps` are the times that a detokenizer has taken for nodes' messages so far."""

    name: str
    incarnation: str
    version: int = PROTOCOL_VERSION
    dropped_frames: int = 0
    rss_bytes: int = 0
    token_address: str = ""
    model: str = ""
    steps: Tally | None = None


# --- router <-> tokenizer ---------------------------------------------------------------------


class TokenizeText(Struct, tag="tokenize_text", frozen=True, omit_defaults=True):
    """Plain prompts, each to be encoded with the model's special tokens. Those that are surely
    longer than `max_tokens` need not be encoded to the end."""

    rid: str
    texts: list[str]
    max_tokens: int
    traceparent: str = ""


class TokenizeChat(Struct, tag="tokenize_chat", frozen=True, omit_defaults=True):
    """A conversation, to be rendered with the model's chat template and encoded."""

    rid: str
    messages: list[dict[str, str]]
    max_tokens: int
    traceparent: str = ""


ContentField = Literal["messages", "prompt"]


class TakeApart(Struct, tag="take_apart", frozen=True):
    """A large request body, JSON, that may have its bulk in `field`."""

    rid: str
    field: ContentField
    body: bytes


class TokenizeContent(Struct, tag="tokenize_content", frozen=True, omit_defaults=True):
    """JSON of a large request's `field`, to be checked and encoded. `max_tokens` is the context
    length; token ids have to be below `vocab_size`."""

    rid: str
    field: ContentField
    content: bytes
    max_tokens: int
    vocab_size: int
    traceparent: str = ""


RouterToTokenizer = TokenizeText | TokenizeChat | TakeApart | TokenizeContent | Welcome | Refused


class Tokenized(Struct, tag="tokenized", frozen=True):
    """One list of token ids per prompt, and one of the chained hashes of its whole blocks."""

    rid: str
    token_ids: list[list[int]]
    block_hashes: list[list[BlockHash]]

    def __post_init__(self) -> None:
        check_columns(self.token_ids, self.block_hashes)


class TakenApart(Struct, tag="taken_apart", frozen=True):
    """A body's parameters as JSON, with a placeholder in the field, and the field's JSON."""

    rid: str
    parameters: bytes
    content: bytes


class TokenizeFailed(Struct, tag="tokenize_failed", frozen=True):
    """The prompt cannot be encoded, for example because the chat template refuses it. `code` is
    the API's word for the error, if it has one."""

    rid: str
    message: str
    param: str
    code: str | None = None


TokenizerToRouter = Hello | Tokenized | TakenApart | TokenizeFailed


# --- what a machine says of itself --------------------------------------------------------------


class Telemetry(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What a machine's sensors said last, about once a second; None where there is no such sensor.

    Shares are from 0 to 1. `memory_pressure` is 0 (normal), 1 (warning) or 2 (critical),
    `thermal_state` 0 (nominal), 1 (fair), 2 (serious) or 3 (critical), as macOS has them.
    `failures` counts by sensor how often it could not be read. `source` says what was asked.
    """

    source: Word = ""
    cpu_temperature_c: Reading | None = None
    gpu_temperature_c: Reading | None = None
    cpu_power_w: Reading | None = None
    gpu_power_w: Reading | None = None
    total_power_w: Reading | None = None
    cpu_frequency_hz: Reading | None = None
    gpu_frequency_hz: Reading | None = None
    cpu_utilization: Reading | None = None
    gpu_utilization: Reading | None = None
    memory_pressure: Level | None = None
    memory_total_bytes: Count | None = None
    memory_used_bytes: Count | None = None
    wired_bytes: Count | None = None
    swap_used_bytes: Count | None = None
    thermal_state: Level | None = None
    failures: Annotated[dict[Word, Count], Meta(max_length=64)] = {}

    @property
    def temperature_c(self) -> float | None:
        """Of the hottest part that has a sensor."""
        known = (self.cpu_temperature_c, self.gpu_temperature_c)
        return max((celsius for celsius in known if celsius is not None), default=None)


class MachineSample(Struct, tag="machine_sample", frozen=True):
    """What a machine's telemetry process says once a second: its sensors, and for nodes that are
    said to have others (simulated ones) theirs by node."""

    machine: Telemetry
    nodes: dict[str, Telemetry] = {}


# --- router <-> node (its scheduler) ----------------------------------------------------------


class Party(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """On whose behalf a sequence is generated: an HTTP request of a client. Both names are opaque;
    `weight` is the client's, of whose share of a node it has so many times as much as one with 1.
    """

    client: Annotated[str, Meta(max_length=64)] = ""
    request: Annotated[str, Meta(max_length=64)] = ""
    weight: Annotated[float, Meta(gt=0, le=1e6)] = 1.0
    priority: Priority = "interactive"


class Generate(Struct, tag="generate", frozen=True, omit_defaults=True, kw_only=True):
    """Continue `prompt_ids + output_ids`. `output_ids` is empty for a new request and holds the
    tokens so far when a request moves here from a process that died. It replaces an earlier
    attempt at the same sequence. `siblings` says that other sequences of the party's request have
    the same prompt, which is then kept in the prefix cache until the last of them is released."""

    rid: str
    attempt: Attempt
    detokenizer: str
    prompt_ids: Annotated[list[int], Meta(min_length=1)]
    output_ids: list[int]
    sampling: Sampling
    party: Party = Party()
    siblings: bool = False
    traceparent: str = ""


class Resend(Struct, tag="resend", frozen=True):
    """Send the request's tokens from position `start` on once more: its detokenizer lost them."""

    rid: str
    attempt: Attempt
    detokenizer: str
    start: Count


class Leaving(Struct, tag="leaving", frozen=True):
    """The sender ends because it was asked to, so that its link's end is no trouble."""


class Release(Struct, tag="release", frozen=True):
    """The router is done with this attempt: stop it wherever it is and forget it."""

    rid: str
    attempt: Attempt


class SendKvSnapshot(Struct, tag="send_kv_snapshot", frozen=True):
    """The router has missed events of the node's cache, or is new: tell it everything."""


RouterToNode = Generate | Resend | Release | SendKvSnapshot | Leaving | Welcome | Refused


class NodeInfo(Struct, frozen=True, kw_only=True):
    """What a node is, as long as it runs. `model` is its folder's name or hub id, `tokenizer_hash`
    of its vocabulary files; `instance` tells two runs under one name apart, but not the restart of
    a process of one run."""

    instance: Word = ""
    model: ModelName = ""
    tokenizer_hash: Word = ""
    host: Word = ""
    chip: Word = ""
    memory_bytes: Count = 0


class NodeStatus(Struct, tag="node_status", frozen=True, kw_only=True):
    """A node presents itself and reports its state, four times a second and when its worker is new.
    `model` is None until the worker has loaded it. `busy_s` and `idle_s` are how long the worker
    has computed, and how long it has waited with rows to run.

    `received` counts the Generates that the figures cover. Prompt tokens that are still to be
    computed are expected ones: less what is cached. `prefill_tokens_per_s` is measured, beside the
    rows that decode now, 0 if nothing has run yet; `decode_step_s` is a decode step with one row
    more, `decode_row_s` what each further row adds, `sequence_s` how long sequences have run
    lately. `cold_age_s` is for how long the block has not been used that makes room next;
    `kv_sequence` the number of the last message about the cache. `slowdown` is how much longer
    passes take now than they did when the machine was cool, for the same work; 1 if unknown.
    `metrics_address` is HOST:PORT of the node's own /metrics, `loading` how far a worker is that
    loads."""

    name: Word
    incarnation: Word
    version: int = PROTOCOL_VERSION
    model: ModelInfo | None
    worker: WorkerState
    running: Rows
    queued: Queued
    max_running: Rows
    max_queue: Queued
    kv_used_bytes: Count
    steps: Count
    busy_s: Seconds
    idle_s: Seconds
    preemptions: Count
    generated_tokens: Count
    prefilled_tokens: Count
    cached_tokens: Count
    cold_blocks_used: Count
    worker_restarts: Count
    dropped_frames: Count
    worker_dropped_frames: Count
    worker_memory_bytes: Count
    rss_bytes: Count = 0
    received: Count = 0
    queued_prefill_tokens: Count = 0
    running_prefill_tokens: Count = 0
    prefill_tokens_per_s: PerSecond = 0.0
    decode_step_s: Seconds = 0.0
    decode_row_s: Seconds = 0.0
    sequence_s: Seconds = 0.0
    cold_age_s: Seconds = 0.0
    kv_sequence: Count = 0
    info: NodeInfo = NodeInfo()
    slowdown: Slowdown = 1.0
    telemetry: Telemetry | None = None
    metrics_address: Word = ""
    loading: LoadProgress | None = None

    @property
    def can_generate(self) -> bool:
        """Whether the worker is there and computes."""
        return self.worker == "ready"


class KvEvents(Struct, tag="kv_events", frozen=True, kw_only=True):
    """Blocks of the node's cache, by hash, that came and went, after all was `cleared` if it was.
    `sequence` counts the messages about the cache since the node started."""

    sequence: Count
    cleared: bool
    removed: Hashes
    stored: Hashes


class KvSnapshot(Struct, tag="kv_snapshot", frozen=True, kw_only=True):
    """A part of all that is in the node's cache; the `first` takes the place of what was known."""

    sequence: Count
    first: bool
    last: bool
    stored: Hashes


class Rejected(Struct, tag="rejected", frozen=True):
    """The node does not take the request, or gives it up; its only and last message for it.
    `failed` is the node's fault, `not_finite` the model's: it has no next token."""

    rid: Rid
    attempt: Attempt
    code: RejectedCode
    message: Reason


NodeToRouter = NodeStatus | KvEvents | KvSnapshot | Rejected | Leaving


# --- node -> detokenizer ----------------------------------------------------------------------


class Tokens(Struct, tag="tokens", frozen=True):
    """New tokens of one step. Entry i: tokens `ids[i]` of `rids[i]`, made by `attempts[i]`, the
    first of them at position `starts[i]` of the output. `logprobs[i]` has one entry per token.

    What an entry's tokens may be is known to its stream, which checks them.
    """

    rids: Annotated[list[Rid], Meta(max_length=MAX_ENTRIES)]
    attempts: list[Attempt]
    starts: list[Count]
    ids: list[Annotated[list[int], Meta(max_length=MAX_ENTRY_TOKENS)]]
    finish: dict[int, Finish]
    logprobs: dict[int, list[TokenLogprobs]]

    def __post_init__(self) -> None:
        check_columns(self.rids, self.attempts, self.starts, self.ids)
        check_positions(self.rids, self.finish, self.logprobs)
        if any(len(entries) != len(self.ids[i]) for i, entries in self.logprobs.items()):
            raise ValueError("not one log-probability per token")


class TokensOf(Struct):
    """All that is read of a message of Tokens that is malformed: whose it says that it is."""

    rids: Annotated[list[Rid], Meta(max_length=MAX_ENTRIES)]
    attempts: Annotated[list[Attempt], Meta(max_length=MAX_ENTRIES)]


NodeToDetokenizer = Tokens


# --- router <-> detokenizer -------------------------------------------------------------------


class OpenStream(Struct, tag="open_stream", frozen=True, omit_defaults=True, kw_only=True):
    """Start, or rebuild, the stream of an attempt, in the place of an earlier one. `prompt_tail` is
    the end of the prompt, for correct spacing; `output_ids` the tokens that the router has;
    `sent_chars` how much text it has of them. A node may send ids below `vocab_size` and
    `max_tokens` tokens in all."""

    rid: str
    attempt: Attempt
    prompt_tail: list[int]
    output_ids: list[int]
    sent_chars: Count
    stop: list[str]
    max_tokens: Count
    vocab_size: Count
    traceparent: str = ""


class CloseStream(Struct, tag="close_stream", frozen=True):
    """Forget the stream."""

    rid: str
    attempt: Attempt


RouterToDetokenizer = OpenStream | CloseStream | Welcome | Refused


class TokenText(Struct, frozen=True):
    """A token as the API shows it: its text, its bytes, its natural log-probability."""

    token: str
    bytes: list[int]
    logprob: float


class TokenTextLogprobs(Struct, frozen=True):
    """The chosen token and the most likely alternatives at one position."""

    chosen: TokenText
    top: list[TokenText]


class Text(Struct, tag="text", frozen=True):
    """New text of one step. Entry i: tokens `ids[i]` of `rids[i]`, made by `attempts[i]`, from
    position `starts[i]` gave the text `texts[i]`, beginning at character `offsets[i]` of the
    output."""

    rids: list[str]
    attempts: list[Attempt]
    starts: list[Count]
    ids: list[list[int]]
    offsets: list[Count]
    texts: list[str]
    finish: dict[int, Finish]
    logprobs: dict[int, list[TokenTextLogprobs]]

    def __post_init__(self) -> None:
        check_columns(self.rids, self.attempts, self.starts, self.ids, self.offsets, self.texts)
        check_positions(self.rids, self.finish, self.logprobs)
        if any(len(entries) != len(self.ids[i]) for i, entries in self.logprobs.items()):
            raise ValueError("not one log-probability per token")


class StreamLost(Struct, tag="stream_lost", frozen=True):
    """Tokens came for a stream that is not open here, or with a gap: open it again, resend."""

    rid: str
    attempt: Attempt


class StreamBroken(Struct, tag="stream_broken", frozen=True):
    """An attempt sent what no node may send; nothing more is taken from it. Log-probabilities that
    are not numbers are `sick`, not malicious: a model can have produced them."""

    rid: Rid
    attempt: Attempt
    why: Reason
    sick: bool = False


DetokenizerToRouter = Hello | Text | StreamLost | StreamBroken


# --- scheduler <-> worker ---------------------------------------------------------------------


class Reset(Struct, tag="reset", frozen=True):
    """Drop every sequence; steps from now on carry this `epoch`."""

    epoch: str


class Admit(Struct, tag="admit", frozen=True, kw_only=True):
    """A new row: `token_ids` are prompt and output so far, the last `n_output` of them output. It
    starts with the first `cached_tokens` of them out of these blocks of the cold store."""

    rid: str
    token_ids: list[int]
    n_output: int
    sampling: Sampling
    cached_tokens: Count = 0
    cached_blocks: list[int] = []


class Prefill(Struct, tag="prefill", frozen=True):
    """Run the next `tokens[i]` prompt tokens of `rids[i]`, all in one pass; then let `rests` passes
    have none, as long as rows decode."""

    rids: list[str]
    tokens: list[Count]
    rests: Count = 0

    def __post_init__(self) -> None:
        check_columns(self.rids, self.tokens)


class Store(Struct, tag="store", frozen=True):
    """Copy a row's tokens from position `start` on to blocks of the cold store."""

    rid: str
    start: Count
    blocks: list[int]


class Drop(Struct, tag="drop", frozen=True):
    """Forget a row in any state. A row that has ended keeps its memory until then."""

    rid: str


class Ping(Struct, tag="ping", frozen=True):
    """Nothing to do: sending it fails if the worker is gone."""


SchedulerToWorker = Refused | Reset | Ping | Admit | Prefill | Store | Drop


class Admitted(Struct, tag="admitted", frozen=True):
    """The worker has taken the row and is about to run it."""

    epoch: str
    rid: str


class WorkerStatus(Struct, tag="worker_status", frozen=True, kw_only=True):
    """The worker presents itself, twice a second, also while it decodes. `memory_bytes` are in use
    by MLX, `mlx_cache_bytes` kept by it for reuse, `mlx_peak_bytes` the most that was in use."""

    incarnation: str
    version: int = PROTOCOL_VERSION
    model: ModelInfo
    epoch: str
    memory_bytes: int
    dropped_frames: int
    rss_bytes: int = 0
    mlx_cache_bytes: int = 0
    mlx_peak_bytes: int = 0


class WorkerLoading(Struct, tag="worker_loading", frozen=True, kw_only=True):
    """A worker loads its model and has got on with it; at most twice a second in one stage."""

    incarnation: str
    version: int = PROTOCOL_VERSION
    progress: LoadProgress


class Step(Struct, tag="step", kw_only=True):
    """What one pass of the worker produced: one token per decoded row, and prefill progress as
    (rid, tokens). Rows that have `failed` have no token, whatever `ids` says, and decode no more.
    `pass_s` is its wall clock in seconds, 0 if there was no pass, `idle_s` how long
    the device waited before it although there were rows."""

    epoch: str
    rids: list[str] = []
    ids: list[int] = []
    finish: dict[int, FinishReason] = {}
    failed: dict[int, FailReason] = {}
    logprobs: dict[int, TokenLogprobs] = {}
    prefilled: list[tuple[str, int]] = []
    decoded_rows: int = 0
    pass_s: float = 0.0
    idle_s: float = 0.0

    def __post_init__(self) -> None:
        check_columns(self.rids, self.ids)
        check_positions(self.rids, self.finish, self.failed, self.logprobs)


WorkerToScheduler = WorkerLoading | WorkerStatus | Admitted | Step
