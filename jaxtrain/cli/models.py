"""`jaxtrain models`: the networks that can be trained, and whose weights there are for them."""

from __future__ import annotations

from typing import Annotated

from jaxtrain.cli.command import Command, Positional


class Models(Command):
    """List the models: parameters, FLOPs and the length of the embedding (with 1,000 classes), and sources of weights.

    FLOPs are twice the multiply-adds of the convolutions and matrix products of one image, forward, at the size shown.
    Top-1 is the accuracy of the first weights of a row on ImageNet, in percent, @ the size of the images, as timm
    publishes it (results/results-imagenet.csv). A name, or a pattern such as 'vit_small*' or '*dinov2'. Weights are
    given by their tag, as in hf:timm/resnet50.a1_in1k; of one model alone all are listed as model.weights takes them.
    """

    pattern: Annotated[str, Positional("PATTERN")] = "*"
    """Names to list; * stands for anything."""

    def run(self) -> None:
        """Print the table. Raises UserError where no name matches."""
        from jaxtrain.errors import UserError, nearest
        from jaxtrain.models.registry import catalogue, list_models, sources, top1
        from jaxtrain.screen.console import show_table

        names = list_models(self.pattern)
        if not names:
            raise UserError(f"no model matches '{self.pattern}'; {nearest(self.pattern, list_models())}")
        rows = []
        for name in names:
            known, found, accuracy = catalogue()[name], list(sources(name).items()), top1(name)
            row = {
                "model": name,
                "parameters": _rounded(int(known["parameters"])),
                "FLOPs": _rounded(int(known["flops"])),
                "embedding": known["embedding"],
                "size": known["image_size"],
            }
            if len(names) == 1:
                rows += [
                    row | {"weights": source, "top-1": accuracy.get(source, ""), "licence": licence}
                    for source, licence in found or [("", "")]
                ]
            else:
                source, licence = found[0] if found else ("", "")
                more = f" and {len(found) - 1} more" if len(found) > 1 else ""
                tag = source.removeprefix(f"hf:timm/{name}.") + more
                rows.append(row | {"hf:timm/MODEL.TAG": tag, "top-1": accuracy.get(source, ""), "licence": licence})
        show_table(rows, right=("parameters", "FLOPs", "embedding", "size", "top-1"))


def _rounded(count: int) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M")):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.0f} k"
