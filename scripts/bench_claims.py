"""How many trials of a sweep workers claim in a second, of one study that they share: each once, by whomever.

    python scripts/bench_claims.py [--storage postgresql://...] [--workers N] [--claims N] [--trials N]
                                    [--network-ms N] [--json FILE]

Workers are processes that claim a trial, note its end, and claim the next, and do nothing else: real ones train in
between. Without --storage the study is a SQLite file.
"""

import argparse
import json
import multiprocessing
import os
import tempfile
import time
import uuid
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from sqlalchemy import event
from sqlalchemy.engine import Engine

from jaxtrain.sweeps.config import load_sweep
from jaxtrain.sweeps.plan import Plan, make_plan
from jaxtrain.sweeps.study import Trials

SWEEP = """
name: {name}
base: {{technique: pt, model: {{name: linear}}, train: {{steps: 1}}, data: {{name: digits}}}}
axes: {{optimizer.learning_rate: [0.001]}}
seeds: {trials}
storage: {storage}
"""


class Worked(NamedTuple):
    """What one worker did."""

    begin: float
    end: float
    cpu: float
    """Seconds of its own."""
    claims: list[tuple[str, float]]
    """Slots, and the seconds until it had each."""


def main() -> None:
    """Measure, print, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--storage", default="null")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--claims", type=int, default=400)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--network-ms", type=float, default=0.0, help="added to each statement")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "claims.yaml"
        path.write_text(SWEEP.format(name=f"claims-{uuid.uuid4().hex}", trials=given.trials, storage=given.storage))
        Trials(plan_of(path)).fill()
        start, results = context.Barrier(given.workers), context.Queue()
        share = given.claims // given.workers
        workers = [
            context.Process(target=work, args=(path, share, given.network_ms, start, results))
            for _ in range(given.workers)
        ]
        for each in workers:
            each.start()
        found: list[Worked] = [results.get() for _ in workers]
        for each in workers:
            each.join()
    claims = [claim for each in found for claim in each.claims]
    assert len({slot for slot, _ in claims}) == share * given.workers, "a trial was given twice, or to nobody"
    result = {
        "workers": given.workers,
        "claims_per_second": len(claims) / (max(each.end for each in found) - min(each.begin for each in found)),
        "median_ms": 1000 * median(seconds for _, seconds in claims),
        "cpu_ms": 1000 * sum(each.cpu for each in found) / len(claims),
    }
    print("  ".join(f"{name} {value:.1f}" for name, value in result.items()))
    if given.json:
        given.json.write_text(json.dumps(result))


def plan_of(path: Path) -> Plan:
    """The sweep, in the folder of its file."""
    os.chdir(path.parent)
    return make_plan(load_sweep(path), path)


def work(path: Path, count: int, network_ms: float, start: Any, results: Any) -> None:
    """Claim this many, and note when and what."""
    trials, claims = Trials(plan_of(path)), []
    if network_ms:
        event.listen(Engine, "before_cursor_execute", lambda *_: time.sleep(network_ms / 1000))
    start.wait()
    begin, used = time.monotonic(), time.process_time()
    for _ in range(count):
        asked = time.monotonic()
        one = trials.claim()
        assert one is not None
        assert one.slot is not None
        claims.append((one.slot, time.monotonic() - asked))
        one.end(0.5)
    results.put(Worked(begin, time.monotonic(), time.process_time() - used, claims))


if __name__ == "__main__":
    main()
