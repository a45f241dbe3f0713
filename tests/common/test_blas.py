"""What the worker's OpenBLAS is told about the processor."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlxfleet.common import blas
from mlxfleet.common.blas import is_amd_with_avx512, kernels_environment

ZEN_5 = """\
processor\t: 0
vendor_id\t: AuthenticAMD
model name\t: AMD EPYC
flags\t\t: fpu sse2 avx avx2 avx512f avx512dq avx512ifma avx512cd avx512bw avx512vl

processor\t: 1
"""


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        (ZEN_5, True),
        (ZEN_5.replace("avx512vl", ""), False),
        (ZEN_5.replace("AuthenticAMD", "GenuineIntel"), False),
        ("processor\t: 0\nFeatures\t: fp asimd\n", False),
        ("", False),
    ],
)
def test_amd_processors_with_avx512_are_known(tmp_path: Path, text: str, is_one: bool) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(text)
    assert is_amd_with_avx512(file) is is_one


def test_without_the_file_nothing_is_known(tmp_path: Path) -> None:
    assert not is_amd_with_avx512(tmp_path / "none")


def test_they_get_the_kernels_that_openblas_does_not_choose(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OPENBLAS_CORETYPE", raising=False)
    monkeypatch.setattr(blas, "is_amd_with_avx512", lambda _: True)
    assert kernels_environment() == {"OPENBLAS_CORETYPE": "SkylakeX"}
    monkeypatch.setattr(blas, "is_amd_with_avx512", lambda _: False)
    assert kernels_environment() == {}


def test_what_the_user_chose_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    monkeypatch.setattr(blas, "is_amd_with_avx512", lambda _: True)
    assert kernels_environment() == {}
