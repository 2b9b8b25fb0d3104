"""Files that were made to hurt: each is refused in one line, before what it asks for is read, computed or allocated."""

import json
import os
import shutil
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxtrain import FTClassifier, PTClassifier, benchmark, load, saved_tree
from jaxtrain.archives import check_archive
from jaxtrain.cli.main import run
from jaxtrain.config import DataConfig
from jaxtrain.config_io import load_config
from jaxtrain.data.sources import load_dataset
from jaxtrain.errors import DamagedError, RunError, UserError
from jaxtrain.models.weights.sources import find
from jaxtrain.readers import open_file
from jaxtrain.saved_tree import load_tree, save_tree
from jaxtrain.tracking.outbox import State
from tests.faults.small_run import IMAGES, LABELS, TEST, fit


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    fit(folder / "a")
    return folder


def forge(folder, place, value):
    """Changes one value of a saved model, or removes it (KeyError), and signs the whole again."""
    body = json.loads((folder / "meta.json").read_text())
    del body["sha256"]
    *way, last = place.split("/")
    node = body
    for key in way:
        node = node[int(key) if isinstance(node, list) else key]
    last = int(last) if isinstance(node, list) else last
    if value is KeyError:
        del node[last]
    else:
        node[last] = value
    (folder / "meta.json").write_text(saved_tree._encode(body))
    return folder


CONFIG = "meta/config"
FORGED = {
    "version": ("meta/format", 7, "format"),
    "lacks class names": ("meta/class_names", KeyError, "class_names"),
    "lacks its config": (CONFIG, KeyError, "config"),
    "an option of a later version": (f"{CONFIG}/later", 1, "later"),
    "technique": ("meta/technique", "zz", "technique"),
    "deviation NaN": (f"{CONFIG}/data/std", [float("nan")], "std"),
    "deviation 0": (f"{CONFIG}/data/std", [0.0], "std"),
    "two deviations": (f"{CONFIG}/data/std", [0.5, 0.5], "images"),
    "an open option": (f"{CONFIG}/data/crop_pct", None, "crop_pct"),
    "too few class names": ("meta/class_names", ["0", "1"], "2 class names"),
    "too many class names": ("meta/class_names", list("abcdefg"), "7 class names"),
    "class names that are numbers": ("meta/class_names", [0, 1, 2, 3], "class_names"),
    "size 10^6": (f"{CONFIG}/data/image_size", 10**6, "image_size"),
    "another size": (f"{CONFIG}/data/image_size", 8, "shape"),
    "another network": (f"{CONFIG}/model/name", "resnet18", "leaves"),
    "no network": (f"{CONFIG}/model/name", "zzz", "zzz"),
    "labels of other classes": ("meta/extra", {"classes": [1, 2]}, "classes"),
    "10^14 weights": ("arrays/0/2", [10**14], "shapes"),
    "a type that there is not": ("arrays/0/1", "zz", "zz"),
    "no list of arrays": ("arrays", 3, "arrays"),
    "no list of files": ("files", KeyError, "files"),
}


