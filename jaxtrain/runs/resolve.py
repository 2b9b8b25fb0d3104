"""From the options a person gave to the ones a run uses: what was left open is chosen from data set, model, device."""

from __future__ import annotations

import math
from pathlib import Path

from jaxtrain.backend import backend
from jaxtrain.config import AugmentConfig, Config, DataConfig, ModelConfig, chosen
from jaxtrain.data.augment import resolve_augment
from jaxtrain.data.base import Dataset
from jaxtrain.data.nature import Nature, nature_of
from jaxtrain.data.residence import loader
from jaxtrain.errors import UserError
from jaxtrain.models import model_spec
from jaxtrain.models.weights import Pretrained
from jaxtrain.runs.imbalance import resolve_weights
from jaxtrain.screen.console import print_line
from jaxtrain.tasks import TASKS, Task, check_options
from jaxtrain.training.optimizers import check_schedule, decay_steps, resolve_optimizer
from jaxtrain.training.progress import Timetable

DEFAULT_MODEL = "cnn_small"
DEFAULT_WEIGHTS = "package:efficientnet_lite0"
_DEFAULT_EPOCHS = {"digits": 150.0}
_OTHER_EPOCHS = 20.0
# On accelerators a small model's step is shorter than its dispatch; XLA:CPU runs loops over convolutions slowly.
_STEPS_PER_CALL = {"cpu": 1}
_ACCELERATOR_STEPS_PER_CALL = 16
# Powers of two: shards of the embedding store are whole batches.
_FEATURE_BATCH, _ACCELERATOR_FEATURE_BATCH = {"cpu": 32}, 256
_WARMUP_SHARE = 0.05


def resolve(config: Config, dataset: Dataset, pretrained: Pretrained | None = None) -> Config:
    """The config with every None that has a default filled in. Raises UserError where options contradict.

    What is left open of model and images follows from the pre-trained weights, where there are some.
    """
    task = _task(config.data, dataset)
    config = config.replace(**{"data.task": task.name})
    check_options(config, task.name)
    model = _model(config.model, pretrained)
    on = backend()
    given, seen = config.augment, _look(config, dataset, pretrained)
    data = _data(config.data, dataset, model, pretrained, seen)
    train = resolve_weights(config.train, dataset.class_names)
    changes: dict[str, object] = {}
    if train.epochs is None and train.steps is None:
        changes["epochs"] = _DEFAULT_EPOCHS.get(dataset.name, _OTHER_EPOCHS)
    if train.steps_per_call is None:
        changes["steps_per_call"] = _STEPS_PER_CALL.get(on, _ACCELERATOR_STEPS_PER_CALL)
    if dataset.val is None:
        if train.early_stopping is not None:
            raise UserError("train.early_stopping: there is no validation set; set data.val_fraction above 0")
        changes["select"] = "last"
    elif train.select == "auto":
        changes["select"] = "last" if _settles(config) else "best"
    if train.monitor is None:
        changes["monitor"] = f"val/{task.figure}"
    train = train.model_copy(update=changes)
    if model.dtype == "auto":
        model = model.model_copy(update={"dtype": "float32" if on == "cpu" else "bfloat16"})
    flips = dataset.flips
    if seen is not None and flips is None:
        flips = seen.hflip
        given = _as_seen(given, seen)
    augment = resolve_augment(
        given,
        image_size=chosen(data.image_size),
        flips=flips is not False,
        channels=chosen(data.channels),
        bits=chosen(data.bits),
    )
    if config.technique != "fe":
        where = loader(dataset, data, native=augment.crop == "random_resized")
        data = data.model_copy(update={"loader": where})
    optimizer = resolve_optimizer(config.optimizer)
    check_schedule(config.schedule)
    sections = {"data": data, "train": train, "model": model, "augment": augment, "optimizer": optimizer}
    resolved = config.model_copy(update={**sections, "loss": config.loss.resolved()})
    images = max(len(dataset.train), 1)  # none where nothing is trained
    steps = total_steps(resolved, images)
    if train.profiled is not None and train.profiled[1] > steps:
        raise UserError(f"train.profile: {train.profile} ends after the last step of the run, {steps}")
    total = steps / (images / train.batch_size)
    warmup = config.schedule.warmup_epochs
    if warmup is None:
        warmup = 0.0 if config.schedule.name in ("constant", "one_cycle") else _WARMUP_SHARE * total
    elif warmup >= total:
        raise UserError(f"schedule.warmup_epochs: {warmup:g} is not shorter than training ({total:g} epochs)")
    schedule = config.schedule.model_copy(update={"warmup_epochs": warmup})
    return Config.model_validate(resolved.model_copy(update={"schedule": schedule}).model_dump())


def _task(data: DataConfig, dataset: Dataset) -> Task:
    """As the labels are. Raises UserError where they are not as `data.task` says."""
    name = "multilabel" if dataset.multilabel else "multiclass"
    if data.task not in ("auto", name):
        has = "several labels" if dataset.multilabel else "one class"
        raise UserError(f"data.task {data.task}: {dataset.name} has {has} per image")
    return TASKS[name]


def _settles(config: Config) -> bool:
    """Whether training ends on a small learning rate, and not early."""
    schedule = config.schedule
    return schedule.name != "constant" and schedule.final_ratio <= 0.1 and config.train.early_stopping is None


def resolve_features(config: Config) -> Config:
    """Where feature extraction keeps vectors and how many images a forward pass takes, where that is left open."""
    batch = config.features.batch_size or _FEATURE_BATCH.get(backend(), _ACCELERATOR_FEATURE_BATCH)
    store = config.features.store or Path("runs/embeddings")
    features = config.features.model_copy(update={"batch_size": batch, "store": store})
    return config.model_copy(update={"features": features})


