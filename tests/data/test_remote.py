"""Data sets at remote addresses: the batches of local files, from a cache that never holds more than it may."""

import itertools
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import fsspec
import numpy as np
import pytest
from PIL import Image

from jaxtrain.config import DataConfig
from jaxtrain.data import remote, remote_cache
from jaxtrain.data.digest import data_digest
from jaxtrain.data.objects import objects_dataset
from jaxtrain.data.order import Order
from jaxtrain.data.remote import RemoteFile, patient, shown
from jaxtrain.data.remote_cache import Cache
from jaxtrain.data.sources import load_dataset
from jaxtrain.data.stream import train_batches
from jaxtrain.errors import RunError, UserError
from tests.data.remotes import REMOTE, upload

_numbers = itertools.count()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "_PAUSES", (0.0, 0.0))
    return tmp_path / "cache/jaxtrain/remote"


@pytest.fixture
def address():
    """A place in a store that no other test has used."""
    return f"memory://bucket{next(_numbers)}"


def load(name, **options):
    return load_dataset(DataConfig(name=name, **options))


def batches(dataset):
    order = Order(len(dataset.train), 8, seed=3)
    stream = train_batches(
        dataset.train, order, image_size=6, channels=3, crop="random_resized", seed=5, workers=0, stop_step=6
    )
    with stream:
        return list(stream)


def copies(cache):
    return [path for path in cache.rglob("*") if path.is_file() and path.name != "lock"]


@pytest.mark.parametrize("form", REMOTE)
def test_the_batches_are_those_of_a_folder(form, root, tmp_path, address):
    there, here = load(REMOTE[form](root, tmp_path, address)), load(f"folder:{root}")
    assert (there.class_names, there.uniform_size, there.channels) == (here.class_names, (8, 8), 3)
    for one, other in zip(batches(there), batches(here), strict=True):
        np.testing.assert_array_equal(one.images, other.images)
        np.testing.assert_array_equal(one.labels, other.labels)
        np.testing.assert_array_equal(one.indices, other.indices)
    test = there.open_test(), here.open_test()
    assert [test[0].read(i) for i in range(12)] == [test[1].read(i) for i in range(12)]


@pytest.mark.parametrize("form", REMOTE)
def test_a_second_start_fetches_nothing(form, root, tmp_path, address, monkeypatch):
    name = REMOTE[form](root, tmp_path, address)
    first = batches(load(name))
    system = type(fsspec.filesystem("memory"))
    for method in ("cat_file", "get_file"):
        monkeypatch.setattr(system, method, lambda *_, **__: pytest.fail("fetched again"))
    for one, other in zip(first, batches(load(name)), strict=True):
        np.testing.assert_array_equal(one.images, other.images)


def test_lists_of_addresses_are_read_as_lists_of_paths(root, address):
    upload(root, address)
    files = sorted((root / "train").rglob("*.png"))
    addresses = [f"{address}/{path.relative_to(root)}" for path in files]
    labels = [path.parent.name for path in files]
    there, here = (objects_dataset(given, labels, config=DataConfig()) for given in (addresses, files))
    for one, other in zip(batches(there), batches(here), strict=True):
        np.testing.assert_array_equal(one.images, other.images)
    with pytest.raises(UserError, match="ftp:// is not read"):
        objects_dataset(["ftp://host/a.png"], ["a"], config=DataConfig())


def test_a_file_address_is_a_local_path(root, tmp_path, cache):
    table = tmp_path / "table.csv"
    table.write_text("image,label\n" + "".join(f"file://{path},{path.parent.name}\n" for path in root.rglob("0?.png")))
    assert len(load(f"folder:file://{root}").train) == len(load(f"folder:{root}").train)
    assert {path.split(":")[0] for path in load(f"csv:file://{table}").train.paths} != {"file"}
    assert not cache.exists()


def test_what_has_changed_is_fetched_again(root, address):
    upload(root, address)
    before = load(f"folder:{address}").train.read(0)
    path = load(f"folder:{address}").train.describe(0)
    other = (root / "test/dog/00.png").read_bytes()
    with fsspec.open(path, "wb") as file:
        file.write(other)
    after = load(f"folder:{address}").train
    assert before != other == after.read([after.describe(i) for i in range(len(after))].index(path))