@pytest.mark.parametrize(("place", "value", "what"), FORGED.values(), ids=FORGED)
def test_a_signed_model_that_is_not_sound_is_named(trained, tmp_path, place, value, what):
    forge(shutil.copytree(trained / "a" / "model", tmp_path / "run" / "model"), place, value)
    with pytest.raises(DamagedError, match=what) as caught:
        load(tmp_path / "run")
    assert str(tmp_path / "run") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_benchmark_leaves_an_unsound_model_out_by_name(trained, tmp_path, caplog, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = {name: shutil.copytree(trained / "a", tmp_path / name) for name in ("good", "bad")}
    forge(runs["bad"] / "model", f"{CONFIG}/data/std", [0.0])
    report = benchmark(runs, TEST, costs=False)
    assert [entry.name for entry in report.comparison.entries] == ["good"]
    assert any(line.startswith("bad is left out") and "std" in line for line in caplog.messages)
    with pytest.raises(UserError, match="nothing to compare"):
        benchmark({"bad": runs["bad"]}, TEST, costs=False)


@pytest.mark.parametrize("kept", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_benchmark_command_ends_with_a_report_and_the_names_of_broken_runs(
    trained, tmp_path, monkeypatch, capsys, kept
):
    """`kept`: predictions of sound models, so that only what is under corruptions needs the models themselves."""
    monkeypatch.chdir(tmp_path)
    arrays = {"x_train": IMAGES[:64], "y_train": LABELS[:64], "x_test": TEST[0], "y_test": TEST[1]}
    np.savez("d.npz", **arrays)
    names = ("good", "std", "summary", "classes", "network", "config")
    runs = {name: shutil.copytree(trained / "a", tmp_path / "pt" / name) for name in names}
    forge(runs["std"] / "model", f"{CONFIG}/data/std", [0.0])
    forge(runs["classes"] / "model", "meta/class_names", KeyError)
    forge(runs["network"] / "model", f"{CONFIG}/model", {"network": "not_imported:Net"})
    for name in names if not kept else ():
        (runs[name] / "benchmark" / "predictions.npz").unlink()
    (runs["summary"] / "summary.json").write_text("{")
    (runs["config"] / "config.yaml").write_text("train: [")
    options = [
        "--data.name",
        "npz:d.npz",
        "--out",
        "out",
        "--skip-costs",
        "--skip-duplicates",
        "--robustness",
        str(kept),
    ]
    options += ["--tracking.enabled", "False", "--resamples", "100"]
    with pytest.raises(RunError) as caught:
        run(["benchmark", *map(str, runs.values()), *options])
    results = json.loads(Path("out/results.json").read_text())
    compared = {"pt/good", "pt/std", "pt/classes", "pt/network"} if kept else {"pt/good"}
    assert {model["model"] for model in results["models"]} == compared
    printed = capsys.readouterr().out
    for name in names[1:]:
        assert str(runs[name]) in str(caught.value) or f"pt/{name}" in str(caught.value)
        assert any("left out" in line and f"pt/{name}" in line for line in results["warnings"])
        assert any("is left out" in line and f"pt/{name}" in line for line in printed.splitlines())
    assert "good" not in str(caught.value)


# --- code -------------------------------------------------------------------------------------------------------------


MODULE = """
from pathlib import Path
from jaxtrain import PTClassifier
from tests.classifiers.own_networks import Documented

Path("executed").touch()


class Own(PTClassifier):
    pass
"""
NAMED = {
    "network": ("model", {"network": "{}:Documented"}),
    "classifier": ("own", {"classifier": "{}:Own"}),
    "loss": ("own", {"loss": "{}:loss"}),
}


def with_weights(path):
    FTClassifier(model={"weights": str(path)}, train={"steps": 1}, tracking={"enabled": False}).fit(IMAGES, LABELS)


@pytest.mark.parametrize(
    ("part", "use"),
    [
        ("network", load),
        ("network", PTClassifier.load),
        ("network", lambda path: run(["predict", str(path), "x.png"])),
        ("network", lambda path: run(["export", str(path)])),
        ("network", lambda path: benchmark([path], TEST)),
        ("network", with_weights),
        ("classifier", load),
        ("loss", lambda path: load(path).fit(IMAGES, LABELS)),
    ],
)
def test_nothing_is_imported_because_a_file_names_it(trained, tmp_path, monkeypatch, part, use, caplog):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "strangers_code.py").write_text(MODULE)
    section, value = NAMED[part]
    path = shutil.copytree(trained / "a", tmp_path / "run")
    value = {key: text.format("strangers_code") for key, text in value.items()}
    forge(path / "model", f"{CONFIG}/{section}", value)
    with pytest.raises(UserError) as caught:
        use(path)
    assert not (tmp_path / "executed").exists()
    assert any("strangers_code" in line for line in (str(caught.value), *caplog.messages))
    assert "strangers_code" not in sys.modules


def test_ones_own_code_is_found_where_it_is_imported_and_imported_where_it_is_trusted(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_code.py").write_text(MODULE)
    forge(shutil.copytree(trained / "a" / "model", tmp_path / "run"), f"{CONFIG}/own", {"classifier": "my_code:Own"})
    assert type(load("run", trust_imports=True)).__name__ == "Own"
    assert (tmp_path / "executed").exists()
    assert type(load("run")) is sys.modules["my_code"].Own
    forge(tmp_path / "run", f"{CONFIG}/own", {"classifier": "os:_exit"})
    with pytest.raises(UserError, match="os:_exit is neither"):
        load("run")


def test_no_probability_that_is_no_number_is_printed(trained, tmp_path, capsys):
    tree, meta = load_tree(trained / "a" / "model")
    tree["params"]["head"]["bias"] = np.full(4, np.inf, np.float32)
    save_tree(tmp_path / "run", tree, meta)
    Image.fromarray(IMAGES[0]).save(tmp_path / "x.png")
    with pytest.raises(RunError, match=f"{tmp_path / 'run'}: the model gives no finite numbers for .*x.png"):
        run(["predict", str(tmp_path / "run"), str(tmp_path / "x.png")])
    assert "nan" not in capsys.readouterr().out


def test_names_and_sizes_come_before_digests(trained, tmp_path, monkeypatch):
    """A sparse file of 2 TB takes an hour to read; one that is not in the list is not read at all."""
    folder = shutil.copytree(trained / "a" / "model", tmp_path / "model")
    monkeypatch.setattr(saved_tree, "_file_digest", lambda path: pytest.fail(f"{path} was read"))
    (folder / "state" / "more").touch()
    os.truncate(folder / "state" / "more", 2 << 40)
    with pytest.raises(DamagedError, match="state/more was added"):
        load_tree(folder)
    forge(folder, "files", listed(folder))
    with pytest.raises(DamagedError, match="its files 2,199"):
        load_tree(folder)


def listed(folder):
    return {path.relative_to(folder).as_posix(): "0" for path in (folder / "state").rglob("*") if path.is_file()}


def test_what_the_state_holds_is_compared_before_it_is_read(trained, tmp_path, monkeypatch):
    folder = shutil.copytree(trained / "a" / "model", tmp_path / "model")
    forge(folder, "arrays/1/2", [4, 4])
    monkeypatch.setattr("orbax.checkpoint.PyTreeCheckpointHandler.restore", lambda *_, **__: pytest.fail("was read"))
    with pytest.raises(DamagedError, match="is not the one that was saved"):
        load_tree(folder)


# --- configs ----------------------------------------------------------------------------------------------------------


def laughs(end):
    """Nested anchors: some 400 bytes that stand for 10^9 values."""
    lines = ["a: &a [x,x,x,x,x,x,x,x,x]"]
    lines += [f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)]
    return "\n".join([*lines, end])


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (laughs("seed: *i"), "values"),
        ("a: &a [*a]", "refers to itself"),
        ("a0: &a0 {x: 1}\n" + "\n".join(f"a{i + 1}: &a{i + 1} {{<<: [*a{i}, *a{i}]}}" for i in range(40)), "values"),
        ("seed: " + "9" * 5000, "line 1, column 7: 9+... is not a valid int"),
        ("seed: 0x" + "f" * 5000, "not a valid int"),
        ("seed: " + "59:" * 20_000 + "1", "not a valid int"),
        ("seed: " + "59:" * 200 + "1.5", "not a valid float"),
        ("seed: 2001-99-99", "2001-99-99 is not a valid timestamp"),
        ("seed: !!int abc", "abc is not a valid int"),
        ("seed: !!bool x", "x is not a valid bool"),
        ("seed: !!timestamp x", "x is not a valid timestamp"),
        ("seed: " + "[" * 100_000, "line 1, column .* nested too deeply"),
        ("#" * 1_000_000, "bytes"),
    ],
)
def test_a_hostile_config_is_refused_at_once(tmp_path, text, what):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(DamagedError, match=f"c.yaml.*{what}") as caught:
        load_config(tmp_path / "c.yaml")
    assert len(str(caught.value)) < len(str(tmp_path)) + 200


