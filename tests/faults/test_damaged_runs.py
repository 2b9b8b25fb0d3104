"""The newest checkpoint is damaged, or holds a link; a link lies in the run directory."""

import logging
import os
import random
import shutil

import pytest

from jaxtrain.errors import RunError, UserError
from jaxtrain.training.signals import Interrupted
from tests.faults.small_run import fit, result


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run that was stopped at step 28, with checkpoints of steps 25 and 28; and what it would have become."""
    folder = tmp_path_factory.mktemp("begun")
    with pytest.MonkeyPatch.context() as patch:
        from jaxtrain.runs.callbacks import Recording

        log = Recording.log

        def stop_at_28(self, step, metrics):
            log(self, step, metrics)
            if step >= 24 and self.job.stop.requested is None:
                self.job.stop.requested = 15

        patch.setattr(Recording, "log", stop_at_28)
        with pytest.raises(Interrupted):
            fit(folder / "run")
    assert len(checkpoints(folder / "run")) == 2
    return folder / "run", result(fit(folder / "whole"))


def checkpoints(run_dir):
    return sorted(path for path in (run_dir / "checkpoints").iterdir() if path.name.isdigit())


def flip(file, where):
    data = bytearray(file.read_bytes())
    data[int(where * len(data))] ^= 1 << int(where * 8000) % 8
    file.write_bytes(data)


def cut(file, where):
    os.truncate(file, int(where * file.stat().st_size))


def remove(file, where):
    file.unlink()


def damage(folder, generator):
    """One random damage; what was done, in words."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.stat().st_size]
    file, how, where = generator.choice(files), generator.choice([flip, cut, remove]), generator.random()
    how(file, where)
    return f"{how.__name__} {file.relative_to(folder)} at {where:.3f}"


@pytest.mark.slow
@pytest.mark.parametrize("count", [3, pytest.param(200, marks=[pytest.mark.soak, pytest.mark.timeout(7200)])])
def test_damage_is_named_set_aside_and_the_result_is_exact(begun, tmp_path, caplog, count):
    run_dir, expected = begun
    generator = random.Random(count)
    caught = 0
    for number in range(count):
        copy = shutil.copytree(run_dir, tmp_path / str(number))
        newest, older = checkpoints(copy)[-1], checkpoints(copy)[-2]
        done = damage(newest, generator)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            model = fit(copy)
        assert f"{newest} is damaged" in caplog.text, done
        assert f"going on from step {int(older.name)}" in caplog.text, done
        assert newest.with_name(f"{newest.name}.damaged").is_dir(), done
        assert result(model) == expected, done
        shutil.rmtree(copy)
        caught += 1
    assert caught == count


def test_with_every_checkpoint_damaged_it_never_starts_from_zero(begun, tmp_path):
    copy = shutil.copytree(begun[0], tmp_path / "run")
    for folder in checkpoints(copy):
        flip(folder / "meta.json", 0.5)
    with pytest.raises(RunError, match=r"no sound checkpoint in .* delete that folder to start from step 0"):
        fit(copy)
    assert not (copy / "summary.json").exists()


def test_a_link_in_a_checkpoint_is_refused_and_not_read(begun, tmp_path, caplog):
    copy = shutil.copytree(begun[0], tmp_path / "run")
    newest = checkpoints(copy)[-1]
    file = next(path for path in sorted(newest.rglob("*")) if path.is_file() and path.name != "meta.json")
    file.rename(tmp_path / "outside")
    file.symlink_to(tmp_path / "outside")  # with the very content that was saved
    model = fit(copy)
    assert f"{file.relative_to(newest.parent)} is a symbolic link" in caplog.text
    assert result(model) == begun[1]


@pytest.mark.parametrize("name", ["checkpoints", "metrics.jsonl", "config.yaml", "model", "stacks.txt"])
def test_a_link_in_a_run_directory_is_refused_before_anything(begun, tmp_path, name):
    copy = shutil.copytree(begun[0], tmp_path / "run")
    outside = tmp_path / "outside"
    if (copy / name).exists():
        (copy / name).rename(outside)
    else:
        outside.write_text("of the host")
    before = outside.read_bytes() if outside.is_file() else sorted(outside.rglob("*"))
    (copy / name).symlink_to(outside)
    with pytest.raises(UserError, match=f"{name} is a symbolic link, which a run does not follow"):
        fit(copy)
    assert (outside.read_bytes() if outside.is_file() else sorted(outside.rglob("*"))) == before