def test_unreadable_and_missing_images_follow_the_rules_of_local_ones(root, tmp_path, address):
    name = REMOTE["local table"](root, tmp_path, address)
    system = fsspec.filesystem("memory")
    system.rm(f"{address}/train/cat/03.png")
    system.pipe(f"{address}/train/dog/05.png", b"<html>")
    with pytest.raises(RunError, match=rf"2 unreadable.*{address}/train/cat/03.png"):
        load(name)
    dataset = load(name, max_bad_images=2)
    assert len(dataset.train) == 34
    assert dataset.bad_images.reasons[f"{address}/train/cat/03.png"] == "No such file or directory"
    upload(root, address)  # what was away for a while is read at the next start
    assert len(load(name).train) == 36


def test_images_are_known_by_their_content_too(root, address):
    upload(root, address)
    image = (root / "train/cat/00.png").read_bytes()
    fsspec.filesystem("memory").pipe(f"{address}/train/cat/plain", image)
    fsspec.filesystem("memory").pipe(f"{address}/train/cat/notes.txt", b"of a long day")
    assert len(load(f"folder:{address}").train) == 37


def test_of_large_images_the_header_alone_is_fetched_at_first(tmp_path, address, cache):
    """But of PNG, which may have its metadata at its end."""
    pixels = np.random.default_rng(0).integers(0, 256, (900, 900, 3), np.uint8)
    for kind, options in (("JPEG", {"quality": 100}), ("PNG", {})):
        for name in ("cat", "dog"):
            path = tmp_path / "large" / name / f"large.{kind.lower()}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path, kind, **options)
    upload(tmp_path / "large", address)
    there, here = load(f"folder:{address}", val_fraction=0.0), load(f"folder:{tmp_path}/large", val_fraction=0.0)
    assert there.uniform_size == (900, 900)
    sizes = sorted(path.stat().st_size for path in copies(cache))
    assert sizes[:1] == [32768]
    assert [there.train.read(i) for i in range(4)] == [here.train.read(i) for i in range(4)]


class Quiet(SimpleHTTPRequestHandler):
    """Files of a folder, unsigned."""

    def log_message(self, *_):
        pass


@pytest.mark.slow
def test_signed_addresses_in_a_table_are_fetched_once(root, tmp_path, monkeypatch):
    pytest.importorskip("aiohttp")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=root))
    Thread(target=server.serve_forever, daemon=True).start()
    host, table = f"http://127.0.0.1:{server.server_port}", tmp_path / "table.csv"

    def sign(signature):
        rows = [f"{host}/{path.relative_to(root)}?X-Amz-Signature={signature},{path.parent.name}" for path in files]
        table.write_text("\n".join(["image,label", *rows]))

    files = sorted((root / "train").rglob("*.png"))
    sign("cAnArY1")
    first = load(f"csv:{table}", val_fraction=0.0)
    assert first.train.describe(0) == f"{host}/train/cat/00.png"
    assert [first.train.read(i) for i in range(36)] == [path.read_bytes() for path in files]
    with pytest.raises(UserError, match="matches no file"):
        load(f"wds:{host}/{{0..1}}.tar")
    server.shutdown()
    server.server_close()
    sign("cAnArY2")
    again = load(f"csv:{table}", val_fraction=0.0)
    assert data_digest(again.train) == data_digest(first.train)
    assert again.train.read(5) == files[5].read_bytes()
    sign("cAnArY3&id=7")
    with pytest.raises(RunError, match=rf"^{host}/train/cat/00\.png\?id=7 cannot be read") as error:
        load(f"csv:{table}")
    assert "cAnArY" not in str(error.value)


# --- the cache


