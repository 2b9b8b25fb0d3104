"""A hub of our own on this machine, since the real one is not to be had in tests."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
import urllib.parse

import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxtrain.errors import UserError
from jaxtrain.models.weights import hub

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CONFIG = {
    "architecture": "vit_tiny_patch16_224",
    "num_classes": 2,
    "label_names": ["cat", "dog"],
    "pretrained_cfg": {"input_size": [3, 224, 224], "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6],
                       "crop_pct": 0.9, "interpolation": "bicubic"},
}  # fmt: skip
CHILD = """
import json, sys
from jaxtrain.errors import UserError
from jaxtrain.models.weights import sources
for name in sys.argv[1:]:
    try:
        found = sources.find(name)
        print(json.dumps([found.about.model, found.about.mean, sorted(found.arrays)]))
    except UserError as error:
        print(json.dumps(str(error)))
"""


class Handler(http.server.BaseHTTPRequestHandler):
    """The few addresses that huggingface_hub asks for a file."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        repository, _, rest = urllib.parse.unquote(self.path).lstrip("/").partition("/resolve/")
        revision, _, file = rest.partition("/")
        files = self.server.repositories.get(repository)
        content = None if files is None else files.get(file)
        headers = {"X-Repo-Commit": COMMIT}
        status = 200
        if files is None or revision not in ("main", "v1", COMMIT):
            status, headers["X-Error-Code"] = 404, "RepoNotFound" if files is None else "RevisionNotFound"
        elif content is None:
            status, headers["X-Error-Code"] = 404, "EntryNotFound"
        else:
            headers["ETag"] = f'"{hashlib.sha256(content).hexdigest()}"'
        content = content or b""
        self.server.asked.append((self.command, self.path))
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path):
    save_file({"w": np.ones((2, 3), np.float32)}, tmp_path / "w.safetensors")
    weights = (tmp_path / "w.safetensors").read_bytes()
    parts = {"weight_map": {"w": "model-1.safetensors", "x": "model-2.safetensors"}}
    save_file({"x": np.ones(1, np.float32)}, tmp_path / "x.safetensors")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked = []
    server.repositories = {
        "org/vit": {"config.json": json.dumps(CONFIG).encode(), "model.safetensors": weights},
        "org/parts": {
            "config.json": json.dumps(CONFIG).encode(),
            "model.safetensors.index.json": json.dumps(parts).encode(),
            "model-1.safetensors": weights,
            "model-2.safetensors": (tmp_path / "x.safetensors").read_bytes(),
        },
        "org/bare": {"config.json": json.dumps(CONFIG).encode()},
    }
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


@pytest.fixture
def find(server, tmp_path):
    """What `find` gives in a process of its own: the hub's settings are read at its import."""

    def find(*names, **variables):
        environment = os.environ | {
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_DISABLE_XET": "1",
            **variables,
        }
        done = subprocess.run(
            [sys.executable, "-c", CHILD, *names], capture_output=True, text=True, env=environment, check=True
        )
        return [json.loads(line) for line in done.stdout.splitlines()]

    return find


@pytest.mark.slow
def test_files_are_fetched_once_and_then_also_without_a_hub(find, server):
    expected = ["vit_tiny_patch16_224", [0.1, 0.2, 0.3], ["w"]]
    assert find("hf:org/vit", "hf:org/vit@v1", "hf:org/parts") == [expected, expected, [*expected[:2], ["w", "x"]]]
    fetched = [path for command, path in server.asked if command == "GET" and path.endswith(".safetensors")]
    assert len(fetched) == len(set(fetched)) == 3
    server.asked.clear()
    assert find("hf:org/vit", "hf:org/parts", HF_HUB_OFFLINE="1") == [expected, [*expected[:2], ["w", "x"]]]
    assert not server.asked


def test_what_is_not_there_is_said_in_one_line(find):
    errors = find("hf:org/nothing", "hf:org/vit@v2", "hf:org/bare", "hf:not a name", "hf:")
    assert errors[:3] == [
        "hf:org/nothing: there is no such repository, or it is private (set HF_TOKEN)",
        "hf:org/vit@v2: the repository has no revision 'v2'",
        "hf:org/bare: holds no model.safetensors or pytorch_model.bin",
    ]
    for error in errors[3:]:
        assert error.endswith("is not the name of a repository; write hf:ORG/NAME or hf:ORG/NAME@REVISION")


def test_offline_the_reason_is_said(find):
    (offline,) = find("hf:org/vit", HF_HUB_OFFLINE="1")
    assert offline == "hf:org/vit: config.json is not in the cache, and HF_HUB_OFFLINE forbids to fetch it"


@pytest.mark.parametrize(
    ("text", "told"), [("peer closed connection\nmore", "peer closed connection"), ("", "DropError")]
)
def test_a_download_that_drops_is_one_line(monkeypatch, text, told):
    class DropError(Exception):  # as httpx has them: no OSError
        pass

    def drop(*_, **__):
        raise DropError(text)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", drop)
    with pytest.raises(UserError, match=f"^hf:org/vit: could not be fetched: {told}$"):
        hub.hub_files("org/vit")("model.safetensors")


@pytest.mark.slow  # the hub's client tries again for half a minute
def test_a_hub_that_cannot_be_reached(find):
    (unreachable,) = find("hf:org/vit", HF_ENDPOINT="http://127.0.0.1:9")
    assert unreachable.startswith(
        "hf:org/vit: config.json is not in the cache, and http://127.0.0.1:9 cannot be reached"
    )
    assert "\n" not in unreachable


def test_a_folder_is_a_repository_too(tmp_path):
    get = hub.folder_files(tmp_path)
    with pytest.raises(UserError, match=r"^here: holds no model\.safetensors"):
        hub.weight_files(get, "here")
    (tmp_path / "pytorch_model.bin").touch()
    assert hub.weight_files(get, "here") == [tmp_path / "pytorch_model.bin"]
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "p.safetensors", "b": "../q"}}')
    with pytest.raises(
        UserError, match=r"^here: model\.safetensors\.index\.json names parts that are not there: \.\./q, "
    ):
        hub.weight_files(get, "here")
