"""The options of `mlxfleet bench serve`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from cyclopts import Parameter

from mlxfleet.bench.figures import SLO_FIGURES
from mlxfleet.bench.lengths import parse_lengths
from mlxfleet.bench.out_file import check_out
from mlxfleet.bench.peer_options import Commas
from mlxfleet.common.errors import ConfigError

API_KEY = "MLXFLEET_BENCH_API_KEY"
Repeated = Parameter(negative=())
Switch = Parameter(negative=())


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class TargetOptions:
    """What is asked."""

    endpoint: Literal["completions", "chat"] = "completions"
    """Which of the two the requests go to."""

    model: str | None = None
    """Name of the model in requests; the one that the server has if not given."""

    header: Annotated[tuple[str, ...], Repeated] = ()
    """A header to send, as NAME:VALUE; may be given several times."""

    api_key_file: Path | None = None
    """File with the API key. MLXFLEET_BENCH_API_KEY in the environment is one too."""

    extra_body: str = "{}"
    """JSON object with further fields of every request, such as {"top_p": 0.9}."""

    ignore_eos: bool = True
    """Ask for answers of the full length, where the server takes `ignore_eos`."""

    request_timeout_s: float = 600.0
    """A request that takes longer has failed."""

    def headers(self) -> dict[str, str]:
        """All headers; ConfigError if one is none."""
        found = {}
        for header in self.header:
            name, colon, value = header.partition(":")
            if not colon or not name.strip():
                raise ConfigError(f"--header {header}: give NAME:VALUE")
            found[name.strip()] = value.strip()
        if key := self.api_key():
            found["Authorization"] = f"Bearer {key}"
        return found

    def api_key(self) -> str | None:
        """The key, if there is one."""
        if self.api_key_file is None:
            return os.environ.get(API_KEY)
        try:
            return self.api_key_file.read_text().strip()
        except OSError as error:
            raise ConfigError(f"--api-key-file: cannot read it: {error}") from error

    def body(self) -> dict[str, Any]:
        """Further fields; ConfigError if they are no object."""
        try:
            return msgspec.json.decode(self.extra_body, type=dict[str, Any])
        except msgspec.DecodeError as error:
            raise ConfigError(f"--extra-body is not a JSON object: {error}") from error


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ArrivalOptions:
    """When requests are sent."""

    concurrency: Annotated[tuple[int, ...], Commas] = ()
    """Streams at once, each of which sends its next request when its last one has ended. Several
    with commas: a run for each. 8 if nothing says when requests are sent."""

    request_rate: Annotated[tuple[float, ...], Commas] = ()
    """Conversations that begin in a second, whatever was answered. Several with commas: a run for
    each; inf is all at once."""

    burstiness: float = 1.0
    """Shape of the gamma-distributed intervals of --request-rate: 1 is a Poisson process, less
    comes in bursts, more is more even."""

    trace_speed: float = 1.0
    """How many times as fast the trace's timestamps go by."""

    requests: int | None = None
    """Requests of a run. By default all of --trace, or else 8 for each stream, 100 at least."""

    max_seconds: float | None = None
    """Send nothing any more so long after a run's start; what was sent goes on to its end."""

    warmup: int = 0
    """Requests before each run that do not count, of random words, so that they leave nothing of
    use in a prefix cache."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """What the requests say. Random words if no file is given."""

    input_tokens: str = "256"
    """Tokens of a prompt: N, uniform:LEAST:MOST, or lognormal:MEDIAN:SIGMA[:MOST]. After a group's
    prefix, those that follow it; of later turns, those of the question."""

    output_tokens: str | None = None
    """Tokens of an answer, in the same forms: 64, or what a file says, if not given."""

    prefix_groups: int = 0
    """Groups of random prompts that begin alike."""

    prefix_tokens: int = 256
    """Tokens that the prompts of a group have in common."""

    turns: int = 1
    """Questions of a conversation; the answers go into the prompts after them."""

    think_s: float = 0.0
    """Mean time between an answer and the next question, exponentially distributed."""

    sharegpt: Path | None = None
    """JSON file of conversations as ShareGPT's."""

    prompts: Path | None = None
    """File of JSON lines: texts, or objects with `prompt` or `messages`, and `max_tokens`."""

    trace: Path | None = None
    """File of JSON lines with `timestamp` in ms, which says when each is sent unless --concurrency
    or --request-rate does, and either a prompt, or as Mooncake's `input_length`, `output_length`
    and `hash_ids`, one for each 512 tokens."""

    tokenizer: Path | None = None
    """Model folder whose tokenizer makes and counts prompts; by default the server's model, if its
    name is a folder here."""

    trust_remote_code: Annotated[bool, Switch] = False
    """Run Python code that comes with the tokenizer."""

    seed: int = 0
    """Of everything random. Each further run of a sweep has the next one."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """What comes of it."""

    out: Path | None = None
    """File to write: JSON lines, as docs/benchmarking.md describes them."""

    overwrite: Annotated[bool, Switch] = False
    """Write the file anew if it is there."""

    slo: Annotated[tuple[str, ...], Repeated] = ()
    """A limit in ms, as ttft:500, tpot:50, itl:100 or e2e:5000; may be given several times.
    Requests within all of them are goodput."""

    side: str = ""
    """What reports call the server; its model's name if not given."""

    telemetry: Annotated[bool, Parameter()] = True
    """Record sensors through the run: this machine's, and those of an mlxfleet server's nodes."""

    def slos_ms(self) -> dict[str, float]:
        """The limits by name; ConfigError for one that is none."""
        found = {}
        for slo in self.slo:
            name, _, limit = slo.partition(":")
            try:
                found[name] = float(limit)
            except ValueError:
                found[name] = 0.0
            if name not in SLO_FIGURES or not found[name] > 0:
                raise ConfigError(f"--slo {slo}: give {', '.join(SLO_FIGURES)}, a colon and ms")
        return found


