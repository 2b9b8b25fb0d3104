"""Held-out splits and folds: groups stay whole, shares and classes are as asked for."""

import numpy as np
import pytest
from PIL import Image
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from jaxtrain.config import DataConfig
from jaxtrain.data.holdout import fold_numbers
from jaxtrain.data.objects import objects_dataset
from jaxtrain.data.sources import load_dataset
from jaxtrain.data.splits import grouped_split
from jaxtrain.errors import UserError


@pytest.fixture
def table(tmp_path):
    """Writes tables of 60 tiny images of 20 patients (three each, of one class but for the last) and two classes."""
    for i in range(60):
        Image.fromarray(np.full((2, 2), i, np.uint8)).save(tmp_path / f"{i}.png")

    def write(patients=None, **columns):
        columns = {
            "image": [f"{i}.png" for i in range(60)],
            "label": ["cat" if i < 30 else "dog" for i in range(60)],
            "patient": [f"p{i // 3:02}" for i in range(60)] if patients is None else patients,
            **columns,
        }
        rows = [",".join(columns), *(",".join(map(str, row)) for row in zip(*columns.values(), strict=True))]
        (tmp_path / "t.csv").write_text("\n".join(rows), encoding="utf-8")
        return f"csv:{tmp_path / 't.csv'}"

    return write


def load(name, **options):
    return load_dataset(DataConfig(name=name, **{"val_fraction": 0.0, **options}))


def patients(source):
    return set(source.metadata["patient"])


def test_drawn_splits_keep_groups_whole(table):
    data = load(table(), group="patient", test_fraction=0.2, val_fraction=0.25)
    parts = [data.train, data.val, data.open_test()]
    assert [len(part) for part in parts] == [36, 12, 12]
    assert sum(len(patients(part)) for part in parts) == 20
    assert np.bincount(parts[2].labels).tolist() == [6, 6]
    without = load(table(), test_fraction=0.2)
    assert patients(without.train) & patients(without.open_test())


def test_a_drawn_split_without_the_groups_in_the_table_hints_at_them(table, caplog):
    load(table(), test_fraction=0.2)
    assert "data.group patient" in caplog.text
    caplog.clear()
    load(table(), test_fraction=0.2, group="patient")
    load(table())
    assert not caplog.text


def test_groups_of_all_sizes_come_near_the_share_in_every_class():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(300), rng.geometric(0.1, 300))
    labels = ((groups % 7 + rng.integers(0, 2, len(groups))) % 7).astype(np.int32)
    for seed in range(5):
        kept, held = grouped_split(labels, groups, 0.2, seed)
        assert sorted([*kept, *held]) == list(range(len(labels)))
        assert not set(groups[kept]) & set(groups[held])
        shares = np.bincount(labels[held], minlength=7) / np.bincount(labels)
        np.testing.assert_allclose(shares, 0.2, atol=0.05)


def test_the_only_group_of_a_class_is_trained_on():
    labels = np.repeat([0, 1, 2], 10).astype(np.int32)
    groups = np.r_[np.arange(20), np.full(10, 20)]
    kept, _ = grouped_split(labels, groups, 0.9, 0)
    assert (labels[kept] == 2).sum() == 10


def test_a_group_in_two_given_splits_is_counted(table, caplog):
    splits = ["test" if i % 10 == 0 else "train" for i in range(60)]
    load(table(split=splits), group="patient")
    assert "6 of 6 groups (patient) of the split test are in train too, with 6 of its 6 images" in caplog.text
    caplog.clear()
    load(table(split=["test" if i % 30 < 6 else "train" for i in range(60)]), group="patient")
    assert not caplog.text


@pytest.mark.parametrize("grouped", [False, True])
def test_folds_are_those_of_scikit_learn(table, grouped):
    options = {"folds": 5, "split_seed": 3, **({"group": "patient"} if grouped else {})}
    everything = load(table())
    kind = StratifiedGroupKFold if grouped else StratifiedKFold
    parts = kind(5, shuffle=True, random_state=3).split(
        np.zeros(60), everything.train.labels, np.arange(60) // 3 if grouped else None
    )
    for fold, (kept, held) in enumerate(parts):
        data = load(table(), fold=fold, **options)
        assert data.train.paths == [everything.train.paths[i] for i in kept]
        assert data.open_test().paths == [everything.train.paths[i] for i in held]
        assert data.val is None


