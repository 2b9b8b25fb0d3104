from tests.tracking.mlflow_server import _database, _quick_failures, server, sqlite_uri  # noqa: F401
