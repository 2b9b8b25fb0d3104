"""Data sets of Hugging Face's library, from folders: what the folder of the same images is."""

import numpy as np
import pytest

from jaxtrain.config import DataConfig
from jaxtrain.data import hf_source
from jaxtrain.data.decode import read_image
from jaxtrain.data.sources import load_dataset
from jaxtrain.errors import UserError
from tests.data.forms import CLASSES, FORMS, hugging_face


def load(name, **options):
    return load_dataset(DataConfig(name=name, **{"val_fraction": 0.0, **options}))


@pytest.mark.slow
@pytest.mark.parametrize("form", ["hf saved", "hf parquet", "hf folders"])
def test_a_set_is_the_folder_of_the_same_images(root, tmp_path, form, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    mine, folder = load(FORMS[form](root, tmp_path)), load(f"folder:{root}")
    assert (mine.class_names, mine.uniform_size) == (CLASSES, (8, 8))
    for one, other in ((mine.train, folder.train), (mine.val, folder.val), (mine.open_test(), folder.open_test())):
        assert one.labels.tolist() == other.labels.tolist()
        for i in range(len(one)):
            images = [read_image(source, i, channels=3, max_pixels=100) for source in (one, other)]
            np.testing.assert_array_equal(*images)


def test_test_images_without_labels_and_other_columns(root, tmp_path, caplog):
    datasets = pytest.importorskip("datasets")
    given = hugging_face(root, tmp_path)["images"]
    given["test"] = given["test"].map(lambda row: {"label": -1}, features=given["test"].features)
    given["extra"] = given["test"]
    given = datasets.DatasetDict({n: p.add_column("camera", ["a", "b"] * (len(p) // 2)) for n, p in given.items()})
    given.save_to_disk(tmp_path / "saved")
    found = load(f"hf:{tmp_path}/saved")
    assert found.open_test() is None
    assert "splits that are not used: extra" in caplog.text
    assert found.train.select(np.array([1, 2])).metadata["camera"].tolist() == ["b", "a"]


def test_groups_are_a_column(root, tmp_path):
    datasets = pytest.importorskip("datasets")
    train = hugging_face(root, tmp_path)["images"]["train"]
    groups = [f"g{i // 2}" for i in range(len(train))]
    datasets.DatasetDict({"train": train.add_column("patient", groups)}).save_to_disk(tmp_path / "grouped")
    found = load(f"hf:{tmp_path}/grouped", group="patient", test_fraction=0.3)
    parts = [set(part.metadata["patient"]) for part in (found.train, found.open_test())]
    assert parts[0]
    assert parts[1]
    assert not parts[0] & parts[1]
    with pytest.raises(UserError, match=r"data\.group.*'subject'"):
        load(f"hf:{tmp_path}/grouped", group="subject", test_fraction=0.3)


def test_wrong_sets_get_one_line(root, tmp_path):
    pytest.importorskip("datasets")
    given = hugging_face(root, tmp_path)["images"]
    given["train"].remove_columns("label").save_to_disk(tmp_path / "unlabelled")
    given["train"].rename_column("label", "sort").save_to_disk(tmp_path / "other")
    (tmp_path / "empty").mkdir()
    told = {
        f"hf:{tmp_path}/unlabelled": "hold the label.*image: give data.columns.label",
        f"hf:{tmp_path}/empty": "cannot be loaded",
    }
    for name, message in told.items():
        with pytest.raises(UserError, match=message) as caught:
            load(name)
        assert "\n" not in str(caught.value)
    assert load(f"hf:{tmp_path}/other").class_names == CLASSES  # by its type


def test_without_a_network_it_is_said_at_once(monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"hf:nobody/nothing cannot be loaded: .*127\.0\.0\.1.*HF_HUB_OFFLINE"):
        load("hf:nobody/nothing")


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(hf_source, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install -e "\.\[hf\]"'):
        load("hf:nobody/nothing")
