"""Every reader of a file that may be a stranger's, given files that were changed at random.

Only `DamagedError` (a `UserError`, with the name of the file) may come out, in a second and 200 MB each. A file whose
own digests would give a change away is signed again, as a stranger can. What was found is kept in `FOUND`.
"""

import contextlib
import gzip
import hashlib
import io
import json
import random
import re
import shutil
import struct
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import yaml
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


# --- the readers: a function each, from an empty folder to sound files and to what reads one -------------------------


def bytes_of(save):
    buffer = io.BytesIO()
    save(buffer)
    return buffer.getvalue()


def configs(folder):
    tree = {"technique": "pt", "train": {"epochs": 3, "batch_size": 16}, "data": {"name": "digits", "mean": [0.5]}}
    anchors = b"a: &a {epochs: 3}\ntrain:\n  <<: *a\n  batch_size: 0x10\nseed: 1_000\nname: 2001-01-01\n"
    return [yaml.safe_dump(tree).encode(), anchors], "config.yaml", load_config


def sweeps(folder):
    text = (
        b"name: s\naxes: {train.epochs: [1, 2], optimizer.learning_rate: {low: 0.1, high: 1}}\nbase: {technique: pt}\n"
    )
    return [text], "sweep.yaml", load_sweep


def images_in_npz(folder):
    images, labels = RNG.integers(0, 256, (12, 4, 4, 1), np.uint8), np.arange(12) % 3
    arrays = {"x_train": images, "y_train": labels, "class_names": np.array(["a", "b", "c"])}
    files = [bytes_of(lambda b, save=save: save(b, **arrays)) for save in (np.savez, np.savez_compressed)]
    return files, "d.npz", lambda path: npz_dataset(DataConfig(name=f"npz:{path}", val_fraction=0.0), str(path))


def arrays_in_npy(folder):
    files = [bytes_of(lambda b, a=a: np.save(b, a)) for a in (np.arange(6.0).reshape(2, 3), np.array(["a", "bc"]))]
    return files, "l.npy", lambda path: read_npy(path, "array", "write one")


def arrays():
    return {"a.weight": np.ones((4, 3), np.float32), "b": np.arange(5), "c": np.asarray(np.float16(1.0))}


def weights_in_npz(folder):
    files = [bytes_of(lambda b, save=save: save(b, **arrays())) for save in (np.savez, np.savez_compressed)]
    return files, "w.npz", lambda path: find(str(path))


def safetensors(folder):
    about = {"model": "vit_test", "mean": [0.5], "std": [0.5], "image_size": 32, "class_names": ["a", "b"]}
    files = [save_safetensors(arrays()), save_safetensors(arrays(), {"jaxtrain": json.dumps(about)})]
    return files, "w.safetensors", lambda path: find(str(path))


def torch_files(folder):
    tree = {"a": Stored("0"), "state_dict": {"b": Stored("0", shape=(3, 2), stride=(1, 3))}, "n": 3, "l": [0.5, None]}
    files = [write(folder / "w.pth", tree, {"0": WEIGHT}).read_bytes() for write in (write_torch, write_legacy)]
    return files, "w.pth", lambda path: find(str(path))


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
    return [json.dumps(tree).encode() for tree in (timm, transformers)], "config.json", lambda path: find(str(folder))


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

    return files, "image", read


def idx(folder):
    plain = b"\0\0\x08\x03" + struct.pack(">3I", 5, 4, 4) + bytes(range(80))
    return [plain, gzip.compress(plain, mtime=0)], "idx", read_idx


def predictions(folder):
    made_up.predictions(0.9, images=40).save(folder / "p.npz")
    return [(folder / "p.npz").read_bytes()], "p.npz", Predictions.load


