"""MLflow's store: which one, opened safely by many processes at once, and its experiments."""

from __future__ import annotations

import contextlib
import glob
import importlib.metadata
import itertools
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxtrain.errors import UserError, nearest
from jaxtrain.files import file_lock, run_name
from jaxtrain.redact import HIDDEN, redact
from jaxtrain.tracking.provenance import PROCESS_TAG, process_is_gone

DEFAULT_URI = "sqlite:///mlflow.db"

_NOTE = "mlflow.note.content"
_HELD_OUT = "The test set is opened once, at the end of a run, and measured in the experiment Benchmark."
_ABOUT = {
    "FE": f"Feature extraction: a head trained on the embeddings of a frozen backbone. {_HELD_OUT}",
    "FT": f"Fine-tuning of pre-trained networks. {_HELD_OUT}",
    "PT": f"Pre-training: networks trained from scratch. {_HELD_OUT}",
    "Benchmark": "Every model on its test set, whatever its technique, with 95% intervals. The models that runs of the "
    "other experiments stored are inputs of these runs and have their metrics. `jaxtrain benchmark RUN_DIR ...` says "
    "which differences are significant.",
}
"""Descriptions of the experiments, whatever their prefix."""

_attempts = itertools.count()
_SCHEMES = ("sqlite", "postgresql", "mysql", "mssql", "http", "https", "databricks")


class StoreError(Exception):
    """A store that answers, but cannot take this run until a person changes something."""


def tracking_uri(option: str | None) -> str:
    """The store to use: the option, else MLFLOW_TRACKING_URI, else `sqlite:///mlflow.db` in this folder.

    Paths of SQLite files are made absolute. Raises UserError for a store that MLflow cannot use, and for one whose
    password was left out of a file and is not in MLFLOW_TRACKING_URI either.
    """
    given = os.environ.get("MLFLOW_TRACKING_URI")
    uri = option or given or DEFAULT_URI
    if HIDDEN in uri:  # read from a file, to which no password is written
        if given is None or redact(given) != uri:
            raise UserError(f"tracking.uri: the password of {uri} is not saved; give the URI, or MLFLOW_TRACKING_URI")
        uri = given
    scheme, separator, rest = uri.partition("://")
    if uri == "databricks":
        return uri
    if not separator or scheme == "file":
        source = uri.removeprefix("file://").removeprefix("file:")
        raise UserError(
            f"tracking.uri {uri!r}: MLflow no longer writes to folders; use {DEFAULT_URI} or a server, and "
            f"bring old runs along with: mlflow migrate-filestore --source {source} --target {DEFAULT_URI}"
        )
    dialect = scheme.partition("+")[0]
    if dialect not in _SCHEMES:
        plugins = {entry.name for entry in importlib.metadata.entry_points(group="mlflow.tracking_store")}
        if dialect not in plugins:
            raise UserError(f"tracking.uri {redact(uri)!r}: {nearest(dialect, {*_SCHEMES, *plugins})}")
    if dialect == "sqlite":
        path, question, query = rest.removeprefix("/").partition("?")
        if path in ("", ":memory:"):
            raise UserError(f"tracking.uri {uri!r}: an SQLite store needs a file, for example {DEFAULT_URI}")
        file = _decoded(path).absolute()
        if file.exists() and not file.is_file():
            raise UserError(f"tracking.uri {uri!r}: {file} is not a file")
        return sqlite_uri(file, scheme) + question + query
    return uri


def named_here(uri: str) -> bool:
    """Whether a store, its password left out, is the one that the environment names, or else this folder's own."""
    try:
        return redact(tracking_uri(None)) == uri
    except UserError:
        return False


def sqlite_uri(file: Path, scheme: str = "sqlite") -> str:
    """The URI of an SQLite file, wherever it is."""
    if {"%", "?"} & set(str(file)):  # SQLAlchemy knows how its version writes them
        from sqlalchemy.engine import URL

        return URL.create(scheme, database=str(file)).render_as_string()
    return f"{scheme}:///{file}"


def _decoded(path: str) -> Path:
    """The file that the path of an SQLite URI names."""
    if "%" in path:
        from sqlalchemy.engine import make_url

        path = make_url(f"sqlite:///{path}").database or path
    return Path(path)


def database_file(uri: str) -> Path | None:
    """The file of an SQLite store, None for any other store."""
    return _decoded(uri.partition(":///")[2].partition("?")[0]) if uri.startswith("sqlite") else None


