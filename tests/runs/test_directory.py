import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxtrain.config import CheckpointConfig, Config, FinetuneConfig, OptimizerConfig, TrainConfig
from jaxtrain.config_io import load_config
from jaxtrain.errors import DamagedError, RunError, UserError
from jaxtrain.files import run_name
from jaxtrain.runs import directory as run_directory
from jaxtrain.runs.directory import RunDirectory

SUMMARY: dict[str, Any] = {
    **{"technique": "pt", "model": "cnn_small", "dataset": "digits", "classes": 10, "steps": 100},
    **{"wall_seconds": 1.5, "images_per_second": 1000.0, "val_accuracy": 0.9, "test_accuracy": 0.875},
    **{"test_loss": 0.5, "best_step": 90, "params": 1000, "trainable_params": 900, "params_sha256": "00"},
    **{"mlflow_run_id": None, "devices": ["cpu"], "versions": {"jax": "0.10.2"}},
}


@pytest.fixture(autouse=True)
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def check(directory: RunDirectory, config: Config) -> bool:
    return directory.check_config(config, images=100)


def begun(path: Path, **changes: Any) -> Path:
    with RunDirectory.open(Config(run_dir=path), "x") as directory:
        check(directory, Config(run_dir=path).replace(**changes))
    return path


# --- the place ------------------------------------------------------------------------------------


def test_run_dir_is_used_and_made_with_its_parents(tmp_path: Path) -> None:
    with RunDirectory.open(Config(run_dir=Path("a/b/c")), "unused") as directory:
        assert directory.path == tmp_path / "a" / "b" / "c"
        assert directory.path.is_dir()
        assert directory.config_path == directory.path / "config.yaml"
        assert directory.checkpoints == directory.path / "checkpoints"
        assert directory.metrics == directory.path / "metrics.jsonl"
        assert directory.summary == directory.path / "summary.json"


def test_named_runs_lie_under_their_technique(tmp_path: Path) -> None:
    with RunDirectory.open(Config(name="mine"), "unused") as directory:
        assert directory.path == tmp_path / "runs" / "pt" / "mine"


def test_unnamed_runs_are_numbered(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        with RunDirectory.open(Config(), "digits-cnn") as directory:
            assert directory.path == tmp_path / "runs" / "pt" / f"digits-cnn-{number}"
            check(directory, Config())


def test_an_unnamed_run_that_was_not_begun_leaves_nothing(tmp_path: Path) -> None:
    with RunDirectory.open(Config(), "x"):
        pass
    assert list((tmp_path / "runs" / "pt").iterdir()) == []
    with RunDirectory.open(Config(name="given"), "x"):
        pass
    assert (tmp_path / "runs" / "pt" / "given").is_dir()


def test_runs_that_start_at_once_get_different_numbers() -> None:
    barrier, directories = threading.Barrier(8), []

    def start() -> None:
        barrier.wait()
        directories.append(RunDirectory.open(Config(), "race"))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(directory.path.name for directory in directories) == [f"race-{n}" for n in range(1, 9)]
    for directory in directories:
        directory.close()


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("digits-cnn_small", "digits-cnn_small"),
        ("folder:/a/b c", "b-c"),
        ("folder:/a/b c-resnet18", "b-c-resnet18"),
        ("tfds:mnist/subset:3.0.1-vit", "mnist-subset-3.0.1-vit"),
        ("npz:../../../etc/passwd", "passwd"),
        ("../../x", "x"),
        ("..", "run"),
        ("Übung № 1", "bung-1"),
        ("a\nb\0c;rm -rf *", "a-b-c-rm-rf"),
        ("x" * 300, "x" * 80),
    ],
)
def test_names_are_safe(text: str, name: str) -> None:
    assert run_name(text) == name
    with RunDirectory.open(Config(), text) as directory:
        assert directory.path == Path("runs/pt").absolute() / f"{name}-1"


# --- what cannot be -------------------------------------------------------------------------------


def test_a_file_in_the_way() -> None:
    Path("file").write_text("")
    for run_dir in ("file", "file/run"):
        with pytest.raises(UserError, match=r"file is a file; choose another with --run-dir"):
            RunDirectory.open(Config(run_dir=Path(run_dir)), "x")


def test_a_place_where_nothing_can_be_made() -> None:
    """Also root may make nothing there."""
    with pytest.raises(UserError, match=r"/proc/here cannot be written: .*; choose another with --run-dir"):
        RunDirectory.open(Config(run_dir=Path("/proc/here")), "x")


