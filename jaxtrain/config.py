"""Every option of jaxtrain, once: typed, validated, documented. YAML and the command line both read this file.

`None` means "chosen for you" from the data set, the model or the device; what was chosen is written to the run
directory's `config.yaml`, which is enough to repeat the run.
"""

from __future__ import annotations

import functools
import math
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from jaxtrain.errors import nearest

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Rate = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Count = Annotated[int, Field(ge=1)]
ExplainMethod = Literal["auto", "gradcam", "rollout"]
"""How heat maps are made; auto: rollout for vision transformers with plain attention, else gradcam."""


T = TypeVar("T")


def chosen(value: T | None) -> T:
    """An option of a resolved config, in which it cannot be None any more."""
    assert value is not None, "this option is open: resolve the config first"
    return value


class Section(BaseModel):
    """A group of options: immutable, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number_and_no_bytes(cls, value: Any, info: ValidationInfo) -> Any:
        annotation = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, bool) and bool not in (annotation, *get_args(annotation)):
            raise ValueError(f"must not be {str(value).lower()}")  # pydantic reads true (in YAML also: yes, on) as 1
        if isinstance(value, str | Path) and not (text := str(value)).isascii():
            try:
                text.encode()
            except UnicodeEncodeError:  # a path whose name no config.yaml can hold
                raise ValueError(f"{text!a} is not valid UTF-8; rename it") from None
        return value


class ColumnsConfig(Section):
    """Which column of a table of images holds what (default: the one with a common name for it)."""

    image: str | None = None
    """Paths of image files, relative to the table's folder, or encoded images."""
    label: str | None = None
    """Name or number of each image's class; several labels per image are lists of names, or with data.task multilabel
    names parted by |."""
    labels: tuple[str, ...] | None = None
    """Several labels per image, a column each: 1, 0, and -1 or empty where it is unknown (tables)."""
    split: str | None = None
    """train, val or test."""
    weight: str | None = None
    """How much each image counts in training."""


