"""Under which names a machine is reached."""

from __future__ import annotations

import socket
import threading

import pytest

from mlxfleet.router.own_names import OwnNames, quick_names
from tests.integration.fleet import wait_for


@pytest.mark.parametrize(
    ("hostname", "names"),
    [
        ("Studio", {"studio", "studio.local"}),
        ("studio.local", {"studio", "studio.local"}),
        ("studio.corp.example", {"studio.corp.example", "studio", "studio.local"}),
        ("", set()),
    ],
)
def test_names_that_follow_from_the_host_name(
    monkeypatch: pytest.MonkeyPatch, hostname: str, names: set[str]
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: hostname)
    assert quick_names() == names


def test_slow_names_are_learned_in_the_background() -> None:
    asked, may_answer = threading.Event(), threading.Event()

    def learn() -> set[str]:
        asked.set()
        may_answer.wait(timeout=10)
        return {"studio.example"}

    names = OwnNames(learn)
    assert "studio.example" not in names
    assert asked.wait(timeout=10)
    assert "studio.example" not in names
    may_answer.set()
    wait_for(lambda: "studio.example" in names, "the name", deadline_s=10)


def test_unknown_names_do_not_make_us_look_again_and_again() -> None:
    looked = []
    learned = threading.Event()

    def learn() -> set[str]:
        looked.append(True)
        learned.set()
        return set()

    names = OwnNames(learn)
    assert not any(f"evil-{i}.example" in names for i in range(100))
    assert learned.wait(timeout=10)
    assert len(looked) == 1
