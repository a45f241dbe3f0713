"""A router's dispatcher, a detokenizer and nodes with simulated workers: the real code of every
process, on fake links."""

from __future__ import annotations

import asyncio
import random
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlxfleet.common.config import DetokenizerProcess, SchedulerOptions, SchedulerProcess
from mlxfleet.common.liveness import new_incarnation
from mlxfleet.common.messages import Finish, OpenStream, Sampling
from mlxfleet.detokenizer_proc.main import DetokenizerService
from mlxfleet.detokenizer_proc.stream import Stream
from mlxfleet.detokenizer_proc.vocabulary import Vocabulary as TextVocabulary
from mlxfleet.router.dispatcher import PROMPT_TAIL_TOKENS, Dispatcher
from mlxfleet.router.metrics import Metrics
from mlxfleet.router.routing import Routing
from mlxfleet.router.sequences import Delta, Sequence
from mlxfleet.workers.scheduler_main import SchedulerService
from mlxfleet.workers.sim_engine import IDS, SimEngine
from mlxfleet.workers.sim_faults import Faults
from mlxfleet.workers.sim_nodes_main import SharedWorker
from mlxfleet.workers.sim_times import SimTimes
from mlxfleet.workers.sim_tokens import Vocabulary, sequence_key
from mlxfleet.workers.worker_loop import SchedulerLink, Worker
from tests.detokenizer_proc.tokenizers_for_tests import byte_level
from tests.protocol.virtual_time import Clock
from tests.workers.sim_driver import EOS, OPTIONS, VOCAB_SIZE, model_of

TOKENIZER = byte_level()
NODE_ADDRESS, DETOKENIZER_ADDRESS, TOKEN_ADDRESS = "nodes", "detokenizers", "tokens"
NODE_WAIT_S = 1e6
SCHEDULING = SchedulerOptions(max_running=3, max_queue=20, max_attempts=1000)


class Router:
    """The dispatcher and the clients' sequences; a router that dies takes them along."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.dispatcher = Dispatcher(
            None,  # type: ignore[arg-type]
            node_address=NODE_ADDRESS,
            detokenizer_address=DETOKENIZER_ADDRESS,
            session=new_incarnation(),
            node_wait_s=NODE_WAIT_S,
            metrics=self.metrics,
            routing=Routing("ttft", max_index_blocks=10_000, rng=random.Random(1)),
        )
        self._watching = asyncio.create_task(self.dispatcher.watch_nodes())

    def close(self) -> None:
        """Die."""
        self._watching.cancel()
        self.dispatcher.nodes.pool.channel.close()
        self.dispatcher.detokenizers.pool.channel.close()


class Detokenizer:
    """The detokenizer process."""

    def __init__(self) -> None:
        self.service = DetokenizerService(
            DetokenizerProcess(
                name="detokenizer-0",
                model_dir=Path(),
                router_address=DETOKENIZER_ADDRESS,
                token_address=TOKEN_ADDRESS,
                trust_remote_code=False,
            )
        )
        self.starting = asyncio.create_task(self.service.startup())

    async def close(self) -> None:
        """Die."""
        await self.starting
        await self.service.shutdown()


@dataclass
class Node:
    """A scheduler and a worker, each of which can die on its own."""

    name: str
    clock: Clock
    scheduler: SchedulerService = field(init=False)
    worker: SharedWorker = field(init=False)
    starting: asyncio.Task[None] = field(init=False)

    def __post_init__(self) -> None:
        self.start_scheduler()
        self.start_worker()

    @property
    def _worker_address(self) -> str:
        return f"worker-{self.name}"

    def start_scheduler(self) -> None:
        """A new scheduler."""
        self.scheduler = SchedulerService(
            SchedulerProcess(
                name=f"scheduler-{self.name}",
                node=self.name,
                router_address=NODE_ADDRESS,
                worker_address=self._worker_address,
                options=SCHEDULING,
            ),
            context=None,
        )
        self.starting = asyncio.create_task(self.scheduler.connect())

    def start_worker(self) -> None:
        """A new worker."""
        model = model_of(OPTIONS)
        engine = SimEngine(model, SimTimes.of(OPTIONS), Faults(None, self.name), clock=self.clock)
        context: Any = None
        link = SchedulerLink(context, self._worker_address)
        self.worker = SharedWorker(Worker(engine, model, link))

    async def close_scheduler(self) -> None:
        """The scheduler dies."""
        await self.starting
        await self.scheduler.shutdown()


@dataclass
class Client:
    """What a client gets, and what it should get."""

    sequence: Sequence
    started: asyncio.Task[None]
    expected_ids: list[int]
    expected_text: str
    expected_reason: str
    text: str = ""
    finishes: int = 0

    def read(self) -> None:
        """Take what is new; what came is always the beginning of what should."""
        delta: Delta = self.sequence.take()
        self.text += delta.text
        self.finishes += delta.finish_reason is not None
        ids = self.sequence.output_ids
        assert ids == self.expected_ids[: len(ids)]
        assert self.expected_text.startswith(self.text)


def expect(prompt: list[int], sampling: Sampling, stop: list[str]) -> tuple[list[int], str, str]:
    """Tokens, text and finish reason of an undisturbed run."""
    key = sequence_key(array(IDS, prompt), sampling)
    vocabulary = Vocabulary(VOCAB_SIZE, [EOS])
    ids = [vocabulary.token(key, position) for position in range(sampling.max_tokens)]
    opening = OpenStream(
        rid="r",
        attempt="1",
        prompt_tail=prompt[-PROMPT_TAIL_TOKENS:],
        output_ids=[],
        sent_chars=0,
        stop=stop,
        max_tokens=sampling.max_tokens,
        vocab_size=VOCAB_SIZE,
    )
    piece = Stream(TextVocabulary(TOKENIZER), opening).push(0, ids, Finish("length"), [])
    assert piece is not None
    assert piece.finish is not None
    return piece.ids, piece.text, piece.finish.reason
