import pytest

from jaxtrain.data.known import KNOWN, known_source, mnist_relative


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_each_entry_is_whole(name):
    known = KNOWN[name]
    assert (known.mean is None) == (known.std is None)
    if known.mean is not None:
        assert len(known.mean) == len(known.std)
        assert all(0 < value < 1 for value in known.mean + known.std)
    if known.class_names is not None:
        assert len(set(known.class_names)) == len(known.class_names)


def test_what_would_become_another_character_is_not_mirrored():
    for name in ("digits", "mnist", "emnist", "kmnist", "qmnist", "svhn_cropped", "omniglot"):
        assert not KNOWN[name].flips
    assert KNOWN["cifar10"].flips
    assert KNOWN["fashion_mnist"].flips


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("data/fashion-mnist/", "fashion_mnist"),
        ("FashionMNIST/raw/", "fashion_mnist"),
        ("KMNIST/raw/", "kmnist"),
        ("x/emnist-letters", "emnist"),
        ("x/qmnist", "qmnist"),
        ("x/mnist/", "mnist"),
        ("x/numbers/", "mnist"),
    ],
)
def test_mnists_relatives_are_told_by_name(text, name):
    assert mnist_relative(text) == name


@pytest.mark.parametrize(
    ("source", "size", "shape"),
    [
        ("tfds:imagenet2012", (1_281_167, 1000), None),
        ("tfds:cifar10:3.0.2", (50_000, 10), (32, 3)),
        ("idx:/data/fashion-mnist", (60_000, 10), (28, 1)),
        ("elpv:1", (1_968, 2), (300, 1)),
        ("folder:cifar10", None, None),
    ],
)
def test_sizes_of_sources_that_are_not_here(source, size, shape):
    assert (known_source(source).size, known_source(source).shape) == (size, shape)
