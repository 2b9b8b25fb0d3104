"""Config to YAML and back, and what to say when the YAML, or a command line, is wrong."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from jaxtrain.config import Config, Section
from jaxtrain.errors import DamagedError, UserError, nearest
from jaxtrain.readers import read_bytes, reading
from jaxtrain.redact import redact

RECIPES = Path(__file__).with_name("recipes")
"""Folder of the config files that come with the package."""
_SHOWN_ERRORS = 3
_YAML_BYTES, _YAML_NODES, _YAML_DIGITS = 1 << 17, 20_000, 300
"""What a file may have, and a number in it: far more than any config needs."""
_YAML_DEPTH = 50
_COUNTED = tuple(f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "timestamp"))
_WORDS = {
    word: options.split("|")
    for options, words in {
        "train.epochs": "epoch num_epochs max_epochs total_epochs n_epochs nb_epochs num_train_epochs",
        "train.steps": "max_steps total_steps num_steps iterations iters num_train_steps",
        "train.batch_size": "bs b batch batchsize global_batch_size train_batch_size per_device_train_batch_size",
        "train.accumulate": "accum accum_steps grad_accum grad_accum_steps accumulate_grad_batches "
        "gradient_accumulation_steps",
        "train.label_smoothing": "smoothing label_smoothing_factor",
        "train.class_weights balanced": "class_weight balanced",
        "train.pos_weight": "pos_weights positive_weight scale_pos_weight",
        "loss.name": "loss criterion loss_fn loss_function loss_type",
        "loss.name bce": "bce_loss binary_cross_entropy",
        "loss.name focal": "focal_loss",
        "loss.target_threshold": "bce_target_thresh",
        "train.ema_decay": "ema model_ema model_ema_decay",
        "train.eval_every": "eval_interval eval_freq check_val_every_n_epoch validation_freq val_check_interval",
        "train.log_every": "log_interval print_freq logging_steps log_every_n_steps log_training_steps",
        "train.early_stopping": "patience early_stop",
        "optimizer.learning_rate": "lr learning_rate base_lr lr_base peak_lr eta",
        "optimizer.weight_decay": "wd decay l2 weightdecay",
        "optimizer.name": "opt optim optimizer optimiser optax_name",
        "optimizer.clip_norm": "clip clip_grad grad_clip grad_clip_norm max_grad_norm gradient_clip_val clipnorm",
        "schedule.name": "sched schedule scheduler lr_schedule lr_scheduler lr_scheduler_type",
        "schedule.warmup_epochs": "warmup warmup_epoch warmup_steps warmup_ratio",
        "schedule.final_ratio": "min_lr lr_min final_lr",
        "data.name": "data dataset dataset_name data_name data_set",
        "data.dir": "data_dir data_path data_root dataset_dir",
        "data.image_size": "img_size imgsz input_size image_size resolution res size",
        "data.channels": "in_chans in_channels num_channels",
        "data.val_fraction": "val_split validation_split validation_fraction val_size val_frac valid_fraction",
        "data.max_train_images": "limit limit_train_batches max_train_samples subset",
        "data.workers": "num_workers n_workers j dataloader_num_workers",
        "augment.policy": "aug augment augmentation augmentations aa auto_augment",
        "augment.policy none": "no_aug no_augment no_augmentation",
        "augment.erasing": "reprob random_erasing",
        "augment.randaugment_layers": "randaugment rand_augment",
        "model.name": "model arch architecture backbone net model_name",
        "model.network": "network",
        "model.weights": "pretrained weights initial_checkpoint init finetune_from model_init model_name_or_path",
        "model.drop_rate": "drop dropout dropout_rate drop_rate",
        "model.drop_path_rate": "drop_path stochastic_depth",
        "model.dtype": "precision mixed_precision",
        "model.dtype bfloat16": "bf16 fp16 amp half",
        "model.remat": "grad_checkpointing gradient_checkpointing checkpointing",
        "parallel.strategy": "strategy",
        "parallel.devices": "device gpus gpu n_gpu num_gpus num_devices accelerator",
        "parallel.coordinator": "dist_url master_addr",
        "run_dir|out": "output output_dir out_dir outdir out save_dir log_dir logdir workdir work_dir default_root_dir",
        "run_dir": "resume resume_from ckpt_path resume_from_checkpoint restore",
        "checkpoint.every_steps": "save_steps ckpt_steps checkpoint_every save_interval",
        "checkpoint.keep": "checkpoint_hist save_total_limit keep_checkpoints",
        "name": "run_name experiment experiment_name exp_name",
        "seed": "random_seed rng_seed random_state",
        "tracking.enabled": "tracking mlflow logger track log",
        "tracking.enabled False": "no_tracking no_mlflow no_track no_log no_logging disable_tracking",
        "tracking.tensorboard": "tensorboard log_tensorboard use_tensorboard",
        "tracking.wandb": "wandb log_wandb use_wandb",
        "tracking.uri|uri": "tracking_uri mlflow_uri",
        "quiet": "silent verbose q verbosity",
        "smoke": "dry_run fast_dev_run test_run smoke_test",
        "config": "cfg conf config_file yaml",
        "technique": "method mode task",
        "finetune.strategy head": "freeze freeze_backbone linear_probing",
        "finetune.strategy lora": "lora",
        "head.k": "neighbors neighbours n_neighbors",
    }.items()
    for word in words.split()
}
"""What people who come from timm, Keras, Lightning, big_vision or transformers type for an option, and what it is here:
the first of those that the command has, some with the value that is meant."""


def dump_config(config: Config) -> str:
    """YAML of all options but passwords; `load_config` gives an equal config back."""
    tree = without_passwords(config).model_dump(mode="json")
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def without_passwords(config: Config) -> Config:
    """The same, with what is secret in the tracking URI replaced by `***`."""
    uri = config.tracking.uri
    return config if uri is None or redact(uri) == uri else config.replace(**{"tracking.uri": redact(uri)})


def load_config(path: Path) -> Config:
    """The options in a YAML file, defaults for the others; an empty section is as if left out.

    Raises:
        UserError: the file is missing, is not a YAML mapping, names an option twice, or has a wrong one.
    """
    return config_from(read_yaml(path, "'train: {epochs: 3}'"), str(path))


def recipe_names() -> list[str]:
    """The config files that come with the package, by the names under which `find_config` finds them: `pt/digits`."""
    return sorted(file.relative_to(RECIPES).with_suffix("").as_posix() for file in RECIPES.glob("*/*.yaml"))


def find_config(name: Path | str, folder: Path = Path()) -> Path:
    """The file of this path (relative to `folder`), else the recipe of this name; UserError where there is neither."""
    file, called = folder / name, str(name).removesuffix(".yaml")
    if called in recipe_names() and not os.path.isfile(file):
        return RECIPES / f"{called}.yaml"
    if not os.path.exists(file):  # Path.exists raises for a name that is too long
        near = nearest(called.removeprefix("configs/"), recipe_names())
        raise UserError(f"{cut(str(file), 300)}: No such file, and no recipe has this name; {near}")
    return file


def config_from(tree: Mapping[str, Any], source: str) -> Config:
    """The config of a mapping as YAML gives it. Raises UserError, with `source` in front, where an option is wrong."""
    sections = {name for name, _ in _sections()}
    options = {key: value for key, value in tree.items() if value is not None or key not in sections}
    try:
        return Config.model_validate(options)
    except ValidationError as error:
        raise UserError(explain(error, source)) from None


def read_yaml(path: Path, example: str) -> dict[str, Any]:
    """The mapping in a YAML file, empty for an empty file; UserError where there is none."""
    try:
        text = read_bytes(path, _YAML_BYTES)
    except FileNotFoundError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    try:
        with reading(path, "YAML file", "correct it"):
            tree = yaml.load(text.decode(), Loader=_Loader)
    except DamagedError as error:
        cause = error.__cause__
        if isinstance(cause, UnicodeDecodeError | yaml.reader.ReaderError):
            raise DamagedError(f"{path}: is not valid UTF-8 text") from cause
        if isinstance(cause, yaml.MarkedYAMLError):
            mark = cause.problem_mark
            place = f" line {mark.line + 1}, column {mark.column + 1}:" if mark else ""
            raise DamagedError(f"{path}:{place} {cut(str(cause.problem), 200)}") from cause
        if isinstance(cause, RecursionError):
            raise DamagedError(f"{path}: is nested too deeply") from cause
        raise
    tree = {} if tree is None else tree
    if not isinstance(tree, dict):
        raise UserError(f"{path}: must be a mapping of options, as {example}, not {shown(tree)}")
    return tree


def option_paths(kind: type[Section] = Config) -> list[str]:
    """Every option as on the command line: `seed`, `train.epochs`, `data.columns.image`, ..."""
    sections = dict(_sections(kind))
    paths = [name for name in kind.model_fields if name not in sections]
    return paths + [f"{name}.{path}" for name, section in sections.items() for path in option_paths(section)]


def nearest_option(path: str, valid: Sequence[str] | None = None) -> str:
    """The end of an error message about an option that does not exist: the one probably meant, of those of a config.

    >>> nearest_option("lr"), nearest_option("model.batch_size")
    ("did you mean 'optimizer.learning_rate'?", "did you mean 'train.batch_size'?")
    """
    valid = option_paths() if valid is None else valid
    section, _, name = path.rpartition(".")
    siblings = [option.rpartition(".")[2] for option in valid if option.rpartition(".")[0] == section]
    if section and get_close_matches(name, siblings, cutoff=0.92):  # a slip of the finger
        return nearest(name, siblings).replace("'", f"'{section}.", 1)
    for meant in _WORDS.get(name.replace("-", "_"), ()):
        option = meant.partition(" ")[0]
        own = f"{section}.{option.rpartition('.')[2]}"
        if own in valid or option in valid:
            return f"did you mean '{own if own in valid else meant}'?"
    found = [option for option in valid if option.rpartition(".")[2] == name]
    found = [option for option in found if option.partition(".")[0] not in ("head", "features", "finetune")] or found
    if len(found) == 1:
        return f"did you mean '{found[0]}'?"
    if section and siblings:
        return nearest(name, siblings).replace("'", f"'{section}.", 1)
    return nearest(path, valid)


def explain(error: ValidationError, source: str) -> str:
    """One line for wrong options: where they came from, which, what was given, and what would be valid.

    >>> from jaxtrain.config import Config
    >>> try:
    ...     Config.model_validate({"train": {"epoch": 3}})
    ... except ValidationError as error:
    ...     explain(error, "my.yaml")
    "my.yaml: train.epoch: unknown option, did you mean 'train.epochs'?"
    """
    problems = [f"{_path(details['loc'])}{_problem(details)}" for details in error.errors(include_url=False)]
    more = len(problems) - _SHOWN_ERRORS
    text = "; ".join(problems[:_SHOWN_ERRORS])
    return f"{source}: {text}" + (f"; and {more} more" if more > 0 else "")


def _sections(kind: type[Section] = Config) -> list[tuple[str, type[Section]]]:
    annotated = ((name, field.annotation) for name, field in kind.model_fields.items())
    return [(name, kind) for name, kind in annotated if isinstance(kind, type) and issubclass(kind, Section)]


def _path(location: tuple[int | str, ...]) -> str:
    names = ".".join(str(part) for part in location if isinstance(part, str))
    indices = "".join(f"[{part}]" for part in location if isinstance(part, int))
    return f"{cut(names)}{indices}: " if location else ""


def _problem(details: Mapping[str, Any]) -> str:
    kind, given, message = details["type"], details["input"], str(details["msg"])
    if kind == "extra_forbidden":
        path = cut(".".join(str(part) for part in details["loc"]))
        if isinstance(given, Mapping):
            return f"unknown section, {nearest(path, [name for name, _ in _sections()])}"
        return f"unknown option, {nearest_option(path)}"
    if kind == "literal_error" and isinstance(given, str):
        names = re.findall(r"'([^']*)'", str(details["ctx"]["expected"]))
        if names:
            return f"unknown value '{cut(given)}', {nearest(given, names)}"
    if kind == "model_type":
        path = ".".join(map(str, details["loc"]))
        name = f", did you mean '{path}.name'?" if isinstance(given, str) and f"{path}.name" in option_paths() else ""
        return f"must be a mapping of options, not {shown(given)}{name}"
    if kind == "missing":
        return "a value is missing"
    if kind == "value_error":
        return message.removeprefix("Value error, ")
    if kind == "string_pattern_mismatch" and details["loc"] == ("name",):
        message = "must be 1 to 100 letters, digits, '.', '_' or '-', and begin with a letter or digit"
    message = re.sub(r", (unable to|got a) .*", "", message)
    message = re.sub(r"^(Input|String|Tuple|Value|Keys) should ", "must ", message)
    message = message.replace("Input is not", "must be")
    message = re.sub(r" for <class '[\w.]+'>", "", message).replace("tuple", "list")
    return f"{message}, not {shown(given)}"


def shown(value: object) -> str:
    """A value that was given, in a line of bounded length."""
    return cut(f"'{value}'" if isinstance(value, str) else str(value))


def cut(text: str, most: int = 60) -> str:
    """A text in one line of at most this many characters."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 3]}..."


