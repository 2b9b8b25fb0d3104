import sys
from pathlib import Path

for folder in ("faults", "classifiers", "tracking"):
    sys.path.insert(0, str(Path(__file__).parents[1] / folder))
from mlflow_server import _database, _quick_failures, server, sqlite_uri  # noqa: E402, F401
