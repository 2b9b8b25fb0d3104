"""Many paths in little memory, and what is told while their images are looked at."""

import os
import pickle
import tracemalloc

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from jaxtrain.config import DataConfig
from jaxtrain.data.packed import Packed, picked_names
from jaxtrain.data.scan import telling
from jaxtrain.data.sources import load_dataset
from jaxtrain.screen import loading

NAMES = ["a", "", "ö/ß", os.fsdecode(b"not \xff utf-8"), "last"]


def test_packed_strings_are_the_strings():
    packed = Packed.of(NAMES)
    assert packed == NAMES
    assert [*packed] == NAMES
    assert (packed[-1], packed[1:3], len(packed)) == (NAMES[-1], NAMES[1:3], 5)
    assert Packed.joined([packed, Packed.of([]), Packed.of(["x"])]) == [*NAMES, "x"]
    picked = picked_names(picked_names(packed, np.array([4, 2, 0])), np.array([2, 1]))
    assert (picked, picked.names is packed) == (["a", "ö/ß"], True)
    with pytest.raises(IndexError):
        packed[5]


def test_strings_of_arrow_are_packed_from_any_place():
    texts = pa.array(["one", "two", "", "three"]).slice(1)
    assert Packed.of_arrow(texts) == ["two", "", "three"]
    assert Packed.of_arrow(pa.array([], pa.string())) == []


def entries(root, count):
    """A folder and a table of so many links to one image."""
    if not (root / "one.png").exists():
        Image.new("L", (3, 3), 200).save(root / "one.png")
    lines = ["path,label"]
    for i in range(count):
        path = root / str(count) / f"class_{i % 2}" / f"a_rather_long_name_of_an_image_{i:08d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.hardlink_to(root / "one.png")
        lines.append(f"{path.relative_to(root)},class_{i % 2}")
    (root / f"{count}.csv").write_text("\n".join(lines), encoding="utf-8")


@pytest.mark.parametrize("kind", ["folder:{}", "csv:{}.csv"])
def test_an_image_takes_at_most_200_bytes(tmp_path, monkeypatch, kind):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    kept, sent = [], []
    for count in (1000, 1000, 3000):  # the first one imports what it needs
        if not (tmp_path / str(count)).exists():
            entries(tmp_path, count)
        tracemalloc.start()
        data = load_dataset(DataConfig(name=kind.format(tmp_path / str(count)), val_fraction=0.2))
        kept.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
        sent.append(len(pickle.dumps(data.train)))
    assert (kept[2] - kept[1]) / 2000 < 200
    assert (sent[2] - sent[1]) / 2000 < 200


def test_what_was_looked_at_is_told_and_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    entries(tmp_path, 300)
    config = DataConfig(name=f"folder:{tmp_path / '300'}")
    told = []
    with telling(lambda done, total: told.append((done, total))):
        load_dataset(config)
    assert told[-1] == (300, 300)
    assert [done for done, total in told if total == 300] == sorted(done for done, total in told if total == 300)
    monkeypatch.setattr(loading, "_SECONDS", 0.0)
    loading.load_with_bar(config, quiet=True)
    assert "looking" not in "".join(capsys.readouterr())
    loading.load_with_bar(config, quiet=False)
    assert "looking" in "".join(capsys.readouterr())
