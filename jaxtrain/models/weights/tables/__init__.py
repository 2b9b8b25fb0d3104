"""One table a family: whose weights can be read, and under which names their parameters stand."""

from __future__ import annotations

from jaxtrain.models.weights.layout import Family
from jaxtrain.models.weights.tables.convnext import CONVNEXT
from jaxtrain.models.weights.tables.efficientnet import EFFICIENTNET
from jaxtrain.models.weights.tables.eva import EVA
from jaxtrain.models.weights.tables.regnet import REGNET
from jaxtrain.models.weights.tables.resnet import RESNET
from jaxtrain.models.weights.tables.swin import SWIN
from jaxtrain.models.weights.tables.vit import VIT

TABLES: dict[str, Family] = {
    "cnn": Family(stem="blocks/0/conv/kernel"),
    "convnext": CONVNEXT,
    "efficientnet": EFFICIENTNET,
    "eva": EVA,
    "swin": SWIN,
    "regnet": REGNET,
    "resnet": RESNET,
    "vit": VIT,
    "wide_resnet": Family(stem="conv1/kernel"),
}
"""By the family's key in the registry; families without layouts take weights that jaxtrain saved alone."""
