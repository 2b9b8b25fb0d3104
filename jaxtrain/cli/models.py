"""`jaxtrain models`: the networks that can be trained, and whose weights there are for them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

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
    best_for: Literal["fe", "ft"] | None = Field(None, alias="for")
    """Only models to start from: those with published weights that none with fewer FLOPs beats on ImageNet, which goes
    along with accuracy elsewhere, for fe and ft alike (Kornblith et al. 2019); the cheapest first."""
    format: Literal["table", "markdown"] = "table"
    """How it is printed."""

    def run(self) -> None:
        """Print the table. Raises UserError where no name matches."""
        from jaxtrain.errors import UserError, nearest
        from jaxtrain.models.registry import list_models, sources, undominated
        from jaxtrain.screen.console import show_table

        names = list_models(self.pattern)
        if not names:
            raise UserError(f"no model matches '{self.pattern}'; {nearest(self.pattern, list_models())}")
        if self.best_for:
            rows = [_row(name) | _weights(name, source, tag=True) for source, name in undominated(names).items()]
        elif len(names) == 1 and sources(names[0]):
            about = _row(names[0])
            print(", ".join(f"{key} {value}" for key, value in about.items()))
            rows = [_weights(names[0], source) for source in sources(names[0])]
        else:
            rows = [_row(name) | _first_weights(name) for name in names]
        if self.format == "markdown":
            lines = [" | ".join(row) for row in (rows[0], ["---"] * len(rows[0]), *map(dict.values, rows))]
            print("\n".join(f"| {line} |" for line in lines))
        else:
            show_table(rows, right=("params", "FLOPs", "embedding", "size", "top-1"))


def _row(name: str) -> dict[str, str]:
    from jaxtrain.models.registry import catalogue

    known = catalogue()[name]
    return {
        "model": name,
        "params": _rounded(int(known["parameters"])),
        "FLOPs": _rounded(int(known["flops"])),
        "embedding": known["embedding"],
        "size": known["image_size"],
    }


def _weights(name: str, source: str, *, tag: bool = False, more: str = "") -> dict[str, str]:
    from jaxtrain.models.registry import sources, top1

    shown = source.removeprefix(f"hf:timm/{name}.") if tag else source
    about = {"top-1": top1(name).get(source, ""), "licence": sources(name).get(source, "")}
    return {"weights": shown + more} | about


def _first_weights(name: str) -> dict[str, str]:
    from jaxtrain.models.registry import sources

    found = [*sources(name), ""]
    more = f", {len(found) - 2} more" if len(found) > 2 else ""
    return _weights(name, found[0], tag=True, more=more)


def _rounded(count: int) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M")):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.0f} k"
