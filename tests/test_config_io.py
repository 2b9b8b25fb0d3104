import doctest
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from jaxtrain import config_io
from jaxtrain.config import AugmentConfig, Config, DataConfig, OptimizerConfig
from jaxtrain.config_io import dump_config, explain, find_config, load_config, nearest_option, option_paths
from jaxtrain.errors import UserError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "x.yaml"


def refusal(file: Path, text: str) -> str:
    """What is said about a file, without the name that it begins with."""
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        load_config(file)
    message = str(caught.value)
    assert message.startswith(f"{file}: ")
    assert "\n" not in message
    return message.removeprefix(f"{file}: ")


# --- there and back -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        Config(),
        Config(
            name="1.5",
            run_dir=Path("runs/a b/ü"),
            seed=2**32 - 1,
            data=DataConfig(name="folder:/a: b#c", mean=(0.1, 0.2, 1 / 3), dir=Path("x")),
            augment=AugmentConfig(scale=(0.08, 1.0), mixup=1e-7),
            optimizer=OptimizerConfig(learning_rate=0.1 + 0.2, weight_decay=1e-300),
        ),
        Config(name="no", data=DataConfig(name="null", channels=3)),
    ],
)
def test_round_trip(file: Path, config: Config) -> None:
    file.write_text(dump_config(config), encoding="utf-8")
    assert load_config(file) == config
    assert dump_config(load_config(file)) == dump_config(config)


def test_dump_names_every_option_in_the_order_of_the_config() -> None:
    import yaml

    tree = yaml.safe_load(dump_config(Config()))
    assert list(tree) == list(Config.model_fields)

    def leaves(value, path=""):
        if not isinstance(value, dict):
            return [path[1:]]
        return [leaf for name, inner in value.items() for leaf in leaves(inner, f"{path}.{name}")]

    assert sorted(leaves(tree)) == sorted(option_paths())


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "{}", "train:\n", "train:\n  # epochs: 3\nmodel: {}\n"])
def test_files_and_sections_may_be_empty(file: Path, text: str) -> None:
    file.write_text(text)
    assert load_config(file) == Config()


def test_only_what_is_written_counts_as_set(file: Path) -> None:
    file.write_text("seed: 3\ntrain: {epochs: 2}\n")
    assert load_config(file).model_dump(exclude_unset=True) == {"seed": 3, "train": {"epochs": 2.0}}


@pytest.mark.parametrize("text", ["3e-4", "0.0003", "3.0e-4", "'3e-4'"])
def test_numbers_as_people_write_them(file: Path, text: str) -> None:
    file.write_text(f"optimizer: {{learning_rate: {text}}}")
    assert load_config(file).optimizer.learning_rate == 0.0003


# --- what is refused, and how ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {epoch: 3}", "train.epoch: unknown option, did you mean 'train.epochs'?"),
        ("train: {batchsize: 3}", "train.batchsize: unknown option, did you mean 'train.batch_size'?"),
        ("model: {batch_size: 3}", "model.batch_size: unknown option, did you mean 'train.batch_size'?"),
        ("epochs: 3", "epochs: unknown option, did you mean 'train.epochs'?"),
        ("lr: 3", "lr: unknown option, did you mean 'optimizer.learning_rate'?"),
        ("optim: {name: sgd}", "optim: unknown section, did you mean 'optimizer'?"),
        ("optimizer: {name: adamm}", "optimizer.name: unknown value 'adamm', did you mean 'adamw'?"),
        ("parallel: {strategy: zzz}", "parallel.strategy: unknown value 'zzz', valid: auto, fsdp, jit, pmap"),
        ("data: {channels: 17}", "data.channels: must be less than or equal to 16, not 17"),
        ("train: 5", "train: must be a mapping of options, not 5"),
        ("train: {epochs: -1}", "train.epochs: must be greater than 0, not -1"),
        ("train: {epochs: three}", "train.epochs: must be a valid number, not 'three'"),
        ("train: {epochs: yes}", "train.epochs: must not be true"),
        ("train: {epochs: .nan}", "train.epochs: must be a finite number, not nan"),
        ("train: {batch_size: 1.5}", "train.batch_size: must be a valid integer, not 1.5"),
        ("train: {epochs: 1, steps: 2}", "train: give epochs or steps, not both"),
        ("model: {remat: maybe}", "model.remat: must be a valid boolean, not 'maybe'"),
        ("augment: {scale: [0.1, 3]}", "augment.scale[1]: must be less than or equal to 1, not 3"),
        ("augment: {scale: [0.1]}", "augment.scale[1]: a value is missing"),
        ("data: {mean: abc}", "data.mean: must be a valid list, not 'abc'"),
        ("data: {dir: 3}", "data.dir: must be a valid path, not 3"),
        ("seed: 4294967296", "seed: must be less than 4294967296, not 4294967296"),
        ("3: 4", "[3]: must be strings, not 3"),
        (
            "name: ../x",
            "name: must be 1 to 100 letters, digits, '.', '_' or '-', and begin with a letter or digit, not '../x'",
        ),
        ("[1]", "must be a mapping of options, as 'train: {epochs: 3}', not [1]"),
        ("hello", "must be a mapping of options, as 'train: {epochs: 3}', not 'hello'"),
        ("seed: 1\nseed: 2", "line 2, column 1: seed: is given twice"),
        ("train: {steps: 1, steps: 1}", "line 1, column 19: steps: is given twice"),
        ("a: b: c", "line 1, column 5: mapping values are not allowed here"),
        ("train: {epochs: 1\n", "line 2, column 1: expected ',' or '}', but got '<stream end>'"),
        ("\0", "is not valid UTF-8 text"),
        ("[" * 500, "line 1, column 52: is nested too deeply"),
    ],
)
def test_every_mistake_gets_one_line(file: Path, text: str, message: str) -> None:
    assert refusal(file, text) == message


