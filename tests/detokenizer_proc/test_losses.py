"""What the router is asked to send again."""

from __future__ import annotations

from mlxfleet.detokenizer_proc.losses import MAX_REMEMBERED, REPORTS_AT_ONCE, Losses


def make() -> tuple[Losses, list[tuple[str, str]]]:
    reported: list[tuple[str, str]] = []
    return Losses(lambda rid, attempt: reported.append((rid, attempt))), reported


def test_a_loss_is_reported_once_until_the_stream_is_open() -> None:
    losses, reported = make()
    for _ in range(3):
        losses.lost("a", "1", last=False, open_here=False)
    assert reported == [("a", "1")]
    assert not losses.opened("a", "1")
    losses.lost("a", "1", last=False, open_here=True)
    assert len(reported) == 2


def test_last_tokens_that_came_too_early_are_known_when_the_stream_opens() -> None:
    losses, _ = make()
    losses.lost("a", "1", last=False, open_here=False)
    losses.lost("a", "1", last=True, open_here=False)
    assert losses.opened("a", "1")


def test_what_was_closed_is_not_reported() -> None:
    losses, reported = make()
    losses.closed("a", "1")
    losses.lost("a", "1", last=False, open_here=False)
    assert reported == []


def test_made_up_streams_neither_flood_the_router_nor_make_closed_ones_forgotten() -> None:
    losses, reported = make()
    losses.closed("a", "1")
    for number in range(10 * MAX_REMEMBERED):
        losses.lost(f"made up {number}", "1", last=False, open_here=False)
    assert len(reported) < 2 * REPORTS_AT_ONCE
    assert losses.unreported > 0
    assert len(losses._lost) <= MAX_REMEMBERED
    losses.lost("a", "1", last=False, open_here=False)
    assert ("a", "1") not in reported
