"""Every option of every process, with its default, in one place.

The command line, the environment (`MLXFLEET_*`) and tests fill the same structures; the flags are
derived from them. Limits are `msgspec.Meta` and checked by `validated`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import msgspec
from cyclopts import Parameter
from msgspec import Meta

from mlxfleet.common.curve import CurveClient, CurveServer
from mlxfleet.common.errors import ConfigError
from mlxfleet.common.kv_sizes import LEAST_CAPACITY
from mlxfleet.common.messages import NodeInfo
from mlxfleet.common.sampling_defaults import SamplingDefaults

Flat = Parameter(name="*")
Port = Annotated[int, Meta(ge=0, le=65535)]
Positive = Annotated[int, Meta(ge=1)]
# A chat template alone takes some thirty tokens.
LEAST_CONTEXT = 64
Seconds = Annotated[float, Meta(ge=0, le=1e6)]
SpecialTokensInContent = Literal["text", "control"]
Names = Annotated[tuple[str, ...], Parameter(negative=(), show_default=False)]
Wait = Annotated[float, Meta(gt=0, le=1e6)]
# Rows of a batch beyond --max-running, for those that would wait for one with more than its share.
GUEST_ROWS = 2
Routing = Literal["ttft", "round_robin", "least_loaded", "power_of_two", "session"]


@Flat
@dataclass(frozen=True, kw_only=True)
class RouterOptions:
    """The HTTP side."""

    host: str = "127.0.0.1"
    """Address to listen on."""

    port: Port = 8000
    """Port to listen on; 0 takes a free one."""

    served_model_name: str | None = None
    """Name of the model in the API; the folder's name if not given."""

    api_key_file: Path | None = None
    """File with accepted API keys, one a line. MLXFLEET_API_KEY in the environment adds one."""

    admin_key_file: Path | None = None
    """File with the key for /admin and /fleet, which any API key opens otherwise.
    MLXFLEET_ADMIN_KEY in the environment does the same."""

    allow_no_auth: bool = False
    """Listen on a non-loopback address without any API key."""

    allowed_hosts: Names = ()
    """Host names under which requests are served while there is no API key, beside localhost, IP
    addresses and this machine's own names: studio.lan, *.lan for all below it, or * for every name.
    Several with commas, or the option several times. With an API key, any name is served."""

    allowed_origins: Names = ()
    """Origins of web pages and apps that may use the server, beside its own live page:
    https://chat.lan, app://obsidian.md, vscode-webview://* for all of a scheme, or * for every web
    page. Several with commas, or the option several times."""

    max_requests: Positive = 1024
    """Sequences in the router at once, in any state; more are answered 429. When others fill it,
    there is a quarter more for clients that have few."""

    max_requests_per_key: Positive | None = None
    """Sequences that one API key may have in the router at once; more are answered 429."""

    queue_wait_s: Seconds = 120.0
    """How long a request waits for its first place on a node before it is answered 429."""

    max_body_mb: Annotated[int, Meta(ge=1, le=60)] = 16
    """Largest request body, in MB."""

    max_bodies_mb: Positive = 64
    """Request bodies in memory at once, in MB, from their first byte until they are tokenized; more
    are answered 429. A client (an API key, or an address where there are no keys) gets two thirds
    of it at most, and a quarter is kept for bodies up to 64 KB."""

    body_timeout_s: Wait = 20.0
    """How long a request body may take to come, and a second more for each 64 KB."""

    max_connections: Positive = 2048
    """Client connections at once; for one more, the one that has been idle longest is closed, or if
    there is none, it is answered 503."""

    header_timeout_s: Wait = 10.0
    """How long a client may take to send a request's headers."""

    keep_alive_s: Wait = 75.0
    """How long a connection may be idle between two requests."""

    client_stall_s: Wait = 30.0
    """How long a client may leave its answer unread before it is cut off."""

    default_max_tokens: Positive = 4096
    """Longest chat answer when the request does not say; never beyond the context length."""

    generation_config: Literal["auto", "off"] = "auto"
    """Where temperature, top_p, top_k, min_p and penalties come from when a request does not say:
    the model's generation_config.json if it has one (auto), or the API's defaults (off)."""

    drain_timeout_s: Seconds = 30.0
    """How long running requests may go on after SIGTERM."""

    node_wait_s: Seconds = 30.0
    """How long a request waits when no node can take it, or a process is not there that it needs;
    while a node loads its model and gets on with it, that does not count."""

    stream_ping_s: Seconds = 10.0
    """A stream in which nothing was sent for so long, in seconds, gets a comment as a ping, also
    while the request waits and before its status would be sent; 0 for no pings."""

    routing: Routing = "ttft"
    """Which node a request goes to: the one that should give the first token soonest, by what it
    has cached and has to do (ttft); one after the other; the one with the fewest sequences, of all
    or of two at random; or, for requests with the header X-Session-Id or the parameter user, the
    one that the session always goes to."""

    node_weights: bool = True
    """Give fewer requests to nodes that are slower than they were when cool, short of memory, or
    held back by heat."""

    cache_index_blocks: Positive = 1_000_000
    """Blocks of 32 tokens that the router remembers nodes to have cached, about 120 bytes each; of
    more it forgets those that were used longest ago."""


