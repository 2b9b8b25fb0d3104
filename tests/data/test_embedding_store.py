import numpy as np
from embeddings import DIM, SHARD, Backbone, contents, images, key_of, vectors

from jaxtrain.data.embedding_store import EmbeddingStore


def test_vectors_are_computed_once_and_read_as_they_were(tmp_path):
    store, source, backbone = EmbeddingStore(tmp_path, shard_images=SHARD), images(301), Backbone()
    told = []
    first = store.get(key_of(source), source, backbone, progress=lambda done, total: told.append((done, total)))
    expected = vectors(source)
    assert (len(first), first.dim, first.computed, backbone.seen) == (301, DIM, 301, 301)
    assert told[-1] == (301, 301)
    assert told == sorted(told)
    second = store.get(key_of(source), source, backbone)
    assert (second.computed, backbone.seen) == (0, 301)
    for found in (first, second):
        assert np.array_equal(found.load(), expected)
        assert np.array_equal(found.rows(30, 70), expected[30:70])
        assert np.array_equal(found.take(np.array([300, 0, 64, 0])), expected[[300, 0, 64, 0]])
        assert found.load().dtype == np.float32
    names = contents(first.path)
    assert len([name for name in names if name.endswith(".npy")]) == 10
    assert np.array_equal(np.load(first.path / "00001.npy", allow_pickle=False), expected[32:64])
