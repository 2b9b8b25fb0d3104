import contextlib
import io
import json
import multiprocessing
import pickle
import re
import struct
import urllib.error
import urllib.request

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from jaxtrain.config import DataConfig
from jaxtrain.data import tfds_source
from jaxtrain.data.decode import read_image
from jaxtrain.data.records import open_records
from jaxtrain.data.sources import load_dataset
from jaxtrain.errors import RunError, UserError


def _png(value):
    file = io.BytesIO()
    Image.fromarray(np.full((4, 6, 3), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


class Tiny(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.2.0")
    BUILDER_CONFIGS = [  # noqa: RUF012
        tfds.core.BuilderConfig(name=name) for name in ("plain", "validated", "unlabelled_test", "broken", "text")
    ]

    def _info(self):
        image = tfds.features.Text() if self.builder_config.name == "text" else tfds.features.Image()
        features = {
            "image": image,
            "id": tfds.features.Text(),
            "label": tfds.features.ClassLabel(names=["cat", "dog"]),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        splits = {"train": 20, "test": 6}
        if self.builder_config.name == "validated":
            splits["validation"] = 4
        return {split: self._generate_examples(split, count) for split, count in splits.items()}

    def _generate_examples(self, split, count):
        for i in range(count):
            label = -1 if split == "test" and self.builder_config.name == "unlabelled_test" else i % 2
            image = io.BytesIO(b"" if self.builder_config.name == "broken" and i == 3 else _png(10 * i))
            if self.builder_config.name == "text":
                image = "a cat"
            yield i, {"image": image, "id": f"{split} {i}", "label": label}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Every configuration, prepared as array_record; Tiny itself is then forgotten, as in another process."""
    root = tmp_path_factory.mktemp("tfds")
    for config in Tiny.BUILDER_CONFIGS:
        Tiny(data_dir=root, config=config.name, file_format="array_record").download_and_prepare()
    return root


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def _load(folder, name="tiny/plain", **options):
    return load_dataset(DataConfig(name=f"tfds:{name}", dir=folder, **{"val_fraction": 0.0, **options}))


def _contents(source):
    values = [int(read_image(source, i, channels=3, max_pixels=100)[0, 0, 0]) for i in range(len(source))]
    return sorted(zip(values, source.labels.tolist(), strict=True))


def test_a_prepared_set_is_read_back(folder):
    data = _load(folder)
    assert _contents(data.train) == [(10 * i, i % 2) for i in range(20)]
    assert _contents(data.open_test()) == [(10 * i, i % 2) for i in range(6)]
    assert (data.class_names, data.channels, data.uniform_size) == (("cat", "dog"), 3, (4, 6))
    assert data.val is None
    assert "train record 3" in data.train.describe(3)


def test_its_own_validation_split_is_used(folder):
    data = _load(folder, "tiny/validated:1.2.0", val_fraction=0.5)
    assert _contents(data.train) == [(10 * i, i % 2) for i in range(20)]
    assert _contents(data.val) == [(10 * i, i % 2) for i in range(4)]


def test_the_folder_of_one_version_is_found_too(folder):
    assert len(_load(folder / "tiny" / "plain" / "1.2.0", "tiny").train) == 20
    with pytest.raises(UserError, match="holds tfds:tiny, not tfds:mnist"):
        _load(folder / "tiny" / "plain" / "1.2.0", "mnist")


def test_selecting_keeps_names_and_labels(folder):
    train = _load(folder).train
    part = train.select(np.array([7, 2]))
    assert part.read(0) == train.read(7)
    assert part.describe(1) == train.describe(2)
    assert part.labels.tolist() == train.labels[[7, 2]].tolist()


def _read_in_worker(source):
    return source.read(5)


def test_worker_processes_open_it_for_themselves(folder):
    source = _load(folder).train
    expected = source.read(5)
    assert len(pickle.dumps(source)) < 2000
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply_async(_read_in_worker, (source,)).get(timeout=120) == expected


def test_a_test_split_without_labels_is_none(folder):
    assert _load(folder, "tiny/unlabelled_test").open_test() is None


def test_broken_images_are_named_or_dropped(folder, caplog):
    with pytest.raises(RunError, match=r"^1 unreadable image, .* train record [0-9]+: empty"):
        _load(folder, "tiny/broken")
    data = _load(folder, "tiny/broken", max_bad_images=1)
    assert len(data.train) == 19
    assert len(data.bad_images.reasons) == 1
    with pytest.raises(RunError, match="test record"):  # the limit is for all splits together
        data.open_test()
    assert len(_load(folder, "tiny/broken", max_bad_images=2).open_test()) == 5
    assert re.search(r"skipped: .* test record [0-9]+: empty", caplog.text)


def test_a_set_without_images_is_refused(folder):
    with pytest.raises(UserError, match=r"tiny/text has no pair .* it has .*image \(Text\)"):
        _load(folder, "tiny/text")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("tinny/plain", "did you mean 'tiny'?"),
        ("tiny/plian", "did you mean 'tiny/plain:1.2.0'?"),
        ("tiny/plain:2.0.0", "did you mean 'tiny/plain:1.2.0'?"),
        ("cifar11", "did you mean 'cifar10_1'?"),
        ("cifar10:9.9.9", "did you mean 'cifar10:3.0.2'?"),
        ("emnist/letter", "did you mean 'emnist/letters'?"),
    ],
)
def test_misspelt_names_get_the_nearest(folder, name, hint):
    with pytest.raises(UserError) as error:
        _load(folder, name)
    assert str(error.value) == f"tfds:{name} is unknown: {hint}"


def test_what_cannot_be_prepared_says_how(folder, monkeypatch):
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", _no_network)
    with pytest.raises(UserError) as error:
        _load(folder, "cifar10")
    assert "\n" not in str(error.value)
    assert f"tfds:cifar10 is not prepared in {folder} and cannot be prepared here" in str(error.value)
    assert "`tfds build cifar10 --data_dir=DIR`, then give --data.dir DIR" in str(error.value)


@pytest.mark.parametrize("before", [False, True])
def test_without_a_network_nothing_is_tried_for_minutes(tmp_path, monkeypatch, caplog, before):
    """The library retries each file for minutes, with a warning each time; what it has downloaded before it may use."""
    asked = []

    def refused(request, timeout):
        asked.append(request.full_url)
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", refused)
    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", _no_network)
    if before:
        (tmp_path / "downloads").mkdir()
        (tmp_path / "downloads" / "a.gz").touch()
    with pytest.raises(UserError, match="no route to host" if before else "storage.googleapis.com cannot be reached"):
        _load(tmp_path, "mnist")
    assert len(asked) == (not before)
    assert caplog.text == ""


def _no_network(self):
    raise ConnectionError("no route\nto host")


def test_an_unprepared_set_is_prepared_on_first_use(tmp_path):
    data = _load(tmp_path, "tiny/plain")
    assert len(data.train) == 20
    assert (tmp_path / "tiny" / "plain" / "1.2.0" / "dataset_info.json").exists()


def test_sets_prepared_as_tfrecord_hold_the_same(folder, tmp_path):
    source = folder / "tiny" / "plain" / "1.2.0"
    target = tmp_path / "tiny" / "plain" / "1.2.0"
    target.mkdir(parents=True)
    (target / "features.json").write_text((source / "features.json").read_text())
    (target / "label.labels.txt").write_text((source / "label.labels.txt").read_text())
    info = json.loads((source / "dataset_info.json").read_text())
    info["fileFormat"] = "tfrecord"
    for split in info["splits"]:
        split["filepathTemplate"] = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        records = open_records(str(source), split["name"])
        framed = b"".join(struct.pack("<QI", len(records[i]), 0) + records[i] + bytes(4) for i in range(len(records)))
        (target / f"tiny-{split['name']}.tfrecord-00000-of-00001").write_bytes(framed)
    (target / "dataset_info.json").write_text(json.dumps(info))
    ours, theirs = _load(tmp_path), _load(folder)
    assert [ours.train.read(i) for i in range(20)] == [theirs.train.read(i) for i in range(20)]
    assert ours.train.labels.tolist() == theirs.train.labels.tolist()
    shard = target / "tiny-train.tfrecord-00000-of-00001"
    shard.write_bytes(shard.read_bytes()[:-10])
    open_records.cache_clear()
    with pytest.raises(RunError, match="is damaged"):
        _load(tmp_path)


def test_a_slow_first_pass_is_kept_and_used_while_the_files_are_the_same(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(tfds_source, "_CACHE_AFTER_SECONDS", -1.0)
    first = _load(folder, "tiny/broken", max_bad_images=1)
    assert list((tmp_path / "cache" / "jaxtrain" / "tfds").glob("*.npz"))
    monkeypatch.setattr(tfds_source, "_look", None)  # would fail if records were read again
    second = _load(folder, "tiny/broken", max_bad_images=1)
    assert _contents(second.train) == _contents(first.train)
    assert (second.bad_images.reasons, second.uniform_size) == (first.bad_images.reasons, first.uniform_size)
    for file in (tmp_path / "cache" / "jaxtrain" / "tfds").glob("*.npz"):
        file.write_bytes(b"damaged")
    with pytest.raises(TypeError):
        _load(folder, "tiny/broken", max_bad_images=1)