@Flat
@dataclass(frozen=True, kw_only=True)
class SchedulerOptions:
    """Queueing and admission on a node."""

    max_running: Positive = 32
    """Sequences prefilled and decoded at once; up to 2 more, for which there is memory too, while
    one client or request has more than its share of them and another would have to wait."""

    max_queue: Positive = 256
    """Sequences waiting on the node; more are refused."""

    max_attempts: Positive = 3
    """How often a sequence is started before it is given up as one that kills its worker."""

    itl_budget_ms: Annotated[float, Meta(gt=0, le=1e6)] = 50.0
    """Gap between two tokens of a running stream that a prefill chunk may cause, in ms; 1.5
    decode steps where those take longer."""

    max_chunk_tokens: Positive = 1024
    """Largest prefill chunk, in tokens."""

    @property
    def rows(self) -> int:
        """Sequences in the worker at most, with guests."""
        return self.max_running + GUEST_ROWS


@Flat
@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """The MLX worker."""

    memory_gb: Annotated[float, Meta(gt=0, le=1e6)] | None = None
    """Memory for weights, caches and activations, in GB; by default the device's recommended
    working set on a Mac, and half of the main memory elsewhere."""

    prefix_cache_gb: Annotated[float, Meta(ge=0, le=1e6)] | None = None
    """Memory for prefixes of earlier requests, in GB, out of what weights leave of --memory-gb; a
    quarter of that by default, 0 for no reuse."""

    max_context: Annotated[int, Meta(ge=LEAST_CONTEXT)] | None = None
    """Longest sequence in tokens, if less than the model allows."""

    blas_threads: Positive | None = None
    """OpenBLAS threads of the worker (Linux only); by default one per core, or one less for a model
    whose passes are so short that the other processes need a core."""

    kv_bits: Literal[4, 8] | None = None
    """Quantize the KV cache and the prefix cache to this many bits."""

    quantize: Literal["q4", "q8"] | None = None
    """Quantize the weights to 4 or 8 bits when they are loaded."""

    trust_remote_code: bool = False
    """Run Python code that comes with the model."""


@Flat
@dataclass(frozen=True, kw_only=True)
class SimOptions:
    """What nodes compute with, and the simulated engine, which stands in for a Mac."""

    engine: Literal["mlx", "sim"] = "mlx"
    """What nodes compute with: mlx, or sim, which needs no mlx, takes the time that the --sim
    options say, and gives tokens that depend on prompt, seed and position alone."""

    sim_prefill_tokens_per_s: Annotated[float, Meta(ge=1, le=1e9)] = 2000.0
    """Prompt tokens that a simulated node computes in a second."""

    sim_step_ms: Annotated[float, Meta(ge=0.1, le=1e6)] = 15.0
    """Fixed part of a simulated pass, in ms."""

    sim_row_ms: Annotated[float, Meta(ge=0, le=1e6)] = 0.5
    """What each decoding sequence adds to a simulated pass, in ms."""

    sim_load_s: Seconds = 0.0
    """How long a simulated node takes to load its model, in seconds."""

    sim_kv_tokens: Annotated[int, Meta(ge=LEAST_CAPACITY)] = 65536
    """Tokens in a simulated node's KV cache, in slots of 256 tokens and powers of two above."""

    sim_cache_tokens: Annotated[int, Meta(ge=0)] = 65536
    """Tokens of earlier requests that a simulated node keeps for reuse; 0 for no reuse."""

    sim_slowdown: str = "0:1"
    """How passes get slower, as SECONDS:FACTOR,... since the start of the worker, straight lines
    between them: 0:1,60:1.3 takes 1.3 times as long from a minute on."""

    sim_faults: Path | None = None
    """File with faults of simulated nodes, obeyed while it says so: lines like node-1 hang, node-1
    slow 3, node-1 exit; * is every node. It may appear, change and go at any time."""

    sim_nodes_per_process: Positive = 1
    """Simulated nodes that share a process, scheduler and worker; with 1, scheduler and worker are
    separate processes."""


