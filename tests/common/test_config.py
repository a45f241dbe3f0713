"""Options: limits that name the flag, files that survive the way to a process, and help texts."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import io
import math
import stat
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console

from mlxfleet.common import config
from mlxfleet.common.cli import app
from mlxfleet.common.config import (
    DetokenizerProcess,
    FleetOptions,
    FrontOptions,
    Keys,
    LinkOptions,
    RouterOptions,
    RouterProcess,
    SchedulerOptions,
    SchedulerProcess,
    SecurityOptions,
    ServedModel,
    SimNodesProcess,
    SimOptions,
    SimWorkerProcess,
    TokenizerProcess,
    WorkerOptions,
    WorkerProcess,
    validated,
)
from mlxfleet.common.errors import ConfigError

OPTIONS = [
    RouterOptions,
    FrontOptions,
    LinkOptions,
    SecurityOptions,
    SchedulerOptions,
    WorkerOptions,
    SimOptions,
    FleetOptions,
]
EVERY_OPTION = [
    pytest.param(kind, field.name, id=field.name)
    for kind in OPTIONS
    for field in dataclasses.fields(kind)
]
SIM_WORKER = SimWorkerProcess(
    name="worker-1",
    node="node-1",
    model_dir=Path("relative"),
    scheduler_address="inproc://worker-1",
    max_context=None,
    options=SimOptions(engine="sim", sim_slowdown="0:1,5:2", sim_faults=Path("/tmp/faults")),
)
PROCESSES: list[Any] = [
    RouterProcess(
        name="router",
        models=(ServedModel(name="Modell ü", source="x", tokenizer_hash="y"),),
        keys=Keys(api=("one", "two"), admin="three"),
        tokenizer_address="ipc:///tmp/a",
        detokenizer_address="ipc:///tmp/b",
        node_address="tcp://127.0.0.1:1",
        options=RouterOptions(api_key_file=Path("/etc/keys"), port=0, drain_timeout_s=0.5),
    ),
    TokenizerProcess(
        name="tokenizer-0",
        model_dir=Path("/models/a b"),
        router_address="ipc:///tmp/a",
        trust_remote_code=True,
    ),
    DetokenizerProcess(
        name="detokenizer-0",
        model_dir=Path("/models/ü"),
        router_address="ipc:///tmp/a",
        token_address="ipc:///tmp/b",
        trust_remote_code=False,
    ),
    SchedulerProcess(
        name="scheduler-0",
        node="node-0",
        router_address="ipc:///tmp/a",
        worker_address="ipc:///tmp/b",
        options=SchedulerOptions(max_running=1, itl_budget_ms=12.5),
    ),
    WorkerProcess(
        name="worker-0",
        model_dir=Path("relative"),
        scheduler_address="ipc:///tmp/a",
        max_rows=34,
        max_chunk_tokens=512,
        options=WorkerOptions(memory_gb=1.5, max_context=100),
    ),
    SIM_WORKER,
    SimNodesProcess(
        name="sim-nodes-0",
        nodes=(
            (
                SchedulerProcess(
                    name="scheduler-1",
                    node="node-1",
                    router_address="ipc:///tmp/a",
                    worker_address="inproc://worker-1",
                    options=SchedulerOptions(),
                ),
                SIM_WORKER,
            ),
        ),
    ),
]


# --- limits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", OPTIONS)
def test_defaults_are_within_their_limits(kind: Any) -> None:
    assert validated(kind()) == kind()


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        (RouterOptions(port=65536), "--port"),
        (RouterOptions(port=-1), "--port"),
        (RouterOptions(max_requests=0), "--max-requests"),
        (RouterOptions(drain_timeout_s=-1.0), "--drain-timeout-s"),
        (SchedulerOptions(max_queue=0), "--max-queue"),
        (SchedulerOptions(itl_budget_ms=0.0), "--itl-budget-ms"),
        (WorkerOptions(memory_gb=-1.0), "--memory-gb"),
        (WorkerOptions(max_context=0), "--max-context"),
        (FrontOptions(tokenizers=0), "--tokenizers"),
        (LinkOptions(node_port=70000), "--node-port"),
        (SimOptions(sim_step_ms=0.0), "--sim-step-ms"),
        (SimOptions(sim_prefill_tokens_per_s=0.0), "--sim-prefill-tokens-per-s"),
        (SimOptions(sim_kv_tokens=10), "--sim-kv-tokens"),
        (SimOptions(sim_nodes_per_process=0), "--sim-nodes-per-process"),
        (FleetOptions(nodes=0), "--nodes"),
    ],
)
def test_a_value_beyond_its_limit_names_the_flag(options: object, flag: str) -> None:
    with pytest.raises(ConfigError, match=f"^{flag}: Expected `(int|float)") as caught:
        validated(options)
    assert "$" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        (WorkerOptions(kv_bits=3), "--kv-bits"),  # type: ignore[arg-type]
        (WorkerOptions(quantize="q5"), "--quantize"),  # type: ignore[arg-type]
        (SimOptions(engine="gpu"), "--engine"),  # type: ignore[arg-type]
    ],
)
def test_a_choice_that_there_is_not_names_the_flag(options: object, flag: str) -> None:
    with pytest.raises(ConfigError, match=f"^{flag}: Invalid enum value"):
        validated(options)


def test_a_value_at_its_limit_is_taken() -> None:
    validated(RouterOptions(port=65535, max_requests=1, drain_timeout_s=0.0))


def test_paths_are_validated_too() -> None:
    options = RouterOptions(api_key_file=Path("/some/file"))
    assert validated(options) is options


def test_options_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        RouterOptions().port = 1  # type: ignore[misc]


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", PROCESSES, ids=lambda process: process.name)
def test_what_a_process_is_told_survives_the_file(process: Any, tmp_path: Path) -> None:
    config.save(process, tmp_path / "orders")
    assert config.load(type(process), tmp_path / "orders") == process


def test_only_this_user_can_read_the_file(tmp_path: Path) -> None:
    config.save(PROCESSES[0], tmp_path / "orders")
    assert stat.S_IMODE((tmp_path / "orders").stat().st_mode) == 0o600


def test_a_file_is_written_anew(tmp_path: Path) -> None:
    config.save(PROCESSES[0], tmp_path / "orders")
    config.save(PROCESSES[1], tmp_path / "orders")
    assert config.load(TokenizerProcess, tmp_path / "orders") == PROCESSES[1]


def test_a_file_for_another_process_is_refused(tmp_path: Path) -> None:
    config.save(PROCESSES[0], tmp_path / "orders")
    with pytest.raises(msgspec.ValidationError):
        config.load(WorkerProcess, tmp_path / "orders")


def test_only_paths_need_help_to_be_read() -> None:
    with pytest.raises(TypeError):
        config.decode_path(complex, "1j")


@given(seconds=st.floats(), budget=st.floats())
@example(seconds=math.inf, budget=50.0)
@example(seconds=1.0, budget=math.inf)
def test_options_that_are_valid_survive_the_file(
    tmp_path_factory: pytest.TempPathFactory, seconds: float, budget: float
) -> None:
    scheduler = SchedulerProcess(
        name="s",
        node="n",
        router_address="",
        worker_address="",
        options=SchedulerOptions(itl_budget_ms=budget),
    )
    router = dataclasses.replace(
        PROCESSES[0], options=RouterOptions(drain_timeout_s=seconds, node_wait_s=seconds)
    )
    orders = tmp_path_factory.getbasetemp() / "orders"
    for process in (scheduler, router):
        try:
            validated(process.options)
        except ConfigError:
            continue
        config.save(process, orders)
        assert config.load(type(process), orders) == process


# --- help -----------------------------------------------------------------------------------------


def documented(kind: type) -> dict[str, str]:
    """The docstring under each field of a structure, on one line."""
    (tree,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(tree, ast.ClassDef)
    texts = {}
    for field, below in zip(tree.body, tree.body[1:], strict=False):
        match field, below:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                texts[name] = " ".join(text.split())
    return texts


@functools.cache
def help_for(kind: type) -> str:
    """What --help prints on a very wide terminal, of a command that takes these options."""
    command = "router" if kind in (LinkOptions, SecurityOptions) else "launch"
    printed = io.StringIO()
    console = Console(file=printed, width=1000, force_terminal=False)
    with pytest.raises(SystemExit) as exited:
        app([command, "--help"], console=console)
    assert exited.value.code == 0
    return printed.getvalue()


@pytest.mark.parametrize(("kind", "name"), EVERY_OPTION)
def test_every_option_is_explained_in_the_help(kind: type, name: str) -> None:
    text = documented(kind)[name]
    flag = "--" + name.replace("_", "-")
    (line,) = [line for line in help_for(kind).splitlines() if f" {flag} " in line]
    assert text.replace("`", "") in line


@pytest.mark.parametrize(("kind", "name"), EVERY_OPTION)
def test_every_option_can_come_from_the_environment(kind: type, name: str) -> None:
    assert f"[env var: MLXFLEET_{name.upper()}]" in help_for(kind)


def test_option_names_are_unique() -> None:
    names = [field.name for kind in OPTIONS for field in dataclasses.fields(kind)]
    assert len(names) == len(set(names))