class DataConfig(Section):
    """Where the images come from and how they reach the device."""

    name: str = "digits"
    """digits | elpv[:SPLIT] | tfds:NAME[/CONFIG][:VERSION] | folder:PATH | csv:FILE | jsonl:FILE | parquet:FILE |
    wds:PATTERN | hf:NAME | hf:PATH | idx:PATH | npz:PATH; arrays: those that were given to fit(). Paths of folders,
    tables and tar files may be addresses: s3://, gs://, hf://, http://."""
    task: Literal["auto", "multiclass", "multilabel", "any_of"] = "auto"
    """multiclass: each image has one class; multilabel: any number of labels; auto: as the labels are given. any_of, of
    commands that measure: a model that gives one class is right where it is among an image's labels."""
    dir: Path | None = None
    """Folder of prepared tensorflow-datasets (default: that library's own)."""
    split: Literal["train", "val", "test"] | None = None
    """Of commands that measure and do not train: these images are the test set, and no others are looked at (default:
    test)."""
    columns: ColumnsConfig = ColumnsConfig()
    value_range: tuple[float, float] | None = None
    """Least and greatest value of arrays that are not uint8, as 0 1: they are rescaled to 0..255 (default: refused)."""
    layout: Literal["auto", "classes"] = "auto"
    """Folders of `folder:PATH`: auto finds training, validation and test folders; classes: each is a class."""
    image_size: Annotated[int, Field(ge=1, le=8192)] | None = None
    """Side in pixels of the square images that the model sees (default: the data set's, else the model's)."""
    channels: Annotated[int, Field(ge=1, le=16)] | None = None
    """1 grey, 3 RGB, to which other images are converted; other numbers for arrays that have as many (default: the data
    set's)."""
    bits: Literal[8, 16] | None = None
    """Of each sample. 16: arrays of uint16 (0 to 65535), and PNG and TIFF files of 16 bits, keep them (default: 16 for
    arrays of uint16, else 8)."""
    val_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """Share of the training set held out, stratified and seeded; unused where the source has a validation split."""
    test_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of a source without a test set that is held out as one, stratified and seeded; validation comes after."""
    folds: Annotated[int, Field(ge=2)] | None = None
    """Cross-validation: this many stratified parts of a source without a test set, each the test set of one run of a
    sweep; the out-of-fold predictions of all are one entry of the Benchmark."""
    fold: Annotated[int, Field(ge=0)] | None = None
    """Which of `folds`, from 0 on, is the test set of this run (a sweep sets it)."""
    group: str | None = None
    """Column of a table (csv, jsonl, parquet, hf) with what belongs together, such as a patient: held-out splits and
    folds never cut a group. In Python also `fit(..., groups=)`."""
    split_seed: int = 0
    """Seed of the held-out splits; kept apart from `seed` so that runs with other seeds compare on one split."""
    max_train_images: Count | None = None
    """Use only this many training images (stratified, seeded; after the split)."""
    shots: Count | None = None
    """Few-shot: train on this many images of each class (of several labels per image: at least as many of each label),
    drawn from the training set (never from validation)."""
    draws: Count = 1
    """Few-shot draws (technique fe): a head is trained on each, and mean and interval are reported."""
    cache_gb: Positive = 20.0
    """Most of the disk, in GB, that copies of remote images and shards take in ~/.cache/jaxtrain."""
    max_bad_images: Annotated[int, Field(ge=0)] = 0
    """Unreadable images that may be skipped (named and counted) before the run stops."""
    max_pixels: Count = 50_000_000
    """Images with more pixels are refused as unreadable: decompression bombs."""
    sampling: Literal["uniform", "balanced", "sqrt", "effective"] = "uniform"
    """Classes of an epoch of as many images (ft, pt). uniform: each image once; balanced: all alike; sqrt: by the
    square root of their images; effective: each image weighs 1 / its class's effective number (Cui et al. 2019)."""
    sampling_beta: Rate = 0.999
    """sampling=effective: from 0, uniform, towards 1, balanced."""
    loader: Literal["auto", "device", "stream"] = "auto"
    """device: the whole set lives on the device; stream: worker processes decode; auto: device where it fits."""
    device_budget_mb: Count = 1024
    """The largest training set, in MB, that `auto` keeps on the device."""
    workers: Annotated[int, Field(ge=0)] | None = None
    """Processes that decode a streamed set; 0 decodes in threads of this process (default: by number of cores)."""
    prefetch: Count = 4
    """Batches decoded ahead of the step."""
    mean: tuple[float, ...] | None = None
    """Mean of each channel in 0..1, subtracted from the images (default: the weights', else the training images')."""
    std: tuple[Positive, ...] | None = None
    """Standard deviation of each channel in 0..1, by which the images are divided (default: likewise)."""
    crop_pct: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """Share of the resized image's side that the central crop keeps, in evaluation and in training without
    augment.crop=random_resized (default: that of the weights, without any 1: nothing is cut but what is not square)."""
    interpolation: Literal["bilinear", "bicubic"] | None = None
    """Of that resize, antialiased either way (default: that of the weights, without any bilinear)."""

    @property
    def pixel_type(self) -> Literal["uint8", "uint16"]:
        """Of the images that the network is given."""
        return "uint16" if self.bits == 16 else "uint8"

    @field_validator("name")
    @classmethod
    def _without_credentials(cls, value: str) -> str:
        if re.search(r"://[^/\s]*@|[?&][^=&]*(signature|sig|token|key|password)[^=&]*=", value, re.IGNORECASE):
            raise ValueError(
                "the address holds a password or signature, which config.yaml would keep: give it by the "
                "environment (AWS_ACCESS_KEY_ID, ...), or download the file"
            )
        return value

    @field_validator("value_range")
    @classmethod
    def _rising(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and value[0] >= value[1]:
            raise ValueError(f"must be the least value, then the greatest, not {value[0]:g} and {value[1]:g}")
        return value

    @model_validator(mode="after")
    def _one_of_the_folds(self) -> DataConfig:
        if self.fold is not None and (self.folds is None or self.fold >= self.folds):
            known = "needs folds" if self.folds is None else f"is one of 0 to {self.folds - 1}"
            raise ValueError(f"fold {self.fold}: {known}")
        if self.folds is not None and self.test_fraction > 0:
            raise ValueError("folds and test_fraction both draw a test set: give one of them")
        if self.split is not None and (self.folds is not None or self.test_fraction > 0):
            raise ValueError("split says which images are the test set: leave folds and test_fraction out")
        return self

    @model_validator(mode="after")
    def _beta_of_effective(self) -> DataConfig:
        if self.sampling != "effective" and self.sampling_beta != type(self).model_fields["sampling_beta"].default:
            raise ValueError(f"sampling_beta is an option of sampling effective, not of {self.sampling}")
        return self


class AugmentConfig(Section):
    """Random changes to training images, on the device, seeded per image and step. None: the policy's value."""

    policy: Literal["auto", "none", "light", "standard", "strong"] = "auto"
    """Preset for the options below; auto picks by data set (digits are never flipped), after a look at the images of
    one that is not known."""
    crop: Literal["none", "pad", "random_resized"] | None = None
    """pad: shift by up to `pad` pixels; random_resized: Inception-style crop to the image size."""
    pad: Annotated[int, Field(ge=0)] | None = None
    """Pixels of padding for crop=pad."""
    scale: tuple[Fraction, Fraction] | None = None
    """Range of the area that a random_resized crop keeps."""
    ratio: tuple[Positive, Positive] | None = None
    """Range of the aspect ratio of a random_resized crop."""
    hflip: Fraction | None = None
    """Probability of a left-right flip."""
    vflip: Fraction | None = None
    """Probability of an upside-down flip."""
    rotate: Annotated[float, Field(ge=0.0, le=180.0)] | None = None
    """Largest random rotation, in degrees."""
    zoom: Rate | None = None
    """Largest random change of scale: 0.1 draws from 0.9..1.1."""
    color_jitter: Fraction | None = None
    """Strength of random brightness, contrast and saturation."""
    randaugment_layers: Annotated[int, Field(ge=0, le=8)] | None = None
    """RandAugment operations per image (0: off)."""
    randaugment_magnitude: Annotated[float, Field(ge=0.0, le=10.0)] | None = None
    """RandAugment magnitude, 0 to 10."""
    erasing: Fraction | None = None
    """Probability of random erasing."""
    mixup: NonNegative | None = None
    """Alpha of mixup's Beta distribution (0: off)."""
    cutmix: NonNegative | None = None
    """Alpha of CutMix's Beta distribution (0: off); with mixup on too, each pair of images draws one of them."""
    test_flips: Literal["none", "h", "hv"] = "none"
    """What validation, test and predictions (ft, pt) average over: the image; also its mirror image; all four flips."""


class ModelConfig(Section):
    """The network. None: the named variant's own value."""

    name: str | None = None
    """A name from `jaxtrain.list_models()` (default: the model of `weights`, else cnn_small)."""
    network: str | None = None
    """A network of your own by import path (`package.module:Name`) instead of `name`: an nnx.Module class or a function
    (num_classes, rngs) -> nnx.Module, or a Linen module class."""
    weights: str | None = None
    """Pre-trained weights to start from: the directory of a run, hf:ORG/NAME, package:efficientnet_lite0, or a file of
    weights (default for fe and ft: package:efficientnet_lite0; for pt: none, it starts from the seed)."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Computation type (parameters stay float32); auto: bfloat16 on GPU and TPU, float32 on CPU."""
    drop_rate: Rate | None = None
    """Dropout before the classifier."""
    drop_path_rate: Rate | None = None
    """Stochastic depth of the last block, growing linearly from 0 at the first."""
    patch_size: Count | None = None
    """Side of a ViT patch in pixels."""
    pool: Literal["cls", "avg"] | None = None
    """How a ViT's tokens become one vector."""
    registers: Annotated[int, Field(ge=0)] | None = None
    """Register tokens of a ViT (Darcet et al. 2023)."""
    act: Literal["gelu", "gelu_tanh", "quick_gelu"] | None = None
    """Activation of a ViT: exact GELU, by tanh, or x * sigmoid(1.702 x); weights of transformers say which."""
    stem: Literal["imagenet", "cifar"] | None = None
    """ResNet stem: 7x7 stride 2 with pooling, or 3x3 stride 1 for small images."""
    remat: bool = False
    """Recompute activations of each block in the backward pass: less memory, more time."""

    @property
    def label(self) -> str:
        """What a resolved network is called."""
        return chosen(self.name) if self.network is None else self.network.rpartition(":")[2]

    @model_validator(mode="after")
    def _one_network(self) -> ModelConfig:
        if self.network is not None:
            for option in ("name", "drop_rate", "drop_path_rate", "patch_size", "pool", "registers", "act", "stem"):
                if getattr(self, option) is not None:
                    raise ValueError(f"{option} is an option of jaxtrain's networks, not of {self.network}")
        return self


class FeaturesConfig(Section):
    """Technique fe: which vector of the frozen backbone stands for an image, and where vectors are kept."""

    pool: Literal["auto", "cls", "avg", "cls+avg"] = "auto"
    """How tokens or a feature map become one vector; auto: as the backbone's own head sees it."""
    blocks: Count = 1
    """Join the vectors of the last this many blocks (1: the output alone)."""
    views: Count = 1
    """Vectors of each training image: the image itself, and randomly augmented ones for the rest."""
    batch_size: Count | None = None
    """Images a forward pass (default: by device)."""
    store: Path | None = None
    """Folder of the embedding store, shared by all runs (default: runs/embeddings)."""


HEADS: dict[str, dict[str, Any]] = {
    "linear": {
        "solver": "auto",
        "weight_decay": None,  # by solver and number of vectors: see heads/linear.py
        "scaling": ("none", "standard", "l2"),
        "learning_rate": (0.3, 1.0, 3.0),
        "epochs": 20,
        "batch_size": 256,
        "init": None,
    },
    "mlp": {
        "hidden": (256,),
        "weight_decay": (1e-4, 1e-2, 0.1),
        "learning_rate": (3e-4, 3e-3),
        "scaling": ("standard",),
        "epochs": 100,
        "patience": 10,
        "batch_size": 256,
        "dropout": 0.0,
    },
    "cosine": {"scaling": ("none", "center"), "temperature": (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)},
    "ncm": {"scaling": ("none", "standard"), "temperature": (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)},
    "knn": {"scaling": ("none", "center"), "k": (1, 5, 10, 20, 50, 100), "temperature": (0.02, 0.07, 0.2)},
    "sklearn": {"trials": 20, "seconds": None},
    "xgboost": {"trials": 20, "seconds": None},
}
"""The options that each head has besides those of all, and what None stands for."""
_OF_SGD = ("learning_rate", "epochs", "batch_size")  # of these linear's other solver has none


class HeadConfig(Section):
    """Technique fe: what is trained on the vectors. None: the named head's own value."""

    name: str = "linear"
    """linear | mlp | cosine | ncm | knn | sklearn:NAME | xgboost."""
    refit: bool = False
    """Train the chosen setting once more on training and validation images together."""
    choose_by: Literal["loss", "accuracy"] = "loss"
    """Validation figure by which a setting is chosen: the loss tells settings apart where few images give the same
    accuracy."""
    weight_decay: tuple[Positive, ...] | None = None
    """Weight decays to choose from (linear, mlp); linear's is the L2 penalty, scikit-learn's 1 / (C * images)."""
    scaling: tuple[Literal["none", "center", "standard", "l2"], ...] | None = None
    """Scalings of the vectors to choose from (all but sklearn and xgboost): none; center: each feature to mean 0;
    standard: and to variance 1; l2: each vector to the same length."""
    solver: Literal["auto", "lbfgs", "sgd"] | None = None
    """lbfgs: to convergence on all vectors at once; sgd: mini-batches; auto: lbfgs where vectors fit (linear)."""
    learning_rate: tuple[Positive, ...] | None = None
    """Learning rates to choose from (mlp; linear with sgd, there in units of 1 / the vectors' mean squared length)."""
    epochs: Annotated[int, Field(ge=0)] | None = None
    """Passes over the training vectors (linear with sgd; 0: `init` as it is), at most (mlp)."""
    batch_size: Count | None = None
    """Vectors per step (mlp; linear with sgd)."""
    patience: Count | None = None
    """Stop after this many epochs in a row without better validation (mlp)."""
    hidden: tuple[Count, ...] | None = None
    """Width of each hidden layer (mlp)."""
    dropout: Rate | None = None
    """Dropout after each hidden layer (mlp)."""
    init: Path | None = None
    """Start from vectors of the classes' names, the logits being 100 times the cosine, as CLIP's are (linear): an npz
    file of `embeddings` [classes, width] and `class_names`; weight decay then pulls towards them. Needs solver sgd and
    scaling l2, which are the default with it."""
    k: tuple[Count, ...] | None = None
    """Numbers of neighbours to choose from (knn)."""
    temperature: tuple[Positive, ...] | None = None
    """Temperatures to choose from (cosine, ncm, knn): similarities are divided by it."""
    trials: Count | None = None
    """Settings that Optuna tries (sklearn, xgboost)."""
    seconds: Positive | None = None
    """Start no new trial after this many seconds (sklearn, xgboost; results then depend on the machine's speed)."""

    @property
    def kind(self) -> str:
        """The name without what stands behind its colon."""
        return self.name.partition(":")[0]

    @model_validator(mode="after")
    def _options_of_the_head(self) -> HeadConfig:
        if self.kind not in HEADS:
            raise ValueError(f"no head is called {self.name!r}; {nearest(self.kind, HEADS)}")
        for option in type(self).model_fields:
            value = getattr(self, option)
            if value == ():
                raise ValueError(f"{option} is empty")
            if value is not None and option not in {"name", "refit", "choose_by", *HEADS[self.kind]}:
                owners = " and ".join(name for name, options in HEADS.items() if option in options)
                raise ValueError(f"{option} is an option of {owners}, not of {self.kind}")
            if self.solver == "lbfgs" and value is not None and option in (*_OF_SGD, "init"):
                raise ValueError(f"{option} is an option of solver sgd, not of lbfgs")
        if self.init is not None and self.scaling not in (None, ("l2",)):
            raise ValueError("init is a cosine: it needs scaling l2")
        if self.epochs == 0 and self.init is None:
            raise ValueError("epochs must be at least 1 without init")
        if (self.kind == "sklearn") != (":" in self.name):
            raise ValueError(
                f"a head is called {self.kind}:NAME" if self.kind == "sklearn" else f"no head is called {self.name!r}"
            )
        return self

    def resolved(self) -> HeadConfig:
        """With the head's own value for each option that is None."""
        own = {option: value for option, value in HEADS[self.kind].items() if getattr(self, option) is None}
        if self.solver == "lbfgs":
            own = {option: value for option, value in own.items() if option not in _OF_SGD}
        if self.init is not None:
            own |= {"scaling": ("l2",)} | ({"solver": "sgd"} if self.solver in (None, "auto") else {})
        return self.model_validate({**self.model_dump(), **own})


class FinetuneConfig(Section):
    """Technique ft: how the pre-trained network is adapted. The options combine."""

    strategy: Literal["full", "head", "blocks", "norm_bias", "lora"] = "full"
    """Which parameters train, besides the head: full: all; head: none; blocks: those of the last `blocks` blocks and of
    what follows them; norm_bias: norms and biases (BitFit); lora: low-rank updates of attention and MLP kernels."""
    blocks: Count | None = None
    """strategy=blocks: how many of the last blocks train (default: 1)."""
    lora_rank: Count | None = None
    """strategy=lora: rank of the updates (default: 4)."""
    lora_alpha: Positive | None = None
    """strategy=lora: updates are scaled by alpha / rank (default: twice the rank)."""
    head_learning_rate: Positive | None = None
    """Peak learning rate of the head; `optimizer.learning_rate` is the backbone's (default: ten times that one with
    strategies full and blocks, the same with the others)."""
    layer_decay: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Learning rates fall by this factor from each block to the one below it (1: all the same)."""
    unfreeze_steps: Count | None = None
    """Gradual unfreezing: the head trains alone for this many steps; then, after as many each, one more block joins,
    from the last to the first (None: all from the start)."""
    linear_probe: bool = False
    """LP-FT: the head starts as technique fe fits it to the frozen embeddings, then everything trains."""
    l2_sp: NonNegative = 0.0
    """L2-SP: decay of the pre-trained parameters towards where they started, in place of `optimizer.weight_decay`,
    which is then the head's alone (0: off)."""
    wise_ft: Fraction | None = None
    """WiSE-FT (Wortsman et al. 2022): the result is (1 - wise_ft) * original weights + wise_ft * fine-tuned ones, batch
    statistics too, of everything that the two share: a head for other classes stays as trained (None: fine-tuned)."""
    freeze_statistics: bool | None = None
    """Batch norm normalises with the weights' statistics in training too (default: where its parameters
    are frozen, and everywhere with `unfreeze_steps`)."""

    @model_validator(mode="after")
    def _options_of_the_strategy(self) -> FinetuneConfig:
        for option, strategy in {"blocks": "blocks", "lora_rank": "lora", "lora_alpha": "lora"}.items():
            if getattr(self, option) is not None and self.strategy != strategy:
                raise ValueError(f"{option} is an option of strategy {strategy}, not of {self.strategy}")
        if self.wise_ft is not None and self.strategy in ("lora", "head"):
            raise ValueError(f"wise_ft has nothing to act on: strategy {self.strategy} leaves the original weights")
        if self.strategy == "head":
            idle = {"layer_decay": self.layer_decay < 1, "unfreeze_steps": self.unfreeze_steps, "l2_sp": self.l2_sp}
            for option, given in idle.items():
                if given:
                    raise ValueError(f"{option} has nothing to act on: strategy head trains nothing but the head")
        return self


LOSSES: dict[str, dict[str, float | None]] = {
    "cross_entropy": {},
    "bce": {"target_threshold": None},
    "focal": {"gamma": 2.0},
    "poly1": {"epsilon": 1.0},
    "asymmetric": {"gamma": 4.0, "gamma_positive": 0.0, "clip": 0.05},
    "gce": {"q": 0.7},
}
"""The options that each loss has besides those of all, and what None stands for."""
OF_SIGMOIDS = ("bce", "asymmetric")
"""Losses that ask of each class apart whether it is there; the others compare the classes by a softmax."""


class LossConfig(Section):
    """What training minimises; `val/loss` and `test/loss` are the cross-entropy whatever it is. None: the loss's own.

    Soft targets (label smoothing, mixup, CutMix) weigh the loss of each class by its share, except for
    `target_threshold`.
    """

    name: Literal["cross_entropy", "bce", "focal", "poly1", "asymmetric", "gce"] = "cross_entropy"
    """bce: binary cross-entropy of each class, summed; focal: Lin et al. 2017, on the softmax; poly1: Leng et al. 2022;
    asymmetric: Ridnik et al. 2021, on each class; gce: generalised cross-entropy, for noisy labels (Zhang and Sabuncu
    2018). fe has them for the heads linear (with solver sgd) and mlp."""
    target_threshold: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    """bce: targets above it become 1, others 0 (ResNet strikes back, Wightman et al. 2021, A1: 0.2); None: as they
    are."""
    gamma: NonNegative | None = None
    """focal: how much less what is right already counts (default: 2); asymmetric: the same for absent classes
    (default: 4)."""
    gamma_positive: NonNegative | None = None
    """asymmetric: the same for the classes that are there (default: 0)."""
    clip: Rate | None = None
    """asymmetric: absent classes below this probability count nothing (default: 0.05)."""
    epsilon: Annotated[float, Field(ge=-1.0)] | None = None
    """poly1: weight of the added 1 - p (default: 1)."""
    q: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """gce: from near 0, the cross-entropy, to 1, the mean absolute error, which bears most noise (default: 0.7)."""
    logit_adjustment: NonNegative = 0.0
    """Train on logits plus this many times the logarithm of each class's share of the training images, so that rare
    classes are not neglected in prediction (Menon et al. 2021: 1; 0: off); for losses on the softmax."""

    @model_validator(mode="after")
    def _options_of_the_loss(self) -> LossConfig:
        for option in type(self).model_fields:
            if option in ("name", "logit_adjustment", *LOSSES[self.name]) or getattr(self, option) is None:
                continue
            owners = " and ".join(name for name, options in LOSSES.items() if option in options)
            raise ValueError(f"{option} is an option of {owners}, not of {self.name}")
        if self.logit_adjustment and self.name in OF_SIGMOIDS:
            raise ValueError(f"logit_adjustment needs a loss on the softmax, and {self.name} asks of each class apart")
        return self

    def resolved(self) -> LossConfig:
        """With the loss's own value for each option that is None."""
        own = {option: value for option, value in LOSSES[self.name].items() if getattr(self, option) is None}
        return self.model_copy(update=own)


class TrainConfig(Section):
    """Length of training, batch, loss and evaluation."""

    epochs: Positive | None = None
    """Passes over the training set (default: 150 for digits, 20 otherwise). Give this or `steps`."""
    steps: Count | None = None
    """Optimizer steps. Give this or `epochs`."""
    batch_size: Count = 128
    """Global batch size: images per optimizer step, over all devices and accumulation steps."""
    accumulate: Count = 1
    """Split each batch into this many parts and sum their gradients: less memory."""
    label_smoothing: Rate = 0.0
    """Mass of the target spread evenly over all classes."""
    class_weights: Literal["none", "balanced"] | dict[str, float] | Path = "none"
    """How much each class counts in the loss. balanced: by the inverse of its frequency in the training set; a mapping
    from class names to weights, or a YAML or JSON file of one (classes that are not named: 1; only ratios matter)."""
    pos_weight: Literal["none", "balanced"] | dict[str, float] | Path = "none"
    """Several labels per image: how much an image that has the label counts in its binary cross-entropy against one
    that has not. balanced: as many times as there are more of those without; or a mapping from labels to weights, or a
    file of one (labels that are not named: 1)."""
    ema_decay: Rate | None = None
    """Decay of the exponential moving average of the parameters, which is then evaluated (None: off)."""
    eval_every: Positive = 1.0
    """Epochs between evaluations on the validation set."""
    select: Literal["auto", "best", "last"] = "auto"
    """The parameters kept at the end: of the best validation metric, or of the last step; auto: the last where the
    learning rate has come down to at most a tenth by then (small validation sets choose by luck), else the best."""
    monitor: Annotated[str, Field(pattern="^val/")] | None = None
    """The validation metric that decides which step is best, and early stopping: val/accuracy, val/loss,
    val/top5_accuracy, of several labels val/mAP, val/loss, val/macro_f1, val/subset_accuracy, or one of your own; lower
    is better where the name ends in loss or error (default: val/accuracy or val/mAP)."""
    early_stopping: Count | None = None
    """Stop after this many evaluations in a row without improvement (None: off)."""
    log_every: Count = 10
    """Steps between records of the training metrics."""
    steps_per_call: Count | None = None
    """Steps compiled into one call when the data lives on the device (default: 1 on CPU, 16 on GPU and TPU)."""
    profile: str | None = None
    """FIRST:LAST, as 20:25: a trace of these steps, the first of all being 1, for xprof and Perfetto, in `profile/` of
    the run directory and in MLflow (None: off). Whole calls are traced where `steps_per_call` is above 1."""
    microbatch: Literal["auto"] | None = None
    """auto: where the device's memory does not hold the batch, raise `accumulate` until it does (None: end the run)."""
    on_nonfinite: Literal["stop", "skip", "rollback"] = "stop"
    """What follows a loss or gradient that is NaN or infinite. stop: the run ends, naming step and layer; skip: that
    step changes nothing; rollback: back to the last checkpoint, and past the batches since."""
    nonfinite_limit: Count = 5
    """on_nonfinite: stop all the same after this many skipped steps in a row, or this many rollbacks."""
    hang_minutes: Positive = 10.0
    """Without a step for so long (six times as long while compiling and evaluating) the stacks of all threads are
    written to `stacks.txt` in the run directory, and a state that can be saved is."""

    @property
    def profiled(self) -> tuple[int, int] | None:
        """The first and the last step of `profile`."""
        if self.profile is None:
            return None
        first, _, last = self.profile.partition(":")
        return int(first), int(last)

    @field_validator("profile", mode="before")
    @classmethod
    def _steps(cls, value: Any) -> Any:
        if isinstance(value, int):
            raise ValueError('must be FIRST:LAST, in YAML in quotes: "20:25"')  # which it reads as a number of base 60
        if value is None:
            return None
        found = re.fullmatch(r"([1-9]\d{0,11}):([1-9]\d{0,11})", str(value), re.ASCII)
        if found is None or int(found[1]) > int(found[2]):
            raise ValueError(f"must be FIRST:LAST, such as 20:25, the first step being 1, not {value}")
        return value

    @field_validator("class_weights", "pos_weight", mode="before")
    @classmethod
    def _weights_of_classes(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            if not isinstance(value, str | Path):
                raise ValueError(
                    f"must be none, balanced, a file, or a mapping from class names to weights, not {value}"
                )
            return value
        for name, weight in value.items():
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
                raise ValueError(f"the weight of class {name} must be a number above 0, not {weight}")
        return {str(name): float(weight) for name, weight in value.items()}

    @model_validator(mode="after")
    def _one_length(self) -> TrainConfig:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("give epochs or steps, not both")
        if self.batch_size % self.accumulate:
            raise ValueError(f"batch_size {self.batch_size} does not divide by accumulate {self.accumulate}")
        return self


class DecisionConfig(Section):
    """Several labels per image: from which probability on an image is given a label."""

    threshold: Literal["fitted", "half"] = "fitted"
    """fitted: of each label its own, by the validation images (never the test set; 0.5 without any); half: 0.5."""
    precision: Fraction | None = None
    """Fitted so that at least this share of the images that get a label have it, and most that have it get it."""
    recall: Fraction | None = None
    """Fitted so that at least this share of the images that have a label get it, and few others (default: neither, the
    largest F1)."""

    @model_validator(mode="after")
    def _one_aim(self) -> DecisionConfig:
        aims = [name for name in ("precision", "recall") if getattr(self, name) is not None]
        if len(aims) == 2:
            raise ValueError("give precision or recall, not both")
        if aims and self.threshold == "half":
            raise ValueError(f"{aims[0]} is an option of threshold fitted, not of half")
        return self


class OptimizerConfig(Section):
    """Gradient descent. None: the named optimizer's own value."""

    name: Literal["sgd", "adamw", "lamb", "lion", "muon"] = "adamw"
    """sgd has Nesterov momentum; muon trains matrices and kernels with Muon and the rest with AdamW."""
    learning_rate: Positive | None = None
    """Peak learning rate."""
    weight_decay: NonNegative | None = None
    """Weight decay, never applied to norms and biases; decoupled, except for sgd, where it is added to the gradient."""
    momentum: Rate | None = None
    """Momentum of sgd and muon."""
    beta1: Rate | None = None
    """Decay of the first moment (adamw, lamb, lion)."""
    beta2: Rate | None = None
    """Decay of the second moment (adamw, lamb, lion)."""
    clip_norm: Positive | None = None
    """Clip gradients to this global norm (None: off)."""


class ScheduleConfig(Section):
    """The learning rate over time."""

    name: Literal["cosine", "linear", "wsd", "one_cycle", "constant"] = "cosine"
    """Shape after warmup; wsd is warmup-stable-decay."""
    warmup_epochs: NonNegative | None = None
    """Epochs of linear warmup (default: 5% of training)."""
    final_ratio: Fraction = 0.0
    """Learning rate at the end, as a share of the peak."""
    decay_fraction: Fraction = 0.2
    """Share of training that wsd's decay takes."""


class ParallelConfig(Section):
    """How the step runs on the devices."""

    strategy: Literal["auto", "jit", "pmap", "fsdp"] = "auto"
    """jit: sharded batch, replicated parameters (auto); pmap: the explicit replicated form; fsdp: parameters and
    optimizer state sharded."""
    devices: Count | None = None
    """Use only the first this many local devices (None: all)."""
    cpu_devices: Count | None = None
    """Virtual devices to split the CPU into (None: one). XLA runs a convolution on one core of each, so that 2 on two
    cores train a small CNN 1.5 times as fast."""
    compilation_cache: bool = True
    """Keep compiled programs in the user's cache folder, so that the next start is quick."""
    coordinator: Annotated[str, Field(pattern=r"^\S+:[0-9]{1,5}$")] | None = None
    """HOST:PORT of process 0, where a run has several processes (default: as Slurm, Open MPI, GKE or Cloud TPU say, or
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID)."""
    num_processes: Count | None = None
    """Processes of the run, given with `coordinator`; 1 alone: run alone, whatever the cluster says."""
    process_id: Annotated[int, Field(ge=0)] | None = None
    """The number of this process, from 0, given with `coordinator`."""
    connect_seconds: Annotated[int, Field(ge=1, le=86_400)] = 45
    """How long the processes of a run wait for one another at the start."""

    @model_validator(mode="after")
    def _processes(self) -> ParallelConfig:
        names = ("coordinator", "num_processes", "process_id")
        missing = [name for name in names if getattr(self, name) is None]
        if missing and len(missing) < 3 and not (self.num_processes == 1 and len(missing) == 2):
            raise ValueError(f"{missing[0]} is missing: coordinator, num_processes and process_id go together")
        if self.process_id is not None and self.process_id >= chosen(self.num_processes):
            raise ValueError(f"process_id {self.process_id} is not below num_processes {self.num_processes}")
        return self


def resources(text: str) -> dict[str, float]:
    """Amounts by name. Raises ValueError.

    >>> resources("gpu=0.5,cpu=4")
    {'gpu': 0.5, 'cpu': 4.0}
    """
    found: dict[str, float] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*([A-Za-z][A-Za-z0-9_.:-]*)=([0-9]+(?:\.[0-9]+)?)\s*", part)
        if match is None or float(match[2]) <= 0 or match[1] in found:
            raise ValueError(f"must be names with amounts above 0, each name once, as gpu=0.5,cpu=4, not '{text}'")
        name, amount = match[1], float(match[2])
        if amount > 1 and not amount.is_integer():
            raise ValueError(f"{name}={amount:g}: above 1 only whole numbers can be had")
        found[name] = amount
    return found


def _amounts(text: str) -> str:
    resources(text)
    return text


Amounts = Annotated[str, AfterValidator(_amounts)]


class ClusterConfig(Section):
    """Many machines: a cluster of Ray does the work (extra jaxtrain[cluster])."""

    address: str | None = None
    """local: Ray is started on this machine, for this command alone; auto: the cluster that this machine belongs to, or
    RAY_ADDRESS; ray://HOST:PORT: another one (default: without Ray)."""

    @field_validator("address")
    @classmethod
    def _known_kind(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"local|auto|ray://\S+:[0-9]{1,5}", value):
            raise ValueError(f"must be local, auto or ray://HOST:PORT, not '{value}'")
        return value

    @model_validator(mode="after")
    def _needs_an_address(self) -> ClusterConfig:
        if self.address is None and (others := sorted(self.model_fields_set - {"address"})):
            raise ValueError(f"{others[0]} needs address: local, auto or ray://HOST:PORT")
        return self


class TrialsConfig(ClusterConfig):
    """Many machines: a cluster of Ray trains the runs (extra jaxtrain[cluster])."""

    per_trial: Amounts = "cpu=1"
    """What each run that trains gets of its machine, as gpu=0.5,cpu=4: cpu, gpu, tpu, or the name that a resource has
    in the cluster."""


class WorkersConfig(ClusterConfig):
    """Many machines: workers on a cluster of Ray share the images (extra jaxtrain[cluster])."""

    workers: Count | None = None
    """At most this many workers (default: as many as there is room for)."""
    resources: Amounts = "cpu=1"
    """What each worker gets of its machine, as gpu=1,cpu=8: cpu, gpu, tpu, or the name that a resource has in the
    cluster."""


class GroupConfig(WorkersConfig):
    """Many machines: workers on a cluster of Ray train one network together (extra jaxtrain[cluster])."""

    workers: Count | None = None
    """Processes that train (default: as many as there is room for); fewer go on where a node is lost."""


class CheckpointConfig(Section):
    """What is kept on disk during training."""

    every_seconds: Positive = 60.0
    """Save when so much time has passed since the last save."""
    every_steps: Count | None = None
    """Also save at multiples of this step (None: by time alone)."""
    keep: Count = 2
    """Newest checkpoints kept; the best by validation metric is kept besides."""


class StoreConfig(Section):
    """MLflow. `metrics.jsonl` in the run directory is written always."""

    enabled: bool = True
    """Send the run to MLflow."""
    uri: str | None = None
    """Tracking server or store (default: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db in the working directory)."""
    experiment_prefix: str = ""
    """Put before the experiment names FE, FT, PT and Benchmark."""


with warnings.catch_warnings():
    warnings.filterwarnings("ignore", 'Field name "register"')  # a method of ABCMeta, which nobody calls here

    class TrackingConfig(StoreConfig):
        """MLflow, TensorBoard and Weights & Biases. `metrics.jsonl` in the run directory is written always."""

        log_model: bool = True
        """Store the final model in MLflow, loadable by mlflow.pyfunc."""
        register: Annotated[str, Field(pattern=r"^[^/:']+$", max_length=200)] | None = None
        """Register the final model in MLflow under this name, as its next version."""
        system_metrics: bool = True
        """Record processor, memory and GPU use."""
        tensorboard: bool = False
        """Write the metrics to event files of TensorBoard too, in the run directory (extra jaxtrain[tensorboard])."""
        tensorboard_dir: Path | None = None
        """Write those event files below this folder instead, in a folder for each run."""
        wandb: bool = False
        """Send the metrics to Weights & Biases too, as its own variables say: WANDB_MODE, WANDB_API_KEY, WANDB_PROJECT
        (extra jaxtrain[wandb])."""

        @model_validator(mode="after")
        def _a_folder_for_something(self) -> TrackingConfig:
            if self.tensorboard_dir is not None and not self.tensorboard:
                raise ValueError("tensorboard_dir needs tensorboard true")
            return self


UNTRACKED = {
    **{"tracking.enabled": False, "tracking.wandb": False},
    **{"tracking.tensorboard": False, "tracking.tensorboard_dir": None},
}
"""Options of a run that nothing follows."""


class OwnConfig(Section):
    """Parts of one's own, by import path (`package.module:Name`); what is given in Python is recorded here."""

    classifier: str | None = None
    """The class that trains, where it is not one of jaxtrain's."""
    overrides: tuple[str, ...] = ()
    """The methods of jaxtrain's class that it replaces."""
    loss: str | None = None
    """A function (logits, targets) -> loss, of the batch or of each image (ft, pt)."""
    optimizer: str | None = None
    """A function (schedule) -> optax transform (ft, pt)."""


_IDLE = {
    "fe": (
        *("optimizer", "schedule", "checkpoint", "finetune", "own.loss", "own.optimizer"),
        *(f"train.{option}" for option in TrainConfig.model_fields if option not in ("class_weights", "pos_weight")),
        *("augment.mixup", "augment.cutmix", "augment.test_flips", "data.loader", "data.device_budget_mb"),
        *("data.sampling", "data.sampling_beta"),
        *("model.drop_rate", "model.drop_path_rate", "model.remat"),
    ),
    "ft": ("features", "head", "data.draws"),
    "pt": ("features", "head", "finetune", "data.draws"),
}
"""Options and sections that have no effect under a technique."""
TECHNIQUES = tuple(_IDLE)
_RECORDED = ("train.steps_per_call", "optimizer.learning_rate", "optimizer.weight_decay", "schedule.warmup_epochs")
"""What is chosen for every run, fe's too, where none of it acts; in version 0.1 its `config.yaml` had it all."""
FREE_ON_RESUME = (
    *("name", "run_dir", "quiet", "tracking", "checkpoint", "parallel"),
    *("train.log_every", "train.steps_per_call", "train.microbatch", "train.hang_minutes", "train.profile"),
    *("train.on_nonfinite", "train.nonfinite_limit", "data.dir", "data.cache_gb", "data.workers", "data.prefetch"),
    *("data.max_bad_images", "data.max_pixels", "data.device_budget_mb", "features.store", "features.batch_size"),
)
"""Options and sections that may differ when a run is continued: they do not decide what is learned."""


class Config(Section):
    """One training run."""

    technique: Literal["fe", "ft", "pt"] = "pt"
    """fe: feature extraction, a head on frozen embeddings; ft: fine-tuning; pt: pre-training from scratch."""
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")] | None = None
    """Name of the run (default: data set, model and a number)."""
    run_dir: Path | None = None
    """Run directory; one that exists is resumed (default: runs/TECHNIQUE/NAME)."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of initialisation, order, augmentation and dropout."""
    quiet: bool = False
    """Print nothing but warnings and errors."""
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig = ModelConfig()
    features: FeaturesConfig = FeaturesConfig()
    head: HeadConfig = HeadConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    train: TrainConfig = TrainConfig()
    loss: LossConfig = LossConfig()
    decision: DecisionConfig = DecisionConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    parallel: ParallelConfig = ParallelConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    own: OwnConfig = OwnConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="before")
    @classmethod
    def _without_what_was_filled_in(cls, tree: Any) -> Any:
        """A config of fe with everything chosen is read without what has no effect: nobody gave that."""
        if not isinstance(tree, Mapping) or tree.get("technique") != "fe":
            return tree
        sections = {name: value for name, value in tree.items() if isinstance(value, Mapping)}
        recorded = (path.split(".") for path in _RECORDED)
        whole = all(sections.get(section, {}).get(option) is not None for section, option in recorded)
        return acting("fe", tree) if whole else tree

    @model_validator(mode="after")
    def _options_of_the_technique(self) -> Config:
        if self.data.draws > 1 and self.data.shots is None:
            raise ValueError("data.draws needs technique fe and data.shots: each draw is a head on so few images")
        default = {name: field.get_default() for name, field in type(self).model_fields.items()}
        for section in default:
            for option in type(default[section]).model_fields if isinstance(default[section], Section) else ():
                value, path = getattr(getattr(self, section), option), f"{section}.{option}"
                off = section == "augment" and value in ("none", 0)  # which is what happens all the same
                if value != getattr(default[section], option) and not off and not self.acts(path):
                    raise ValueError(self._no_effect(path))
        return self

    @model_validator(mode="after")
    def _loss_that_acts(self) -> Config:
        if self.data.sampling != "uniform" and self.train.class_weights == "balanced":
            raise ValueError(
                f"data.sampling {self.data.sampling} and train.class_weights balanced are for the same imbalance; "
                "give one of them"
            )
        if self.own.loss is not None and self.loss != LossConfig():
            raise ValueError(f"loss.name {self.loss.name} has no effect: own.loss {self.own.loss} takes its place")
        loss = self.loss.name if self.own.loss is None else self.own.loss
        if self.train.pos_weight != "none" and loss not in ("cross_entropy", "bce"):
            raise ValueError(f"train.pos_weight is for the losses cross_entropy and bce, not for {loss}")
        if self.technique == "fe" and self.loss != LossConfig() and self.head.kind not in ("linear", "mlp"):
            raise ValueError(f"loss is for the heads linear and mlp; head.name {self.head.name} has its own")
        if self.technique == "fe" and self.loss.name != "cross_entropy" and self.head.solver == "lbfgs":
            raise ValueError(f"head.solver lbfgs is for loss.name cross_entropy; {self.loss.name} needs sgd")
        if self.loss.target_threshold is not None and self.train.label_smoothing:
            raise ValueError("train.label_smoothing has no effect: loss.target_threshold makes targets 0 and 1 again")
        return self

    def _no_effect(self, path: str) -> str:
        owners = [name for name, idle in _IDLE.items() if not {path, path.partition(".")[0]} & set(idle)]
        if self.technique in owners:
            return f"{path} has no effect: technique fe embeds each image as it is where features.views is 1"
        techniques = f"technique {owners[0]}" if len(owners) == 1 else f"techniques {' and '.join(sorted(owners))}"
        return f"{path} is an option of {techniques}, not of {self.technique}"

    def acts(self, path: str) -> bool:
        """Whether an option, named as on the command line, has an effect under this technique."""
        return not {path, path.partition(".")[0]} & _idle(self.technique, self.features.views)

    def get(self, path: str) -> Any:
        """The value of an option, or a section, named as on the command line: `config.get("train.epochs")`."""
        return functools.reduce(getattr, path.split("."), self)

    def replace(self, **changes: Any) -> Config:
        """A copy with changed options, named as on the command line: `config.replace(**{"train.epochs": 3})`."""
        tree = self.model_dump()
        for path, value in changes.items():
            put(tree, path, value)
        return Config.model_validate(tree)

    def without(self, paths: Iterable[str]) -> dict[str, Any]:
        """The options as JSON has them, except for these options and sections."""
        tree = self.model_dump(mode="json")
        for path in paths:
            section, _, key = path.rpartition(".")
            (tree[section] if section else tree).pop(key)
        return tree


def acting(technique: str, tree: Mapping[str, Any]) -> dict[str, Any]:
    """A dumped config without the options that have no effect under a technique."""
    idle = _idle(technique, (tree.get("features") or {}).get("views", 1))

    def kept(section: str, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        return {option: each for option, each in value.items() if f"{section}.{option}" not in idle}

    return {name: kept(name, value) for name, value in tree.items() if name not in idle}


def _idle(technique: str, views: int) -> set[str]:
    """Options and sections without effect; fe changes images only for the views that it adds."""
    return {*_IDLE[technique], *(("augment",) if technique == "fe" and views == 1 else ())}


def put(tree: dict[str, Any], path: str, value: Any) -> None:
    """Sets an option, named as on the command line, in a dumped config."""
    *sections, key = path.split(".")
    for section in sections:
        tree = tree[section]
    tree[key] = value
