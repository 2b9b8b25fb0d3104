"""What is known of common data sets: channel statistics, whether mirroring keeps a label, class names."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Known:
    """Facts of one data set (None: unknown); `mean` and `std` are of the training images in 0..1, for each channel."""

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    flips: bool | None = None
    class_names: tuple[str, ...] | None = None
    size: tuple[int, int] | None = None
    """Training images and classes."""
    shape: tuple[int, int] | None = None
    """Side and channels, where all images are alike."""


_DIGITS = tuple("0123456789")
# Deng et al. 2009, the values of every ImageNet recipe; also for the sets that are usually fine-tuned on.
_IMAGENET = Known((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), flips=True)
_LIKE_IMAGENET = """
    imagenet2012 imagenet2012_subset imagenet_resized imagenet_a imagenet_r imagenet_v2 imagenette imagewang
    oxford_flowers102 oxford_iiit_pet food101 cars196 caltech101 caltech_birds2011 stanford_dogs dtd sun397 tf_flowers
    cats_vs_dogs
"""
_CIFAR10 = Known(
    (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), flips=True, size=(50_000, 10), shape=(32, 3)
)  # Krizhevsky 2009
_FASHION = "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot"

KNOWN: dict[str, Known] = {
    # As the package gives it, 0..16 rescaled to 0..255 (measured on its 1,437 training images).
    "digits": Known((0.3056,), (0.3763,), flips=False, class_names=_DIGITS),
    # LeCun et al. 1998; the pair of PyTorch's MNIST example.
    "mnist": Known((0.1307,), (0.3081,), flips=False, class_names=_DIGITS),
    # Xiao et al. 2017 (measured on the 60,000 training images).
    "fashion_mnist": Known(
        (0.2860,), (0.3530,), flips=True, class_names=tuple(_FASHION.split(",")), size=(60_000, 10), shape=(28, 1)
    ),
    "kmnist": Known(flips=False, class_names=("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")),
    "emnist": Known(flips=False),
    "qmnist": Known(flips=False, class_names=_DIGITS),
    "mnist_corrupted": Known(flips=False, class_names=_DIGITS),
    "binary_alpha_digits": Known(flips=False),
    "cmaterdb": Known(flips=False),
    "omniglot": Known(flips=False),
    "svhn_cropped": Known((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970), flips=False),
    "visual_domain_decathlon": Known(flips=False),
    "cifar10": _CIFAR10,
    "cifar10_1": _CIFAR10,
    "cifar10_corrupted": _CIFAR10,
    "cifar100": Known((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762), flips=True),
    # Coates et al. 2011.
    "stl10": Known((0.4467, 0.4398, 0.4066), (0.2603, 0.2566, 0.2713), flips=True),
    **dict.fromkeys(_LIKE_IMAGENET.split(), _IMAGENET),
    "imagenet2012": replace(_IMAGENET, size=(1_281_167, 1000)),  # Russakovsky et al. 2015
    "oxford_iiit_pet": replace(_IMAGENET, size=(3_680, 37)),  # Parkhi et al. 2012
}
ELPV = Known(flips=True, size=(1_968, 2), shape=(300, 1))  # Deitsch et al. 2019: three quarters of 2,624 cells


def known_source(name: str) -> Known:
    """Of `data.name`, whether it is here or not."""
    kind, _, rest = name.partition(":")
    if kind in ("idx", "npz"):
        return KNOWN[mnist_relative(rest)] if "mnist" in rest.lower() else Known()
    return ELPV if kind == "elpv" else KNOWN.get(re.split("[/:]", rest)[0], Known()) if kind == "tfds" else Known()


def mnist_relative(text: str) -> str:
    """The table's name of the IDX set with this path or prefix; "mnist" where nothing says otherwise."""
    text = text.lower()
    if "fashion" in text:
        return "fashion_mnist"
    if "kmnist" in text or "kuzushiji" in text:
        return "kmnist"
    return next((name for name in ("emnist", "qmnist") if name in text), "mnist")