@Flat
@dataclass(frozen=True, kw_only=True)
class ObserveOptions:
    """What every process tells of what it does."""

    otlp_endpoint: Annotated[str, Meta(pattern="^https?://")] | None = None
    """Where to send traces, as OTLP over HTTP: http://HOST:4318. Needs the extra `tracing`."""

    recorder_mb: Annotated[int, Meta(ge=0, le=4096)] = 4
    """Messages that each process keeps of its last ones, in MB, for mlxfleet tap and for when it
    crashes; 0 for none."""


@Flat
@dataclass(frozen=True, kw_only=True)
class MachineOptions:
    """What a node tells of itself and its machine."""

    telemetry: str = "auto"
    """Where heat, power and memory pressure are read: auto (the machine's sensors), off, or a file
    with a script, JSON lines such as {"at_s": 60, "node": "node-1", "sensors": {"thermal_state":
    2}}."""

    metrics_host: str | None = None
    """Address on which each node shows its metrics, which the router tells Prometheus; by default
    loopback, or for a router on another machine the address under which it sees this one."""

    metrics_port: Port = 0
    """Port for a node's metrics, one more for each further node; 0 takes a free one."""


@Flat
@dataclass(frozen=True, kw_only=True)
class FrontOptions:
    """The processes around the router, for each model."""

    tokenizers: Positive = 1
    """Tokenizer processes."""

    detokenizers: Positive = 1
    """Detokenizer processes."""

    special_tokens_in_content: SpecialTokensInContent = "text"
    """What a special token's text in a chat message that is not the assistant's stands for: itself
    (text), or the special token (control), for templates that need such tokens from clients."""


@Flat
@dataclass(frozen=True, kw_only=True)
class LinkOptions:
    """Where nodes on other machines reach a front end."""

    node_host: str = "127.0.0.1"
    """Address to listen on for nodes."""

    node_port: Port = 8100
    """Port for nodes to join at; the detokenizers take the ports after it, one each. 0 takes free
    ones."""

    advertise_host: str | None = None
    """Name or address under which nodes reach the detokenizers; by default --node-host, or if that
    means all addresses, the one under which a node has reached the router."""


@Flat
@dataclass(frozen=True, kw_only=True)
class SecurityOptions:
    """Who may join over TCP."""

    keys: Path | None = None
    """Folder with this side's CURVE keys, made by mlxfleet keys."""

    insecure_links: bool = False
    """Let TCP links leave this machine without keys: unencrypted, and open to everybody."""


@Flat
@dataclass(frozen=True, kw_only=True)
class FleetOptions:
    """How many nodes `launch` starts."""

    nodes: Positive = 1
    """Compute nodes, each with the model. More than one only without Metal: two processes on one
    Metal device have caused kernel panics."""


@dataclass(frozen=True, kw_only=True)
class Keys:
    """Secrets that clients present: any of `api` for the API, `admin` for operators' paths."""

    api: tuple[str, ...] = ()
    admin: str | None = None


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """A model of a router: its name in the API, what a node has to have to serve it, and the
    sampling parameters of requests that do not give them. `vocab_size` and `context_length` are
    what its configuration says, 0 if that is not known."""

    name: str = ""
    source: str = ""
    tokenizer_hash: str = ""
    vocab_size: int = 0
    context_length: int = 0
    sampling: SamplingDefaults = SamplingDefaults()  # noqa: RUF009 - frozen


