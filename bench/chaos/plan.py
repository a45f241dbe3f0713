"""Which faults are made when: a function of the seed and of what the fleet consists of."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Literal

from msgspec import Struct

from mlxfleet.bench.chaos.options import Mode

Action = Literal["kill", "stop", "cut", "drain", "swing", "kill node", "restart"]

LARGEST_PAUSE_S = 1.0
SHORTEST_S, LONGEST_S = 0.2, 4.0
# A second fault begins while the first still lasts; after a kill, while the process is away.
AFTER_KILL_S = 0.5


class Fault(Struct, frozen=True):
    """Something to do to a process ("kill", "stop"), or to a node. `lasting_s` is how long it is
    left so, 0 for what is over at once."""

    action: Action
    target: str
    lasting_s: float = 0.0

    @property
    def kind(self) -> str:
        """Its name without which of several."""
        if self.action in ("kill", "stop"):
            return f"{self.action} {self.target.split()[0].split('-')[0]}"
        return self.action

    @property
    def node(self) -> str | None:
        """The node that it concerns, None for processes of the front end."""
        last = self.target.split()[-1]
        return last if last.startswith("node-") else None


class Step(Struct, frozen=True):
    """One fault, or two of which the second begins `gap_s` after the first."""

    pause_s: float
    faults: tuple[Fault, ...]
    gap_s: float = 0.0


def steps(
    rng: random.Random, mode: Mode, processes: Sequence[str], nodes: Sequence[str], pairs: float
) -> Iterator[Step]:
    """Steps without end. `pairs` is the share of those with two faults."""
    choices = possible(mode, processes, nodes)
    while True:
        pause_s = rng.uniform(0.0, LARGEST_PAUSE_S)
        first = draw(rng, choices)
        if rng.random() >= pairs:
            yield Step(pause_s, (first,))
            continue
        second = draw(rng, [choice for choice in choices if goes_with(first, choice)])
        gap_s = rng.uniform(0.0, first.lasting_s or AFTER_KILL_S)
        yield Step(pause_s, (first, second), gap_s)


def possible(mode: Mode, processes: Sequence[str], nodes: Sequence[str]) -> list[Fault]:
    """Every fault that this fleet can have."""
    of_processes = [Fault(action, name) for name in processes for action in ("kill", "stop")]
    on_nodes: list[Action] = ["drain"]
    if mode == "tcp":
        on_nodes += ["cut", "kill node", "restart"]
    if len(nodes) > 1:
        on_nodes.append("swing")
    return of_processes + [Fault(action, node) for node in nodes for action in on_nodes]


def draw(rng: random.Random, choices: Sequence[Fault]) -> Fault:
    """One of them, first its kind and then where, so that the router is not one of very many."""
    kind = rng.choice(sorted({choice.kind for choice in choices}))
    chosen = rng.choice([choice for choice in choices if choice.kind == kind])
    if chosen.action in ("kill", "kill node", "restart"):
        return chosen
    return Fault(chosen.action, chosen.target, round(rng.uniform(SHORTEST_S, LONGEST_S), 2))


def goes_with(first: Fault, second: Fault) -> bool:
    """Whether the second can be made while the first lasts. A node is not started twice at once,
    none of its processes is killed while it starts, which ends it as it should, and no undrain
    ends another fault's drain."""
    whole, drains = ("kill node", "restart"), ("drain", "swing", "restart")
    actions = {first.action, second.action}
    if first.target == second.target and first.action == second.action:
        return False
    if first.node == second.node and actions & {*whole} and actions <= {"kill", *whole}:
        return False
    return first.action not in drains or second.action not in drains