class _Loader(yaml.SafeLoader):
    """Safe and bounded, and an option given twice is an error, not the last of the two."""

    def fetch_flow_collection_start(self, token: Any) -> None:
        """An open bracket; the scanner's time grows with the square of their depth."""
        if self.flow_level > _YAML_DEPTH:
            raise yaml.MarkedYAMLError(problem="is nested too deeply", problem_mark=self.get_mark())
        super().fetch_flow_collection_start(token)

    def get_single_node(self) -> yaml.Node | None:
        """The document, after its parts were counted: an alias counts as often as it is used."""
        document = super().get_single_node()
        waiting, count = [document] if document else [], 0
        while waiting:
            node, count = waiting.pop(), count + 1
            if count + len(waiting) > _YAML_NODES:
                raise yaml.MarkedYAMLError(problem=f"holds more than {_YAML_NODES:,} values, or refers to itself")
            if isinstance(node, yaml.SequenceNode):
                waiting += node.value
            elif isinstance(node, yaml.MappingNode):
                waiting += [part for pair in node.value for part in pair]
        return document

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """A value; where YAML's own rules for numbers and dates fail on it, the error says where it is."""
        try:
            if node.tag in _COUNTED and len(node.value) > _YAML_DIGITS:
                raise OverflowError
            return super().construct_object(node, deep)
        except (ValueError, ArithmeticError, LookupError, AttributeError, TypeError):
            kind = node.tag.rpartition(":")[2]
            problem = f"{cut(str(node.value))} is not a valid {kind}"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    problem = f"{cut(key.value)}: is given twice"
                    raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)