def test_validation_within_a_fold_keeps_groups_whole(table):
    data = load(table(), folds=4, fold=1, group="patient", val_fraction=0.2)
    assert sum(len(patients(part)) for part in (data.train, data.val, data.open_test())) == 20


@pytest.mark.parametrize(
    ("options", "columns", "told"),
    [
        ({"group": "pateint"}, {}, r"data\.group.*'pateint'.*'patient'"),
        ({"group": "label"}, {}, r"data\.group: 'label' .* is the column of the label"),
        ({"group": "patient"}, {"patients": ["", *"a" * 59]}, r"data\.group: 1 rows .* first: 1"),
        ({"group": "patient", "val_fraction": 0.2}, {"patients": ["a"] * 60}, r"val_fraction.*1 groups are not cut"),
        ({"folds": 5}, {}, r"data\.folds 5.*sweep.*data\.fold, 0 to 4"),
        ({"folds": 31, "fold": 0}, {}, r"data\.folds 31: .* at most 30 images per class"),
        ({"folds": 21, "fold": 0, "group": "patient"}, {}, r"data\.folds 21: there are 20 groups"),
        ({"folds": 2, "fold": 0}, {"label": ["a", *"b" * 59]}, r"data\.folds 2: classes .* one fold only.*: a"),
        ({"folds": 2, "fold": 0}, {"split": ["train", "test"] * 30}, r"data\.folds: .* test set of its own"),
    ],
)
def test_what_cannot_be_held_out_gets_one_line(table, options, columns, told):
    with pytest.raises(UserError, match=told) as caught:
        load(table(**columns), **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("options", [{"fold": 0}, {"folds": 3, "fold": 3}, {"folds": 3, "test_fraction": 0.1}])
def test_options_of_folds_that_contradict(options):
    with pytest.raises(ValueError, match="fold"):
        DataConfig(**options)


def test_a_source_without_columns_has_no_groups(table, tmp_path):
    with pytest.raises(UserError, match=r"data\.group: digits has no column 'patient'"):
        load("digits", group="patient", val_fraction=0.1)


def test_every_image_has_one_fold(table):
    config = DataConfig(name=table(), val_fraction=0.0, folds=7, group="patient")
    data = load_dataset(config.model_copy(update={"folds": None}))
    numbers = fold_numbers(data.train, config, data.class_names)
    assert set(numbers) == set(range(7))


def in_memory():
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3), np.uint8)
    return {"array": images, "pictures": [Image.fromarray(image) for image in images], "items": Items(images)}


class Items:
    """An `ImageSource` of somebody else's, with columns of its own."""

    def __init__(self, images):
        self.images, self.labels = images, np.zeros(len(images), np.int32)

    def __len__(self):
        return len(self.images)

    def read(self, index):
        return self.images[index]

    def describe(self, index):
        return str(index)

    def select(self, indices):
        return Items(self.images[indices])


@pytest.mark.parametrize("form", ["array", "pictures", "items"])
def test_groups_given_with_images_are_not_cut(form):
    images, labels = in_memory()[form], np.repeat(["cat", "dog"], 30)
    groups = np.arange(60) // 3
    config = DataConfig(group="patient", test_fraction=0.2, val_fraction=0.25)
    data = objects_dataset(images, labels, groups=groups, config=config)
    parts = [data.train, data.val, data.open_test()]
    assert [len(part) for part in parts] == [36, 12, 12]
    assert sum(len(patients(part)) for part in parts) == 20
    fold = DataConfig(group="patient", folds=5, fold=1, val_fraction=0.0)
    data = objects_dataset(images, labels, groups=groups, config=fold)
    assert not patients(data.train) & patients(data.open_test())


@pytest.mark.parametrize("groups", [[1, 2, 3], [None] * 60, [float("nan")] * 60])
def test_wrong_groups_get_one_line(groups):
    images = in_memory()["array"]
    with pytest.raises(UserError, match=r"^groups: "):
        objects_dataset(images, np.repeat([0, 1], 30), groups=groups, config=DataConfig(group="patient"))