def journals(folder):
    records = [{"step": i, "time": 1.7e9 + i, "train/loss": 0.5, "val/loss": "NaN"} for i in range(5)]

    def read(path):
        unsent_rows(path.parent, {})
        try:
            Journal(path).records()
        except RunError as error:  # a line that is none; what is sent to MLflow leaves it out
            raise DamagedError(str(error)) from error

    return ["".join(json.dumps(record) + "\n" for record in records).encode()], "metrics.jsonl", read


def outboxes(folder):
    start = {"do": "start", "run_key": "k", "experiment": "PT", "uri": "sqlite:///x.db", "time_ms": 1, "tags": {}}
    for request in (start, {"do": "artifact", "path": "x", "folder": None}, {"do": "status", "status": "FINISHED"}):
        append_request(folder, request)
    return [(folder / "mlflow_outbox.jsonl").read_bytes()], "mlflow_outbox.jsonl", lambda path: read_requests(folder)


def states(folder):
    state = State(uri="sqlite:///x.db", run_id="a", acknowledged={"train/loss": 3}, requests_refused=[1], said=["x"])
    state.save(folder)

    def read(path):
        state = State.load(folder)
        state.save(folder)
        process_is_gone(state.process)

    return [(folder / "mlflow.json").read_bytes()], "mlflow.json", read


def summaries(folder):
    fit(folder / "run")
    (folder / "config.yaml").write_bytes((folder / "run" / "config.yaml").read_bytes())

    def read(path):
        costs_of_training(read_run(folder).summary)
        training_seconds(folder)

    return [(folder / "run" / "summary.json").read_bytes()], "summary.json", read


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

    return [data, next(path.parent.glob("0*.json")).read_bytes()], "manifest.json", read


READERS = (
    *(
        configs,
        sweeps,
        images_in_npz,
        arrays_in_npy,
        weights_in_npz,
        safetensors,
        torch_files,
        descriptions,
        images,
        idx,
    ),
    *(predictions, journals, outboxes, states, summaries, manifests),
)
NOT_WHOLE = (configs, descriptions, manifests, safetensors)
"""Some of whose files are sound, and asked for what is not there."""
COUNTS = (
    25,
    pytest.param(2_000, marks=[pytest.mark.slow, pytest.mark.timeout(3600)]),
    pytest.param(100_000, marks=[pytest.mark.slow, pytest.mark.soak, pytest.mark.timeout(36_000)]),
)


def refused(read, *named: str) -> bool:
    """Whether a reader refuses what it is given, in the one way it may, and within its bounds."""
    tracemalloc.reset_peak()
    before, start = tracemalloc.get_traced_memory()[0], time.process_time()
    error = None
    try:
        read()
    except DamagedError as caught:
        error = caught
    except UserError as caught:  # it is sound, and asks for what there is not
        error = caught
    except RunError as caught:
        if "another version" not in str(caught):
            raise
        error = caught
    assert time.process_time() - start < SECONDS
    assert tracemalloc.get_traced_memory()[1] - before < MEGABYTES << 20
    if error is not None:
        text = str(error)
        assert "\n" not in text
        assert len(text) < 2000
        assert "larger than the memory" not in text
        assert any(name in text for name in named), text
    return error is not None


@pytest.fixture
def traced():
    tracemalloc.start()
    yield
    tracemalloc.stop()


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("reader", READERS)
def test_a_changed_file_is_read_or_refused(tmp_path, reader, count, traced):
    files, name, read = reader(tmp_path)
    path, chance = tmp_path / name, random.Random(reader.__name__)
    bad = 0
    for _ in range(count):
        path.write_bytes(mutated(chance.choice(files), chance))
        bad += refused(lambda: read(path), name, str(tmp_path))
    assert bad or reader in (outboxes, states)  # which are sent again as far as they can be read
    for file in files:
        path.write_bytes(file)
        assert not refused(lambda: read(path), name, str(tmp_path)) or reader in (
            configs,
            descriptions,
            manifests,
            safetensors,
        )


