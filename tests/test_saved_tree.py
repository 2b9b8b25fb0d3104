import json
import os
import resource
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from jaxtrain import saved_tree
from jaxtrain.errors import DamagedError, RunError, UserError
from jaxtrain.saved_tree import load_tree, recover, save_tree
from jaxtrain.trees import tree_digest

DTYPES = [
    *("bool", "uint8", "int8", "uint32", "int32", "int64", "float16", "bfloat16", "float32", "float64"),
    *("complex64", "int4", "float8_e4m3fn"),
]


def example() -> dict:
    generator = np.random.default_rng(0)
    arrays = {name: generator.integers(0, 2, (3, 2)).astype(name) for name in DTYPES}
    return {
        "params": {
            "dense": {"kernel": generator.standard_normal((40, 30)).astype(np.float32), "bias": np.zeros(30)},
            "layers": {"0": {"w": np.ones(1)}, "10": {"w": np.ones(2)}, "2": {"w": np.ones(3)}},
        },
        "arrays": arrays,
        "scalars": {name: arrays[name].reshape(-1)[3:4].reshape(()) for name in DTYPES},
        "special": np.array([np.nan, -np.inf, -0.0, 1e-45], np.float32),
        "fortran": np.asfortranarray(generator.standard_normal((4, 5))),
        "strided": generator.standard_normal((6, 6))[::2, 1::3],
        "no_rows": np.zeros((0, 3), ml_dtypes.bfloat16),
        "key": np.array([1, 2**32 - 1], np.uint32),
        "empty": {"inner": {}},
        "a.b": np.array(1),
        "a": {"b": np.array(2), "x/y %2E é": np.array(3)},
    }


def assert_same(actual: dict, expected: dict) -> None:
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        if isinstance(value, dict):
            assert_same(actual[key], value)
        else:
            assert isinstance(actual[key], np.ndarray), key
            assert actual[key].dtype == value.dtype, key
            assert actual[key].shape == value.shape, key
            assert actual[key].tobytes() == value.tobytes(), key


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "model"
    save_tree(path, example(), {"classes": ["a", "ü"], "best": 0.1 + 0.2, "loss": float("nan")})
    return path


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def test_round_trip_keeps_every_dtype_shape_and_bit(saved: Path) -> None:
    tree, meta = load_tree(saved)
    assert_same(tree, example())
    assert meta["classes"] == ["a", "ü"]
    assert meta["best"] == 0.1 + 0.2
    assert np.isnan(meta["loss"])
    assert tree_digest(tree) == tree_digest(example())


def test_big_endian_arrays_come_back_little_endian_with_the_same_values(tmp_path: Path) -> None:
    save_tree(tmp_path / "m", {"x": np.array([1.5, -2.0], ">f4")}, {})
    tree, _ = load_tree(tmp_path / "m")
    assert tree["x"].dtype == np.dtype("<f4")
    assert tree["x"].tolist() == [1.5, -2.0]
    assert tree_digest(tree) == tree_digest({"x": np.array([1.5, -2.0], ">f4")})


def test_a_tree_without_arrays_round_trips(tmp_path: Path) -> None:
    save_tree(tmp_path / "m", {"none": {}, "zero": np.zeros((2, 0))}, {"k": 1})
    tree, meta = load_tree(tmp_path / "m")
    assert tree["none"] == {}
    assert tree["zero"].shape == (2, 0)
    assert meta == {"k": 1}


def test_orbax_itself_reads_the_state(saved: Path) -> None:
    import orbax.checkpoint as ocp

    tree = ocp.PyTreeCheckpointer().restore(saved / "state")
    np.testing.assert_array_equal(
        tree["params"]["dense"]["kernel"], example()["params"]["dense"]["kernel"], strict=True
    )


def test_nothing_is_logged_and_the_loggers_are_as_before(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture,
    recwarn: pytest.WarningsRecorder,
) -> None:
    import logging

    absl = logging.getLogger("absl")
    before = (absl.level, list(absl.filters), list(absl.handlers), logging.getLogger().level)
    with caplog.at_level(logging.INFO):
        before_level = absl.level
        save_tree(tmp_path / "m", example(), {})
        load_tree(tmp_path / "m")
        assert absl.level == before_level
    assert [record for record in caplog.records if "orbax" in record.pathname] == []
    assert capfd.readouterr() == ("", "")
    assert [str(w.message) for w in recwarn.list if "harding" in str(w.message)] == []
    assert before == (absl.level, list(absl.filters), list(absl.handlers), logging.getLogger().level)


