"""Speed of training with MLflow dead, silent or failing from start to end, as a share of that without tracking.

    python scripts/bench_tracking.py [rounds] [steps]

Rounds alternate between the variants. `dead`: nothing listens at the address; `silent`: connections are taken and
never answered; `errors`: every answer is an error 500. The parameters at the end must be the same bits.
"""

import http.server
import logging
import socket
import sys
import tempfile
import threading
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from jaxtrain import PTClassifier


class _Errors(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        """Error 500."""
        self.send_error(500)

    do_POST = do_GET  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


def run(uri: str | None, steps: int) -> dict[str, Any]:
    """The summary of one run."""
    images = np.random.default_rng(0).integers(0, 256, (2000, 12, 12), np.uint8)
    tracking = {"enabled": uri is not None, "uri": uri, "log_model": False}
    with tempfile.TemporaryDirectory() as folder:
        options = {"train": {"steps": steps, "batch_size": 32}, "model": {"name": "cnn_tiny"}, "tracking": tracking}
        model = PTClassifier(run_dir=Path(folder, "run"), quiet=True, **options)
        return model.fit(images, np.arange(2000) % 10).summary


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    rounds, steps = (int(text) for text in [*sys.argv[1:], "5", "8000"][:2])
    dead, silent = socket.socket(), socket.create_server(("127.0.0.1", 0))
    dead.bind(("127.0.0.1", 0))
    errors = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Errors)
    threading.Thread(target=errors.serve_forever, daemon=True).start()
    ports = {"dead": dead.getsockname()[1], "silent": silent.getsockname()[1], "errors": errors.server_address[1]}
    variants = {"none": None} | {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
    results = [{name: run(uri, steps) for name, uri in variants.items()} for _ in range(rounds)]
    digests = {summary["params_sha256"] for each in results for summary in each.values()}
    print(f"{rounds} rounds of {steps} steps; {'the same bits' if len(digests) == 1 else 'DIFFERENT BITS'} in all")
    for name in variants:
        ratios = [each["none"]["wall_seconds"] / each[name]["wall_seconds"] for each in results]
        print(f"{name:7} {median(ratios):.3f} of the speed ({min(ratios):.3f} to {max(ratios):.3f})")
