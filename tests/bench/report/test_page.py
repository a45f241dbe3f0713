"""The report: whole, well formed, and in need of nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterable
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from mlxfleet.bench.records import Record, Run
from mlxfleet.bench.report.loaded import load_files
from mlxfleet.bench.report.markdown import markdown
from mlxfleet.bench.report.page import page
from mlxfleet.common.errors import ConfigError
from tests.bench.report.sample_records import comparison, make_run, sweep, write

VOID = {"meta"}


class Balance(HTMLParser):
    """Complains of tags that do not fit together, collects addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def make(folder: Path, *files: Iterable[Record]) -> str:
    """The page of some files."""
    paths = [write(folder / f"{i}.jsonl", records) for i, records in enumerate(files)]
    return page(load_files(paths), "a <title>")


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page with everything that there is."""
    folder = tmp_path_factory.mktemp("report")
    return make(folder, sweep({"": 1.0}), sweep({"one": 1.0, "two": 2.0}), comparison(3))


def test_the_page_is_well_formed_and_needs_nothing_from_outside(full: str) -> None:
    parser = Balance()
    parser.feed(full)
    assert parser.open == []
    assert parser.addresses == []
    assert not re.search(r"<script|@import|url\(", full)


def test_pictures_are_well_formed_and_say_what_they_show(full: str) -> None:
    pictures = [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", full)]
    assert len(pictures) > 10
    for picture in pictures:
        assert picture.attrib["role"] == "img"
        assert picture.findtext("title")
        assert picture.findtext("desc")
        assert "nan" not in ElementTree.tostring(picture, "unicode")


def test_every_kind_of_picture_is_there(full: str) -> None:
    titles = set(re.findall(r"<svg[^>]*><title>(.*?)</title>", full))
    assert {"TTFT against output tokens/s", "TPOT against output tokens/s"} <= titles
    kinds = ("TTFT", "ITL", "E2E")
    assert {f"Distribution of {kind}, 8 streams" for kind in kinds} <= titles
    assert {"Output tokens/s over time", "B against A"} <= titles


def test_sensors_are_shown_above_time(full: str) -> None:
    for words in ("temperature, °C", "power, W", "frequency, GHz", "memory pressure"):
        assert words in full


def test_a_saturated_client_is_said_at_the_top(full: str) -> None:
    warning = full.index("The client was saturated")
    assert warning < full.index("<h2")


def test_what_a_server_says_is_escaped(full: str) -> None:
    assert "&lt;script&gt;alert(1)" in full


def test_thrown_out_rounds_are_marked_and_do_not_count(full: str) -> None:
    assert 'class="cross"' in full
    assert "thrown out: memory pressure rose to warning" in full


def test_a_verdict_is_told_in_words(full: str) -> None:
    assert "B is faster than A" in full
    assert "95% interval 1.029 to 1.054" in full


def test_what_openblas_was_told_is_shown(full: str) -> None:
    assert "OPENBLAS_CORETYPE Haswell" in full


def test_the_machines_paths_are_not_shown(full: str) -> None:
    assert "/opt/venv" not in full
    assert "mlxfleet bench serve" in full


def test_a_single_run_has_its_figures_large(tmp_path: Path) -> None:
    text = make(tmp_path, sweep({"": 1.0}, [8]))
    assert 'class="tile"' in text
    assert "against output tokens/s" not in text


def test_a_run_that_was_cut_short_is_said_to_be(tmp_path: Path) -> None:
    records = list(sweep({"": 1.0}, [1]))[:-1]
    assert "was cut short" in make(tmp_path, records)


def test_a_file_that_was_cut_off_is_shown_as_far_as_it_goes(tmp_path: Path) -> None:
    path = write(tmp_path / "run.jsonl", sweep({"": 1.0}, [1, 2]))
    path.write_bytes(path.read_bytes()[:-20])
    loaded = load_files([path])
    assert loaded.incomplete == [path]
    assert "was cut off" in page(loaded, "title")


def test_another_file_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "other.jsonl"
    path.write_text('{"type": "something"}\n')
    with pytest.raises(ConfigError, match="record 1 is not"):
        load_files([path])


def test_records_of_a_later_schema_are_refused(tmp_path: Path) -> None:
    run: Run = make_run("a", {"kind": "closed_loop", "concurrency": 1}, schema=99)
    with pytest.raises(ConfigError, match="schema 99"):
        load_files([write(tmp_path / "new.jsonl", [run])])


def test_the_document_has_tables_and_ratios(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", sweep({"mlxfleet": 1.0, "peer": 2.0}, [8, 16], rounds=2))
    text = markdown(load_files([path]))
    assert "| 8 streams | mlxfleet |" in text
    assert "mlxfleet / best of the others" in text
    assert "http\\_503" in text


def test_the_document_says_what_comparisons_found(tmp_path: Path) -> None:
    loaded = load_files([write(tmp_path / "ab.jsonl", comparison())])
    text = markdown(loaded)
    [verdict] = loaded.comparisons[0].verdicts
    assert "## Comparisons" in text
    assert f"| {verdict.ratio:.3f} | {verdict.low:.3f} – {verdict.high:.3f} |" in text