@pytest.mark.parametrize("bad", [np.array(["text"]), np.array([None]), [1, 2], 3, "text", None])
def test_only_arrays_of_numbers_are_saved(tmp_path: Path, bad: object) -> None:
    with pytest.raises(TypeError, match="params/x"):
        save_tree(tmp_path / "m", {"params": {"x": bad}}, {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("keys", [(0,), (True,), (None,), (("a",),), (0, "0")])
def test_keys_are_strings(tmp_path: Path, keys: tuple) -> None:
    with pytest.raises(TypeError, match=r"params.*keys"):
        save_tree(tmp_path / "m", {"params": {key: np.ones(1) for key in keys}}, {})


def test_numbers_among_the_keys_of_an_old_folder_are_read_as_strings(tmp_path: Path) -> None:
    tree = {"blocks": {str(n): {"w": np.full(2, n), "b": np.zeros(0)} for n in (10, 2)}, "3": {}}
    save_tree(tmp_path / "m", tree, {})
    file = tmp_path / "m" / "meta.json"
    body = json.loads(file.read_text())
    del body["sha256"]
    body["arrays"] = [[[int(key) if key.isdigit() else key for key in keys], *rest] for keys, *rest in body["arrays"]]
    body["empty_dicts"] = [[3]]
    file.write_text(saved_tree._encode(body))
    assert_same(load_tree(tmp_path / "m")[0], tree)


# --- digest ---------------------------------------------------------------------------------------


def test_digest_does_not_depend_on_insertion_order_or_memory_layout() -> None:
    x, y = np.arange(6.0).reshape(2, 3), np.ones(2)
    digest = tree_digest({"a": {"x": x, "y": y}, "b": y})
    assert digest == tree_digest({"b": y, "a": {"y": y, "x": np.asfortranarray(x)}})


@pytest.mark.parametrize(
    "other",
    [
        {"x": np.zeros(4, np.int32)},
        {"x": np.zeros((2, 2), np.float32)},
        {"x": np.zeros((4, 1), np.float32)},
        {"y": np.zeros(4, np.float32)},
        {"x": {"x": np.zeros(4, np.float32)}},
        {"x": np.array([0, 0, 0, -0.0], np.float32)},
        {"x": np.zeros(4, np.float32), "z": np.zeros(0, np.float32)},
    ],
)
def test_digest_sees_name_dtype_shape_and_every_bit(other: dict) -> None:
    assert tree_digest(other) != tree_digest({"x": np.zeros(4, np.float32)})


def test_digest_is_stable() -> None:
    """Written into `summary.json` and compared for ever: it must not change with a version."""
    tree = {"b": np.arange(3, dtype=np.int32), "a": {"w": np.array(0.5, np.float32)}}
    assert tree_digest(tree) == "72b95e1fbd85484ddb95070f974e4e93f3650bfc6ff729e7bc5c941481ad5ebe"


# --- what is refused ------------------------------------------------------------------------------


def test_a_flipped_bit_of_an_array_is_found_twice_over(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pattern = example()["params"]["dense"]["kernel"].tobytes()[100:164]
    (file,) = [f for f in copy.rglob("*") if f.is_file() and pattern in f.read_bytes()]
    data = bytearray(file.read_bytes())
    data[data.index(pattern) + 7] ^= 1
    file.write_bytes(data)
    with pytest.raises(DamagedError, match=f"{file.relative_to(copy)} changed"):
        load_tree(copy)
    # Where the files were written wrongly in the first place, the digest of the array tells.
    monkeypatch.setattr(saved_tree, "_verified", saved_tree._read_body)
    with pytest.raises(DamagedError, match="array params/dense/kernel"):
        load_tree(copy)


def test_every_byte_of_meta_json_counts(copy: Path) -> None:
    file = copy / "meta.json"
    text = file.read_bytes()
    for position in range(0, len(text), max(1, len(text) // 200)):
        for bit in (0x01, 0x20):
            file.write_bytes(text[:position] + bytes([text[position] ^ bit]) + text[position + 1 :])
            with pytest.raises(DamagedError):
                saved_tree.read_meta(copy)
    for other in (
        b"",
        b"{}",
        b"[]",
        b"null",
        b'{"sha256": 3}',
        text[:-1],
        text + b" ",
        text.replace(b", ", b",", 1),
    ):
        file.write_bytes(other)
        with pytest.raises(DamagedError, match=r"meta.json changed"):
            saved_tree.read_meta(copy)


@pytest.mark.parametrize("place", ["state", "state/d", "."])
def test_links_and_pipes_are_refused(copy: Path, tmp_path: Path, place: str) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x")
    for make in (lambda p: p.symlink_to(secret), lambda p: p.symlink_to(tmp_path), os.mkfifo):
        entry = copy / place / "entry"
        make(entry)
        with pytest.raises(DamagedError, match=r"refused: model/.*entry is"):
            load_tree(copy)
        entry.unlink()
    load_tree(copy)


def test_a_file_replaced_by_a_link_to_its_equal_is_refused(copy: Path, tmp_path: Path) -> None:
    file = next(f for f in (copy / "state").rglob("*") if f.is_file())
    os.rename(file, tmp_path / "moved")
    file.symlink_to(tmp_path / "moved")
    with pytest.raises(DamagedError, match="symbolic link"):
        load_tree(copy)


def test_a_folder_that_is_itself_a_link_is_refused(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(copy)
    with pytest.raises(DamagedError, match="symbolic link"):
        load_tree(tmp_path / "link")


def test_added_missing_and_foreign_folders(copy: Path, tmp_path: Path) -> None:
    (copy / "state" / "extra").write_text("")
    with pytest.raises(DamagedError, match="state/extra was added"):
        load_tree(copy)
    shutil.rmtree(copy / "state")
    with pytest.raises(DamagedError, match="is missing"):
        load_tree(copy)
    with pytest.raises(UserError, match="does not exist"):
        load_tree(tmp_path / "nothing")
    with pytest.raises(DamagedError, match=r"holds no meta.json"):
        load_tree(tmp_path)


def test_a_newer_format_is_named_and_not_called_damage(copy: Path) -> None:
    body = json.loads((copy / "meta.json").read_text())
    del body["sha256"]
    (copy / "meta.json").write_text(saved_tree._encode({**body, "format": 9}))
    with pytest.raises(RunError, match=r"another version of jaxtrain \(format 9") as caught:
        load_tree(copy)
    assert not isinstance(caught.value, DamagedError)


# --- writing --------------------------------------------------------------------------------------


def test_a_saved_tree_is_replaced(copy: Path) -> None:
    save_tree(copy, {"x": np.ones(2)}, {"n": 2})
    tree, meta = load_tree(copy)
    assert (tree["x"].tolist(), meta) == ([1.0, 1.0], {"n": 2})
    assert [entry.name for entry in copy.parent.iterdir()] == ["model"]


def test_other_folders_and_files_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1").write_text("x")
    (tmp_path / "file").write_text("x")
    for name in ("thesis", "file"):
        with pytest.raises(UserError, match="choose another path"):
            save_tree(tmp_path / name, {"x": np.ones(1)}, {})
    assert (tmp_path / "thesis" / "chapter1").read_text() == (tmp_path / "file").read_text() == "x"


def test_killed_between_the_two_renames_of_a_replacement(copy: Path) -> None:
    os.rename(copy, copy.with_name(".old-model"))
    assert_same(load_tree(copy)[0], example())
    recover(copy.parent)
    assert [entry.name for entry in copy.parent.iterdir()] == ["model"]
    assert_same(load_tree(copy)[0], example())


def test_a_full_disk_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=123_456)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(RunError) as caught:
        save_tree(tmp_path / "m", {"x": np.zeros(1_000_000, np.uint8)}, {})
    message = str(caught.value)
    assert str(tmp_path / "m") in message
    assert "2,048,576 bytes needed, 123,456 free" in message
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_during_the_save_leaves_nothing_behind(copy: Path) -> None:
    """The limit on the size of a file makes the kernel refuse Orbax's writes, as a full disk does."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, old[1]))
    try:
        with pytest.raises(RunError, match=r"no space on the disk: [0-9,]+ bytes needed, [0-9,]+ free") as caught:
            save_tree(copy, {"x": np.random.default_rng(0).standard_normal(100_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert "\n" not in str(caught.value)
    assert [entry.name for entry in copy.parent.iterdir()] == ["model"]
    assert_same(load_tree(copy)[0], example())


def test_works_inside_a_running_event_loop(saved: Path, tmp_path: Path) -> None:
    """A notebook has one."""
    import asyncio

    async def main() -> None:
        save_tree(tmp_path / "m", {"x": np.ones(2)}, {})
        assert load_tree(tmp_path / "m")[0]["x"].tolist() == [1.0, 1.0]

    asyncio.run(main())