@dataclass(frozen=True, kw_only=True)
class RouterProcess:
    """All that a router process is told. Addresses are ZeroMQ endpoints that it binds."""

    name: str
    models: tuple[ServedModel, ...]
    keys: Keys
    tokenizer_address: str
    detokenizer_address: str
    node_address: str
    options: RouterOptions
    observe: ObserveOptions = ObserveOptions()
    security: CurveServer | None = None


@dataclass(frozen=True, kw_only=True)
class TokenizerProcess:
    """All that a tokenizer process is told. `model` is the model's name in the API."""

    name: str
    model_dir: Path
    router_address: str
    trust_remote_code: bool
    model: str = ""
    special_tokens_in_content: SpecialTokensInContent = "text"
    observe: ObserveOptions = ObserveOptions()


@dataclass(frozen=True, kw_only=True)
class DetokenizerProcess:
    """All that a detokenizer process is told; it binds `token_address` for nodes, which know it
    as `advertised_address` if that is another. `model` is the model's name in the API."""

    name: str
    model_dir: Path
    router_address: str
    token_address: str
    trust_remote_code: bool
    model: str = ""
    advertised_address: str = ""
    observe: ObserveOptions = ObserveOptions()
    security: CurveServer | None = None


@dataclass(frozen=True, kw_only=True)
class SchedulerProcess:
    """All that a scheduler process is told; it binds `worker_address` and speaks for `node`."""

    name: str
    node: str
    router_address: str
    worker_address: str
    options: SchedulerOptions
    info: NodeInfo = field(default_factory=NodeInfo)
    observe: ObserveOptions = ObserveOptions()
    metrics_host: str = "127.0.0.1"
    metrics_port: int = 0
    telemetry_address: str = ""
    """Where the machine's telemetry process publishes; "" if there is none."""

    security: CurveClient | None = None


@dataclass(frozen=True, kw_only=True)
class WorkerProcess:
    """All that an MLX worker process is told."""

    name: str
    model_dir: Path
    scheduler_address: str
    max_rows: int
    max_chunk_tokens: int
    options: WorkerOptions
    observe: ObserveOptions = ObserveOptions()
    machine_share: float = 1.0
    """Of the machine's memory and cores, where `options` does not say how much to take."""


@dataclass(frozen=True, kw_only=True)
class TelemetryProcess:
    """All that a machine's telemetry process is told; it binds `address`. `source` is auto or a
    file."""

    name: str
    address: str
    source: str
    observe: ObserveOptions = ObserveOptions()


@dataclass(frozen=True, kw_only=True)
class SimWorkerProcess:
    """All that a simulated worker process is told."""

    name: str
    node: str
    model_dir: Path
    scheduler_address: str
    max_context: int | None
    options: SimOptions
    observe: ObserveOptions = ObserveOptions()


@dataclass(frozen=True, kw_only=True)
class SimNodesProcess:
    """All that a process of several simulated nodes is told: for each its scheduler and worker."""

    name: str
    nodes: tuple[tuple[SchedulerProcess, SimWorkerProcess], ...]
    observe: ObserveOptions = ObserveOptions()


T = TypeVar("T")


def validated(options: T) -> T:
    """Check an options structure against its limits; ConfigError names the flag and the limit."""
    try:
        msgspec.convert(
            msgspec.to_builtins(options, enc_hook=str), type(options), dec_hook=decode_path
        )
    except msgspec.ValidationError as error:
        text, _, path = str(error).partition(" - at `$.")
        flag = "--" + path.rstrip("`").replace("_", "-")
        raise ConfigError(f"{flag}: {text}") from error
    return options


def save(process: object, path: Path) -> None:
    """Write what a process is told to a file that only this user can read."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.json.encode(process, enc_hook=str))


def load(kind: type[T], path: Path) -> T:
    """Read back what `save` wrote."""
    return msgspec.json.decode(path.read_bytes(), type=kind, dec_hook=decode_path)


def decode_path(kind: type, value: object) -> object:
    """Paths are the only type in a configuration that JSON does not have."""
    if kind is not Path:
        raise TypeError(f"{kind} cannot stand in a configuration")
    return Path(str(value))