@pytest.mark.parametrize("call", ["mkdir", "open"])
def test_no_permission(monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    Path("there").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        with pytest.raises(UserError, match="cannot be written: Permission denied; choose another"):
            RunDirectory.open(Config(run_dir=Path("new" if call == "mkdir" else "there")), "x")


def test_a_folder_of_something_else_is_refused_and_left_alone() -> None:
    Path("thesis").mkdir()
    Path("thesis/chapter1.tex").write_text("x")
    with pytest.raises(UserError, match=r"thesis holds other things \(chapter1.tex\) and no config.yaml"):
        RunDirectory.open(Config(run_dir=Path("thesis")), "x")
    assert os.listdir("thesis") == ["chapter1.tex"]


@pytest.mark.parametrize("name", ["checkpoints", "metrics.jsonl", "run.lock", "summary.json", "config.yaml"])
def test_links_in_a_run_directory_are_refused(tmp_path: Path, name: str) -> None:
    run = begun(tmp_path / "run")
    (run / name).unlink(missing_ok=True)
    (tmp_path / "outside").write_text("secret")
    (run / name).symlink_to(tmp_path / "outside")
    with pytest.raises(UserError, match=f"{name} is a symbolic link"):
        RunDirectory.open(Config(run_dir=run), "x")
    assert (tmp_path / "outside").read_text() == "secret"


def test_a_start_killed_before_its_config_was_written_is_a_fresh_one(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.lock").write_text("")
    (tmp_path / "run" / ".config.yaml.tmp").write_text("technique: p")
    with RunDirectory.open(Config(run_dir=tmp_path / "run"), "x") as directory:
        assert check(directory, Config()) is False
    assert sorted(os.listdir(tmp_path / "run")) == ["config.yaml", "run.lock"]


# --- the lock -------------------------------------------------------------------------------------

HOLDER = """
import os, sys, time
from pathlib import Path
from jaxtrain.config import Config
from jaxtrain.errors import DamagedError, UserError
from jaxtrain.runs.directory import RunDirectory
while len(sys.argv) > 3 and not Path(sys.argv[3]).exists():
    time.sleep(0.001)
try:
    directory = RunDirectory.open(Config(run_dir=Path(sys.argv[1])), "x")
except UserError as error:
    print(error, flush=True)
    sys.exit(error.exit_code)
if sys.argv[2] == "fork" and os.fork() == 0:
    time.sleep(30)
print("held", flush=True)
time.sleep(30)
"""


def hold(path: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path), *(arguments or ("plain",))],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )


def end(child: subprocess.Popen[str]) -> None:
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    assert child.stdout is not None
    child.stdout.close()


def test_a_second_run_is_refused_by_name_at_once_and_a_killed_one_holds_nothing(tmp_path: Path) -> None:
    child = hold(tmp_path / "run")
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    start = time.monotonic()
    with pytest.raises(UserError, match=rf"run is in use by process {child.pid} on \S+ since 20\d\d-\d\d-\d\d .*:"):
        RunDirectory.open(Config(run_dir=tmp_path / "run"), "x")
    assert time.monotonic() - start < 1
    end(child)
    RunDirectory.open(Config(run_dir=tmp_path / "run"), "x").close()


def test_a_forked_worker_does_not_hold_the_lock_of_its_killed_parent(tmp_path: Path) -> None:
    child = hold(tmp_path / "run", "fork")
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    os.kill(child.pid, signal.SIGKILL)
    os.waitpid(child.pid, 0)
    try:
        open_within(10.0, tmp_path / "run")  # the worker lets go as soon as it runs, which may be after that line
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        child.stdout.close()


def open_within(seconds: float, run_dir: Path) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            return RunDirectory.open(Config(run_dir=run_dir), "x").close()
        except UserError:
            if time.monotonic() > end:
                raise
        time.sleep(0.05)


@pytest.mark.slow
def test_of_many_starts_one_wins(tmp_path: Path) -> None:
    children = [hold(tmp_path / "run", "plain", str(tmp_path / "go")) for _ in range(6)]
    time.sleep(0.5)
    (tmp_path / "go").touch()
    said = [child.stdout.readline() for child in children if child.stdout]
    for child in children:
        end(child)
    assert said.count("held\n") == 1
    winner = children[said.index("held\n")].pid
    assert all(f"in use by process {winner} on" in line for line in said if line != "held\n")


def test_the_lock_also_holds_within_a_process_and_ends_with_close(tmp_path: Path) -> None:
    config = Config(run_dir=tmp_path / "run")
    with RunDirectory.open(config, "x"), pytest.raises(UserError, match=f"process {os.getpid()} on"):
        RunDirectory.open(config, "x")
    for _ in range(3):
        RunDirectory.open(config, "x").close()