def test_anchors_and_merges_that_people_write_still_work(tmp_path):
    (tmp_path / "c.yaml").write_text("train: &t {epochs: 3}\nschedule: {warmup_epochs: 0.5}\nseed: 0x10\n")
    assert load_config(tmp_path / "c.yaml").seed == 16


# --- weights and arrays -----------------------------------------------------------------------------------------------


def npy_header(descr, shape):
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def in_zip(path, content, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("w.npy", content)
    return path


@pytest.mark.parametrize("shape", [(10**14,), (-1,), (3, 10**30)])
def test_a_header_of_more_than_there_is_is_refused(tmp_path, shape):
    path = in_zip(tmp_path / "w.npz", npy_header("<f4", shape) + b"1234")
    with pytest.raises(DamagedError, match=r"w\.npz: is not a sound npz file .*w has"):
        find(str(path))


def test_an_archive_that_unpacks_to_many_times_its_size_is_refused_before(tmp_path):
    count = 100_000_000
    path = in_zip(tmp_path / "w.npz", npy_header("<u1", (count,)) + bytes(count), zipfile.ZIP_DEFLATED)
    with pytest.raises(DamagedError, match="would unpack to 100,000,"):
        find(str(path))
    with zipfile.ZipFile(path) as archive:
        check_archive(archive, path.stat().st_size)  # pictures may be black
        archive.infolist()[0].file_size = 1 << 40
        with pytest.raises(ValueError, match="fewer bytes"):
            check_archive(archive, path.stat().st_size)


def test_metadata_that_is_nested_too_deeply_is_refused(tmp_path):
    header = {"__metadata__": {"jaxtrain": "[" * 100_000}, "w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"1234")
    with pytest.raises(DamagedError, match=r"w\.safetensors: is not a sound safetensors file .*nested too deeply"):
        find(str(tmp_path / "w.safetensors"))


def test_images_and_labels_of_other_lengths_are_not_unpacked(tmp_path, monkeypatch):
    np.savez(tmp_path / "d.npz", x_train=np.zeros((5, 4, 4), np.uint8), y_train=np.zeros(4, int))
    monkeypatch.setattr("numpy.lib.format.read_array", lambda *_, **__: pytest.fail("was read"))
    with pytest.raises(DamagedError, match=r"x_train has shape \[5, 4, 4\], y_train \[4\]"):
        load_dataset(DataConfig(name=f"npz:{tmp_path / 'd.npz'}"))


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DamagedError, match="pipe is a pipe or device, not a file"):
        open_file(tmp_path / "pipe")


def test_a_state_of_tracking_with_values_of_other_kinds_is_forgotten(tmp_path):
    for text in ('{"requests_done": "abc"}', '{"acknowledged": [1]}', "[" * 3000, "[]", '{"run_id": 3}'):
        (tmp_path / "mlflow.json").write_text(text)
        assert State.load(tmp_path) == State()


# --- names ------------------------------------------------------------------------------------------------------------


def test_a_class_whose_name_is_not_utf8_is_refused_before_its_images_are_read(tmp_path, monkeypatch):
    for name in (b"cat", b"caf\xe9"):
        os.makedirs(os.fsencode(tmp_path) + b"/images/" + name)
    monkeypatch.setattr("jaxtrain.data.assemble.scan", lambda *_: pytest.fail("was scanned"))
    with pytest.raises(UserError, match=r"class name 'caf\\udce9' is not valid UTF-8; rename it"):
        load_dataset(DataConfig(name=f"folder:{tmp_path / 'images'}"))
    np.savez(tmp_path / "d.npz", x_train=IMAGES, y_train=LABELS, class_names=np.array(["a", "b", "c", "\udce9"]))
    with pytest.raises(UserError, match=r"'\\udce9' is not valid UTF-8"):
        load_dataset(DataConfig(name=f"npz:{tmp_path / 'd.npz'}"))


@pytest.mark.parametrize("option", ["data.name", "run_dir"])
def test_a_path_that_no_config_can_hold_is_refused(option):
    with pytest.raises(UserError, match=f"{option}: .* is not valid UTF-8"):
        run(["train", "--technique", "pt", "--print-config", f"--{option}", "digits\udce9"])
