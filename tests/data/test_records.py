import struct

import pytest

from jaxtrain.data.records import TfRecords
from jaxtrain.errors import RunError

# b"", b"abc", b"abcabc" as TensorFlow 2.21's TFRecordWriter wrote them.
WRITTEN = bytes.fromhex(
    "000000000000000029039807d8ea82a20300000000000000b099490e6162636e57f12106000000000000007369d537616263616263563a1bac"
)


def test_files_that_tensorflow_wrote_are_read_at_random(tmp_path):
    for name in "ab":
        (tmp_path / name).write_bytes(WRITTEN)
    (tmp_path / "empty").write_bytes(b"")
    records = TfRecords([str(tmp_path / name) for name in ("a", "empty", "b")])
    assert len(records) == 6
    assert [records[i] for i in (5, 0, 3, 1, 4, 2)] == [b"abcabc", b"", b"", b"abc", b"abc", b"abcabc"]
    with pytest.raises(IndexError):
        records[6]
    with pytest.raises(IndexError):
        records[-1]


@pytest.mark.parametrize("data", [WRITTEN[:-1], WRITTEN[:20], struct.pack("<Q", 2**63) + bytes(20)])
def test_cut_files_are_named(tmp_path, data):
    (tmp_path / "cut").write_bytes(data)
    with pytest.raises(RunError, match=r"cut is damaged: a record at byte [0-9]+ goes beyond its end"):
        TfRecords([str(tmp_path / "cut")])
