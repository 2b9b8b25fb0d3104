"""Files are made by hand where torch would not make them: nothing of them may ever run."""

import pickle
import zipfile

import numpy as np
import pytest

from jaxtrain.errors import UserError
from jaxtrain.models.weights.torch_file import read_torch_file

WEIGHT = np.arange(6, dtype="<f4").reshape(2, 3)


class Global:
    """Pickled as a name to import; such names need not exist here."""

    def __init__(self, module, name):
        self.module, self.name = module, name


class Call:
    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments


class Stored:
    """A tensor as torch writes it."""

    def __init__(self, key, size=6, shape=(2, 3), stride=(3, 1), offset=0, kind="FloatStorage"):
        self.storage = ("storage", Global("torch", kind), key, "cpu", size)
        self.rest = (offset, shape, stride, False, Call(Global("collections", "OrderedDict")))


def encode(value):
    """Pickle protocol 2 of plain values, `Global`, `Call` and `Stored`, written out by hand."""
    if isinstance(value, Global):
        return f"c{value.module}\n{value.name}\n".encode()
    if isinstance(value, Call):
        return encode(value.function) + encode(value.arguments) + b"R"
    if isinstance(value, Stored):
        arguments = b"(" + encode(value.storage) + b"Q" + b"".join(map(encode, value.rest)) + b"t"
        return encode(Global("torch._utils", "_rebuild_tensor_v2")) + arguments + b"R"
    if isinstance(value, dict):
        return b"}(" + b"".join(encode(key) + encode(item) for key, item in value.items()) + b"u"
    if isinstance(value, tuple):
        return b"(" + b"".join(map(encode, value)) + b"t"
    if isinstance(value, list):
        return b"](" + b"".join(map(encode, value)) + b"e"
    return pickle.dumps(value, 2)[2:-1]


def write(path, tree, storages=None, compression=zipfile.ZIP_STORED, instructions=None):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("x/data.pkl", instructions or b"\x80\x02" + encode(tree) + b".")
        for key, array in (storages or {"0": WEIGHT}).items():
            archive.writestr(f"x/data/{key}", array.tobytes())
    return path


def test_tensors_numbers_and_texts(tmp_path):
    ordered = Call(Global("collections", "OrderedDict"))
    tree = {
        "model": {"a.weight": Stored("0"), "b": Stored("0", shape=(3, 2), stride=(1, 3))},
        "column": Stored("0", shape=(2,), stride=(3,), offset=1),
        "steps": Stored("1", 1, (), (), kind="LongStorage"),
        "half": Stored("2", 2, (2,), (1,), kind="BFloat16Storage"),
        "parameter": Call(Global("torch._utils", "_rebuild_parameter"), Stored("0"), True, ordered),
        "empty": Stored("0", shape=(0, 3)),
        "epoch": 90,
        "rates": [0.1, None, True],
        "name": "vit",
        "plain": ordered,
    }
    storages = {"0": WEIGHT, "1": np.array([2**40]), "2": np.array([0x3F80, 0xC000], "<u2")}
    read = read_torch_file(write(tmp_path / "w.pth", tree, storages))
    np.testing.assert_array_equal(read["model"]["a.weight"], WEIGHT)
    np.testing.assert_array_equal(read["model"]["b"], WEIGHT.T)
    np.testing.assert_array_equal(read["column"], [1, 4])
    np.testing.assert_array_equal(read["parameter"], WEIGHT)
    assert (read["steps"].shape, int(read["steps"])) == ((), 2**40)
    assert read["half"].astype(np.float32).tolist() == [1.0, -2.0]
    assert read["empty"].shape == (0, 3)
    assert (read["epoch"], read["rates"], read["name"], read["plain"]) == (90, [0.1, None, True], "vit", {})


@pytest.mark.parametrize(
    "call",
    [
        Call(Global("os", "system"), "touch PWNED"),
        Call(Global("builtins", "eval"), "open('PWNED', 'w')"),
        Call(Global("posix", "open"), "PWNED"),
        Call(Global("torch._utils", "_rebuild_tensor"), "x"),
        Call(Global("torch", "FloatStorage"), 3),
        Call(Global("argparse", "Namespace")),
        Call(Global("collections", "OrderedDict"), [["a", 1]]),
    ],
)
def test_a_call_of_anything_else_is_refused_and_not_made(tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "evil.pth", {"model": {"w": Stored("0")}, "args": call})
    name = f"{call.function.module}.{call.function.name}"
    with pytest.raises(UserError, match=rf"evil\.pth: is refused: it asks for {name}, .*safetensors$"):
        read_torch_file(path)
    assert not (tmp_path / "PWNED").exists()