def _model(given: ModelConfig, pretrained: Pretrained | None) -> ModelConfig:
    if pretrained is None:
        return given if given.network else given.model_copy(update={"name": given.name or DEFAULT_MODEL})
    of_weights = pretrained.model.model_dump(exclude_none=True, exclude={"dtype", "remat"})
    return given.model_copy(update=of_weights | {k: v for k, v in given if v is not None})


def _look(config: Config, dataset: Dataset, pretrained: Pretrained | None) -> Nature | None:
    """What a look at the images tells, where something that is left open depends on it and is not known."""
    augment, data = config.augment, config.data
    open_flips = dataset.flips is None and config.acts("augment.hflip") and augment.policy == "auto"
    open_flips = open_flips and None in (augment.hflip, augment.vflip, augment.rotate)
    open_statistics = (pretrained is None or dataset.channels not in (1, 3)) and None in (
        data.mean or dataset.mean,
        data.std or dataset.std,
    )
    if not (open_flips or open_statistics):
        return None
    seen = nature_of(dataset, data.max_pixels)
    if not config.quiet and open_flips:
        flips = {"left-right": seen.hflip, "upside-down": seen.vflip, "any rotation": seen.rotate}
        chosen_flips = ", ".join(f"{name} {'on' if on else 'off'}" for name, on in flips.items())
        print_line(f"{dataset.name}: {seen.evidence}; flips: {chosen_flips} (augment.hflip, vflip, rotate)")
    return seen


def _as_seen(given: AugmentConfig, seen: Nature) -> AugmentConfig:
    """Policy auto with what the images allow besides left-right flips, and without what is for digits and letters."""
    if given.policy != "auto":
        return given
    if seen.hflip:
        options = {"vflip": 0.5 * seen.vflip, "rotate": 180.0 * seen.rotate}
    else:  # they may be clothes, whose shoes all point one way: what helps digits costs these 2 points
        options = {"rotate": 0.0, "zoom": 0.0, "mixup": 0.0}
    return given.model_copy(update={name: value for name, value in options.items() if getattr(given, name) is None})


def _data(
    given: DataConfig, dataset: Dataset, model: ModelConfig, pretrained: Pretrained | None, seen: Nature | None
) -> DataConfig:
    channels, crop_pct, interpolation = dataset.channels, 1.0, "bilinear"
    mean, std = dataset.mean or (seen.mean if seen else None), dataset.std or (seen.std if seen else None)
    if pretrained is not None:
        size = given.image_size or pretrained.image_size
        if channels in (1, 3):
            mean, std = pretrained.normalization(channels)
        # The centre crop is made for photographs: of small images that fill their frame it would cut the object.
        small = dataset.uniform_size is not None and max(dataset.uniform_size) <= size
        crop_pct, interpolation = 1.0 if small else pretrained.crop_pct, pretrained.interpolation
    else:
        size = given.image_size or (max(dataset.uniform_size) if dataset.uniform_size else _usual_size(model))
    for name, asked, there in (("channels", given.channels, channels), ("bits", given.bits, dataset.bits)):
        if asked not in (None, there):
            raise UserError(f"data.{name}: {asked} asked for, the images have {there}")
    mean, std = chosen(given.mean or mean), chosen(given.std or std)
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != channels:
            raise UserError(f"data.{name}: {len(values)} values for images of {channels} channels")
    if min(std) <= 0:
        raise UserError(f"data.std: values must be above 0, got {min(std)}")
    left_open = {
        "image_size": size,
        "channels": channels,
        "bits": dataset.bits,
        "mean": mean,
        "std": std,
        "crop_pct": given.crop_pct or crop_pct,
        "interpolation": given.interpolation or interpolation,
    }
    return given.model_copy(update=left_open)


def _usual_size(model: ModelConfig) -> int:
    if model.network is not None:
        raise UserError(
            f"data.image_size: images of many sizes, and {model.network} does not say which it takes; give it"
        )
    return model_spec(chosen(model.name)).image_size


def mixes_images(config: Config) -> bool:
    """Whether pairs of images are mixed."""
    return bool(config.augment.mixup or config.augment.cutmix)


def total_steps(config: Config, images: int) -> int:
    """Optimizer steps of a run over `images` training images."""
    if config.train.steps is not None:
        return config.train.steps
    return max(math.ceil(chosen(config.train.epochs) * images / config.train.batch_size - 1e-9), 1)


def timetable(config: Config, images: int, *, streamed: bool) -> Timetable:
    """When what happens in a run with this resolved config."""
    train = config.train
    return Timetable(
        total_steps=total_steps(config, images),
        steps_per_epoch=images / train.batch_size,
        batch_size=train.batch_size,
        eval_epochs=train.eval_every,
        log_every=train.log_every,
        steps_per_call=1 if streamed else train.steps_per_call or 1,
        save_seconds=config.checkpoint.every_seconds,
        save_steps=config.checkpoint.every_steps,
        patience=train.early_stopping,
        skip_limit=train.nonfinite_limit,
        pinned=_last_stable(config, images),
    )


def _last_stable(config: Config, images: int) -> int | None:
    """The last step at the end of a call before wsd decays; None for schedules that decay all the time, or never."""
    if config.schedule.name != "wsd":
        return None
    total = total_steps(config, images)
    stable = total - decay_steps(config.schedule, total)
    calls = config.train.steps_per_call or 1
    return max(stable // calls * calls, 0)


def shared_steps(old: Config, new: Config, images: int) -> int | None:
    """Steps that a longer run has in common with a shorter one; None where its length shapes every step."""
    ends = total_steps(old, images)
    if total_steps(new, images) <= ends or old.data.shots is not None:
        return None
    return ends if old.schedule.name == "constant" else _last_stable(old, images)
