"""What people who come from other programs type, and the option that they are shown."""

import pytest

from jaxtrain import PTClassifier, UserError, config_io
from jaxtrain.cli.benchmark import Benchmark
from jaxtrain.cli.command import options_of
from jaxtrain.cli.main import run
from jaxtrain.cli.sync import Sync
from jaxtrain.cli.train import Train
from jaxtrain.config_io import load_config

WORDS = {
    "train.epochs": "--epochs --epoch --max-epochs --num-train-epochs --total_epochs",
    "train.steps": "--max_steps --total-steps",
    "train.batch-size": "--batch-size -b --bs --input.batch_size",
    "train.accumulate": "--grad-accum-steps --accumulate-grad-batches",
    "train.label-smoothing": "--smoothing",
    "train.class-weights balanced": "--class-weight",
    "train.ema-decay": "--ema --model-ema",
    "train.early-stopping": "--patience",
    "train.log-every": "--log-interval",
    "optimizer.learning-rate": "--lr --learning-rate --optimizer.lr --train.lr --model.lr",
    "optimizer.weight-decay": "--wd --weight-decay",
    "optimizer.name": "--opt --optimizer --optax_name",
    "optimizer.clip-norm": "--clip-grad --gradient-clip-val --max-grad-norm",
    "schedule.name": "--sched --lr_scheduler",
    "schedule.warmup-epochs": "--warmup-epochs --warmup-steps",
    "data.name": "--data --dataset --data-set",
    "data.dir": "--data-dir",
    "data.image-size": "--img-size --input-size --imgsz",
    "data.val-fraction": "--validation-split --val-split",
    "data.workers": "-j --num-workers --workers",
    "augment.mixup": "--mixup",
    "augment.policy none": "--no-aug",
    "model.name": "--model --arch",
    "model.weights": "--pretrained",
    "model.drop-rate": "--dropout",
    "model.drop-path-rate": "--drop-path",
    "model.dtype": "--precision",
    "model.dtype bfloat16": "--amp --bf16",
    "parallel.devices": "--devices --gpus",
    "parallel.strategy": "--strategy",
    "run-dir": "--output --output-dir --out --workdir --resume --default_root_dir",
    "name": "--experiment --run-name",
    "tracking.enabled": "--tracking --mlflow",
    "tracking.enabled False": "--no-tracking --no-mlflow",
    "seed": "--random-state",
    "quiet": "--verbose",
    "smoke": "--fast-dev-run --dry-run",
    "head.learning-rate": "--head.lr",
}


@pytest.mark.parametrize(
    ("option", "word"), [(option, word) for option, words in WORDS.items() for word in words.split()]
)
def test_the_words_of_other_programs_are_understood(option, word):
    with pytest.raises(UserError) as caught:
        Train.parse(["--technique", "pt", word, "1"])
    assert str(caught.value) == f"{word}: no such option; did you mean '--{option}'?"


def test_every_option_that_the_table_names_exists():
    known = {option.path: option for command in (Train, Benchmark, Sync) for option in options_of(command)}
    for options in config_io._WORDS.values():
        for option in options:
            assert option.partition(" ")[0] in known


def test_another_command_is_not_told_of_what_it_lacks():
    with pytest.raises(UserError, match=r"'--out'"):
        run(["benchmark", "--output", "x"])
    with pytest.raises(UserError, match=r"valid: .*embeddings, explain, explain-method, out"):
        run(["predict", "--model", "x", "y.png"])


def test_a_name_in_the_place_of_a_section_is_understood(tmp_path):
    file = tmp_path / "c.yaml"
    for section in ("data", "model", "optimizer", "schedule", "head"):
        file.write_text(f"{section}: x")
        with pytest.raises(UserError, match=f"'{section}.name'"):
            load_config(file)
    with pytest.raises(UserError, match=r"'model\.name'"):
        PTClassifier(model="resnet18")
    with pytest.raises(UserError, match=r"'optimizer\.learning_rate'"):
        PTClassifier(lr=0.1)


def test_the_technique_has_no_default(capsys):
    with pytest.raises(SystemExit):
        run(["train", "--help"])
    line = next(line for line in capsys.readouterr().out.splitlines() if "--technique" in line)
    assert "default" not in line
