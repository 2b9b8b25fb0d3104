"""FTClassifier: a pre-trained network, adapted under a chosen strategy."""

from __future__ import annotations

import logging
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxtrain.classifiers.base import BaseClassifier
from jaxtrain.classifiers.hyper_rule import hyper_rule
from jaxtrain.classifiers.linear_probe import probed_head
from jaxtrain.classifiers.starting_point import between, record, recorded, replaced
from jaxtrain.config import Config, chosen
from jaxtrain.data.base import Dataset
from jaxtrain.errors import UserError
from jaxtrain.models.depth import Depth
from jaxtrain.models.layers import BatchNorm
from jaxtrain.models.lora import NAMES, add_lora, lora_targets, merge_lora
from jaxtrain.models.own import freeze_statistics
from jaxtrain.models.weights import Pretrained, adapt, load_pretrained
from jaxtrain.runs.learning import Job
from jaxtrain.runs.resolve import DEFAULT_WEIGHTS, resolve, total_steps
from jaxtrain.training.optimizers import Schedule, Tree, decay_mask, make_optimizer
from jaxtrain.training.param_groups import decay_towards_start, scale_learning_rates
from jaxtrain.training.state import TrainState
from jaxtrain.trees import flat, leaf_name

_log = logging.getLogger(__name__)


