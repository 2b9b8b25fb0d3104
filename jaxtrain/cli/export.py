"""`jaxtrain export`: a trained model for programs that have no jaxtrain."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from jaxtrain.cli.command import Command, Positional


class Export(Command):
    """Write a trained model for other programs, checked against the model itself.

    stablehlo: one program with weights and normalisation, for CPU, CUDA and TPU, that JAX runs without jaxtrain. onnx:
    the same for onnxruntime. timm: weights, configuration and model card for timm.create_model. hub: the files of timm,
    pushed to the Hugging Face hub.
    """

    run_dir: Annotated[Path, Positional("RUN_DIR")]
    """Run directory, or a folder written by save()."""
    to: Literal["stablehlo", "onnx", "timm", "hub"] = "stablehlo"
    """What to write."""
    out: Path | None = None
    """The folder, which must not exist yet (default: RUN_DIR/FORMAT)."""
    hub_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$", max_length=96)] | None = None
    """ORG/NAME on the hub, which is made where it is not there."""
    hub_public: bool = False
    """Whether a repository that is made is public."""
    trust_imports: bool = False
    """Import the network or class that the run names (module:Name): it is executed, so only for runs that you trust."""

    @model_validator(mode="after")
    def _name_of_the_hub(self) -> Export:
        if (self.to == "hub") != (self.hub_name is not None):
            raise ValueError("--hub-name is missing: ORG/NAME" if self.to == "hub" else "--hub-name is for --to hub")
        if self.hub_public and self.to != "hub":
            raise ValueError("--hub-public is for --to hub")
        if self.to == "hub" and self.out is not None:
            raise ValueError("--out has no effect with --to hub; --to timm writes the same folder")
        return self

    def run(self) -> None:
        """Write the folder. Raises UserError where the model has no such form."""
        from jaxtrain import load
        from jaxtrain.classifiers.export import export_onnx, export_stablehlo, export_to_hub, export_to_timm
        from jaxtrain.screen.console import print_line

        if self.hub_name is not None:
            print_line(f"hub {export_to_hub(self.run_dir, self.hub_name, public=self.hub_public)}")
            return
        folder = self.out or self.run_dir / self.to
        if self.to == "timm":
            export_to_timm(self.run_dir, folder)
        else:
            write = export_onnx if self.to == "onnx" else export_stablehlo
            write(load(self.run_dir, trust_imports=self.trust_imports), folder)
        print_line(f"{self.to} {folder}")