def test_the_cache_keeps_its_bound_and_what_was_used_last(tmp_path, monkeypatch):
    monkeypatch.setattr(remote_cache, "_USE_NOTED_AFTER", -1.0)
    cache = Cache(tmp_path / "bounded", limit=10_000)
    used = cache.place("used")
    cache.put(used, b"u" * 100)
    for number in range(60):
        cache.put(cache.place(number), bytes(500))
        assert cache.get(used) == b"u" * 100
        assert number % 5 or sum(path.stat().st_size for path in copies(cache.folder)) <= cache.limit
    kept = [number for number in range(60) if cache.get(cache.place(number)) is not None]
    assert kept == list(range(kept[0], 60))
    assert len(kept) >= 15


def test_a_cache_smaller_than_the_set_costs_time_alone(root, address, cache):
    upload(root, address)
    there, here = load(f"folder:{address}", cache_gb=2e-6), load(f"folder:{root}")
    for one, other in zip(batches(there), batches(here), strict=True):
        np.testing.assert_array_equal(one.images, other.images)
    assert sum(path.stat().st_size for path in copies(cache)) <= 2000


def test_shards_are_read_by_ranges_where_the_cache_does_not_hold_them(root, tmp_path, address, cache):
    name = REMOTE["tar"](root, tmp_path, address)
    first = batches(load(name))
    for path in copies(cache):
        path.unlink()
    for one, other in zip(batches(load(name)), first, strict=True):
        np.testing.assert_array_equal(one.images, other.images)
    assert max(path.stat().st_size for path in copies(cache)) < 1000


def test_many_readers_of_a_small_cache_get_whole_files(tmp_path, address):
    """Copies come and go under them."""
    contents = [bytes([number]) * (1000 + number) for number in range(40)]
    for number, content in enumerate(contents):
        fsspec.filesystem("memory").pipe(f"{address}/{number}", content)
    caches = [Cache(tmp_path / "bounded", limit=15_000) for _ in range(8)]

    def read(reader):
        for number in np.random.default_rng(reader).integers(0, 40, 60).tolist():
            file = RemoteFile(f"{address}/{number}", -1, 1, caches[reader])
            assert file.read(1 << 20) == contents[number]
            with file.local() as path:
                assert path.read_bytes() == contents[number]

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read, range(8)))
    assert not [path for path in copies(tmp_path / "bounded") if path.name.startswith(".")]


def test_more_bytes_than_are_read_are_refused_whoever_says_how_many(address, cache):
    fsspec.filesystem("memory").pipe(f"{address}/a", bytes(100))
    for size in (100, -1):
        with pytest.raises(OSError, match="has 100 bytes, more than the 99"):
            RemoteFile(f"{address}/a", size, 1, Cache(cache, 1000)).read(99)
    assert not copies(cache)


def test_copies_are_used_where_the_file_system_has_no_links(address, cache, monkeypatch):
    monkeypatch.setattr(remote_cache.os, "link", Flaky(PermissionError(1, "Operation not permitted"), 10))
    fsspec.filesystem("memory").pipe(f"{address}/a", b"abc")
    file = RemoteFile(f"{address}/a", 3, 1, Cache(cache, 1000))
    with file.local() as path:
        assert path.read_bytes() == b"abc"
    fsspec.filesystem("memory").rm(f"{address}/a")
    with file.local() as path:
        assert path.read_bytes() == b"abc"


def test_a_cache_that_cannot_be_written_costs_time_alone(tmp_path, address, caplog):
    (tmp_path / "file").write_text("in the way")
    fsspec.filesystem("memory").pipe(f"{address}/a", b"abc")
    file = RemoteFile(f"{address}/a", 3, 1, Cache(tmp_path / "file", 1000))
    assert file.read(10) == file.read(10) == b"abc"
    assert len(caplog.records) == 1
    with pytest.raises(RunError, match="XDG_CACHE_HOME"), file.local():
        pass


# --- trouble


class Flaky:
    """Fails so many times in its own way, then answers."""

    def __init__(self, error, times):
        self.error, self.left = error, times

    def __call__(self, system, path):
        self.left -= 1
        if self.left >= 0:
            raise self.error
        return path