def test_a_lock_file_that_says_nothing(tmp_path: Path) -> None:
    with RunDirectory.open(Config(run_dir=tmp_path / "run"), "x"):
        (tmp_path / "run" / "run.lock").write_text("{}")
        with pytest.raises(UserError, match="in use by another process"):
            RunDirectory.open(Config(run_dir=tmp_path / "run"), "x")


# --- the config -----------------------------------------------------------------------------------


def test_a_new_run_writes_its_config_and_a_resumed_one_finds_it(tmp_path: Path) -> None:
    config = Config(run_dir=tmp_path / "run", train=TrainConfig(epochs=3.0))
    for resuming in (False, True, True):
        with RunDirectory.open(config, "x") as directory:
            assert check(directory, config) is resuming
            assert load_config(directory.config_path) == config


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("train.epochs", 4.0),
        ("train.batch_size", 64),
        ("seed", 1),
        ("data.name", "idx:x"),
        ("data.loader", "stream"),
        ("model.name", "mlp"),
        ("optimizer.learning_rate", 0.01),
        ("augment.hflip", 0.5),
        ("schedule.name", "linear"),
    ],
)
def test_options_that_decide_what_is_learned_may_not_change(tmp_path: Path, option: str, value: object) -> None:
    run = begun(tmp_path / "run", **{"data.loader": "device", "train.epochs": 3.0})
    before = (run / "config.yaml").read_bytes()
    with RunDirectory.open(Config(run_dir=run), "x") as directory, pytest.raises(UserError) as caught:
        check(directory, Config(run_dir=run).replace(**{"data.loader": "device", "train.epochs": 3.0, option: value}))
    message = str(caught.value)
    assert f"{option} " in message
    assert f" -> {value}" in message
    assert "free to change: name, run_dir, " in message
    assert ("length of training" in message) == (option == "train.epochs")
    assert "\n" not in message
    assert (run / "config.yaml").read_bytes() == before


def test_every_changed_option_is_named_with_both_values(tmp_path: Path) -> None:
    run = begun(tmp_path / "run")
    changed = Config().replace(**{"seed": 3, "optimizer.learning_rate": 0.5, "checkpoint.keep": 7})
    with (
        RunDirectory.open(Config(run_dir=run), "x") as directory,
        pytest.raises(UserError, match=r"options: seed 0 -> 3, optimizer.learning_rate \(default\) -> 0.5; give"),
    ):
        check(directory, changed)


def test_other_options_may_change_and_are_written_down(tmp_path: Path) -> None:
    run = begun(tmp_path / "run")
    changes = {
        **{"name": "other", "tracking.enabled": False, "checkpoint.keep": 5, "parallel.strategy": "pmap"},
        **{"parallel.devices": 3, "train.log_every": 1, "train.steps_per_call": 4, "data.workers": 2},
        **{"data.prefetch": 9, "data.dir": Path("elsewhere"), "run_dir": Path("moved")},
    }
    with RunDirectory.open(Config(run_dir=run), "x") as directory:
        assert check(directory, Config().replace(**changes)) is True
    assert load_config(run / "config.yaml") == Config().replace(**changes)


def test_every_option_that_is_free_exists() -> None:
    from jaxtrain.config_io import option_paths

    paths = option_paths()
    for free in run_directory.FREE_ON_RESUME:
        assert free in paths or any(path.startswith(f"{free}.") for path in paths), free


def test_a_config_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("hydra: {}")
    with (
        RunDirectory.open(Config(run_dir=tmp_path / "run"), "x") as directory,
        pytest.raises(UserError, match=r"config.yaml: hydra: unknown section"),
    ):
        check(directory, Config())


def test_what_is_left_open_continues_as_it_was(tmp_path: Path) -> None:
    resolved = {"train.epochs": 20.0, "model.dtype": "float32", "optimizer.learning_rate": 0.1, "seed": 7}
    run = begun(tmp_path / "run", **resolved, **{"checkpoint.keep": 4})
    given = Config(run_dir=run, checkpoint=CheckpointConfig(keep=9), optimizer=OptimizerConfig(beta1=None))
    with RunDirectory.open(given, "x") as directory:
        continued = directory.continued(given)
        assert continued == Config(run_dir=run).replace(**resolved, **{"checkpoint.keep": 9})
        assert check(directory, continued) is True
        # as from a command line, where every option has been set
        everything = Config.model_validate(given.model_dump())
        assert directory.continued(everything).model_dump() == given.replace(**{**resolved, "seed": 0}).model_dump()


