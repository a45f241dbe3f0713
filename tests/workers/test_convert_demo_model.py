"""The demo model answers sensibly and its tokenizer is exact. Needs the network the first time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from mlxfleet.common.demo_model import convert, ensure_demo_model
from mlxfleet.common.errors import ModelError

SPECIAL_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<repo_name>",
    "<reponame>",
    "<file_sep>",
    "<filename>",
    "<gh_stars>",
    "<issue_start>",
    "<issue_comment>",
    "<issue_closed>",
    "<jupyter_start>",
    "<jupyter_text>",
    "<jupyter_code>",
    "<jupyter_output>",
    "<jupyter_script>",
    "<empty_output>",
]

NO_NETWORK = """
import socket, sys
def refuse(*args, **options):
    raise AssertionError("the network was used")
socket.create_connection = socket.getaddrinfo = refuse
"""

ANSWER = """
from mlx_lm import generate, load
model, tokenizer = load(sys.argv[1])
question = [{"role": "user", "content": "What is the capital of France?"}]
prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True)
print(generate(model, tokenizer, prompt, max_tokens=24))
"""

LOAD_TOKENIZER = """
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
question = [{"role": "user", "content": "Hi"}]
print(tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.model_max_length, len(tokenizer))
print(tokenizer.apply_chat_template(question, add_generation_prompt=True, tokenize=False))
"""


@pytest.fixture(scope="module")
def demo() -> Path:
    return ensure_demo_model("float32")


@pytest.fixture(scope="module")
def tokenizer(demo: Path) -> Tokenizer:
    return Tokenizer.from_file(str(demo / "tokenizer.json"))


def run(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the code in a process of its own, because it imports mlx, with a fast BLAS."""
    blas = next(Path("/usr/lib").glob("*/openblas-pthread/libopenblas.so.0"), None)
    preload = {"LD_PRELOAD": str(blas)} if blas else {}
    return subprocess.run(
        [sys.executable, "-c", NO_NETWORK + code, str(folder)],
        env={**os.environ, **preload},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("dtype", ["float32", "q4"])
def test_greedy_answer_is_right(dtype: str) -> None:
    done = run(ANSWER, ensure_demo_model(dtype))
    assert done.stdout.strip() == "The capital of France is Paris.", done.stderr


def test_transformers_loads_the_tokenizer_without_complaint(demo: Path) -> None:
    done = run("import warnings; warnings.simplefilter('error')" + LOAD_TOKENIZER, demo)
    numbers, _, prompt = done.stdout.partition("\n")
    assert numbers == "2 1 8192 49152", done.stderr
    assert prompt.startswith("<|im_start|>system\n")
    assert prompt.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n\n")
    # transformers remarks on every import that PyTorch is not there.
    remarks = [line for line in done.stderr.splitlines() if "PyTorch" not in line]
    assert remarks == []


@pytest.mark.parametrize(
    "text",
    [
        "The quick brown fox",
        " leading and trailing ",
        "line\n\n\tindented\r\n",
        "naïve 日本語 🙂 \u200d",
        "it's 3.14159, they'll",
        "<|im_start|>user\nHi<|im_end|>\n",
        "",
    ],
)
def test_text_survives_the_tokenizer(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_every_digit_is_a_token(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("a12345").tokens == ["a", "1", "2", "3", "4", "5"]


def test_special_tokens_come_first_and_are_never_split(tokenizer: Tokenizer) -> None:
    assert [tokenizer.id_to_token(i) for i in range(len(SPECIAL_TOKENS))] == SPECIAL_TOKENS
    for number, token in enumerate(SPECIAL_TOKENS):
        assert tokenizer.encode(token).ids == [number]
    assert tokenizer.decode([1, 2, 16], skip_special_tokens=True) == ""
    assert tokenizer.get_vocab_size() == 49152


def test_config_describes_the_model(demo: Path) -> None:
    config = json.loads((demo / "config.json").read_text())
    assert config["model_type"] == "llama"
    assert (config["hidden_size"], config["num_hidden_layers"]) == (576, 30)
    assert (config["num_attention_heads"], config["num_key_value_heads"]) == (9, 3)
    assert (config["eos_token_id"], config["max_position_embeddings"]) == (2, 8192)
    assert "quantization" not in config


def test_another_wheel_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.whl").write_bytes(b"not the model")
    with pytest.raises(ModelError, match=r"SHA-256 of other\.whl is 9"):
        convert(tmp_path / "other.whl", tmp_path / "out", "float32")
    assert not (tmp_path / "out").exists()
