"""Who the processes of a run are; the runs themselves are in tests/multihost."""

import os
import subprocess
import sys

import pytest

from jaxtrain.config import Config
from jaxtrain.errors import UserError
from jaxtrain.training import processes
from tests.multihost.launch import free_port


@pytest.mark.parametrize(
    ("environment", "cluster"),
    [
        ({}, None),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, None),  # in the batch script, not under srun
        ({"SLURM_STEP_NUM_TASKS": "1"}, None),
        ({"SLURM_STEP_NUM_TASKS": "4"}, "Slurm"),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, None),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "Open MPI"),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
        ({"TPU_WORKER_HOSTNAMES": "t-0,t-1"}, "Cloud TPU"),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, None),
    ],
)
def test_only_a_launcher_of_several_processes_is_a_cluster(environment, cluster):
    assert processes.cluster_of(environment) == cluster


@pytest.mark.parametrize(
    ("tasks", "gpus", "devices"),
    [
        ("1(x4)", "8", [*range(8)]),
        ("1", "2", [0, 1]),
        ("8(x4)", "8", None),
        ("1(x2),2", "4", None),
        ("1(x4)", "", None),
    ],
)
def test_the_only_process_of_a_node_gets_all_its_gpus(tasks, gpus, devices):
    environment = {"SLURM_STEP_TASKS_PER_NODE": tasks, "SLURM_GPUS_ON_NODE": gpus}
    assert processes.gpus_of_the_node(environment) == devices


def test_on_a_plain_machine_jax_is_not_even_imported():
    script = (
        "import sys; from jaxtrain.config import ParallelConfig; from jaxtrain.training import processes; "
        "processes.start(ParallelConfig()); assert 'jax' not in sys.modules; assert processes.count() == 1"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"coordinator": "host:1234"}, "num_processes is missing"),
        ({"coordinator": "host:1234", "num_processes": 2}, "process_id is missing"),
        ({"num_processes": 2, "process_id": 0}, "coordinator is missing"),
        ({"num_processes": 2}, "coordinator is missing"),
        ({"coordinator": "host:1", "num_processes": 2, "process_id": 2}, "process_id 2 is not below num_processes 2"),
        ({"coordinator": "host", "num_processes": 2, "process_id": 0}, "parallel.coordinator"),
        ({"coordinator": "host:1", "num_processes": 2, "process_id": -1}, "parallel.process_id"),
    ],
)
def test_the_options_go_together(given, problem):
    from jaxtrain import PTClassifier

    with pytest.raises(UserError, match=problem) as caught:
        PTClassifier(parallel=given)
    assert "\n" not in str(caught.value)


def test_one_process_is_alone_whatever_the_cluster_says(monkeypatch):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    processes.start(Config.model_validate({"parallel": {"num_processes": 1}}).parallel)
    assert (processes.count(), processes.index(), processes.primary()) == (1, 0, True)


def test_in_one_process_nothing_is_shared():
    tree = {"a": object()}
    assert processes.shared(tree) is tree
    assert processes.decided(lambda: tree) is tree
    processes.leave(3)


def test_a_launcher_that_cannot_be_joined_is_one_line(monkeypatch):
    """JAX knows no coordinator where Slurm's other variables are missing."""
    script = (
        "import os; os.environ['SLURM_STEP_NUM_TASKS'] = '2'\n"
        "from jaxtrain.config import ParallelConfig; from jaxtrain.training import processes; "
        "from jaxtrain.errors import UserError\n"
        "try: processes.start(ParallelConfig())\n"
        "except UserError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert "parallel.num_processes 1 to run alone" in done.stdout
    assert len(done.stdout.splitlines()) == 1


JOIN = """
from jaxtrain.cli.main import guard
from jaxtrain.config import Config
from jaxtrain.training import processes
def join():
    processes.start(Config.model_validate({"parallel": {"connect_seconds": SECONDS}}).parallel)
    print(f"process {processes.index()} of {processes.count()}")
guard(join)
"""


def join(addresses, seconds):
    """A process for each address of its coordinator, named as JAX names it: their exit codes and output."""
    script, started = JOIN.replace("SECONDS", str(seconds)), []
    for number, address in enumerate(addresses):
        names = {"JAX_COORDINATOR_ADDRESS": address, "JAX_PROCESS_ID": str(number)}
        environment = os.environ | names | {"JAX_NUM_PROCESSES": str(len(addresses))}
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        started.append(subprocess.Popen([sys.executable, "-c", script], env=environment, **output))
    outputs = [process.communicate(timeout=300)[0] for process in started]
    return [process.returncode for process in started], outputs


@pytest.mark.slow
@pytest.mark.soak
def test_the_variables_of_jax_name_the_processes():
    codes, outputs = join([f"localhost:{free_port()}"] * 2, 200)
    assert codes == [0, 0], outputs
    assert [output.splitlines()[-1] for output in outputs] == ["process 0 of 2", "process 1 of 2"]


@pytest.mark.slow
def test_a_wrong_address_is_one_line_of_every_process():
    addresses = [f"localhost:{free_port()}", f"localhost:{free_port()}"]
    codes, outputs = join(addresses, 3)
    assert codes == [1, 1]
    for address, output in zip(addresses, outputs, strict=True):
        assert len(output.splitlines()) == 1, output
        assert f"coordinator {address}) within 3 s" in output


@pytest.mark.parametrize(
    ("environment", "problem"),
    [
        ({}, "JAX_NUM_PROCESSES is missing"),
        ({"JAX_NUM_PROCESSES": "2"}, "JAX_PROCESS_ID is missing"),
        ({"JAX_NUM_PROCESSES": "two", "JAX_PROCESS_ID": "0"}, "num_processes"),
        ({"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2"}, "process_id 2 is not below"),
    ],
)
def test_half_of_the_variables_are_refused(environment, problem, monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "host:1234")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=problem) as caught:
        processes.start(Config().parallel)
    assert "\n" not in str(caught.value)
    processes.start(Config.model_validate({"parallel": {"num_processes": 1}}).parallel)
