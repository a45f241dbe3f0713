"""Nodes that join a router over TCP: with keys, late, twice, wrongly, and torn away."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest

from mlxfleet.bench.tiny_model import write_tiny_model
from mlxfleet.common.errors import ExitCode
from mlxfleet.common.tokenizer_files import tokenizer_hash
from tests.integration.fleet import COMMAND, wait_for
from tests.integration.joined import Cable, Front, Node
from tests.integration.streams import Stream

TOKENS = 1500
LONG = {
    "prompt": "once upon a time",
    "max_tokens": TOKENS,
    "temperature": 0.8,
    "seed": 3,
    "extra_body": {"ignore_eos": True},
}


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    subprocess.run([COMMAND, "keys", "--out", str(folder)], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def front(tiny_model: Path, keys: Path) -> Iterator[Front]:
    # By default two streams of one prompt would share a node, or avoid one that the other slows.
    spread = ["--routing", "least_loaded", "--no-node-weights"]
    with Front("--model", str(tiny_model), "--keys", str(keys), *spread) as front:
        yield front


@pytest.fixture(scope="module")
def cable(front: Front) -> Iterator[Cable]:
    cable = Cable(front.node_address)
    yield cable
    cable.close()


@pytest.fixture(scope="module")
def first(front: Front, cable: Cable, tiny_model: Path, keys: Path) -> Iterator[Node]:
    with node("a", cable.address, tiny_model, keys) as running:
        yield running


@pytest.fixture(scope="module")
def undisturbed(front: Front, first: Node) -> str:
    stream = Stream(LONG)
    stream.run(front)
    assert stream.completion_tokens == TOKENS
    return stream.text


def node(name: str, address: str, model: Path, keys: Path) -> Node:
    return Node("--router", address, "--model", str(model), "--name", name, "--keys", str(keys))


def refused(front: Front, reason: str) -> float:
    return front.metric("mlxfleet_refused_nodes_total", reason=reason)


def test_a_chat_streams_from_a_node_that_joined(front: Front, first: Node) -> None:
    assert first.ready_line == "ready node a"
    wait_for(lambda: front.get("/ready")[0] == 200, "the router to be ready")
    stream = front.client().chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "Hi"}], max_tokens=8, stream=True
    )
    chunks = list(stream)
    assert chunks[-1].choices[0].finish_reason in ("length", "stop")


@pytest.mark.parametrize("what", ["link", "detokenizer-0"])
def test_a_stream_goes_on_when_something_between_breaks(
    front: Front, cable: Cable, first: Node, undisturbed: str, what: str
) -> None:
    stream = Stream(LONG)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(stream.run, front)
        wait_for(lambda: stream.chunks > 20, "the stream to be under way")
        if what == "link":
            cable.cut()
        else:
            front.kill(what)
        running.result()
    assert stream.text == undisturbed
    assert stream.completion_tokens == TOKENS


def test_a_stream_of_a_node_that_is_gone_goes_on_on_one_that_came_late(
    front: Front, first: Node, undisturbed: str, tiny_model: Path, keys: Path
) -> None:
    with node("b", front.node_address, tiny_model, keys) as second:
        wait_for(lambda: front.ready_nodes() == {"a", "b"}, "both nodes")
        streams = [Stream(LONG), Stream(LONG)]
        with ThreadPoolExecutor(2) as pool:
            running = [pool.submit(stream.run, front) for stream in streams]
            wait_for(
                lambda: (
                    front.metric("mlxfleet_running_sequences", node="b") == 1
                    and all(stream.chunks > 20 for stream in streams)
                ),
                "a stream on each node",
            )
            second.kill_all()
            for future in running:
                future.result()
        assert [stream.text for stream in streams] == [undisturbed] * 2
        assert front.metric("mlxfleet_failovers_total") >= 1
        # The name is free again as soon as its owner is silent.
        with node("b", front.node_address, tiny_model, keys) as again:
            assert again.ready_line == "ready node b"


def test_a_second_node_of_a_name_is_refused(
    front: Front, first: Node, tiny_model: Path, keys: Path
) -> None:
    second = node("a", front.node_address, tiny_model, keys)
    assert second.exit_code() == ExitCode.REFUSED
    assert "is here already" in second.output
    assert refused(front, "name") >= 1
    assert "a" in front.ready_nodes()


def test_a_node_with_an_unknown_key_never_joins(
    front: Front, keys: Path, tiny_model: Path, tmp_path: Path
) -> None:
    subprocess.run([COMMAND, "keys", "--out", str(tmp_path)], check=True, capture_output=True)
    shutil.copy(keys / "router.public", tmp_path / "router.public")
    stranger = node("stranger", front.node_address, tiny_model, tmp_path)
    try:
        wait_for(lambda: refused(front, "key") >= 2, "it to be refused, and to try again")
        wait_for(lambda: "not among those" in stranger.output, "it to say why")
        assert "stranger" not in front.get("/metrics")[1]
        assert "its key is not among the accepted ones" in front.output
        assert stranger.process.poll() is None
    finally:
        stranger.__exit__()


def test_a_node_with_another_tokenizer_is_refused(
    front: Front, keys: Path, tiny_model: Path, tmp_path: Path
) -> None:
    other = tmp_path / tiny_model.name
    shutil.copytree(tiny_model, other)
    with (other / "tokenizer.json").open("a") as file:
        file.write("\n")
    odd = node("odd", front.node_address, other, keys)
    assert odd.exit_code() == ExitCode.REFUSED
    for folder in (other, tiny_model):
        assert tokenizer_hash(folder)[:16] in odd.output
    assert refused(front, "model") >= 1


def test_secrets_are_shown_nowhere(front: Front, first: Node, keys: Path) -> None:
    shown = subprocess.run(["ps", "axeww"], capture_output=True, text=True, check=True).stdout
    shown += front.output + first.output + front.get("/metrics")[1]
    for path in keys.glob("*.secret"):
        assert path.read_text().strip() not in shown


def test_plain_links_stay_on_this_machine(tiny_model: Path) -> None:
    done = subprocess.run(
        [COMMAND, "router", "--model", str(tiny_model), "--node-host", "0.0.0.0"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == ExitCode.CONFIG
    assert "--insecure-links" in done.stderr


def test_two_models_on_one_router(tiny_model: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    write_tiny_model(other, seed=1)
    models = ["--model", str(tiny_model), "--model", str(other)]
    with contextlib.ExitStack() as stack:
        # Nodes are told `*` instead of a host, and put in the one that they used.
        links = ["--node-host", "0.0.0.0", "--insecure-links", "--node-wait-s", "1"]
        front = Front(*models, *links)
        stack.enter_context(front)
        address = f"tcp://127.0.0.1:{front.node_address.rpartition(':')[2]}"
        stack.enter_context(Node("--router", address, "--model", str(tiny_model), "--name", "t"))
        client = front.client()
        assert {model.id for model in client.models.list()} == {"tiny", "other"}
        with pytest.raises(openai.APIStatusError, match="no node is there"):
            client.completions.create(model="other", prompt="Hi", max_tokens=4)
        with Node("--router", address, "--model", str(other), "--name", "o"):
            asked = {"prompt": "once upon a time", "max_tokens": 16, "temperature": 0}
            texts = {
                model: client.completions.create(
                    model=model, extra_body={"ignore_eos": True}, **asked
                )
                for model in ("tiny", "other")
            }
            assert texts["tiny"].choices[0].text != texts["other"].choices[0].text
            assert [answer.model for answer in texts.values()] == ["tiny", "other"]
            for name in ("t", "o"):
                wait_for(
                    lambda name=name: front.metric("mlxfleet_worker_steps_total", node=name),
                    f"{name} to tell of its work",
                )
            with pytest.raises(openai.NotFoundError):
                client.completions.create(model="none", prompt="Hi")
            status, body, _ = front.post("/v1/completions", {"prompt": "Hi"})
            assert status == 400
            assert body["error"]["param"] == "model"
