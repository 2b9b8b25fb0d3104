import json
import logging
import os
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from jaxtrain import saved_tree
from jaxtrain.errors import RunError, UserError
from jaxtrain.training import checkpoints
from jaxtrain.training.checkpoints import Checkpoints
from tests.training.made_checkpoints import assert_is_step, names, save, state


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Step 10 with best 10, step 20 with best 20."""
    directory = tmp_path_factory.mktemp("two") / "checkpoints"
    with Checkpoints(directory, keep=2) as kept:
        save(kept, 10, best=10)
        save(kept, 20, best=20)
    return directory


@pytest.fixture
def copy(two: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(two, tmp_path / "checkpoints"))


# --- saving and restoring -------------------------------------------------------------------------


def test_nothing_yet(tmp_path: Path) -> None:
    with Checkpoints(tmp_path / "a" / "b", keep=2) as kept:
        assert kept.restore() is None
        assert kept.steps() == []


def test_newest_is_restored_with_its_best(two: Path) -> None:
    with Checkpoints(two, keep=2) as kept:
        assert kept.steps() == [10, 20]
        assert_is_step(kept.restore(), 20, best=20)
        assert kept.damaged == []
    assert names(two) == ["00000010", "00000020", "best-00000010", "best-00000020"]


def test_only_the_newest_are_kept_and_the_bests_they_refer_to(tmp_path: Path) -> None:
    seen = []
    with Checkpoints(tmp_path, keep=2) as kept:
        for step, best in [(1, None), (2, 2), (3, 2), (4, 2), (5, 5), (6, 5)]:
            save(kept, step, best)
            kept.wait()
            seen.append(names(tmp_path))
    assert seen == [
        ["00000001"],
        ["00000001", "00000002", "best-00000002"],
        ["00000002", "00000003", "best-00000002"],
        ["00000003", "00000004", "best-00000002"],
        ["00000004", "00000005", "best-00000002", "best-00000005"],
        ["00000005", "00000006", "best-00000005"],
    ]
    with Checkpoints(tmp_path, keep=1) as kept:
        assert_is_step(kept.restore(), 6, best=5)
        assert names(tmp_path) == ["00000006", "best-00000005"]
        save(kept, 7, best=5)
    assert names(tmp_path) == ["00000007", "best-00000005"]


def test_a_best_is_written_once(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, keep=2) as kept:
        save(kept, 1, best=1)
        kept.wait()
        written = (tmp_path / "best-00000001" / "meta.json").stat().st_mtime_ns
        save(kept, 2, best=1)
        kept.wait()
        assert (tmp_path / "best-00000001" / "meta.json").stat().st_mtime_ns == written


def test_a_best_without_a_checkpoint_is_forgotten(tmp_path: Path) -> None:
    """Killed between the two: the same step may be reached with other weights (on another device)."""
    saved_tree.save_tree(tmp_path / "best-00000005", {"other": np.ones(1)}, {"best": 5})
    with Checkpoints(tmp_path, keep=2) as kept:
        assert kept.restore() is None
        assert names(tmp_path) == []
        save(kept, 5, best=5)
        assert_is_step(kept.restore(), 5, best=5)


def test_the_same_step_again_replaces_it(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, keep=2) as kept:
        kept.save(3, {"x": np.zeros(2)}, {})
        save(kept, 3)
        assert_is_step(kept.restore(), 3, best=None)
    assert names(tmp_path) == ["00000003"]


def test_meta_is_taken_at_the_call(tmp_path: Path) -> None:
    history = [1.0, float("nan")]
    with Checkpoints(tmp_path, keep=1) as kept:
        kept.save(1, state(1), {"history": history})
        history.append(2.0)
        restored = kept.restore()
        assert restored is not None
        assert str(restored.meta["history"]) == "[1.0, nan]"
        with pytest.raises(TypeError):
            kept.save(2, state(2), {"history": object()})


def test_save_returns_at_once_and_a_second_one_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, running, most = threading.Semaphore(0), [], []
    original = saved_tree._orbax_save

    def slow(path: Path, leaves: saved_tree.Leaves) -> None:
        running.append(path)
        most.append(len(running))
        assert gate.acquire(timeout=30)
        original(path, leaves)
        running.remove(path)

    monkeypatch.setattr(saved_tree, "_orbax_save", slow)
    with Checkpoints(tmp_path, keep=3) as kept:
        start = time.monotonic()
        save(kept, 1)
        assert time.monotonic() - start < 1
        second = threading.Thread(target=save, args=(kept, 2))
        second.start()
        second.join(timeout=0.3)
        assert second.is_alive()
        gate.release()
        second.join(timeout=30)
        assert not second.is_alive()
        gate.release()
        assert_is_step(kept.restore(), 2, best=None)
    assert max(most) == 1


def test_many_saves_leave_no_threads_and_no_open_files(tmp_path: Path) -> None:
    def resources() -> tuple[int, int]:
        return threading.active_count(), len(os.listdir("/proc/self/fd"))

    with Checkpoints(tmp_path, keep=1) as kept:
        for step in range(3):
            save(kept, step)
            kept.restore()
        before = resources()
        for step in range(3, 13):
            save(kept, step, best=step)
            kept.restore()
        threads, files = resources()
        assert threads <= before[0] + 2
        assert files <= before[1] + 2


@pytest.mark.parametrize("keep", [0, -1])
def test_keep_is_at_least_one(tmp_path: Path, keep: int) -> None:
    with pytest.raises(UserError, match=r"checkpoint\.keep"):
        Checkpoints(tmp_path, keep=keep)


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/checkpoints: Not a directory"):
        Checkpoints(tmp_path / "file" / "checkpoints", keep=1)


# --- errors of the background thread --------------------------------------------------------------


def fail_to_write(*_: object) -> None:
    raise ValueError("tensorstore: writing chunk\nmore lines")


@pytest.mark.parametrize("notice", ["save", "wait", "close", "restore"])
def test_a_failed_save_is_raised_at_the_next_call(copy: Path, monkeypatch: pytest.MonkeyPatch, notice: str) -> None:
    kept = Checkpoints(copy, keep=2)
    with monkeypatch.context() as patch:
        patch.setattr(saved_tree, "_orbax_save", fail_to_write)
        save(kept, 30)
        with pytest.raises(RunError, match=r"00000030 could not be saved: tensorstore: writing chunk$"):
            save(kept, 40) if notice == "save" else getattr(kept, notice)()
    kept.close()
    assert names(copy) == ["00000010", "00000020", "best-00000010", "best-00000020"]
    assert_is_step(Checkpoints(copy, keep=2).restore(), 20, best=20)


def test_a_full_disk_leaves_the_older_checkpoints(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = shutil.disk_usage(copy)._replace(free=1000)
    with Checkpoints(copy, keep=2) as kept:
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "disk_usage", lambda _: full)
            save(kept, 30, best=30)
            with pytest.raises(RunError, match=r"best-00000030 .* no space .* needed, 1,000 free"):
                kept.wait()
        assert_is_step(kept.restore(), 20, best=20)
        save(kept, 30, best=30)
        assert_is_step(kept.restore(), 30, best=30)


# --- damage ---------------------------------------------------------------------------------------


def flip(file: Path, where: float) -> None:
    data = bytearray(file.read_bytes())
    data[min(int(where * len(data)), len(data) - 1)] ^= 1 << int(where * 1000) % 8
    file.write_bytes(data)


def swap(file: Path, other: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content + b"x" if other.read_bytes() == content else other.read_bytes())


def damages(path: Path, flips: int) -> Iterator[tuple[Path, str, Callable[[Path], object]]]:
    """Every way of damaging each file of a checkpoint folder: file relative to it, description, function."""
    files = sorted(file for file in path.rglob("*") if file.is_file())
    for number, file in enumerate(files):
        size, name = file.stat().st_size, file.relative_to(path)
        yield name, "deleted", Path.unlink
        yield name, "emptied", lambda f: f.write_bytes(b"")
        yield name, "cut in half", lambda f, size=size: os.truncate(f, size // 2)
        yield name, "one byte short", lambda f, size=size: os.truncate(f, size - 1)
        yield name, "one byte longer", lambda f: f.write_bytes(f.read_bytes() + b"\0")
        yield name, "foreign JSON", lambda f: f.write_text('{"step": 20}')
        yield name, "zeros", lambda f, size=size: f.write_bytes(bytes(size))
        for n in range(flips):
            where = (n + (number % 7) / 7) / flips
            yield name, f"bit flipped at {where:.2f}", lambda f, where=where: flip(f, where)


def check_damage(two: Path, scratch: Path, folder: str, relative: Path, harm: Callable[[Path], object]) -> None:
    directory = Path(shutil.copytree(two, scratch / "checkpoints"))
    harm(directory / folder / relative)
    with Checkpoints(directory, keep=2) as kept:
        assert_is_step(kept.restore(), 10, best=10)
        assert len(kept.damaged) == 1
        assert folder in kept.damaged[0]
    assert "00000020.damaged" in names(directory)
    assert "00000020" not in names(directory)
    shutil.rmtree(directory)


def all_damages(two: Path, flips: int) -> list[tuple[str, Path, str, Callable[[Path], object]]]:
    return [(folder, *damage) for folder in ("00000020", "best-00000020") for damage in damages(two / folder, flips)]


@pytest.mark.slow
def test_sampled_damage_is_found_and_the_older_checkpoint_used(two: Path, tmp_path: Path) -> None:
    for folder, relative, _, harm in random.Random(0).sample(all_damages(two, flips=5), 70):
        check_damage(two, tmp_path, folder, relative, harm)


@pytest.mark.slow
def test_all_damage_is_found_and_the_older_checkpoint_used(two: Path, tmp_path: Path) -> None:
    cases = all_damages(two, flips=16)
    assert len(cases) >= 300
    for folder, relative, _, harm in cases:
        check_damage(two, tmp_path, folder, relative, harm)


def test_damage_is_warned_of_by_name(copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    (copy / "00000020" / "meta.json").write_text("{}")
    with caplog.at_level(logging.WARNING, logger=checkpoints.__name__):
        Checkpoints(copy, keep=2).restore()
    (record,) = caplog.records
    assert "00000020 is damaged: meta.json changed" in record.getMessage()
    assert "step 10" in record.getMessage()


def test_a_damaged_best_or_none_at_all_makes_the_checkpoint_damaged(copy: Path) -> None:
    shutil.rmtree(copy / "best-00000020")
    kept = Checkpoints(copy, keep=2)
    assert_is_step(kept.restore(), 10, best=10)
    assert kept.damaged == [f"{copy}/00000020 is damaged: best-00000020, which it refers to, is missing"]


def test_a_folder_in_the_place_of_another_is_found(copy: Path) -> None:
    shutil.rmtree(copy / "00000020")
    shutil.copytree(copy / "00000010", copy / "00000020")
    kept = Checkpoints(copy, keep=2)
    assert_is_step(kept.restore(), 10, best=10)
    assert "holds step 10" in kept.damaged[0]


def test_a_link_in_a_checkpoint_is_refused(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("secret")
    (copy / "00000020" / "state" / "link").symlink_to(tmp_path / "outside")
    kept = Checkpoints(copy, keep=2)
    assert_is_step(kept.restore(), 10, best=10)
    assert "state/link is a symbolic link" in kept.damaged[0]
    assert (tmp_path / "outside").read_text() == "secret"


def test_all_damaged_is_an_error_each_time_and_never_a_fresh_start(copy: Path) -> None:
    for name in ("00000010", "00000020"):
        flip(next(f for f in sorted((copy / name).rglob("*")) if f.is_file() and f.name != "meta.json"), 0.5)
    before = names(copy)
    for _ in range(2):
        with pytest.raises(RunError, match=r"no sound checkpoint in .*00000020 is damaged.*00000010 is dam"):
            Checkpoints(copy, keep=2).restore()
        assert names(copy) == before


def test_a_second_damaged_checkpoint_of_one_step_keeps_the_first(copy: Path) -> None:
    for expected in (["00000020.damaged"], ["00000020.damaged", "00000020.damaged-2"]):
        (copy / "00000020" / "meta.json").unlink()
        with Checkpoints(copy, keep=2) as kept:
            assert_is_step(kept.restore(), 10, best=10)
            assert [name for name in names(copy) if "damaged" in name] == expected
            save(kept, 20, best=20)


def test_meta_json_is_json_that_other_tools_read(two: Path) -> None:
    body = json.loads((two / "00000020" / "meta.json").read_text())
    assert body["meta"] == {"step": 20, "best": 20, "meta": {"history": list(range(20))}}
    assert [name for name, *_ in body["arrays"]] == [
        ["key"],
        ["params", "bias"],
        ["params", "kernel"],
        ["step"],
    ]