def connect(uri: str) -> Any:
    """An `MlflowClient`. A fresh SQLite store is made whole and under a lock: its migrations race otherwise, and one
    that a kill left half made is never opened again."""
    from mlflow.tracking import MlflowClient

    database = database_file(uri)
    if database is None:
        return MlflowClient(uri, registry_uri=uri)
    database.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(database.with_name(f"{database.name}.lock")), _no_folder_by_the_way(uri, database):
        if not database.exists():
            _make_store(uri, database)
        return MlflowClient(uri, registry_uri=uri)


@contextlib.contextmanager
def _no_folder_by_the_way(uri: str, database: Path) -> Iterator[None]:
    """MLflow makes the folder that an SQLite URI names before it is decoded (`a%2520b` for `a%20b`): not for us."""
    written = Path(uri.partition(":///")[2].partition("?")[0]).parent
    stray = written != database.parent and not written.exists()
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if stray:
                os.removedirs(written)


def _make_store(uri: str, database: Path) -> None:
    from mlflow.store.tracking import DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    # A new name each time: MLflow keeps what it opened under a name, and would go on in a file that is gone.
    made = database.with_name(f".{database.name}.new{next(_attempts)}")
    try:
        store = SqlAlchemyStore(sqlite_uri(made), DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH)
        store.engine.dispose()
        if not database.exists():  # another program's, in the meantime
            made.rename(database)
    finally:
        for leftover in database.parent.glob(f".{glob.escape(database.name)}.new*"):
            leftover.unlink(missing_ok=True)


def trouble(uri: str, text: str) -> str:
    """What is wrong with a store, in a line for a person; MLflow's own are long, or name what came of it."""
    where, database = redact(uri), database_file(uri)
    if database is not None and re.search(r"disk is full|disk I/O error|readonly database", text):
        with contextlib.suppress(OSError):
            free, told = shutil.disk_usage(database.parent).free, text.removeprefix("(sqlite3.OperationalError) ")
            return f"{database} cannot be written ({told}; {free:,} bytes free)"
    if code := re.search(r"too many (\d+) error responses|failed with error code (\d+)", text):
        return f"{where} answers with error {code[1] or code[2]}"
    if re.search(r"timed? ?out", text):
        return f"{where} does not answer in time"
    if re.search(r"NewConnectionError|NameResolution|Connection (?:aborted|refused|reset)", text):
        return f"no connection to {where}"
    return text[:300]


def experiment_id(client: Any, uri: str, name: str) -> str:
    """The experiment of this name, created where it is missing; many processes may ask at once.

    Raises StoreError where the experiment is in MLflow's bin.
    """
    from mlflow.exceptions import MlflowException

    found, tags = client.get_experiment_by_name(name), _experiment_tags(name)
    if found is None:
        database = database_file(uri)
        # MLflow's default is `mlruns` in the folder of whoever comes first: keep it beside the database.
        location = (database.parent / "mlruns" / run_name(name)).as_uri() if database else None
        try:
            return str(client.create_experiment(name, artifact_location=location, tags=tags))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)
    if found is None or found.lifecycle_stage != "active":
        number = found.experiment_id if found else "?"
        raise StoreError(
            f"the experiment {name!r} was deleted: `mlflow experiments restore --experiment-id {number}` "
            "brings it back, tracking.experiment_prefix uses another"
        )
    for key, value in tags.items():
        if key not in found.tags:
            client.set_experiment_tag(found.experiment_id, key, value)
    return str(found.experiment_id)


def _experiment_tags(name: str) -> dict[str, str]:
    """By which MLflow's pages describe the experiment, and open its table of runs."""
    about = next((text for end, text in _ABOUT.items() if name.endswith(end)), None)
    return {"mlflow.experimentKind": "custom_model_development"} | ({} if about is None else {_NOTE: about})


def close_stale_runs(client: Any, experiment: str, keep: str | None = None) -> list[str]:
    """Mark runs as KILLED whose process on this machine is gone without having said how it ended.

    `keep` is the run that is being resumed; runs of other machines and other containers stay as they are.
    Returns the ids of the runs marked.
    """
    closed = []
    for run in client.search_runs([experiment], "attributes.status = 'RUNNING'"):
        identity = run.data.tags.get(PROCESS_TAG, "")
        if run.info.run_id == keep or not process_is_gone(identity):
            continue
        now = client.get_run(run.info.run_id)  # it may have been resumed in this very moment
        if now.info.status == "RUNNING" and now.data.tags.get(PROCESS_TAG) == identity:
            client.set_terminated(run.info.run_id, "KILLED")
            closed.append(str(run.info.run_id))
    return closed
