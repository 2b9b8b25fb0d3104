import os
import signal
import subprocess
import sys
import threading

import pytest

from jaxtrain.errors import JaxtrainError
from jaxtrain.files import optional
from jaxtrain.training.signals import Interrupted, StopRequest, stopped_at_once

SIGNALS = [signal.SIGINT, signal.SIGTERM]


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


@pytest.mark.parametrize("number", SIGNALS)
def test_between_runs_a_signal_ends_what_it_finds_also_a_picture(number: int) -> None:
    def report() -> None:
        with stopped_at_once("go on with: x"), optional("page"):
            os.kill(os.getpid(), number)
            pytest.fail("it went on")

    before = [signal.getsignal(each) for each in SIGNALS]
    with pytest.raises(Interrupted, match="go on with: x") as caught:
        report()
    assert caught.value.exit_code == 128 + number
    assert [signal.getsignal(each) for each in SIGNALS] == before
    with stopped_at_once("x"), StopRequest() as stop:  # inside, a run saves first
        os.kill(os.getpid(), number)
        assert stop.requested == number


@pytest.mark.parametrize("number", SIGNALS)
def test_another_sigterm_changes_nothing(number: int) -> None:
    with StopRequest() as stop:
        for sent in (number, signal.SIGTERM, signal.SIGTERM):
            os.kill(os.getpid(), sent)
        assert stop.requested == number


def test_nested_requests_the_inner_one_gets_the_signal() -> None:
    with StopRequest() as outer:
        with StopRequest() as inner:
            os.kill(os.getpid(), signal.SIGTERM)
        assert (inner.requested, outer.requested) == (signal.SIGTERM, None)
        os.kill(os.getpid(), signal.SIGINT)
        assert outer.requested == signal.SIGINT


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


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_exit_codes(number: int, code: int) -> None:
    error = Interrupted(number, "stopped at step 3, saved")
    assert isinstance(error, JaxtrainError)
    assert (error.exit_code, str(error)) == (code, "stopped at step 3, saved")


SCRIPT = """
import sys, time
from jaxtrain.training.signals import StopRequest
with StopRequest() as stop:
    print("ready", flush=True)
    while stop.requested is None or "stubborn" in sys.argv:
        time.sleep(0.01)
    sys.exit(128 + stop.requested)
"""


def start(*arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


@pytest.mark.parametrize(
    ("arguments", "sent", "code"),
    [
        ((), [signal.SIGINT], 130),
        ((), [signal.SIGTERM], 143),
        (("stubborn",), [signal.SIGINT, signal.SIGINT], 130),
        (("stubborn",), [signal.SIGTERM, signal.SIGINT], 130),
    ],
)
def test_ctrl_c_after_a_signal_ends_a_process_that_does_not_look(
    arguments: tuple[str, ...], sent: list[int], code: int
) -> None:
    child = start(*arguments)
    assert child.stderr is not None
    for number in sent[:-1]:
        child.send_signal(number)
        assert [child.stderr.readline(), child.stderr.readline()][1].startswith(signal.Signals(number).name)
        assert child.poll() is None
    child.send_signal(sent[-1])
    assert child.wait(timeout=10) == code
    child.stderr.close()