class FTClassifier(BaseClassifier):
    """Fine-tuning: backbone and head start from pre-trained weights and are adapted as `config.finetune` says.

    What does not train gets no gradients and no optimizer state. A head for other classes than the weights' own starts
    at 0 (Kolesnikov et al. 2020), or as fitted to the embeddings (`finetune.linear_probe`).
    """

    technique: ClassVar[str] = "ft"

    @cached_property
    def pretrained(self) -> Pretrained:
        """The weights to start from: `model.weights`, else those of the package that comes with jaxtrain."""
        given = self.config.model.weights
        return load_pretrained(DEFAULT_WEIGHTS if given is None else given, self.config.model)

    def resolve(self, config: Config, dataset: Dataset, run_dir: Path | None = None) -> Config:
        """As for every technique; length, rates and image size left open follow from the size of the data set."""
        self.check_parts(config, run_dir)
        self.check_monitor(config, dataset)
        if recorded(run_dir) is not None:  # nothing is open any more, and the weights may have gone
            return resolve(config, dataset)
        resolved = resolve(hyper_rule(config, dataset, self.pretrained), dataset, self.pretrained)
        bound = self.bind(resolved)
        blocks, there = resolved.finetune.blocks, bound.depth.top - 1
        if blocks is not None and blocks > there:
            raise UserError(f"finetune.blocks: {blocks} asked for, {resolved.model.label} has {there}")
        if resolved.finetune.strategy == "lora":
            if resolved.model.network is not None:
                raise UserError(f"finetune.strategy: lora is for jaxtrain's networks, not for {resolved.model.label}")
            lora_targets(bound.shapes)  # refused before the run directory is begun with it
        if resolved.finetune.unfreeze_steps is not None:
            _check_unfreezing(resolved, bound.depth, total_steps(resolved, len(dataset.train)))
        return resolved

    def build_model(self, *, num_classes: int, axis_name: str | None) -> nnx.Module:
        """The network; in training with frozen batch norms and LoRA where the strategy has them."""
        model = super().build_model(num_classes=num_classes, axis_name=axis_name)
        finetune = self.config.finetune
        if not self.binding.training:
            return model
        if finetune.strategy == "lora":
            key = jax.random.fold_in(jax.random.key(self.config.seed), 1)
            add_lora(model, rank=chosen(finetune.lora_rank), alpha=chosen(finetune.lora_alpha), key=key)

        def keeps(path: tuple[Any, ...]) -> bool:
            frozen = finetune.unfreeze_steps is not None or not self.trainable((*path, "scale"), None)
            return frozen if finetune.freeze_statistics is None else finetune.freeze_statistics

        freeze_statistics(model, keeps)
        for path, module in nnx.iter_modules(model):
            if isinstance(module, BatchNorm):
                module.frozen = keeps(path)
        return model

    def trainable(self, path: tuple[Any, ...], value: Any) -> bool:
        """The head, and what `finetune.strategy` says."""
        del value
        finetune, name = self.config.finetune, leaf_name(path)
        if self._in_head(name):
            return True
        match finetune.strategy:
            case "full":
                return True
            case "blocks":
                return self.depth.layer(name) > self.depth.top - 1 - chosen(finetune.blocks)
            case "norm_bias":
                return path[-1] in ("bias", "scale")
            case "lora":
                return path[-1] in NAMES
        return False

    def make_optimizer(self, schedule: Schedule) -> optax.GradientTransformation:
        """The configured optimizer, with rates by depth and decay towards the start where they are asked for."""
        finetune, optimizer = self.config.finetune, self.config.optimizer
        parts = [super().make_optimizer(schedule)]
        if finetune.l2_sp > 0:
            if self.own("optimizer") is None:
                parts = [make_optimizer(optimizer, schedule, decays=self._decays_in_head)]
            parts.append(decay_towards_start(finetune.l2_sp, schedule, self._outside_head))
        return optax.chain(*parts, scale_learning_rates(self._rate_factor))

    def start(self, job: Job, fresh: TrainState, optimizer: optax.GradientTransformation) -> TrainState:
        """The pre-trained weights in place of the seed's; UserError where they aren't those that the run began with."""
        pretrained = self.pretrained
        everything = {**fresh.params, **fresh.frozen}
        network = {name: leaf for name, leaf in everything.items() if name.rpartition("/")[2] not in NAMES}
        shapes, names = {"params": network, "model_state": fresh.model_state}, job.dataset.class_names
        weights, model_state, adapted = adapt(pretrained, shapes, class_names=names, head=self.head_name)
        record(job.directory.path, pretrained, adapted)
        if self.config.finetune.linear_probe:
            probed = probed_head(job, pretrained)
            weights |= {f"{self.head_name}/{name}": leaf for name, leaf in probed.items()}
        elif not adapted.head:
            weights |= {name: np.zeros(leaf.shape, leaf.dtype) for name, leaf in network.items() if name not in weights}
        return replaced(fresh, weights, model_state, optimizer)

    def interpolated(self, job: Job, weights: Tree) -> Tree | None:
        """By `finetune.wise_ft`. UserError where the weights that the run began with are not there any more."""
        share = self.config.finetune.wise_ft
        if share is None:
            return None
        shapes = {"params": {**weights["params"], **weights["frozen"]}, "model_state": weights["model_state"]}
        names = job.dataset.class_names
        original, statistics, adapted = adapt(self.pretrained, shapes, class_names=names, head=self.head_name)
        record(job.directory.path, self.pretrained, adapted)  # refuses other weights
        return {
            "params": between(original, weights["params"], share),
            "frozen": weights["frozen"],
            "model_state": between(statistics, weights["model_state"], share),
        }

    def merged(self, weights: Tree) -> Tree:
        """LoRA's updates merged into their kernels."""
        finetune = self.config.finetune
        if finetune.strategy != "lora":
            return weights
        scale = chosen(finetune.lora_alpha) / chosen(finetune.lora_rank)
        params, frozen = merge_lora(weights["params"], weights["frozen"], scale)
        return {**weights, "params": params, "frozen": frozen}

    def about(self, job: Job) -> dict[str, Any]:
        """Strategy, and which weights training started from."""
        return {"strategy": self.config.finetune.strategy, **super().about(job)}

    def _rate_factor(self, name: str, step: jax.Array) -> jax.Array | float:
        """What the learning rate of a parameter is multiplied by."""
        finetune, peak = self.config.finetune, chosen(self.config.optimizer.learning_rate)
        if self._in_head(name):
            return chosen(finetune.head_learning_rate) / peak
        factor: jax.Array | float = 1.0
        if finetune.layer_decay < 1 or finetune.unfreeze_steps is not None:
            below = self.depth.top - self.depth.layer(name)
            factor = finetune.layer_decay**below
            if finetune.unfreeze_steps is not None:
                factor = jnp.where(step >= finetune.unfreeze_steps * (below + 1), factor, 0.0)
        return factor

    @cached_property
    def shapes(self) -> nnx.Module:
        """The network without LoRA, its arrays as shapes."""
        build = super().build_model
        model: nnx.Module = nnx.eval_shape(lambda: build(num_classes=2, axis_name=None))
        return model

    @cached_property
    def depth(self) -> Depth:
        """The layers of the network."""
        names = flat(nnx.to_pure_dict(nnx.state(self.shapes, nnx.Param)))
        return Depth.of(names, self.head_name, self.config.model.network)

    def _in_head(self, name: str) -> bool:
        return name.startswith(f"{self.head_name}/")

    def _outside_head(self, params: Tree) -> Tree:
        return {name: not self._in_head(name) for name in params}

    def _decays_in_head(self, params: Tree) -> Tree:
        """True for what weight decay applies to in the head."""
        return {name: yes and self._in_head(name) for name, yes in decay_mask(params).items()}


def _check_unfreezing(config: Config, depth: Depth, total: int) -> None:
    """UserError where training ends before anything but the head has trained; a warning where blocks never do."""
    every = chosen(config.finetune.unfreeze_steps)
    if every >= total:
        raise UserError(
            f"finetune.unfreeze_steps: after {every} steps more than the head trains, but training has {total} steps; "
            "give fewer, or strategy head"
        )
    blocks = config.finetune.blocks or depth.top - 1
    joining = (total - 1) // every - 1  # what follows the blocks joins first
    if joining < blocks:
        _log.warning(
            "finetune.unfreeze_steps: one block every %d steps: in %d steps %d of %d blocks join, the others stay as "
            "they are",
            *(every, total, joining, blocks),
        )
