"""Random access to the records of prepared tensorflow-datasets, without TensorFlow."""

from __future__ import annotations

import os
import struct
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any, Protocol

from jaxtrain.errors import RunError, UserError


class Records(Protocol):
    """Serialised `tf.train.Example`s by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> bytes: ...


@lru_cache(maxsize=8)
def open_records(folder: str, split: str) -> Records:
    """The records of one split of the prepared data set in `folder`; each process opens it once.

    Not after a fork: array_record's readers crash there (0.8.6), also new ones. Spawned workers are fine.
    Raises `UserError` for file formats without random access, `RunError` for damaged files.
    """
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(folder)
    formats = {file_format.value for file_format in builder.info.available_file_formats()}
    if "array_record" in formats:
        method = tfds.decode.DeserializeMethod.RAW_BYTES
        return builder.as_data_source(split, deserialize_method=method, file_format="array_record")
    if "tfrecord" not in formats:
        found = ", ".join(sorted(formats))
        raise UserError(f"{folder} is in format {found}: prepare it as array_record or tfrecord")
    info = builder.info.splits[split]
    records = TfRecords([str(path) for path in info.filepaths])
    if len(records) != info.num_examples:
        raise RunError(f"{folder} {split} has {len(records)} records, its description says {info.num_examples}")
    return records


class TfRecords:
    """TFRecord files: each record is a length (uint64) and its checksum, the data and its checksum.

    The places of all records are found by walking the lengths; checksums are not verified.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = paths
        self._places = [_walk(path) for path in paths]
        self._ends = list(accumulate(len(places) for places in self._places))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> bytes:
        if not 0 <= index < len(self):
            raise IndexError(index)
        file = bisect_right(self._ends, index)
        places = self._places[file]
        offset, length = places[index - self._ends[file] + len(places)]
        with open(self._paths[file], "rb", buffering=0) as stream:
            return os.pread(stream.fileno(), length, offset)


def _walk(path: str) -> list[tuple[int, int]]:
    """(offset, length) of each record."""
    places = []
    with open(path, "rb", buffering=0) as stream:
        size = os.fstat(stream.fileno()).st_size
        position = 0
        while position < size:
            head = os.pread(stream.fileno(), 8, position)
            length = struct.unpack("<Q", head)[0] if len(head) == 8 else size
            if position + 16 + length > size:
                raise RunError(f"{path} is damaged: a record at byte {position:,} goes beyond its end")
            places.append((position + 12, length))
            position += 16 + length
    return places


def features_of(record: bytes) -> Any:
    """Feature name -> value of a serialised `tf.train.Example`."""
    from tensorflow_datasets.proto import tf_example_pb2

    return tf_example_pb2.Example.FromString(record).features.feature