@dataclass(frozen=True, kw_only=True)
class Options:
    """All of them."""

    url: str
    target: TargetOptions
    arrival: ArrivalOptions
    data: DataOptions
    report: ReportOptions

    def checked(self) -> Options:
        """ConfigError for what can be told to be wrong before anything is sent."""
        arrival, data = self.arrival, self.data
        if not self.url.startswith(("http://", "https://")):
            raise ConfigError(f"{self.url}: give the server's address, as http://HOST:PORT")
        if arrival.concurrency and arrival.request_rate:
            raise ConfigError("give --concurrency or --request-rate, not both")
        if sum(file is not None for file in (data.sharegpt, data.prompts, data.trace)) > 1:
            raise ConfigError("give one of --sharegpt, --prompts and --trace")
        numbers = {
            "--concurrency": (*arrival.concurrency, 1),
            "--requests": (1 if arrival.requests is None else arrival.requests,),
            "--turns": (data.turns,),
            "--prefix-tokens": (data.prefix_tokens,),
        }
        for flag, values in numbers.items():
            if min(values) < 1:
                raise ConfigError(f"{flag} must be at least 1")
        positive = {
            "--request-rate": arrival.request_rate,
            "--burstiness": (arrival.burstiness,),
            "--trace-speed": (arrival.trace_speed,),
            "--max-seconds": (1.0 if arrival.max_seconds is None else arrival.max_seconds,),
            "--request-timeout-s": (self.target.request_timeout_s,),
        }
        for flag, shares in positive.items():
            if not all(share > 0 for share in shares):
                raise ConfigError(f"{flag} must be more than 0")
        least = min(arrival.warmup, data.prefix_groups, data.think_s)
        if least < 0:
            raise ConfigError("--warmup, --prefix-groups and --think-s cannot be negative")
        parse_lengths(data.input_tokens, "--input-tokens")
        parse_lengths(data.output_tokens or "1", "--output-tokens")
        self.target.headers()
        self.target.body()
        self.report.slos_ms()
        check_out(self.report.out, overwrite=self.report.overwrite)
        return self
