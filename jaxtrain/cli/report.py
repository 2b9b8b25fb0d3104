"""`jaxtrain report`: one page for runs, finished or not."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from jaxtrain.cli.command import Command, Positional
from jaxtrain.errors import UserError


class Report(Command):
    """Write one HTML page for runs of any kind, finished or not: results, options, learning curves, pictures.

    Nothing is computed: what differs significantly is for `jaxtrain benchmark` to say.
    """

    runs: Annotated[tuple[Path, ...], Positional("RUN_DIR")] = ()
    """Run directories, or folders of them, such as that of a sweep (default: all under runs/)."""
    out: Path = Path("report.html")
    """The file to write."""
    open: bool = False
    """Open the page in a browser."""

    def run(self) -> None:
        """Write the page. UserError where no run is there; a run whose files are damaged is named and left out."""
        from jaxtrain.evaluation.finished import leaving_out
        from jaxtrain.files import write_text
        from jaxtrain.runs.page import read_run_directory, render
        from jaxtrain.screen.console import print_line

        if not self.out.parent.is_dir():
            raise UserError(f"--out: {self.out.parent} is not a folder")
        found, left_out = [], dict[str, str]()
        for path in _run_directories(self.runs or (Path("runs"),)):
            with leaving_out(str(path), left_out):
                found.append(read_run_directory(path))
        if not found:
            raise UserError("every run was left out: see the warnings")
        write_text(self.out, render(found))
        print_line(f"report    {self.out}")
        if self.open:
            import webbrowser

            webbrowser.open(self.out.absolute().as_uri())


def _run_directories(paths: tuple[Path, ...]) -> list[Path]:
    """Those named, and those below the folders named; UserError for one that holds none."""
    found: list[Path] = []
    for path in paths:
        inside = [path] if (path / "config.yaml").is_file() else []
        inside = inside or sorted(
            one.parent for depth in ("*", "*/*", "*/*/*") for one in path.glob(f"{depth}/config.yaml")
        )
        if not inside:
            raise UserError(f"{path}: no run is there: no folder in it holds a config.yaml")
        found += inside
    return list(dict.fromkeys(found))
