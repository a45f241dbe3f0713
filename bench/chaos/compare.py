"""Whether an answer is the undisturbed one, and in which way it is not."""

from __future__ import annotations

from typing import Literal, get_args

from msgspec import Struct

from mlxfleet.bench.chaos.answers import Answer, Choice, Entry
from mlxfleet.bench.chaos.cases import Case

Kind = Literal["lost", "wrong", "doubled", "hung", "malformed", "refused", "late", "leaked"]
KINDS: tuple[Kind, ...] = get_args(Kind)

# In float32, batches of other sizes change log-probabilities by some 1e-5; another token in the
# context changes them by much more than this.
LOGPROB_TOLERANCE = 1e-3
SHOWN_CHARACTERS = 40


class Finding(Struct, frozen=True):
    """What went wrong with a request, or with the fleet."""

    kind: Kind
    what: str


def compare(case: Case, answer: Answer, expected: Answer) -> Finding | None:
    """The first difference between a complete answer and the undisturbed one, None without."""
    if finding := over_limit(case, answer):
        return finding
    if (usage := answer.usage) is not None:
        if not case.exact:
            return same_counts(case, answer, expected)
        if expected.usage is not None and usage != expected.usage:
            more = usage.completion_tokens > expected.usage.completion_tokens
            what = f"{case.name}: {usage} instead of {expected.usage}"
            return Finding("doubled" if more else "wrong", what)
    if not case.exact:
        return same_ends(case, answer, expected)
    for index, (choice, wanted) in enumerate(zip(answer.choices, expected.choices, strict=True)):
        if difference := differs(choice, wanted):
            kind: Kind = "doubled" if longer(choice, wanted) else "wrong"
            return Finding(kind, f"{case.name}, choice {index}: {difference}")
    return None


def over_limit(case: Case, answer: Answer) -> Finding | None:
    """Whether an answer has more tokens than it may, whatever they are."""
    limit = case.body["max_tokens"]
    for index, choice in enumerate(answer.choices):
        if len(choice.logprobs) > limit:
            return doubled(case, f"choice {index} has {len(choice.logprobs)} of {limit} tokens")
    most = limit * case.choices
    if (usage := answer.usage) is not None and usage.completion_tokens > most:
        return doubled(case, f"{usage.completion_tokens} of {most} tokens")
    return None


def compare_beginning(case: Case, answer: Answer, expected: Answer) -> Finding | None:
    """The same for what a client has read that went away."""
    if not case.exact:
        return None
    for index, (choice, wanted) in enumerate(zip(answer.choices, expected.choices, strict=True)):
        if not wanted.text.startswith(choice.text):
            where = first_difference(choice.text, wanted.text)
            return Finding("wrong", f"{case.name}, choice {index}, read in part: {where}")
    return None


def doubled(case: Case, what: str) -> Finding:
    """More tokens than were asked for."""
    return Finding("doubled", f"{case.name}: {what}")


def same_counts(case: Case, answer: Answer, expected: Answer) -> Finding | None:
    """Without a seed the text is another, but not how much there is."""
    if expected.usage is not None and answer.usage != expected.usage:
        return Finding("wrong", f"{case.name}: {answer.usage} instead of {expected.usage}")
    return same_ends(case, answer, expected)


def same_ends(case: Case, answer: Answer, expected: Answer) -> Finding | None:
    """Whether every choice ended for the same reason."""
    ends = [choice.finish_reason for choice in answer.choices]
    wanted = [choice.finish_reason for choice in expected.choices]
    if ends != wanted:
        return Finding("wrong", f"{case.name}: ended with {ends} instead of {wanted}")
    return None


def longer(choice: Choice, wanted: Choice) -> bool:
    """Whether it has what it should have, and more."""
    more = len(choice.text) > len(wanted.text) and choice.text.startswith(wanted.text)
    return more or len(choice.logprobs) > len(wanted.logprobs)


def differs(choice: Choice, wanted: Choice) -> str:
    """The first difference between two choices, "" if there is none."""
    if choice.text != wanted.text:
        return first_difference(choice.text, wanted.text)
    if choice.finish_reason != wanted.finish_reason:
        return f"ended with {choice.finish_reason} instead of {wanted.finish_reason}"
    if len(choice.logprobs) != len(wanted.logprobs):
        return f"{len(choice.logprobs)} log-probabilities instead of {len(wanted.logprobs)}"
    for position, (entry, other) in enumerate(zip(choice.logprobs, wanted.logprobs, strict=True)):
        if not close(entry, other):
            return f"log-probability {position} is {entry} instead of {other}"
    return ""


def close(entry: Entry, other: Entry) -> bool:
    """Whether two tokens' log-probabilities are equal but for rounding. Alternatives are compared
    by value, because two that are equally likely may change places."""
    if (entry.token, entry.offset) != (other.token, other.offset):
        return False
    mine = [entry.logprob, *sorted(entry.top.values())]
    others = [other.logprob, *sorted(other.top.values())]
    return len(mine) == len(others) and all(
        abs(one - two) <= LOGPROB_TOLERANCE for one, two in zip(mine, others, strict=True)
    )


def first_difference(text: str, wanted: str) -> str:
    """Where two texts part."""
    pairs = enumerate(zip(text, wanted, strict=False))
    at = next((i for i, (one, two) in pairs if one != two), min(len(text), len(wanted)))
    shown, other = (t[at : at + SHOWN_CHARACTERS] for t in (text, wanted))
    return (
        f"texts of {len(text)} and {len(wanted)} characters part at {at}:"
        f" {shown!r} instead of {other!r}"
    )
