from collections.abc import Iterator

import pytest
from pydantic import ValidationError

from jaxtrain.config import Config, DataConfig, Section, TrainConfig


def sections(kind: type[Section] = Config, path: str = "") -> Iterator[tuple[str, type[Section]]]:
    yield path, kind
    for name, field in kind.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from sections(field.annotation, f"{path}{name}.")


OPTIONS = [
    (f"{path}{name}", field)
    for path, kind in sections()
    for name, field in kind.model_fields.items()
    if not (isinstance(field.annotation, type) and issubclass(field.annotation, Section))
]


@pytest.mark.parametrize(("path", "field"), OPTIONS, ids=[path for path, _ in OPTIONS])
def test_every_option_is_explained_in_a_sentence(path: str, field: object) -> None:
    description = field.description  # type: ignore[attr-defined]
    assert description, path
    assert len(description) > 10


def test_every_section_is_explained() -> None:
    for path, kind in sections():
        assert kind.__doc__, path


def test_defaults_are_valid_where_every_option_is_given() -> None:
    """Defaults are not validated by themselves; a whole dump is."""
    assert Config.model_validate(Config().model_dump()) == Config()
    assert Config.model_validate_json(Config().model_dump_json()) == Config()


@pytest.mark.parametrize(("path", "kind"), list(sections()), ids=[path or "top" for path, _ in sections()])
def test_unknown_options_are_refused_everywhere(path: str, kind: type[Section]) -> None:
    with pytest.raises(ValidationError, match="zzz"):
        kind.model_validate({"zzz": 1})


@pytest.mark.parametrize(("path", "kind"), list(sections()), ids=[path or "top" for path, _ in sections()])
def test_configs_do_not_change(path: str, kind: type[Section]) -> None:
    config = kind()
    for name in kind.model_fields:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(config, name, getattr(config, name))


def test_replace_makes_a_changed_copy_and_leaves_the_first() -> None:
    before = Config(data=DataConfig(name="idx:x"), seed=4)
    after = before.replace(**{"train.epochs": 3, "seed": 5, "optimizer.learning_rate": "1e-3"})
    assert (after.train.epochs, after.seed, after.optimizer.learning_rate) == (3.0, 5, 0.001)
    assert after.data == before.data
    assert (before.train.epochs, before.seed) == (None, 4)


@pytest.mark.parametrize("changes", [{"train.epochs": -1}, {"train.zzz": 1}, {"zzz": 1}, {"seed": "x"}])
def test_replace_validates(changes: dict) -> None:
    with pytest.raises(ValidationError):
        Config().replace(**changes)


@pytest.mark.parametrize(
    "wrong",
    [
        {"train": {"epochs": 0}},
        {"train": {"epochs": 1, "steps": 1}},
        {"train": {"batch_size": 0}},
        {"train": {"batch_size": 10, "accumulate": 3}},
        {"train": {"label_smoothing": 1.0}},
        {"train": {"ema_decay": 1.0}},
        {"data": {"val_fraction": 1.0}},
        {"data": {"val_fraction": -0.1}},
        {"data": {"channels": 17}},
        {"augment": {"hflip": 1.1}},
        {"augment": {"scale": [0.5]}},
        {"optimizer": {"learning_rate": -1e-3}},
        {"optimizer": {"learning_rate": float("inf")}},
        {"optimizer": {"weight_decay": float("nan")}},
        {"schedule": {"final_ratio": 1.5}},
        {"checkpoint": {"keep": 0}},
        {"seed": -1},
        {"seed": 2**32},
        {"seed": True},
        {"train": {"epochs": True}},
        {"name": "../x"},
        {"name": ""},
        {"name": "a b"},
    ],
)
def test_nonsense_is_refused(wrong: dict) -> None:
    with pytest.raises(ValidationError):
        Config.model_validate(wrong)


def test_truth_values_are_for_switches() -> None:
    assert Config.model_validate({"model": {"remat": True}}).model.remat is True
    assert TrainConfig(steps=None).steps is None


def test_options_by_path() -> None:
    config = Config(seed=3)
    assert (config.get("seed"), config.get("train.label_smoothing")) == (3, config.train.label_smoothing)
    rest = config.without(("seed", "train.label_smoothing", "tracking"))
    assert "label_smoothing" not in rest["train"]
    assert config.model_dump(mode="json").keys() - rest.keys() == {"seed", "tracking"}
