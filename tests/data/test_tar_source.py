"""Tar shards: the data set that was packed, in all forms that people make them, and one line for each fault."""

import io
import json
import tarfile

import numpy as np
import pytest

import jaxtrain.data
from jaxtrain.cli.main import run
from jaxtrain.config import DataConfig
from jaxtrain.data.packing import Shards, pack
from jaxtrain.data.sources import load_dataset
from jaxtrain.errors import RunError, UserError
from tests.data.forms import rows_of


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def load(name, **options):
    return load_dataset(DataConfig(name=name, **{"val_fraction": 0.0, **options}))


def write(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def samples(root, split="train", label="{}.cls", value=str):
    """Members as WebDataset has them: an image, and its label beside it."""
    found = []
    for number, row in enumerate(row for row in rows_of(root) if row["split"] == split):
        with open(row["image"], "rb") as file:
            found += [(f"{number:04}.png", file.read()), (label.format(f"{number:04}"), value(row["label"]).encode())]
    return found


def same(mine, theirs):
    assert mine.labels.tolist() == theirs.labels.tolist()
    assert [mine.read(i) for i in range(len(mine))] == [theirs.read(i) for i in range(len(theirs))]


def plain(root, folder):
    with tarfile.open(folder / "all.tar", "w") as tar:
        for split in ("train", "val", "test"):
            tar.add(root / split, split, filter=None)
    return f"wds:{folder}/all.tar"


def shards(root, folder):
    for split in ("train", "val", "test"):
        members = samples(root, split)
        write(folder / f"{split}-000000.tar", members[: len(members) // 2])
        write(folder / f"{split}-000001.tar", members[len(members) // 2 :])
    return f"wds:{folder}"


def described(root, folder):
    for split in ("train", "valid", "test"):
        part = samples(root, split.removesuffix("id"), "{}.json", lambda name: json.dumps({"label": name, "id": 3}))
        write(folder / split / "0.tar", part)
    return f"wds:{folder}/*/*.tar"


def packed(root, folder):
    return pack(DataConfig(name=f"folder:{root}"), folder / "packed", megabytes=1)


@pytest.mark.parametrize("form", [plain, shards, described, packed])
def test_shards_are_the_folder_that_they_were_made_from(root, tmp_path, form):
    name = form(root, tmp_path)
    folder = load(f"folder:{root}")
    for _ in range(2):  # the second time from the index in the cache
        found = load(name)
        assert (found.class_names, found.uniform_size, found.channels) == (("cat", "dog", "emu"), (8, 8), 3)
        for mine, theirs in ((found.train, folder.train), (found.val, folder.val)):
            order = np.argsort([theirs.labels], kind="stable")[0]
            assert mine.labels.tolist() == theirs.labels[order].tolist()
        same(found.val, folder.val)
        same(found.open_test(), folder.open_test())
    assert found.train.describe(0).split("/")[-1].endswith(".png")
    assert found.train.read(7) == folder.train.read(7)


def test_a_range_of_shards_and_whole_numbers_as_labels(root, tmp_path):
    members = samples(root, value=lambda name: str({"cat": 2, "dog": 10, "emu": 9}[name]))
    for number in range(3):
        write(tmp_path / f"s-{number:06}.tar", members[24 * number : 24 * number + 24])
    found = load(f"wds:{tmp_path}/s-{{000000..000002}}.tar")
    assert (found.class_names, found.classes, len(found.train)) == (("2", "9", "10"), (2, 9, 10), 36)
    assert len(load(f"wds:{tmp_path}/s-{{000000..000001}}.tar").train) == 24
    with pytest.raises(UserError, match=r"2 of its files do not exist, the first: .*s-000003\.tar"):
        load(f"wds:{tmp_path}/s-{{000000..000004}}.tar")


def test_shards_that_changed_are_indexed_again(root, tmp_path):
    members = samples(root)
    write(tmp_path / "a.tar", members)
    first = [load(f"wds:{tmp_path}/a.tar").train.read(i) for i in range(2)]
    write(tmp_path / "b.tar", members[2:]).replace(tmp_path / "a.tar")
    assert load(f"wds:{tmp_path}/a.tar").train.read(0) == first[1] != first[0]


def test_a_second_start_reads_no_member(root, tmp_path, monkeypatch):
    name = shards(root, tmp_path)
    load(name)
    monkeypatch.setattr(tarfile, "open", None)
    assert len(load(name).train) == 36


def test_several_images_in_a_sample_need_a_word(root, tmp_path):
    members = samples(root)
    masks = [(name.replace(".png", ".mask.png"), members[0][1]) for name, _ in members[::2]]
    more = [member for three in zip(members[::2], masks, members[1::2], strict=True) for member in three]
    write(tmp_path / "a.tar", more)
    with pytest.raises(UserError, match=r"several images.*data\.columns\.image=png"):
        load(f"wds:{tmp_path}/a.tar")
    found = load(f"wds:{tmp_path}/a.tar", columns={"image": "png"})
    assert found.train.read(5) == members[10][1]


def _cut(path):
    path.write_bytes(path.read_bytes()[:5000])


WRONG = {
    "none": (lambda path, members: path.parent.joinpath("x").touch(), UserError, "without \\*.tar|does not exist"),
    "no tar": (lambda path, members: path.write_bytes(b"no tar" * 1000), UserError, "not a tar file"),
    "empty": (lambda path, members: path.write_bytes(b""), UserError, "not a tar file|holds no images"),
    "compressed": (lambda path, members: path.write_bytes(b"\x1f\x8b" + b"x" * 600), UserError, "compressed.*gunzip"),
    "no images": (lambda path, members: write(path, [("a.txt", b"x")]), UserError, "holds no images"),
    "cut off": (lambda path, members: (write(path, members), _cut(path)), (RunError, UserError), "cut off|damaged"),
    "no label": (lambda path, members: write(path, members[:-1]), UserError, r"row 36 has no label"),
    "two members": (lambda path, members: write(path, [members[0], members[0]]), UserError, "twice"),
    "no JSON": (lambda path, members: write(path, [members[0], ("0000.json", b"{")]), UserError, "not valid JSON"),
    "no text": (lambda path, members: write(path, [members[0], ("0000.cls", b"\xff")]), UserError, "not valid UTF-8"),
    "one class": (lambda path, members: write(path, members[:4]), UserError, "one class only"),
    "no training": (lambda path, members: write(path.with_name("val.tar"), members), UserError, "no training images"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_wrong_shards_get_one_line(root, tmp_path, fault):
    make, kind, told = WRONG[fault]
    folder = tmp_path / "set"
    folder.mkdir()
    make(folder / "a.tar", samples(root))
    with pytest.raises(kind, match=told) as caught:
        load(f"wds:{folder}")
    assert "\n" not in str(caught.value)


def test_unreadable_members_are_counted(root, tmp_path):
    members = samples(root)
    members[6] = (members[6][0], b"<html>")
    write(tmp_path / "a.tar", members)
    for _ in range(2):
        with pytest.raises(RunError, match=r"1 unreadable image.*a\.tar/0003\.png: .*web page"):
            load(f"wds:{tmp_path}/a.tar")
    assert len(load(f"wds:{tmp_path}/a.tar", max_bad_images=1).train) == 35


def test_files_that_tar_stores_as_hard_links_are_images_too(root, tmp_path):
    twin = tmp_path / "twin.png"
    twin.hardlink_to(rows_of(root)[0]["image"])
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png"):
            tar.add(twin, name)
        assert [member.islnk() for member in tar.getmembers()] == [False, True, True, True]
    found = load(f"wds:{tmp_path}/a.tar").train
    assert found.labels.tolist() == [0, 0, 1, 1]
    assert {found.read(i) for i in range(4)} == {twin.read_bytes()}


def test_links_and_paths_upwards_in_a_tar_file_lead_nowhere(root, tmp_path, caplog):
    path = write(tmp_path / "a.tar", samples(root))
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"secret")
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("9998.png")
        link.type, link.linkname = tarfile.SYMTYPE, str(secret)
        tar.addfile(link)
    assert len(load(f"wds:{path}").train) == 36
    assert "1 members are not used" in caplog.text


def stream(count=30):
    for number in range(count):
        yield np.full((6, 5), 8 * number, np.uint8), ("cat", "dog", "emu")[number % 3]


def test_a_generator_is_written_once_and_read_at_random(tmp_path):
    name = jaxtrain.data.cache(stream(), tmp_path / "packed")
    found = load(name)
    assert (len(found.train), found.class_names, found.uniform_size) == (30, ("cat", "dog", "emu"), (6, 5))
    assert found.channels == 1
    assert jaxtrain.data.cache(None, tmp_path / "packed") == name  # complete: nothing is gone through
    about = json.loads((tmp_path / "packed/pack.json").read_text())
    assert (about["images"], list(about["sha256"])) == (30, ["train-00000.tar"])


@pytest.mark.parametrize(
    ("items", "told"),
    [([5], "item 0.*pairs"), ([(np.zeros((2, 2)), 1)], "item 0: images are float64"), ([{"a": 1}], "item 0.*image")],
)
def test_items_that_are_no_labelled_images_leave_nothing_behind(tmp_path, items, told):
    with pytest.raises(UserError, match=told):
        jaxtrain.data.cache(iter([*stream(3), *items] if "item 3" in told else items), tmp_path / "packed")
    assert list(tmp_path.iterdir()) == []


def test_packing_smaller(root, tmp_path):
    found = load(pack(DataConfig(name=f"folder:{root}"), tmp_path / "packed", size=4))
    assert (found.uniform_size, len(found.train), len(found.val), len(found.open_test())) == ((4, 4), 36, 12, 12)
    with pytest.raises(UserError, match="not empty"):
        pack(DataConfig(name=f"folder:{root}"), tmp_path / "packed")


def test_packed_classes_keep_their_order(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {"x_train": rng.integers(0, 256, (20, 4, 4), np.uint8), "y_train": np.arange(20) % 2}
    np.savez(tmp_path / "a.npz", **arrays, class_names=np.array(["pos", "neg"]))
    config = DataConfig(name=f"npz:{tmp_path}/a.npz", val_fraction=0.0)
    found = load(pack(config, tmp_path / "packed"))
    assert found.class_names == ("pos", "neg")
    assert found.train.labels.tolist() == load_dataset(config).train.labels.tolist()


def test_the_command_that_packs(root, tmp_path, capsys):
    run(["pack", f"folder:{root}", str(tmp_path / "packed"), "--shard-mb", "1"])
    assert capsys.readouterr().out == f"wds:{tmp_path}/packed\n"
    assert sorted(path.name for path in (tmp_path / "packed").iterdir()) == [
        *("pack.json", "test-00000.tar", "train-00000.tar", "val-00000.tar"),
    ]
    with pytest.raises(UserError, match="not empty"):
        run(["pack", f"folder:{root}", str(tmp_path / "packed")])


def test_a_small_limit_makes_many_shards(root, tmp_path):
    source = load(f"folder:{root}")
    shards = Shards(tmp_path / "packed", megabytes=1)
    shards._limit = 20_000
    for index in range(len(source.train)):
        shards.add("train", source.train.read(index), int(source.train.labels[index]))
    shards.close()
    assert len(list((tmp_path / "packed").glob("train-*.tar"))) > 2
    same(load(f"wds:{tmp_path}/packed").train, source.train)
