"""Blocks of work for workers that keep what they loaded, and their results in order.

Ray Data would do this too. It brings pandas blocks and a planner of its own, and keeps neither the order of files nor
the place of an image in its batch without being asked for both; the source of images, the decoding and the table that
goes on where it was cut off are the same here as without a cluster.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from jaxtrain.cluster.session import Lost, Session
from jaxtrain.errors import RunError

BLOCK_IMAGES = 1024
"""At least as many images are in a block, where there are more: what the loss of a worker can cost."""
_POLL_SECONDS = 5.0
_MOST_LOSSES = 10
"""In a row, with no block done in between."""
_AHEAD = 3
"""Blocks for each worker that may be done before their turn: what the driver's end can cost, and its memory."""
_log = logging.getLogger(__name__)

Block = TypeVar("Block")


@dataclass
class Pool:
    """Workers on the nodes, each a `kind(*arguments)` that lives until the session ends, or its node does."""

    session: Session
    need: Mapping[str, float]
    """What each worker gets of its node."""
    kind: type
    arguments: Sequence[Any]
    most: int | None = None
    """At most this many workers; None: as many as there is room for."""
    _idle: list[Any] = field(default_factory=list, init=False)

    def in_order(self, blocks: Sequence[Block]) -> Iterator[Any]:
        """What `kind(*arguments).block(block)` returns for each block, in the order of blocks.

        A block whose worker was lost goes to another one. Raises RunError where a block fails, or workers keep being
        lost.
        """
        todo = [*range(len(blocks))][::-1]
        running: dict[Any, tuple[Any, int]] = {}
        done: dict[int, Any] = {}
        turn = losses = 0
        while turn < len(blocks):
            room = self._room()
            while todo and todo[-1] < turn + _AHEAD * max(room, 1) and (self._idle or len(running) < room):
                worker, number = self._worker(), todo.pop()
                running[self.session.call(worker, "block", blocks[number])] = worker, number
            for task in self.session.ended(running, _POLL_SECONDS):
                worker, number = running.pop(task)
                try:
                    done[number] = self.session.result(task)
                except Lost as error:
                    todo = sorted([*todo, number], reverse=True)
                    losses += 1
                    _log.warning("a worker was lost (%s); another one does its block", error)
                    if losses >= _MOST_LOSSES:
                        raise RunError(f"{losses} workers were lost in a row, the last one: {error}") from error
                    continue
                losses = 0
                self._idle.append(worker)
            while turn in done:
                yield done.pop(turn)
                turn += 1

    def _room(self) -> int:
        room = self.session.room(self.need)
        return room if self.most is None else min(room, self.most)

    def _worker(self) -> Any:
        """One that waits for work, else another one."""
        return self._idle.pop() if self._idle else self.session.worker(self.kind, *self.arguments, need=self.need)


def cut(rows: Sequence[Block], batch_size: int) -> list[Sequence[Block]]:
    """Blocks of whole batches, so that each image has the place in its batch that it has on one machine.

    What is left over belongs to the last block: a block of less than a batch would be computed in a smaller one.
    """
    size = -(-BLOCK_IMAGES // batch_size) * batch_size
    starts = [*range(0, max(len(rows) - size, 0) + 1, size)]
    return [rows[start:stop] for start, stop in zip(starts, [*starts[1:], len(rows)], strict=True)]
