"""Every reader of a file that may be a stranger's, given files that were changed at random.

Only `DamagedError` (a `UserError`, with the name of the file) may come out, in a second and 200 MB each. A file whose
own digests would give a change away is signed again, as a stranger can. What was found so is in `test_strangers_files`.
"""

import gc
import gzip
import hashlib
import io
import json
import random
import re
import struct
import time
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
import yaml
from jax.experimental.compilation_cache import compilation_cache
from PIL import Image
from safetensors.numpy import save as save_safetensors

from jaxtrain import FEClassifier, load, saved_tree
from jaxtrain.archives import read_npy
from jaxtrain.config import DataConfig, HeadConfig
from jaxtrain.config_io import load_config
from jaxtrain.data.arrays import npz_dataset
from jaxtrain.data.base import FileSource
from jaxtrain.data.decode import BadImageError, read_image
from jaxtrain.data.idx import read_idx
from jaxtrain.data.scan import header_of_file
from jaxtrain.embeddings.files import read_meta, surviving_dim
from jaxtrain.errors import DamagedError, RunError, UserError
from jaxtrain.evaluation.costs import costs_of_training, training_seconds
from jaxtrain.evaluation.finished import read_run
from jaxtrain.evaluation.predictions import Predictions
from jaxtrain.heads import Vectors, fit_head, restore_head
from jaxtrain.heads.base import digest_of
from jaxtrain.models.weights.sources import find
from jaxtrain.sweeps.config import load_sweep
from jaxtrain.tracking.journal import Journal
from jaxtrain.tracking.outbox import State, append_request, read_requests
from jaxtrain.tracking.points import unsent_rows
from jaxtrain.tracking.provenance import process_is_gone
from tests.embeddings.made import fill
from tests.evaluation import made_up
from tests.evaluation.test_runs import make_run
from tests.faults.small_run import IMAGES, LABELS, fit
from tests.models.weights.test_torch_file import WEIGHT, Stored, write_legacy
from tests.models.weights.test_torch_file import write as write_torch

SECONDS, MEGABYTES = 1.0, 200
RNG = np.random.default_rng(0)
HOSTILE = (
    *(b"\0", b"\xff", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"[" * 3000, b'{"a":' * 2000),
    *(
        b"9" * 5000,
        b"1e999",
        b"NaN",
        b"-1",
        b"1" + b"0" * 14,
        b"null",
        b"[]",
        b"{}",
        b'""',
        b"\xed\xa0\x80",
        b"\\udce9",
    ),
    *(b"&a [*a]", b"*a", b"<<: *a", b"true", b"../../x", b"0x" + b"f" * 5000, b"59:" * 300, b"2001-99-99"),
    *(b"'descr': '|O'", b"\x1b[2J"),
)


def mutated(data: bytes, chance: random.Random) -> bytes:
    """A file with one to four random changes: bits, bytes, parts cut, doubled, moved, or replaced by what hurts."""
    result = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4))):
        start = chance.randrange(len(result) + 1)
        stop = min(len(result), start + chance.choice((1, 2, 4, 8, 64, 1024)))
        match chance.randrange(7):
            case 0 if start < len(result):
                result[start] ^= 1 << chance.randrange(8)
            case 1:
                result[start:stop] = chance.randbytes(stop - start)
            case 2:
                del result[start:stop]
            case 3:
                result[start:start] = result[start:stop]
            case 4:
                del result[start:]
            case 5:
                result[start:stop] = chance.choice(HOSTILE)
            case 6 if tokens := list(re.finditer(rb"-?\d+(\.\d+)?|\"[^\"]*\"|true|false|null", result[:100_000])):
                token = chance.choice(tokens)
                result[token.start() : token.end()] = chance.choice(HOSTILE)
    return bytes(result)


def value_changed(tree, chance: random.Random):
    """JSON with one value exchanged for another kind or size, or left out."""
    places = []

    def walk(node, depth=0):
        pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, value in pairs:
            places.append((node, key))
            if depth < 8:
                walk(value, depth + 1)

    tree = json.loads(json.dumps(tree))
    walk(tree)
    node, key = chance.choice(places)
    others = (
        None,
        True,
        -1,
        0,
        0.0,
        1.5,
        10**14,
        10**400,
        float("nan"),
        "",
        "x",
        "../..",
        "\ud800",
        [],
        {},
        [1],
        {"a": 1},
    )
    if chance.random() < 0.2:
        del node[key]
    elif chance.random() < 0.1 and isinstance(node[key], list):
        node[key] = node[key] * 3
    else:
        node[key] = chance.choice(others)
    return tree


# --- the readers: from an empty folder to sound inputs and to what reads one ------------------------------------------


