"""The results of a sweep in Python and in notebooks."""

from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jaxtrain.config_io import find_config
from jaxtrain.errors import UserError
from jaxtrain.evaluation.page import picture
from jaxtrain.files import from_here
from jaxtrain.sweeps import plots
from jaxtrain.sweeps.config import load_sweep
from jaxtrain.sweeps.page import rows_for_terminal, warnings
from jaxtrain.sweeps.plan import make_plan
from jaxtrain.sweeps.report import results, setting_row
from jaxtrain.sweeps.results import Results
from jaxtrain.sweeps.study import Trials

if TYPE_CHECKING:
    import pandas as pd

_SHOWN = 10


@dataclass(frozen=True)
class SweepResults:
    """What the runs of a sweep came to so far; a notebook shows the best settings, warnings and a picture."""

    results: Results
    """Everything: settings best first, effects of each axis, runs."""
    folder: Path
    """The directory of the sweep."""

    @property
    def best(self) -> Path | None:
        """The config file of the chosen setting, once the sweep has ended."""
        path = self.folder / "results" / "best.yaml"
        return path if path.is_file() else None

    def to_pandas(self) -> pd.DataFrame:
        """A row for each setting, best first: its values, the mean of the objective with its interval, each seed's."""
        import pandas as pd

        return pd.DataFrame([setting_row(self.results, one) for one in self.results.ranked])

    def __repr__(self) -> str:
        """The best settings, and what speaks against trusting the figures."""
        return "\n".join([self._best().to_string(index=False), *warnings(self.results)])

    def _repr_html_(self) -> str:
        lines = "".join(f"<li>{html.escape(line)}</li>" for line in warnings(self.results))
        made = picture(lambda: plots.settings(self.results), "Settings with their intervals")
        image = "" if made is None else f'<img alt="{made.text}" src="{made.source}">'
        table = self._best().to_html(index=False, escape=True, border=0)
        where = html.escape(str(from_here(self.folder)))
        return f"<b>{html.escape(self.results.sweep.name)}</b> ({where}){table}<ul>{lines}</ul>{image}"

    def _best(self) -> pd.DataFrame:
        import pandas as pd

        return pd.DataFrame(rows_for_terminal(self.results, _SHOWN))


def sweep_results(file: str | Path) -> SweepResults:
    """The results of `jaxtrain sweep FILE` so far, by the same file or recipe, in the same working directory.

    Raises UserError where there is no such file, and where the sweep has not begun.
    """
    path = find_config(file)
    sweep = load_sweep(path)
    if not sweep.folder.is_dir():
        raise UserError(
            f"sweep {sweep.name} has no runs in {from_here(sweep.folder)}: start it with jaxtrain sweep {file}"
        )
    plan = make_plan(sweep, path)
    return SweepResults(results(plan, Trials(plan)), sweep.folder)