def test_a_real_malicious_pickle_is_refused(tmp_path, monkeypatch):
    class Evil:
        def __reduce__(self):
            import os

            return os.system, ("touch PWNED",)

    monkeypatch.chdir(tmp_path)
    for protocol in range(6):
        path = write(tmp_path / "evil.pth", None, instructions=pickle.dumps({"w": Evil()}, protocol))
        with pytest.raises(UserError, match="is refused"):
            read_torch_file(path)
        legacy = tmp_path / "legacy.pth"
        magic = [pickle.dumps(x, 2) for x in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
        legacy.write_bytes(b"".join(magic) + pickle.dumps(Evil(), protocol))
        with pytest.raises(UserError, match="is refused"):
            read_torch_file(legacy)
    assert not (tmp_path / "PWNED").exists()


@pytest.mark.parametrize(
    "stored",
    [
        Stored("0", shape=(2, 4)),
        Stored("0", offset=1),
        Stored("0", shape=(2, 3), stride=(-3, 1)),
        Stored("0", shape=(-2, 3)),
        Stored("0", offset=-1),
        Stored("0", shape=(10**9, 3), stride=(0, 1)),
        Stored("0", size=7),
        Stored("0", size=-1),
        Stored("0", size=10**18),
        Stored("nowhere"),
        Stored("0", kind="QInt8Storage"),
    ],
)
def test_a_tensor_that_leaves_its_storage_is_refused(tmp_path, stored):
    with pytest.raises(UserError, match=r"w\.pth: is "):
        read_torch_file(write(tmp_path / "w.pth", {"w": stored}))


@pytest.mark.parametrize(
    "instructions",
    [
        b"",
        b"\x80\x02}",  # no end
        b"\x80\x02.",  # nothing to give
        b"\x80\x02K\x01h\x07.",  # a memory that was never filled
        b"\x80\x02K\x01u.",  # items for a number, without a mark
        b"\x80\x02]q\x00h\x00a.",  # a list inside itself
        b"\x80\x02" + b"](" * 5000 + b"e" * 5000 + b".",
        b"\x80\x02K\x01.",
    ],
)
def test_a_broken_pickle_is_an_error_in_one_line(tmp_path, instructions):
    with pytest.raises(UserError, match=r"^[^\n]*w\.pth: (is not a sound PyTorch file|holds a)[^\n]*$"):
        read_torch_file(write(tmp_path / "w.pth", None, instructions=instructions or b"\x80"))


@pytest.mark.parametrize(
    "instructions",
    [
        b"ccollections\nOrderedDict\n)\x81",  # an object of a class, without a call
        b"(X\x05\x00\x00\x00PWNEDios\nsystem\n",  # the call of Python's first pickles
        b"\x8c\x02os\x8c\x06system\x93",  # a name from the stack
        b"\x82\x01",  # a name from the process's registry of extensions
        b"C\x01a",  # bytes
        b"\x8e" + b"\xff" * 7 + b"\x7f",  # 2^63 bytes that are not there
        b"\x96" + b"\xff" * 7 + b"\x7f",
        b"K\x01r\xff\xff\xff\xff",  # would make a memo of 2^32 places
        b"ctorch\nFloatStorage\n}X\x01\x00\x00\x00aK\x01sb",  # attributes for a name, a storage and a tensor
        encode(("storage", Global("torch", "FloatStorage"), "0", "cpu", 6)) + b"Q}b",
        encode(Stored("0")) + b"N}X\x04\x00\x00\x00sizeK\x01s\x86b",
        encode(("storage", Global("torch", "FloatStorage"), ("0",), "cpu", 6)) + b"Q",
        encode(("storage", Global("torch", "FloatStorage"), "0", "cpu", 6.0)) + b"Q",
        encode(("storage", Global("collections", "OrderedDict"), "0", "cpu", 6)) + b"Q",
        encode(("storage", "FloatStorage", "0", "cpu", 6)) + b"Q",
        b"(X\x07\x00\x00\x00storage" + encode(Global("torch", "FloatStorage")) + b"(K\x01tQ",  # one inside another
        encode(("storage", Global("torch", "FloatStorage"), "0", "cpu", 6)) + b"QQ",
        encode(Stored("0")) + b"Q",
        b"K\x01)R",  # a number is called
        encode(Stored("0")) + b")R",
    ],
)
def test_a_trick_of_pickles_is_refused(tmp_path, monkeypatch, instructions):
    monkeypatch.chdir(tmp_path)
    name = b"\x80\x02}X\x01\x00\x00\x00w"
    with pytest.raises(UserError, match=r"^[^\n]*w\.pth: is (refused|not a sound PyTorch file)[^\n]*$"):
        read_torch_file(write(tmp_path / "w.pth", None, instructions=name + instructions + b"s."))


def test_one_storage_of_two_kinds_is_refused(tmp_path):
    tree = {"a": Stored("0"), "b": Stored("0", kind="IntStorage")}
    with pytest.raises(UserError, match="two descriptions of storage 0"):
        read_torch_file(write(tmp_path / "w.pth", tree))


def write_legacy(path, tree, storages):
    """The layout of before torch 1.6."""
    parts = [pickle.dumps(x, 2) for x in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    parts += [b"\x80\x02" + encode(tree) + b".", pickle.dumps(list(storages), 2)]
    parts += [array.size.to_bytes(8, "little") + array.tobytes() for array in storages.values()]
    path.write_bytes(b"".join(parts))
    return path


def test_the_legacy_layout(tmp_path):
    tree = {"a": Stored("0"), "b": Stored("1", 2, (2,), (1,), kind="LongStorage")}
    read = read_torch_file(write_legacy(tmp_path / "w.pth", tree, {"0": WEIGHT, "1": np.array([5, 6])}))
    np.testing.assert_array_equal(read["a"], WEIGHT)
    assert read["b"].tolist() == [5, 6]


@pytest.mark.parametrize("write", [write, write_legacy])
def test_a_truncated_file_is_refused(tmp_path, write):
    path = write(tmp_path / "w.pth", {"w": Stored("0")}, {"0": WEIGHT})
    content = path.read_bytes()
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match=r"w\.pth: is "):
            read_torch_file(path)


def test_repetition_does_not_grow(tmp_path):
    """Twenty lists of ten times the list before: 10^20 members, if each was its own."""
    lists = b"](K\x01eq\x00" + b"".join(b"](" + b"h%c" % i * 10 + b"eq%c" % (i + 1) for i in range(20))
    instructions = b"\x80\x02}X\x01\x00\x00\x00a](" + lists + b"es."
    read = read_torch_file(write(tmp_path / "w.pth", None, instructions=instructions))
    assert [len(part) for part in read["a"]] == [1] + [10] * 20


@pytest.mark.parametrize("content", [b"", b"PK\x05\x06" + bytes(18), b"not a torch file", bytes(100), b"\x80\x02."])
def test_another_file_is_an_error(tmp_path, content):
    path = tmp_path / "w.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"w\.pth: is "):
        read_torch_file(path)


def test_a_compressed_archive_is_refused(tmp_path):
    with pytest.raises(UserError, match="compressed"):
        read_torch_file(write(tmp_path / "w.pth", {}, compression=zipfile.ZIP_DEFLATED))


@pytest.mark.parametrize("zip_format", [True, False])
def test_what_torch_saved_is_what_torch_loads(tmp_path, zip_format):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    layer = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    tree = {
        "model": layer.state_dict(),
        "shared": [layer[0].weight, layer[0].weight.permute(2, 3, 1, 0)],
        "half": torch.randn(3).half(),
        "brain": torch.randn(3).bfloat16(),
        "flags": torch.tensor([True, False]),
        "epoch": 3,
    }
    path = tmp_path / "w.pth"
    torch.save(tree, path, _use_new_zipfile_serialization=zip_format)
    read, expected = read_torch_file(path), torch.load(path, weights_only=True)
    assert list(read["model"]) == list(expected["model"])
    for name, tensor in expected["model"].items():
        np.testing.assert_array_equal(read["model"][name], tensor.numpy())
    for ours, theirs in zip(read["shared"], expected["shared"], strict=True):
        np.testing.assert_array_equal(ours, theirs.detach().numpy())
    np.testing.assert_array_equal(read["half"], expected["half"].numpy())
    np.testing.assert_array_equal(read["brain"].astype(np.float32), expected["brain"].float().numpy())
    assert read["flags"].tolist() == [True, False]
    assert read["epoch"] == 3