class Case(NamedTuple):
    """A reader under test."""

    sound: Sequence[Any]
    read: Callable[[Any], object]
    change: Callable[[Any, random.Random], Any] = mutated
    whole: bool = True
    """Whether each of `sound` is all that its reader asks for."""


def in_file(path: Path, files: Sequence[bytes], read: Callable[[Path], object], *, whole: bool = True) -> Case:
    """A reader of one file."""

    def write_and_read(data: bytes) -> None:
        path.write_bytes(data)
        read(path)

    return Case(files, write_and_read, whole=whole)


def bytes_of(save):
    buffer = io.BytesIO()
    save(buffer)
    return buffer.getvalue()


def configs(folder):
    tree = {"technique": "pt", "train": {"epochs": 3, "batch_size": 16}, "data": {"name": "digits", "mean": [0.5]}}
    anchors = b"a: &a {epochs: 3}\ntrain:\n  <<: *a\n  batch_size: 0x10\nseed: 1_000\nname: 2001-01-01\n"
    return in_file(folder / "config.yaml", [yaml.safe_dump(tree).encode(), anchors], load_config, whole=False)


def sweeps(folder):
    text = (
        b"name: s\naxes: {train.epochs: [1, 2], optimizer.learning_rate: {low: 0.1, high: 1}}\nbase: {technique: pt}\n"
    )
    return in_file(folder / "sweep.yaml", [text], load_sweep)


def images_in_npz(folder):
    images, labels = RNG.integers(0, 256, (12, 4, 4, 1), np.uint8), np.arange(12) % 3
    arrays = {"x_train": images, "y_train": labels, "class_names": np.array(["a", "b", "c"])}
    files = [bytes_of(lambda b, save=save: save(b, **arrays)) for save in (np.savez, np.savez_compressed)]

    def read(path):
        npz_dataset(DataConfig(name=f"npz:{path}", val_fraction=0.0), str(path))

    return in_file(folder / "d.npz", files, read)


def arrays_in_npy(folder):
    files = [bytes_of(lambda b, a=a: np.save(b, a)) for a in (np.arange(6.0).reshape(2, 3), np.array(["a", "bc"]))]
    return in_file(folder / "l.npy", files, lambda path: read_npy(path, "array", "write one"))


def arrays():
    return {"a.weight": np.ones((4, 3), np.float32), "b": np.arange(5), "c": np.asarray(np.float16(1.0))}


def weights_in_npz(folder):
    files = [bytes_of(lambda b, save=save: save(b, **arrays())) for save in (np.savez, np.savez_compressed)]
    return in_file(folder / "w.npz", files, lambda path: find(str(path)))


def safetensors(folder):
    about = {"model": "vit_test", "mean": [0.5], "std": [0.5], "image_size": 32, "class_names": ["a", "b"]}
    files = [save_safetensors(arrays()), save_safetensors(arrays(), {"jaxtrain": json.dumps(about)})]
    return in_file(folder / "w.safetensors", files, lambda path: find(str(path)), whole=False)


def torch_files(folder):
    tree = {"a": Stored("0"), "state_dict": {"b": Stored("0", shape=(3, 2), stride=(1, 3))}, "n": 3, "l": [0.5, None]}
    files = [write(folder / "w.pth", tree, {"0": WEIGHT}).read_bytes() for write in (write_torch, write_legacy)]
    return in_file(folder / "w.pth", files, lambda path: find(str(path)))


