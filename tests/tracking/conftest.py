import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from mlflow_server import _database, _quick_failures, server, sqlite_uri  # noqa: F401
