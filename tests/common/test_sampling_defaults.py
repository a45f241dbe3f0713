"""Sampling parameters that a model's makers recommend."""

from __future__ import annotations

import json
import logging
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlxfleet.common.config import RouterOptions, ServedModel
from mlxfleet.common.fleet_specs import served_model
from mlxfleet.common.model_files import WANTED_FILES, WEIGHT_FILES
from mlxfleet.common.sampling_defaults import (
    FILE,
    LIMITS,
    MAX_FILE_BYTES,
    SamplingDefaults,
    read_sampling_defaults,
)


def write(folder: Path, content: str | bytes) -> None:
    """Put the file into a model folder."""
    data = content if isinstance(content, bytes) else content.encode()
    (folder / FILE).write_bytes(data)


def test_all_parameters_are_read_and_other_fields_are_ignored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(
        tmp_path,
        """{"temperature": 0.7, "top_p": 0.8, "top_k": 20.0, "min_p": 0, "presence_penalty": 1.5,
        "frequency_penalty": -0.5, "repetition_penalty": 1.05, "do_sample": true,
        "eos_token_id": [1, 2], "transformers_version": "4.51.0", "max_new_tokens": "many"}""",
    )
    assert read_sampling_defaults(tmp_path) == SamplingDefaults(
        temperature=0.7,
        top_p=0.8,
        top_k=20,
        min_p=0.0,
        presence_penalty=1.5,
        frequency_penalty=-0.5,
        repetition_penalty=1.05,
    )
    assert not caplog.records


def test_no_file_and_a_file_without_parameters_mean_the_apis_defaults(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert read_sampling_defaults(tmp_path) == SamplingDefaults()
    write(tmp_path, '{"eos_token_id": 2, "temperature": null, "do_sample": null}')
    assert read_sampling_defaults(tmp_path) == SamplingDefaults()
    assert not caplog.records


def test_a_model_that_is_not_to_be_sampled_is_greedy(tmp_path: Path) -> None:
    write(tmp_path, '{"do_sample": false, "temperature": 0.6, "repetition_penalty": 1.1}')
    assert read_sampling_defaults(tmp_path) == SamplingDefaults(
        temperature=0.0, repetition_penalty=1.1
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", "2.5"),
        ("temperature", "NaN"),
        ("temperature", "Infinity"),
        ("temperature", '"0.7"'),
        ("temperature", "true"),
        ("temperature", "[0.7]"),
        ("top_p", "1.01"),
        ("top_k", "-2"),
        ("top_k", "1.5"),
        ("top_k", "1e400"),
        ("top_k", "1" + "0" * 30),
        ("min_p", "-0.1"),
        ("presence_penalty", "NaN"),
        ("frequency_penalty", "-Infinity"),
        ("repetition_penalty", "0"),
        ("do_sample", '"false"'),
    ],
)
def test_a_value_that_is_not_usable_is_named_and_the_others_are_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, value: str
) -> None:
    other = "min_p" if name != "min_p" else "top_p"
    write(tmp_path, f'{{"{name}": {value}, "{other}": 0.25}}')
    assert read_sampling_defaults(tmp_path) == SamplingDefaults(**{other: 0.25})
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert f"{name} is not used" in record.getMessage()


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b'"x"', b"{", b"\xff\xfe{", b"[" * 100_000, b" " * (MAX_FILE_BYTES + 1)],
)
def test_a_broken_file_is_named_and_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    write(tmp_path, content)
    assert read_sampling_defaults(tmp_path) == SamplingDefaults()
    (record,) = caplog.records
    assert FILE in record.getMessage()


def test_a_folder_in_the_files_place_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / FILE).mkdir()
    assert read_sampling_defaults(tmp_path) == SamplingDefaults()
    assert FILE in caplog.text


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2),
    max_leaves=3,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.dictionaries(st.sampled_from([*LIMITS, "do_sample"]), JSON))
def test_whatever_the_file_says_the_defaults_are_valid_and_can_be_sent_to_the_router(
    tmp_path: Path, stated: dict[str, Any]
) -> None:
    write(tmp_path, json.dumps(stated))
    served = ServedModel(name="m", sampling=read_sampling_defaults(tmp_path))
    assert msgspec.json.decode(msgspec.json.encode(served), type=ServedModel) == served


def test_the_option_turns_them_off(tmp_path: Path) -> None:
    write(tmp_path, '{"temperature": 0.5}')
    assert served_model(RouterOptions(), tmp_path, "m", "").sampling.temperature == 0.5
    off = RouterOptions(generation_config="off")
    assert served_model(off, tmp_path, "m", "").sampling == SamplingDefaults()


def test_a_front_end_downloads_the_file_without_the_weights() -> None:
    without_weights = [pattern for pattern in WANTED_FILES if pattern != WEIGHT_FILES]
    assert any(fnmatch(FILE, pattern) for pattern in without_weights)