def test_several_mistakes_are_named_together(file: Path) -> None:
    text = "data: {nam: a}\ntrain: {epochs: 0}\noptimizer: {name: x}\nseed: -1\nmodel: {zz: 1}"
    message = refusal(file, text)
    assert message.startswith("seed: must be greater than or equal to 0, not -1; data.nam: unknown option")
    assert message.endswith("; and 2 more")


def test_an_unknown_option_far_from_any_lists_its_section(file: Path) -> None:
    assert (
        refusal(file, "checkpoint: {zzz: 1}")
        == "checkpoint.zzz: unknown option, valid: every_seconds, every_steps, keep"
    )


def test_long_values_are_cut(file: Path) -> None:
    message = refusal(file, f"train: {{epochs: {'x' * 5000}}}")
    assert len(message) < 120
    assert message.endswith("xxx...")


def test_no_code_is_run(file: Path, tmp_path: Path) -> None:
    message = refusal(file, f"data: !!python/object/apply:os.mkdir ['{tmp_path}/made']")
    assert "python/object/apply:os.mkdir" in message
    assert not (tmp_path / "made").exists()


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none.yaml: No such file"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="is a directory"):
        load_config(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x80")
    with pytest.raises(UserError, match="binary: is not valid UTF-8 text"):
        load_config(tmp_path / "binary")


def test_the_source_of_an_error_is_the_callers() -> None:
    with pytest.raises(ValidationError) as caught:
        Config.model_validate({"optimizer": {"name": "adamm"}})
    expected = "command line: optimizer.name: unknown value 'adamm', did you mean 'adamw'?"
    assert explain(caught.value, "command line") == expected


# --- option paths ---------------------------------------------------------------------------------


def test_option_paths_are_all_and_can_be_set() -> None:
    paths = option_paths()
    assert len(paths) == len(set(paths)) > 70
    assert {"seed", "run_dir", "train.epochs", "tracking.uri"} <= set(paths)
    assert not {"train", "data"} & set(paths)
    config = Config()
    for path in paths:
        value: object = config
        for part in path.split("."):
            value = getattr(value, part)
        assert config.replace(**{path: value}) == config


@pytest.mark.parametrize("path", option_paths())
def test_a_letter_too_many_is_understood(path: str) -> None:
    for wrong in (f"{path}s", path[:-1] + path[-1] * 2):
        if wrong.rpartition(".")[2] not in (known.rpartition(".")[2] for known in option_paths()):
            assert nearest_option(wrong) == f"did you mean '{path}'?"


def test_examples_in_the_docstrings() -> None:
    assert doctest.testmod(config_io).failed == 0
    assert doctest.testmod(config_io).attempted >= 2


def test_reading_a_config_imports_nothing_heavy() -> None:
    heavy = ("jax", "numpy", "orbax", "flax")
    code = f"import sys, jaxtrain.config_io; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["x" * 5000, "a\x00b"])
def test_a_name_that_cannot_be_that_of_a_file_is_refused(name, tmp_path):
    with pytest.raises(UserError, match="No such file") as caught:
        find_config(name, tmp_path)
    assert len(str(caught.value)) < 1000
