"""Blocks of work for workers that keep what they loaded, and their results in order.

Ray Data would do this too. It brings pandas blocks and a planner of its own, and keeps neither the order of files nor
the place of an image in its batch without being asked for both; the source of images, the decoding and the table that
goes on where it was cut off are the same here as without a cluster.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from jaxtrain.cluster.session import Lost, Session
from jaxtrain.errors import RunError

_POLL_SECONDS = 5.0
_MOST_LOSSES = 10
"""In a row, with no block done in between."""
_AHEAD = 3
"""Blocks for each worker that may be done before their turn: what the driver's end can cost, and its memory."""
_log = logging.getLogger(__name__)

Block = TypeVar("Block")


def in_order(
    session: Session, need: Mapping[str, float], kind: type, arguments: Sequence[Any], blocks: Sequence[Block]
) -> Iterator[Any]:
    """What `kind(*arguments).block(block)` returns for each block, in the order of blocks, from workers on the nodes.

    A block whose worker was lost goes to another one. Raises RunError where a block fails, or workers keep being lost.
    """
    todo = [*range(len(blocks))][::-1]
    running: dict[Any, tuple[Any, int]] = {}
    idle: list[Any] = []
    done: dict[int, Any] = {}
    turn = losses = 0
    while turn < len(blocks):
        room = session.room(need)
        while todo and todo[-1] < turn + _AHEAD * max(room, 1) and (idle or len(running) < room):
            worker = idle.pop() if idle else session.worker(kind, *arguments, need=need)
            number = todo.pop()
            running[session.call(worker, "block", blocks[number])] = worker, number
        for task in session.ended(running, _POLL_SECONDS):
            worker, number = running.pop(task)
            try:
                done[number] = session.result(task)
            except Lost as error:
                todo = sorted([*todo, number], reverse=True)
                losses += 1
                _log.warning("a worker was lost (%s); another one does its block", error)
                if losses >= _MOST_LOSSES:
                    raise RunError(f"{losses} workers were lost in a row, the last one: {error}") from error
                continue
            losses = 0
            idle.append(worker)
        while turn in done:
            yield done.pop(turn)
            turn += 1
