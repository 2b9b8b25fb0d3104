"""Whether a comparison makes another model the champion of a registered one: only where the difference is real."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jaxtrain.errors import UserError
from jaxtrain.evaluation.comparison import Comparison
from jaxtrain.evaluation.runs import Gathered
from jaxtrain.tracking import stored_model, stored_run
from jaxtrain.tracking.champion import Championship


def check_title(paths: Sequence[Path], title: Championship) -> None:
    """Raises UserError, before anything is computed, where the holder of the title is not among the runs."""
    holder = title.holder()
    if holder is not None and holder not in map(stored_run, paths):
        raise UserError(
            f"--champion {title.name}: its champion (MLflow run {holder}) is none of these runs; compare it too"
        )


def crown(gathered: Gathered, comparison: Comparison, title: Championship) -> str:
    """Gives the title to the best model if it is told apart from the holder, or from all others where nobody holds it.

    What came of it, in words. Raises UserError where MLflow has no such model, or the store does not answer.
    """
    folders = {candidate.name: candidate.run_dir for candidate in gathered.candidates if candidate.run_dir}
    runs = {name: stored_run(folder) for name, folder in folders.items()}
    best, holder = comparison.entries[0].name, title.holder()
    model = stored_model(folders[best]) if best in folders else None
    if model is None:
        raise UserError(f"--champion {title.name}: {best} has no model in MLflow (tracking.log_model)")
    if holder is not None and runs[best] == holder:
        return f"{title.name}: {best} stays champion"
    rivals = {name for name, run in runs.items() if run == holder} if holder else {*runs} - {best}
    level = [
        pair.second for pair in comparison.pairs
        if pair.first == best and pair.second in rivals and pair.verdict != "better"
    ]  # fmt: skip
    if level:
        stays = f"{level[0]} stays champion" if holder else "there is no champion yet"
        return f"{title.name}: {stays}; {best} is not told apart from {level[0]}"
    return f"{title.name}: {best} is champion now, version {title.crown(model)}"
