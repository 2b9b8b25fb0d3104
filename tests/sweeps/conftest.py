"""A PostgreSQL server of the tests' own, where one is installed."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest


def _program(name):
    found = shutil.which(name) or next(iter(sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))), None)
    return found or pytest.skip("PostgreSQL is not installed")


@pytest.fixture(scope="session")
def postgres():
    """The URL of an empty database. The server refuses root: there it runs as the user that its package has made."""
    psycopg = pytest.importorskip("psycopg")
    user = None
    if os.geteuid() == 0:
        user = next((each.pw_name for each in pwd.getpwall() if each.pw_name == "postgres"), None)
        if user is None:
            pytest.skip("PostgreSQL has no user of its own here")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tempfile.mkdtemp(prefix="postgres-")
    shutil.chown(folder, user or os.geteuid())
    quiet = {"user": user, "cwd": folder, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run([_program("initdb"), "-D", f"{folder}/data", "-A", "trust", "-U", "tester"], check=True, **quiet)
    options = ["-D", f"{folder}/data", "-k", folder, "-h", "127.0.0.1", "-p", str(port), "-F"]
    server = subprocess.Popen([_program("postgres"), *options], **quiet)
    try:
        deadline = time.monotonic() + 60
        url = f"postgresql://tester@127.0.0.1:{port}/postgres"
        while not answers(psycopg, url):
            assert server.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield url
    finally:
        server.send_signal(signal.SIGINT)  # the fast shutdown, which does not wait for clients
        server.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def answers(psycopg, url):
    """Whether a server takes connections; it refuses some while it starts."""
    try:
        psycopg.connect(url, connect_timeout=5).close()
    except psycopg.OperationalError:
        return False
    return True
