import os
import signal
import subprocess
import sys
import threading

import pytest

from jaxtrain.errors import JaxtrainError
from jaxtrain.training import signals
from jaxtrain.training.signals import SIGNALS, Interrupted, StopRequest


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_noted_and_nothing_else_happens(number: int, capfd: pytest.CaptureFixture) -> None:
    with StopRequest() as stop:
        assert stop.requested is None
        os.kill(os.getpid(), number)
        assert stop.requested == number
    assert signal.Signals(number).name in capfd.readouterr().err


@pytest.mark.parametrize("number", SIGNALS)
def test_handlers_are_restored_also_after_an_error(number: int) -> None:
    def mine(*_: object) -> None:
        caught.append(number)

    caught: list[int] = []
    before = signal.signal(number, mine)
    try:
        with pytest.raises(ValueError, match="x"), StopRequest():
            raise ValueError("x")
        os.kill(os.getpid(), number)
        assert caught == [number]
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_same_request_sent_twice_changes_nothing(number: int) -> None:
    with StopRequest() as stop:
        for sent in (number, signal.SIGTERM, signal.SIGHUP):
            os.kill(os.getpid(), sent)
        assert stop.requested == number


def test_nested_requests_share_what_was_asked() -> None:
    with StopRequest() as outer:
        with StopRequest() as inner:
            os.kill(os.getpid(), signal.SIGTERM)
        assert (inner.requested, outer.requested) == (signal.SIGTERM, signal.SIGTERM)
        with StopRequest() as next_one, pytest.raises(Interrupted, match="where it was"):
            next_one.check("where it was")
    with StopRequest() as other:
        other.check("nothing came")


def test_nohup_is_respected() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.requested is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_outside_the_main_thread_nothing_is_touched() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    seen: list[object] = []

    def work() -> None:
        with StopRequest() as stop:
            seen.append([signal.getsignal(number) for number in SIGNALS])
            seen.append(stop.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before, None]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_exit_codes(number: int, code: int) -> None:
    error = Interrupted(number, "stopped at step 3, saved")
    assert isinstance(error, JaxtrainError)
    assert (error.exit_code, str(error)) == (code, "stopped at step 3, saved")


PROGRAMS = {
    "looks": """
with StopRequest("continue with: x") as stop:
    ready()
    while stop.requested is None:
        time.sleep(0.01)
    sys.exit(128 + stop.requested)
""",
    "does not look": """
with StopRequest("continue with: x") as stop:
    ready()
    time.sleep(60)
""",
    "computes": """
with StopRequest("continue with: x") as stop:
    ready()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # no handler runs meanwhile
""",
    "has something to save": """
with StopRequest("continue with: x") as stop:
    stop.unsaved(True)
    ready()
    while stop.requested is None:
        time.sleep(0.01)
    time.sleep(1)
    sys.exit(77)
""",
    "between": """
ready()
hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
""",
    "raises in a callback": """
class Cycle:
    def __del__(self):
        try:
            time.sleep(60)
        except BaseException:
            pass
ready()
Cycle()
time.sleep(60)
""",
}
START = """
import hashlib, sys, time
from jaxtrain.training import signals
from jaxtrain.training.signals import StopRequest
signals.PATIENCE_SECONDS = 0.3
signals.listen()
def ready():
    print("ready", flush=True)
"""


def start(program: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.Popen(
        [sys.executable, "-c", START + PROGRAMS[program]],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


@pytest.mark.parametrize(
    ("program", "sent", "code", "said"),
    [
        ("looks", [signal.SIGINT], 130, "SIGINT: saving"),
        ("looks", [signal.SIGHUP], 129, "SIGHUP: saving"),
        ("does not look", [signal.SIGTERM], 143, "interrupted: by SIGTERM; continue with: x"),
        ("does not look", [signal.SIGTERM, signal.SIGINT], 130, "interrupted: by SIGINT; stopped at once"),
        ("computes", [signal.SIGINT], 130, "interrupted: by SIGINT; continue with: x"),
        ("computes", [signal.SIGINT, signal.SIGINT], 130, "interrupted: by SIGINT; stopped at once"),
        ("has something to save", [signal.SIGTERM, signal.SIGTERM], 77, "SIGTERM: saving"),
        ("between", [signal.SIGHUP], 129, "interrupted: by SIGHUP; what is finished is kept"),
        ("raises in a callback", [signal.SIGINT], 130, "interrupted: by SIGINT; what is finished is kept"),
    ],
)
def test_a_program_ends_whatever_it_does(program: str, sent: list[int], code: int, said: str) -> None:
    child = start(program)
    assert child.stderr is not None
    for number in sent[:-1]:
        child.send_signal(number)
        assert [child.stderr.readline(), child.stderr.readline()][1].startswith(signal.Signals(number).name)
        assert child.poll() is None
    child.send_signal(sent[-1])
    _, text = child.communicate(timeout=10)
    assert child.returncode == code
    assert len(sent) > 1 or said in text
    assert text.count("interrupted:") == said.count("interrupted:")
    assert "Traceback" not in text


def test_another_sigterm_ends_a_program_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr(signals, "_REPEATED_SECONDS", 0.0)
    monkeypatch.setattr(signals, "_end", lambda number, words: ended.append(number))
    with StopRequest():
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
    assert ended == [signal.SIGTERM]