def test_a_length_in_steps_takes_the_place_of_one_in_epochs(tmp_path: Path) -> None:
    run = begun(tmp_path / "run", **{"train.epochs": 20.0})
    given = Config(run_dir=run, train=TrainConfig(steps=100))
    with (
        RunDirectory.open(given, "x") as directory,
        pytest.raises(UserError, match=r"train.epochs 20.0 -> \(default\), train.steps \(default\) -> 100"),
    ):
        check(directory, directory.continued(given))


def test_options_that_contradict_those_of_the_run_so_far_are_named(tmp_path: Path) -> None:
    lora = {"finetune.strategy": "lora", "finetune.lora_rank": 4, "finetune.lora_alpha": 8.0}
    run = begun(tmp_path / "run", technique="ft", **lora)
    given = Config(run_dir=run, technique="ft", finetune=FinetuneConfig(strategy="full"))
    message = (
        r"^run directory \S+run was begun with other options: finetune.strategy lora -> full; give the old ones, or"
    )
    with RunDirectory.open(given, "x") as directory, pytest.raises(UserError, match=message):
        directory.continued(given)


def test_parts_of_a_batch_that_were_found_to_fit_stay(tmp_path: Path) -> None:
    """The same command again, in which every option counts as given."""
    given = Config(run_dir=tmp_path / "run").replace(**{"train.microbatch": "auto"})
    given = Config.model_validate(given.model_dump())
    with RunDirectory.open(given, "x") as directory:
        check(directory, given)
        directory.record("train.accumulate", 4)
        continued = directory.continued(given)
        assert check(directory, continued) is True
        assert continued.train.accumulate == 4
        more = directory.continued(given.replace(**{"train.accumulate": 8}))
        with pytest.raises(UserError, match=r"train.accumulate 4 -> 8"):
            check(directory, more)


def test_a_run_that_did_not_fit_can_be_continued_in_parts(tmp_path: Path) -> None:
    given = Config(run_dir=begun(tmp_path / "run")).replace(**{"train.microbatch": "auto"})
    with RunDirectory.open(given, "x") as directory:
        assert directory.continued(given).train.microbatch == "auto"


def test_a_new_run_continues_nothing(tmp_path: Path) -> None:
    given = Config(run_dir=tmp_path / "run", seed=3)
    with RunDirectory.open(given, "x") as directory:
        assert directory.continued(given) is given


# --- the summary ----------------------------------------------------------------------------------


def test_summary(tmp_path: Path) -> None:
    with RunDirectory.open(Config(run_dir=tmp_path / "run"), "x") as directory:
        assert directory.finished() is None
        directory.write_summary(SUMMARY | {"test_macro_f1": 0.25})
        assert directory.finished() == SUMMARY | {"test_macro_f1": 0.25}
        assert json.loads((tmp_path / "run" / "summary.json").read_text()) == directory.finished()


def test_summary_takes_numpy_scalars_and_writes_valid_json_for_nan(tmp_path: Path) -> None:
    with RunDirectory.open(Config(run_dir=tmp_path / "run"), "x") as directory:
        nan = float("nan")
        odd = {"val_accuracy": np.float32(0.5), "test_loss": nan, "steps": np.int64(3), "extra": nan}
        directory.write_summary(SUMMARY | odd)

        def no_constants(name: str) -> None:
            raise AssertionError(name)

        content = json.loads((tmp_path / "run" / "summary.json").read_text(), parse_constant=no_constants)
        assert [content[key] for key in odd] == [0.5, None, 3, None]
        assert directory.finished() == content


@pytest.mark.parametrize("field", SUMMARY)
def test_a_summary_without_a_field_of_the_contract_is_not_written(tmp_path: Path, field: str) -> None:
    with RunDirectory.open(Config(run_dir=tmp_path / "run"), "x") as directory:
        with pytest.raises(RunError, match=f"summary.json: {field}: a value is missing"):
            directory.write_summary({key: value for key, value in SUMMARY.items() if key != field})
        assert directory.finished() is None


@pytest.mark.parametrize("content", ["", "{", "{}", "[]", '{"steps": 3}'])
def test_a_summary_that_is_none(tmp_path: Path, content: str) -> None:
    with RunDirectory.open(Config(run_dir=tmp_path / "run"), "x") as directory:
        directory.summary.write_text(content)
        with pytest.raises(DamagedError, match=r"summary.json: is not a sound summary of a run .*; delete it"):
            directory.finished()


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with RunDirectory.open(Config(run_dir=tmp_path / "run"), "x") as directory:
        directory.write_summary(SUMMARY)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(RunError, match=r"summary.json could not be written: No space left"):
                directory.write_summary(SUMMARY | {"steps": 101})
        assert directory.finished() == SUMMARY
    assert sorted(os.listdir(tmp_path / "run")) == ["run.lock", "summary.json"]