def descriptions(folder):
    (folder / "model.safetensors").write_bytes(save_safetensors(arrays()))
    timm = {
        "architecture": "resnet18",
        "num_classes": 10,
        "label_names": ["a", "b"],
        "pretrained_cfg": {"input_size": [3, 32, 32], "mean": [0.5, 0.5, 0.5], "std": [1, 1, 1], "crop_pct": 0.9},
    }
    transformers = {
        "model_type": "vit",
        **{"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8, "image_size": 32},
        "id2label": {"0": "a", "1": "b"},
    }
    return in_file(
        folder / "config.json",
        [json.dumps(tree).encode() for tree in (timm, transformers)],
        lambda path: find(str(folder)),
        whole=False,
    )


def images(folder):
    pixels = RNG.integers(0, 256, (9, 7, 3), np.uint8)
    kinds = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA", "PCX", "ICO", "JPEG2000")
    files = [bytes_of(lambda b, kind=kind: Image.fromarray(pixels).save(b, kind)) for kind in kinds]
    exif = Image.Exif()
    exif[0x0112] = 6
    files.append(bytes_of(lambda b: Image.fromarray(pixels).save(b, "JPEG", exif=exif)))
    files.append(bytes_of(lambda b: Image.fromarray(pixels).convert("P").save(b, "PNG", transparency=0, exif=exif)))

    def read(path):
        header_of_file(str(path))
        try:
            read_image(FileSource([path], np.zeros(1, np.int32)), 0, channels=3, max_pixels=1_000_000)
        except BadImageError as error:
            raise DamagedError(f"{path}: {error}") from error

    return in_file(folder / "image", files, read)


def idx(folder):
    plain = b"\0\0\x08\x03" + struct.pack(">3I", 5, 4, 4) + bytes(range(80))
    return in_file(folder / "idx", [plain, gzip.compress(plain, mtime=0)], read_idx)


def predictions(folder):
    made_up.predictions(0.9, images=40).save(folder / "p.npz")
    return in_file(folder / "p.npz", [(folder / "p.npz").read_bytes()], Predictions.load)


def journals(folder):
    records = [{"step": i, "time": 1.7e9 + i, "train/loss": 0.5, "val/loss": "NaN"} for i in range(5)]

    def read(path):
        unsent_rows(path.parent, {})
        try:
            Journal(path).records()
        except RunError as error:  # a line that is none; what is sent to MLflow leaves it out
            raise DamagedError(str(error)) from error

    return in_file(folder / "metrics.jsonl", ["".join(json.dumps(record) + "\n" for record in records).encode()], read)


def outboxes(folder):
    start = {"do": "start", "run_key": "k", "experiment": "PT", "uri": "sqlite:///x.db", "time_ms": 1, "tags": {}}
    for request in (start, {"do": "artifact", "path": "x", "folder": None}, {"do": "status", "status": "FINISHED"}):
        append_request(folder, request)
    return in_file(
        folder / "mlflow_outbox.jsonl",
        [(folder / "mlflow_outbox.jsonl").read_bytes()],
        lambda path: read_requests(folder),
    )


def states(folder):
    state = State(uri="sqlite:///x.db", run_id="a", acknowledged={"train/loss": 3}, requests_refused=[1], said=["x"])
    state.save(folder)

    def read(path):
        state = State.load(folder)
        state.save(folder)
        process_is_gone(state.process)

    return in_file(folder / "mlflow.json", [(folder / "mlflow.json").read_bytes()], read)


def summaries(folder):
    run = make_run(folder, "m1")
    (folder / "config.yaml").write_bytes((run / "config.yaml").read_bytes())

    def read(path):
        costs_of_training(read_run(folder).summary)
        training_seconds(folder)

    return in_file(folder / "summary.json", [(run / "summary.json").read_bytes()], read)


def manifests(folder):
    fill(folder / "store")
    (path,) = (folder / "store").rglob("meta.json")
    data = path.read_bytes()

    def read(changed):
        (path.parent / "meta.json").write_bytes(changed.read_bytes())
        surviving_dim(path.parent)
        try:
            read_meta(path.parent)
        except ValueError as error:  # who opens the store computes again
            raise DamagedError(f"{changed}: {error}") from error

    return in_file(folder / "manifest.json", [data, next(path.parent.glob("0*.json")).read_bytes()], read, whole=False)


# --- readers of folders whose own digests are made to fit again -------------------------------------------------------


def models(folder):
    """Steps, a head that is a JAX function, a classifier of scikit-learn."""
    fit(folder / "steps")
    x, y = IMAGES[:64].reshape(64, -1).astype(np.float32), LABELS[:64].astype(str)
    for name, options in {"ncm": {}, "sklearn:decision_tree": {"trials": 1}}.items():
        FEClassifier(head={"name": name, **options}).fit_embeddings(x, y).save(folder / name / "model")

    def read(changed):
        path, body = changed
        (path / "model" / "meta.json").write_text(saved_tree._encode(body))
        model = load(path)
        if path.name != "steps":
            model.predict_embeddings(np.zeros((2, 16), np.float32))
        elif np.isnan(model.predict_proba(IMAGES[:2])).any():
            raise DamagedError(f"{path}: gives NaN")

    sound = []
    for path in (folder / "steps", folder / "ncm", folder / "sklearn:decision_tree"):
        body = json.loads((path / "model" / "meta.json").read_text())
        del body["sha256"]
        body["meta"]["extra"].get("head", {}).get("curve", [])[3:] = []
        sound.append((path, body))
    return Case(sound, read, lambda one, chance: (one[0], value_changed(one[1], chance)))


def heads(folder):
    x, y = RNG.normal(size=(60, 5)).astype(np.float32), np.arange(60, dtype=np.int32) % 3

    def fitted(name):
        options = {"trials": 1} if ":" in name else {}
        head = fit_head(HeadConfig(name=name, **options), Vectors(x, y), Vectors(x, y), num_classes=3)
        return head.meta() | {"curve": head.curve[:2]}, head.arrays

    def read(changed):
        about, arrays = changed
        head = restore_head(about | {"sha256": digest_of(arrays)}, arrays)
        if head.name.startswith("sklearn:"):  # the others would be compiled
            assert head.logits(x[:4]).shape == (4, 3)

    def change(sound, chance):
        about, arrays = sound[0], dict(sound[1])
        if chance.random() < 0.5:
            return value_changed(about, chance), arrays
        name = chance.choice(sorted(arrays))
        old = arrays.pop(name)
        data = mutated(old.tobytes(), chance)
        new = np.frombuffer(data[: len(data) // old.itemsize * old.itemsize], old.dtype)
        others = (new, old.reshape(-1)[: chance.randrange(8)], np.full_like(old, chance.choice((0, 1, 77))), None)
        if (other := chance.choice(others)) is not None:
            arrays[name] = other
        return about, arrays

    about = {"format": 1, "classes": 3, "features": 5, "curve": [], "sha256": ""}
    ends = {"mean": x[0], "scale": np.ones(5, np.float32)}
    kernels = {f"kernel_{i}": np.ones(shape, np.float32) for i, shape in enumerate([(5, 4), (4, 3)])}
    biases = {f"bias_{i}": np.ones(size, np.float32) for i, size in enumerate([4, 3])}
    made = [  # as they are after training, which takes seconds
        ({"name": "linear", "settings": {"scaling": "l2"}}, {"kernel": x[:3].T, "bias": x[0, :3], "mean": x[1]}),
        ({"name": "mlp", "settings": {"scaling": "l2", "hidden": [4]}}, {**kernels, **biases, **ends}),
    ]
    names = ("ncm", "knn", "sklearn:logistic_regression", "sklearn:decision_tree")
    return Case([*(({**about, **one}, arrays) for one, arrays in made), *map(fitted, names)], read, change)


def signed_manifests(folder):
    fill(folder / "store")
    (path,) = (folder / "store").rglob("meta.json")
    body = json.loads(path.read_bytes())
    del body["sha256"]

    def read(body):
        digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        path.write_text(json.dumps({**body, "sha256": digest}, indent=2, sort_keys=True) + "\n")
        try:
            assert read_meta(path.parent).key.digest == path.parent.name
        except ValueError as error:  # who opens the store computes again
            raise DamagedError(f"{path}: {error}") from error

    return Case([body], read, value_changed)


READERS = (
    *(configs, sweeps, images_in_npz, arrays_in_npy, weights_in_npz, safetensors, torch_files, descriptions, images),
    *(idx, predictions, journals, outboxes, states, summaries, manifests, signed_manifests, models, heads),
)
COUNTS = (
    25,
    pytest.param(2_000, marks=[pytest.mark.slow, pytest.mark.timeout(3600)]),
    pytest.param(100_000, marks=[pytest.mark.slow, pytest.mark.soak, pytest.mark.timeout(36_000)]),
)


def refused(read: Callable[[], object], folder: str) -> bool:
    """Whether a reader refuses what it is given, in the one way it may, and within its bounds."""
    first, seconds = _refused(read, folder)
    if seconds < SECONDS:
        return first
    gc.collect()  # once in thousands a program is compiled meanwhile, or Python's collector runs
    again, seconds = _refused(read, folder)
    assert seconds < SECONDS
    return again


def _refused(read: Callable[[], object], folder: str) -> tuple[bool, float]:
    """Whether it does, and the seconds of CPU that it took."""
    tracemalloc.reset_peak()
    before, start = tracemalloc.get_traced_memory()[0], time.process_time()
    error: Exception | None = None
    try:
        read()
    except UserError as caught:  # DamagedError, or it is sound, and asks for what there is not
        error = caught
    except RunError as caught:
        if "another version" not in str(caught):
            raise
        error = caught
    seconds = time.process_time() - start
    assert tracemalloc.get_traced_memory()[1] - before < MEGABYTES << 20
    if error is not None:
        text = str(error)
        assert "\n" not in text
        assert len(text) < 2000
        assert "larger than the memory" not in text
        assert folder in text or "head" in text, text
    return error is not None, seconds


@pytest.fixture
def compiled_once(tmp_path):
    """Programs are compiled once for all inputs that are alike."""
    options = {"jax_compilation_cache_dir": str(tmp_path / "xla"), "jax_persistent_cache_min_compile_time_secs": 0.0}
    before = {name: getattr(jax.config, name) for name in options}
    for name, value in options.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("reader", READERS)
def test_a_changed_file_is_read_or_refused(tmp_path, reader, count, compiled_once):
    case, chance = reader(tmp_path), random.Random(reader.__name__)
    for one in case.sound:
        assert not refused(lambda one=one: case.read(one), str(tmp_path)) or not case.whole
    tracemalloc.start()
    try:
        changed = (case.change(chance.choice(case.sound), chance) for _ in range(count))
        bad = sum(refused(lambda one=one: case.read(one), str(tmp_path)) for one in changed)
    finally:
        tracemalloc.stop()
    assert bad or reader in (outboxes, states)  # which are sent again as far as they can be read
