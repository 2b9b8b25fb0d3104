"""Rehearsals of a config before a long run: all stages on generated images, or one real batch under checks.

Both run in a temporary directory, which stays where they fail, and tell MLflow nothing.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxtrain.classifiers.base import BaseClassifier
from jaxtrain.config import HEADS, UNTRACKED, Config, chosen
from jaxtrain.data.base import Dataset
from jaxtrain.data.sources import load_dataset
from jaxtrain.errors import RunError, UserError
from jaxtrain.runs.resolve import mixes_images
from jaxtrain.runs.run import run
from jaxtrain.runs.setup import Setup, prepare
from jaxtrain.screen.console import print_line
from jaxtrain.training.parallel import check_devices, set_cpu_devices
from jaxtrain.training.technique import Technique

_STEPS = 4
_CLASSES = 10
_LEAST_BATCH = 8
_SHORT_HEAD = {"trials": 2, "epochs": 2}


def smoke(classifier: BaseClassifier) -> None:
    """Train, validate, save, resume and test a few steps of a classifier on generated images of the right shape.

    Shape and classes are those of the data set where it is there, else of the config, else 10 classes. Batches are
    as small as the config allows. Raises what the run itself would raise.
    """
    start = time.monotonic()
    config = classifier.config
    set_cpu_devices(config.parallel)
    check_devices()
    height, width, channels, classes, several = _shape(classifier)
    small = _shortened(config)
    batch = small.train.batch_size if small.acts("train.batch_size") else _LEAST_BATCH
    images = max(_STEPS * batch, 2 * classes * (small.data.shots or 0))
    generator = np.random.default_rng(0)

    def generated(count: int) -> tuple[Any, Any]:
        labels = np.arange(count) % classes
        if several:
            labels = generator.integers(0, 2, (count, classes))
        return generator.integers(0, 256, (count, height, width, channels)).astype(small.data.pixel_type), labels

    train, val, test = generated(images), generated(images // 2), generated(images // 2)
    names = tuple(f"class {number}" for number in range(classes))
    with _temporary() as folder, contextlib.chdir(folder):

        def fit() -> BaseClassifier:
            return classifier.bind(small).fit(*train, validation=val, test=test, class_names=names)

        small = small.replace(**{"run_dir": folder / "run", "features.store": _store(config, folder)})
        first = fit()
        (folder / "run" / "summary.json").unlink()
        again = fit()
        digests = [model.summary["params_sha256"] for model in (first, again)]
        if digests[0] != digests[1]:
            raise RunError(f"smoke: the resumed run ends in other parameters; see {folder}")
    shown = f"{small.data.pixel_type}[{images}, {height}, {width}, {channels}], {classes} classes"
    print_line(
        f"smoke: {config.technique} {first.model_name} trained, validated, saved, resumed and tested "
        f"on generated images ({shown}) in {time.monotonic() - start:.0f} s"
    )


def debug(classifier: BaseClassifier) -> None:
    """Check all shapes of a step, then train one on the first batch of the real images, every operation for NaN.

    The test set is not read. Raises RunError for a shape that is not what it should be, and where NaN appears.
    """
    config = classifier.config
    set_cpu_devices(config.parallel)
    check_devices()
    dataset = load_dataset(classifier.data_config)
    batch = min(config.train.batch_size, len(dataset.train))
    dataset = replace(
        dataset,
        train=dataset.train.select(np.arange(batch)),
        val=None if dataset.val is None else dataset.val.select(np.arange(min(batch, len(dataset.val)))),
        open_test=lambda: None,
    )
    with _temporary() as folder, jax.debug_nans(True):
        options = {
            **{"run_dir": folder / "run", "name": None, "parallel.strategy": "jit", **UNTRACKED},
            **{"train.epochs": None, "train.steps": 1, "train.early_stopping": None, "schedule.warmup_epochs": None},
            **{"train.profile": None},
            **{"train.steps_per_call": 1, "finetune.unfreeze_steps": None},  # everything takes part in the one step
        }
        small = config.replace(**{path: value for path, value in options.items() if config.acts(path)})
        if config.technique != "fe":
            check_shapes(*prepare(classifier.bind(classifier.resolve(small, dataset)), dataset))
        run(classifier.bind(small), dataset)
    print_line("debug: shapes are right, and one step made no NaN")


def check_shapes(technique: Technique, setup: Setup) -> None:
    """Raises RunError naming the first array of a step whose shape or type is not what the next part expects."""
    data, batch_size, classes = setup.config.data, setup.config.train.batch_size, setup.dataset.num_classes
    size, channels = chosen(data.image_size), chosen(data.channels)
    args = setup.feed.args(0)
    batch = jax.eval_shape(setup.feed.batch, setup.state.step, *args)
    _expect("image of the batch", batch.image, data.pixel_type, (batch_size, None, None, channels))
    if setup.dataset.multilabel:
        _expect("label of the batch", batch.label, np.int8, (batch_size, classes))
    else:
        _expect("label of the batch", batch.label, np.int32, (batch_size,))
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch_size))
    inputs = jax.eval_shape(technique.inputs, batch, keys)
    _expect("image that `inputs` gives", inputs.image, np.float32, (batch_size, size, size, channels))
    _expect("label that `inputs` gives", inputs.label, np.float32, (batch_size, classes))
    state = setup.state

    def loss(params: Any, inputs: Any, key: jax.Array) -> Any:
        model = setup.step.network.bind(params, state.frozen, state.model_state)
        return technique.loss(model, inputs, key)

    def logits(inputs: Any) -> Any:
        return setup.step.network.bind(state.params, state.frozen, state.model_state)(inputs.image)

    _expect("output of the network", jax.eval_shape(logits, inputs), np.floating, (batch_size, classes))
    value, metrics = jax.eval_shape(loss, state.params, inputs, state.key)
    for name, scalar in {"loss": value, **metrics}.items():
        _expect(f"{name} that `loss` gives", scalar, np.floating, ())
    updates, _ = jax.eval_shape(setup.step.optimizer.update, state.params, state.opt_state, state.params)
    for name, param in state.params.items():
        _expect(f"update of {name}", updates[name], param.dtype, param.shape)


def _expect(name: str, array: Any, dtype: Any, shape: tuple[int | None, ...]) -> None:
    fits = len(array.shape) == len(shape)
    fits = fits and all(want in (None, size) for size, want in zip(array.shape, shape, strict=True))
    if not (fits and jax.numpy.issubdtype(array.dtype, dtype)):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise RunError(
            f"debug: the {name} is {array.dtype}[{', '.join(map(str, array.shape))}], "
            f"not {np.dtype(dtype).name if dtype is not np.floating else 'float'}[{wanted}]"
        )


def _shape(classifier: BaseClassifier) -> tuple[int, int, int, int, bool]:
    """Height, width and channels of the training images, the number of classes, and whether images have several."""
    data = classifier.data_config
    try:
        dataset: Dataset | None = load_dataset(data)
    except (UserError, RunError) as problem:
        print_line(f"smoke: {problem}; going on with generated images of {_CLASSES} classes")
        dataset = None
    uniform = dataset.uniform_size if dataset else None
    own = classifier.pretrained.image_size if classifier.pretrained else 32
    height, width = uniform or (data.image_size or own,) * 2
    channels = dataset.channels if dataset else data.channels or 3
    several = dataset.multilabel if dataset else data.task == "multilabel"
    return height, width, channels, dataset.num_classes if dataset else _CLASSES, several


def _shortened(config: Config) -> Config:
    """The same stages in a few steps on small batches."""
    unit = (config.parallel.devices or jax.local_device_count()) * config.train.accumulate
    unit *= 2 if mixes_images(config) else 1
    changes: dict[str, Any] = {
        **{"name": None, "quiet": True, "checkpoint.every_steps": 2, **UNTRACKED},
        **{"data.max_train_images": None, "data.draws": min(config.data.draws, 2), "train.profile": None},
        **{"data.shots": config.data.shots and min(config.data.shots, 2), "schedule.warmup_epochs": None},
        **{"train.epochs": None, "train.steps": _STEPS, "train.batch_size": -(-_LEAST_BATCH // unit) * unit},
        **{"train.eval_every": _STEPS / 2, "train.log_every": 1, "train.early_stopping": None, "train.select": "last"},
    }
    for option in ("class_weights", "pos_weight"):
        if getattr(config.train, option) not in ("none", "balanced"):
            changes[f"train.{option}"] = {"class 0": 2.0}  # the real names are not those of generated images
    if config.technique == "fe":
        own = HEADS[config.head.kind]
        given = {option: getattr(config.head, option) for option in _SHORT_HEAD}
        changes |= {
            f"head.{option}": min(given[option] or most, most) for option, most in _SHORT_HEAD.items()
            if option in own and (config.head.kind != "linear" or given[option])
        }  # fmt: skip
    if config.finetune.unfreeze_steps is not None:
        changes["finetune.unfreeze_steps"] = 1
    if config.model.weights and Path(config.model.weights).exists():
        changes["model.weights"] = str(Path(config.model.weights).absolute())
    return config.replace(**{path: value for path, value in changes.items() if config.acts(path)})


def _store(config: Config, folder: Path) -> Path | None:
    return folder / "embeddings" if config.technique == "fe" else None


@contextlib.contextmanager
def _temporary() -> Iterator[Path]:
    """A folder that goes when all went well, and otherwise keeps what tells why."""
    folder = Path(tempfile.mkdtemp(prefix="jaxtrain-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


REHEARSALS: dict[str, Callable[[BaseClassifier], None]] = {"smoke": smoke, "debug": debug}
"""By the option of the command line."""
