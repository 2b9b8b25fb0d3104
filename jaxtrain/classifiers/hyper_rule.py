"""What fine-tuning chooses by the size of the data set, where options are left open.

In the spirit of BiT's HyperRule (Kolesnikov et al. 2020, arXiv 1912.11370, section 3.3 and appendix A), which looks at
nothing but the number of training images and their size:

| training images | images seen (BiT: steps of 512) | at most | mixup |
| --- | --- | --- | --- |
| up to 20,000 | 256,000 (500) | 30 epochs | none |
| up to 500,000 | 5,120,000 (10,000) | 30 epochs | 0.1 |
| more | 10,240,000 (20,000) | 30 epochs | 0.1 |

BiT has no bound on epochs and so goes over 2,000 images 128 times, with a single augmentation and large networks; 30 is
our bound, for what a person waits for. Sides: images below 96 pixels are shown at 128 (enlarged), larger ones at the
size of the weights. Rates: BiT's are for SGD and its own networks, so that
ours are the usual ones: the table below.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from jaxtrain.config import Config, FinetuneConfig, chosen
from jaxtrain.data.base import Dataset
from jaxtrain.models import model_spec
from jaxtrain.models.weights import Pretrained


class _Row(NamedTuple):
    images: float
    """Up to this many training images."""
    seen: int
    """Images that pass through the network in all."""
    mixup: float


_LENGTHS = (
    _Row(20_000, 500 * 512, 0.0),
    _Row(500_000, 10_000 * 512, 0.1),
    _Row(math.inf, 20_000 * 512, 0.1),
)
_MOST_EPOCHS = 30.0
_SMALL_IMAGE, _SHOWN_AT = 96, 128

# Peak rates of the backbone at batch 128 when all of it trains. adamw: between BEiT's and DeiT's fine-tuning rates for
# such a batch (Bao et al. 2021; Touvron et al. 2021); the others in the proportions of their rates from scratch.
_FULL_RATES = {"sgd": 1e-2, "adamw": 1e-4, "lamb": 5e-4, "lion": 3e-5, "muon": 2e-4}
_FEW_FACTOR = 10.0
"""Few or fresh parameters take larger steps: heads, BitFit (Ben Zaken et al. 2021), LoRA (Hu et al. 2021)."""
_LORA_RANK, _LORA_ALPHA_SHARE = 4, 2.0


def hyper_rule(config: Config, dataset: Dataset, pretrained: Pretrained) -> Config:
    """`config` with length, rates, mixup, image size and the strategy's own options chosen where they are None."""
    shots, images = config.data.shots, len(dataset.train)
    if shots is not None:
        images = min(images, shots * dataset.num_classes)
    row = next(row for row in _LENGTHS if images <= row.images)
    few = config.finetune.strategy in ("head", "lora", "norm_bias")
    rate = config.optimizer.learning_rate or _FULL_RATES[config.optimizer.name] * (_FEW_FACTOR if few else 1.0)
    changes: dict[str, object] = {"optimizer.learning_rate": rate}
    if config.train.epochs is None and config.train.steps is None:
        changes["train.epochs"] = round(min(row.seen / images, _MOST_EPOCHS), 2)
    if config.finetune.head_learning_rate is None:
        changes["finetune.head_learning_rate"] = rate if few else rate * _FEW_FACTOR
    if config.augment.mixup is None and config.augment.policy == "auto":
        changes["augment.mixup"] = row.mixup
    if config.data.image_size is None:
        changes["data.image_size"] = _image_size(config, dataset, pretrained)
    changes |= {f"finetune.{option}": value for option, value in _of_strategy(config.finetune).items()}
    return config.replace(**changes)


def _image_size(config: Config, dataset: Dataset, pretrained: Pretrained) -> int:
    size = dataset.uniform_size
    if size is None or max(size) >= _SMALL_IMAGE or pretrained.image_size <= _SHOWN_AT:
        return pretrained.image_size
    own = pretrained.model.patch_size or model_spec(chosen(pretrained.model.name)).kwargs.get("patch_size", 1)
    patch: int = config.model.patch_size or own
    return _SHOWN_AT // patch * patch


def _of_strategy(given: FinetuneConfig) -> dict[str, object]:
    match given.strategy:
        case "blocks":
            return {"blocks": given.blocks or 1}
        case "lora":
            rank = given.lora_rank or _LORA_RANK
            return {"lora_rank": rank, "lora_alpha": given.lora_alpha or _LORA_ALPHA_SHARE * rank}
    return {}
