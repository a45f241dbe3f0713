"""What a node tells of its cache, and how much of it at once."""

from __future__ import annotations

from mlxfleet.common.messages import KvEvents, KvSnapshot
from mlxfleet.workers.kv_events import HASHES_PER_MESSAGE, MAX_BACKLOG, KvJournal


def take(journal: KvJournal, *everything: int) -> list[KvEvents | KvSnapshot]:
    """The messages for what has not been told."""
    return list(journal.take(lambda: everything))


def test_the_last_state_of_a_block_counts() -> None:
    journal = KvJournal()
    journal.stored(1)
    journal.stored(2)
    journal.removed(1)
    journal.removed(3)
    journal.stored(3)
    assert take(journal) == [KvEvents(sequence=1, cleared=False, removed=[1], stored=[2, 3])]
    assert journal.empty
    assert take(journal) == []
    assert journal.sequence == 1


def test_clearing_makes_what_was_before_void() -> None:
    journal = KvJournal()
    journal.stored(0)
    take(journal)
    journal.stored(1)
    journal.cleared()
    journal.stored(2)
    assert take(journal) == [KvEvents(sequence=2, cleared=True, removed=[], stored=[2])]


def test_a_journal_that_has_told_nothing_has_nothing_to_clear() -> None:
    journal = KvJournal()
    journal.stored(1)
    journal.cleared()
    assert journal.empty


def test_many_events_are_several_messages() -> None:
    journal = KvJournal()
    journal.stored(0)
    take(journal)
    journal.cleared()
    for block in range(HASHES_PER_MESSAGE + 1):
        journal.stored(block)
    first, second = take(journal)
    assert isinstance(first, KvEvents)
    assert first.cleared
    assert second == KvEvents(sequence=3, cleared=False, removed=[], stored=[HASHES_PER_MESSAGE])


def test_a_snapshot_takes_the_place_of_events() -> None:
    journal = KvJournal()
    journal.stored(1)
    journal.ask_snapshot()
    journal.stored(2)
    assert take(journal, 1, 2) == [KvSnapshot(sequence=1, first=True, last=True, stored=[1, 2])]
    assert journal.empty


def test_a_large_snapshot_comes_in_parts_and_an_empty_one_in_one() -> None:
    journal = KvJournal()
    journal.ask_snapshot()
    parts = take(journal, *range(2 * HASHES_PER_MESSAGE))
    flags = [(m.first, m.last, m.sequence) for m in parts if isinstance(m, KvSnapshot)]
    assert flags == [(True, False, 1), (False, True, 2)]
    journal.ask_snapshot()
    assert take(journal) == [KvSnapshot(sequence=3, first=True, last=True, stored=[])]


def test_when_too_much_piles_up_everything_is_told() -> None:
    journal = KvJournal()
    for block in range(MAX_BACKLOG + 1):
        journal.removed(block)
    assert take(journal, 7) == [KvSnapshot(sequence=1, first=True, last=True, stored=[7])]
