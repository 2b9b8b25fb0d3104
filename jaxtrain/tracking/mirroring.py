"""Training's side of the mirrors: which are wanted, whether they can be had, and what is heard of them."""

from __future__ import annotations

import importlib.util
import logging
import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from jaxtrain.config import TrackingConfig
from jaxtrain.errors import UserError
from jaxtrain.tracking.mirrors import MirrorState
from jaxtrain.tracking.outbox import MIRRORS
from jaxtrain.tracking.patience import Patience, patience
from jaxtrain.tracking.process import Sidecar

UNHEARD_SECONDS = 10.0
NAMES = {"tensorboard": "TensorBoard", "wandb": "Weights & Biases"}
_log = logging.getLogger("jaxtrain.tracking")


def wanted_mirrors(config: TrackingConfig) -> dict[str, str]:
    """The mirrors that a config asks for, each with the folder that it names, or an empty text.

    Raises UserError where the package of one is not installed.
    """
    wanted = {}
    if config.tensorboard:
        wanted["tensorboard"] = "" if config.tensorboard_dir is None else str(config.tensorboard_dir.absolute())
    if config.wandb:
        wanted["wandb"] = ""
    for name in wanted:
        require(name)
    return wanted


def require(name: str) -> None:
    """Raises UserError where the package of a mirror is not installed; it is not imported."""
    found = importlib.util.find_spec(name) if name not in sys.modules else sys.modules[name].__spec__
    if found is None or found.origin is None:  # a mere folder of that name, such as the one that wandb writes
        raise UserError(f"tracking.{name} needs a package that is not installed: pip install 'jaxtrain[{name}]'")


class Mirrors:
    """The mirrors of one run, as its tracker sees them."""

    def __init__(self, run_dir: Path, wanted: Mapping[str, str]) -> None:
        self.names = tuple(name for name in MIRRORS if name in wanted)
        self.lacking: dict[str, str] = {}
        """Why each of those that lack something does, in one line."""
        self._run_dir, self._wanted = run_dir, dict(wanted)
        self._session = ""
        self._heard, self._over, self._said = set[str](), set[str](), set[str]()

    def begin(self, session: str) -> dict[str, dict[str, str]]:
        """What the sidecar is sent; `session` is what it answers with."""
        self._session, self._heard, self._over = session, set(), set()
        return {"mirrors": self._wanted}

    def hear(self, *, last: bool = False) -> None:
        """What the sidecar says of them; why one lacks something is logged once. `last`: nothing follows."""
        for name in self.names:
            state = MirrorState.load(self._run_dir, name)
            heard = state.session == self._session
            problem = state.problem if heard else None
            self._heard |= {name} if heard else set()
            if heard and state.over:
                self._over.add(name)
            elif last and problem is None:
                problem = "it does not answer in time"
            if problem is None:
                self.lacking.pop(name, None)
                continue
            if name not in self._said:
                self._said.add(name)
                sync = shlex.join(["jaxtrain", "sync", str(self._run_dir)])
                told = "%s lacks part of the run (%s); metrics are kept in %s, and %s sends them"
                _log.warning(told, NAMES[name], problem, self._run_dir, sync)
            self.lacking[name] = problem

    def wait(self, sidecar: Sidecar, timeout: float, *, patient: Patience | None = None) -> bool:
        """Until all have ended, the sidecar has died, or nobody waits any longer; whether no other sidecar is needed.

        In all runs of the process, mirrors that do not answer take no more together than one store of MLflow, and one
        that never did, such as wandb without a network, `UNHEARD_SECONDS`. `patient`: waits as long as it says.
        """
        start = time.monotonic()

        def ended() -> bool:
            self.hear()
            return self._over.issuperset(self.names)

        def settled() -> bool:
            hopeless = patient is None and time.monotonic() - start > UNHEARD_SECONDS
            return ended() or not sidecar.alive or (hopeless and self._over.issuperset(self._heard))

        if not self.names:
            return True
        who = " and ".join(NAMES[name] for name in self.names)
        waits = patient or patience(f"mirrors {self.names}", who)
        waits.wait(settled, timeout)
        if ended() and not self.lacking:
            waits.restore()
        return ended() or sidecar.alive