def test_what_passes_is_tried_again():
    assert patient("memory://a/b", Flaky(TimeoutError("slow"), 2)) == "/a/b"
    with pytest.raises(RunError, match=r"memory://a/b cannot be read: ConnectionResetError: by peer"):
        patient("memory://a/b", Flaky(ConnectionResetError("by peer"), 3))


@pytest.mark.parametrize("error", [FileNotFoundError("x"), PermissionError("x"), ValueError("x"), ImportError("x")])
def test_what_does_not_pass_is_tried_once(error):
    action = Flaky(error, 100)
    with pytest.raises((OSError, RunError)):
        patient("memory://a/b", action)
    assert action.left == 99


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("folder:s4://bucket/images", "s4:// is not read: valid: .*s3"),
        ("csv:ftp://host/table.csv", "ftp:// is not read"),
        ("wds:S4://bucket/{00..02}.tar", "s4:// is not read"),
        ("folder:memory://nowhere/images", "does not exist"),
        ("folder:memory://shop/flower", "does not exist: did you mean 'flowers'"),
        ("folder:memory://shop/flowers/rose/1.png", "is a file"),
        ("folder:https://host/images", "cannot be listed over http"),
        ("csv:memory://shop/table.csv", "does not exist: did you mean 'tables.csv'"),
        ("csv:memory://shop/flowers", "is a folder"),
        ("csv:memory://shop/tables.csv", r"none of its files exists, the first: memory://shop/1\.png"),
        ("csv:memory://shop/strange.csv", "s4:// is not read"),
        ("parquet:memory://shop/tables.csv", r"memory://shop/tables\.csv cannot be read"),
        ("wds:memory://shop/a.tar", "does not exist"),
        ("wds:memory://shop/x-*.tar", "matches no file"),
        ("wds:memory://shop/{0..1}.tar", "1 of its files do not exist, the first: memory://shop/1.tar"),
        ("wds:memory://shop/0.tar", r"memory://shop/0\.tar is not a tar file"),
        ("wds:memory://*/0.tar", "only the last part"),
        ("wds:memory://shop/flowers", "is a folder without"),
    ],
)
def test_wrong_addresses_get_one_line(name, message):
    system = fsspec.filesystem("memory")
    system.pipe("/shop/flowers/rose/1.png", b"x")
    system.pipe("/shop/tables.csv", b"image,label\n1.png,a\n2.png,b\n")
    system.pipe("/shop/strange.csv", b"image,label\ns4://x/1.png,a\n2.png,b\n")
    system.pipe("/shop/0.tar", b"x" * 3000)
    with pytest.raises(UserError, match=message) as error:
        load(name)
    assert "\n" not in str(error.value)
    assert "jaxtrain/remote" not in str(error.value)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(remote, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r's3:// needs the package s3fs: pip install -e "\.\[remote\]"'):
        load("folder:s3://bucket/images")


# --- secrets


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("s3://bucket/a@b?c.png", "s3://bucket/a@b?c.png"),
        ("s3://key:secret@bucket/a.png", "s3://bucket/a.png"),
        ("https://me:secret@host/a.png?id=5", "https://host/a.png?id=5"),
        ("https://host/a.png?id=5&token=secret", "https://host/a.png?id=5"),
        ("https://host/a.png?X-Amz-Date=1&X-Amz-Signature=secret&versionId=7", "https://host/a.png?versionId=7"),
        ("https://host/a.png?sv=1&se=2&sig=secret", "https://host/a.png"),
        ("https://host/a.png?Expires=1&Signature=secret&Key-Pair-Id=2", "https://host/a.png"),
        ("https://host/map?se=2", "https://host/map?se=2"),
    ],
)
def test_addresses_are_called_what_stays_when_they_are_signed_again(address, name):
    assert shown(address) == name


def test_credentials_in_a_name_are_refused():
    for name in ("csv:https://me:secret@host/t.csv", "csv:https://host/t.csv?X-Amz-Signature=secret"):
        with pytest.raises(ValueError, match="environment"):
            DataConfig(name=name)
    DataConfig(name="parquet:hf://datasets/org/name@main/data.parquet")