# --- folders whose own digests are made to fit again ------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of each kind: steps, a head that is a JAX function, a classifier of scikit-learn."""
    folder = tmp_path_factory.mktemp("trained")
    x, y = IMAGES[:64].reshape(64, -1).astype(np.float32), (LABELS[:64]).astype(np.int32)
    for name in ("linear", "sklearn:decision_tree"):
        model = FEClassifier(head={"name": name, "trials": 1} if ":" in name else {"name": name})
        model.fit_embeddings(x, y.astype(str)).save(folder / name.partition(":")[0] / "model")
    fit(folder / "pt")
    return folder


def signed_again(folder: Path, body) -> None:
    (folder / "meta.json").write_text(saved_tree._encode(body))


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("kind", ["pt", "linear", "sklearn"])
def test_a_model_that_is_signed_again_is_loaded_or_refused(trained, tmp_path, kind, count, traced):
    folder = shutil.copytree(trained / kind / "model", tmp_path / "model")
    body = json.loads((folder / "meta.json").read_text())
    del body["sha256"]
    body["meta"]["extra"].get("head", {}).get("curve", [])[3:] = []
    chance, bad = random.Random(kind), 0
    pixels = IMAGES[:2]

    def use():
        model = load(tmp_path)
        if kind != "pt":
            model.predict_embeddings(np.zeros((2, 16), np.float32))
        elif np.isnan(model.predict_proba(pixels)).any():
            raise DamagedError(f"{folder}: gives NaN")

    for _ in range(count):
        signed_again(folder, value_changed(body, chance))
        bad += refused(use, str(folder))
    assert bad > count // 4


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize(
    "name", ["linear", "mlp", "ncm", "knn", "sklearn:logistic_regression", "sklearn:decision_tree"]
)
def test_a_head_that_is_signed_again_is_restored_or_refused(name, count, traced):
    x, y = RNG.normal(size=(60, 5)).astype(np.float32), np.arange(60, dtype=np.int32) % 3
    options = {"trials": 1} if ":" in name else {}
    head = fit_head(HeadConfig(name=name, **options), Vectors(x, y), Vectors(x, y), num_classes=3)
    meta, chance, bad = head.meta() | {"curve": head.curve[:2]}, random.Random(name), 0

    def use(about, arrays):
        head = restore_head(about | {"sha256": digest_of(arrays)}, arrays)
        if ":" in name:  # the others would be compiled
            assert head.logits(x[:4]).shape == (4, 3)

    for _ in range(count):
        arrays, about = dict(head.arrays), meta
        if chance.random() < 0.5:
            about = value_changed(meta, chance)
        else:
            part = chance.choice(sorted(arrays))
            match chance.randrange(4):
                case 0:
                    del arrays[part]
                case 1:
                    arrays[part] = arrays[part].reshape(-1)[: chance.randrange(8)]
                case 2:
                    arrays[part] = np.full_like(arrays[part], chance.choice((0, 1, 77)))
                case 3:
                    data = mutated(arrays[part].tobytes(), chance)
                    size = len(data) // arrays[part].itemsize * arrays[part].itemsize
                    arrays[part] = np.frombuffer(data[:size], arrays[part].dtype)
        bad += refused(lambda about=about, arrays=arrays: use(about, arrays), "head")
    assert bad > count // 4


@pytest.mark.parametrize("count", COUNTS)
def test_an_embedding_manifest_that_is_signed_again_is_read_or_refused(tmp_path, count):
    fill(tmp_path / "store")
    (path,) = (tmp_path / "store").rglob("meta.json")
    body = json.loads(path.read_bytes())
    del body["sha256"]
    chance = random.Random(0)
    for _ in range(count):
        changed = json.dumps(value_changed(body, chance), sort_keys=True)
        digest = hashlib.sha256(changed.encode()).hexdigest()
        signed = json.dumps({**json.loads(changed), "sha256": digest}, indent=2, sort_keys=True) + "\n"
        path.write_text(signed)
        with contextlib.suppress(ValueError):
            assert read_meta(path.parent).key.digest == path.parent.name
