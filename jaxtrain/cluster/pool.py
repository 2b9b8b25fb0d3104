"""Blocks of work for workers that keep what they loaded, and their results in order.

Ray Data would do this too. It brings pandas blocks and a planner of its own, and keeps neither the order of files nor
the place of an image in its batch without being asked for both; the source of images, the decoding and the table that
goes on where it was cut off are the same here as without a cluster.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, overload

import numpy as np

from jaxtrain.cluster.node import Place
from jaxtrain.cluster.session import Lost, Session, shown
from jaxtrain.config import DataConfig, chosen
from jaxtrain.data.base import ImageSource
from jaxtrain.data.scan import why_unreadable
from jaxtrain.errors import RunError

BLOCK_IMAGES = 1024
"""At least as many images are in a block, where there are more: what the loss of a worker can cost."""
_POLL_SECONDS, _PATIENCE_SECONDS = 5.0, 60.0
_MOST_LOSSES = 10
"""In a row, with no block done in between."""
_AHEAD = 3
"""Blocks for each worker that may be done before their turn: what the driver's end can cost, and its memory."""
_log = logging.getLogger(__name__)

Block = TypeVar("Block")


class Worker(Protocol):
    """What does the work, on a node."""

    def __init__(self, place: Place, *arguments: Any) -> None: ...

    def ready(self) -> None:
        """Load what all blocks need. Raises UserError where this node cannot do its part."""

    def block(self, block: Any, *more: Any) -> Any:
        """Do one."""


@dataclass(frozen=True)
class Workers:
    """What a command may have of a cluster."""

    session: Session
    need: Mapping[str, float]
    """What each worker gets of its node."""
    most: int | None = None
    """At most this many workers; None: as many as there is room for."""

    def pool(self, kind: type[Worker], *arguments: Any) -> Pool:
        """Workers that are each a `kind(place, *arguments)`."""
        return Pool(self, kind, (Place.here(self.need.get("gpu", 0.0)), *arguments))

    def room(self) -> int:
        """How many there can be at once."""
        room = self.session.room(self.need)
        return room if self.most is None else min(room, self.most)


@dataclass
class Pool:
    """Workers on the nodes, each a `kind(*arguments)` that lives until the session ends, or its node does."""

    workers: Workers
    kind: type[Worker]
    arguments: Sequence[Any]
    _starting: dict[Any, Any] = field(default_factory=dict, init=False)
    """Workers by the task that says they are ready. One that finds no room is not waited for."""
    _idle: list[Any] = field(default_factory=list, init=False)
    _running: dict[Any, tuple[Any, int]] = field(default_factory=dict, init=False)
    """Workers and the numbers of their blocks, by task."""
    _losses: int = field(default=0, init=False)
    _idle_since: float | None = field(default=None, init=False)
    """When the last worker was at work."""
    _told: bool = field(default=False, init=False)

    def in_order(self, blocks: Sequence[Block], *more: Any) -> Iterator[Any]:
        """What `kind(*arguments).block(block, *more)` returns for each block, in the order of blocks.

        A block whose worker was lost goes to another one. Raises RunError where a block fails, or workers keep being
        lost.
        """
        todo, done, turn = [*range(len(blocks))][::-1], dict[int, Any](), 0
        while turn < len(blocks):
            room = self.workers.room()
            soon = sum(number < turn + _AHEAD * max(room, 1) for number in todo)
            self._start(min(room - len(self._idle) - len(self._running), soon - len(self._idle)))
            for worker in [self._idle.pop() for _ in range(min(len(self._idle), soon))]:
                number = todo.pop()
                self._running[self.workers.session.call(worker, "block", blocks[number], *more)] = worker, number
            self._tell_of_waiting()
            if not (self._running or self._starting):
                time.sleep(_POLL_SECONDS)  # until a node comes
            for task in self.workers.session.ended([*self._running, *self._starting], _POLL_SECONDS):
                worker, number = self._running.pop(task) if task in self._running else (self._starting.pop(task), None)
                try:
                    result = self.workers.session.result(task)
                except Lost as error:
                    self._lose(error)
                    todo = sorted([*todo, *([] if number is None else [number])], reverse=True)
                    continue
                self._idle.append(worker)
                if number is not None:
                    done[number], self._losses = result, 0
            while turn in done:
                yield done.pop(turn)
                turn += 1

    def _start(self, count: int) -> None:
        """Have this many workers starting, where there are fewer."""
        for _ in range(count - len(self._starting)):
            worker = self.workers.session.worker(self.kind, *self.arguments, need=self.workers.need)
            self._starting[self.workers.session.call(worker, "ready")] = worker

    def _tell_of_waiting(self) -> None:
        """Once, where no worker has been at work for a minute: there is no node, or others use it."""
        if self._running:
            self._idle_since = None
            return
        self._idle_since = self._idle_since or time.monotonic()
        if not self._told and time.monotonic() - self._idle_since > _PATIENCE_SECONDS:
            self._told = True
            _log.warning("waiting for a node that has room for a worker with %s", shown(self.workers.need))

    def _lose(self, error: Lost) -> None:
        self._losses += 1
        _log.warning("a worker was lost (%s); another one does its block", error)
        if self._losses >= _MOST_LOSSES:
            raise RunError(f"{self._losses} workers were lost in a row, the last one: {error}") from error


def cut(rows: Sequence[Block], batch_size: int) -> list[Sequence[Block]]:
    """Blocks of whole batches, so that each image has the place in its batch that it has on one machine.

    What is left over belongs to the last block: a block of less than a batch would be computed in a smaller one.
    """
    size = -(-BLOCK_IMAGES // batch_size) * batch_size
    starts = [*range(0, max(len(rows) - size, 0) + 1, size)]
    return [rows[start:stop] for start, stop in zip(starts, [*starts[1:], len(rows)], strict=True)]


class Parts(Sequence[ImageSource]):
    """A source in blocks, each taken from it when it is asked for: a worker gets no more of it than its block."""

    def __init__(self, source: ImageSource, batch_size: int, done: int = 0) -> None:
        """Without the first `done` blocks."""
        self._source, self._places = source, cut(range(len(source)), batch_size)[done:]

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> ImageSource: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[ImageSource]: ...
    def __getitem__(self, index: int | slice) -> ImageSource | Sequence[ImageSource]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        return self._source.select(np.asarray(self._places[index], np.int64))


def check_seen(images: ImageSource, reasons: Mapping[str, str], data: DataConfig) -> None:
    """RunError where an image that a node could not read, for these reasons by name, can be read here.

    Its node sees other files, or lacks what decodes them: what follows would be kept as if the image were damaged.
    """
    for index in range(len(images) if reasons else 0):
        name = images.describe(index)
        if name in reasons and not why_unreadable(images, index, data.max_pixels, chosen(data.channels)):
            why = f"a node of the cluster cannot read it ({reasons[name]}), and the driver can"
            raise RunError(f"{name}: {why}: all nodes need the same files and decoders")
