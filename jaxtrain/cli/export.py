"""`jaxtrain export`: a trained model for programs that have no jaxtrain."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from jaxtrain.cli.command import Command, Positional


class Export(Command):
    """Write a trained model for other programs, checked against the model itself.

    stablehlo: one program with weights and normalisation, for CPU, CUDA and TPU, that JAX runs without jaxtrain. timm:
    weights and configuration for timm.create_model.
    """

    run_dir: Annotated[Path, Positional("RUN_DIR")]
    """Run directory, or a folder written by save()."""
    to: Literal["stablehlo", "timm"] = "stablehlo"
    """What to write."""
    out: Path | None = None
    """The folder, which must not exist yet (default: RUN_DIR/FORMAT)."""
    trust_imports: bool = False
    """Import the network or class that the run names (module:Name): it is executed, so only for runs that you trust."""

    def run(self) -> None:
        """Write the folder. Raises UserError where the model has no such form."""
        from jaxtrain import load
        from jaxtrain.classifiers.export import export_stablehlo, export_to_timm
        from jaxtrain.screen.console import print_line

        folder = self.out or self.run_dir / self.to
        if self.to == "timm":
            export_to_timm(self.run_dir, folder)
        else:
            export_stablehlo(load(self.run_dir, trust_imports=self.trust_imports), folder)
        print_line(f"{self.to} {folder}")
