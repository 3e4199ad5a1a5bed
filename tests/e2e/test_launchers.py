"""Launchers start real processes, which lose each other, save together, and go on in any number."""

import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from command_line import ONE_DEVICE, ROOT, metrics, reported_digest, wait_for_step

from genjax.training.checkpoint import Checkpoints

RUN = [f"--config={ROOT / 'tests' / 'e2e' / 'ordered.py'}", "--config.duration=400_steps"]
ENVIRONMENT = {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ONE_DEVICE, "JAX_PLATFORMS": "cpu"}


def executable(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """The launchers with this installation in place of their own."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("local_processes.sh", "slurm.sbatch"):
        executable(folder / "launch" / name, (ROOT / "launch" / name).read_text())
    executable(folder / "launch/setup.sh", "exit 0\n")
    executable(folder / ".venv/bin/python", f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    return folder


def start(command, cwd, **environment):
    return subprocess.Popen(
        list(map(str, command)),
        env=os.environ | ENVIRONMENT | environment,
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_local(checkout, count, *arguments, **environment):
    script = checkout / "launch/local_processes.sh"
    return start(["bash", script, count, "--", *arguments], checkout, **environment)


@pytest.fixture(scope="module")
def uninterrupted(checkout, tmp_path_factory):
    """A whole run on two processes, by local_processes.sh."""
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    script = start_local(checkout, 2, *RUN, f"--workdir={folder}")
    _, err = script.communicate(timeout=300)
    assert script.returncode == 0, err
    assert re.search(r"^\[0\] .*finished at step 400 of 400", err, re.MULTILINE)
    return folder


def children(process):
    """The processes of genjax below one, by their index."""
    pids = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            variables = (path / "environ").read_bytes().decode().split("\0")
            command = (path / "cmdline").read_text()
        except OSError:  # it has ended meanwhile
            continue
        by_name = dict(one.split("=", 1) for one in variables if "=" in one)
        if parent == process.pid and "genjax.main" in command:
            pids[int(by_name["GENJAX_PROCESS_INDEX"])] = int(path.name)
    return pids


def same_steps(workdir, whole):
    """Asserts that each step of two runs saw the same examples in the same order, and losses."""
    runs = [
        {line["step"]: line for line in metrics(folder) if "train/loss" in line}
        for folder in (workdir, whole)
    ]
    assert list(runs[0]) == list(runs[1]) == list(range(1, 401))
    for name in ("train/labels", "train/pixels"):
        assert [one[name] for one in runs[0].values()] == [one[name] for one in runs[1].values()]
    losses = [[one["train/loss"] for one in run.values()] for run in runs]
    np.testing.assert_allclose(*losses, rtol=2e-5)


STUB = """#!/bin/sh
[ "$1" != -c ] || { echo 1; exit; }
trap 'echo told; exit 7' USR1
echo ready
while :; do sleep 0.05; [ "$GENJAX_PROCESS_INDEX" = 0 ] || [ ! -e "$3" ] || exit 3; done
"""


@pytest.mark.parametrize("told", [True, False])
def test_local_processes_end_together(checkout, tmp_path, told):
    """With a program that waits: a signal goes to both; if one ends, the other is ended."""
    folder = tmp_path / "other"
    shutil.copytree(checkout, folder)
    executable(folder / ".venv/bin/python", STUB)
    script = start_local(folder, 2, tmp_path / "mark", GENJAX_GRACE="0.5")
    lines = [script.stdout.readline(), script.stdout.readline()]
    assert sorted(lines) == ["[0] ready\n", "[1] ready\n"]
    if told:
        script.send_signal(signal.SIGUSR1)
    else:
        (tmp_path / "mark").touch()
    out, _ = script.communicate(timeout=30)
    assert script.returncode == (7 if told else 3)
    assert sorted(out.splitlines()) == (["[0] told", "[1] told"] if told else [])


def test_local_processes_want_a_number_and_arguments(checkout):
    for given in ((), ("0", "--", "a"), ("two", "--", "a"), ("2", "a"), ("2", "--")):
        done = start(["bash", checkout / "launch/local_processes.sh", *given], checkout)
        _, err = done.communicate(timeout=30)
        assert done.returncode == 1
        assert err.startswith("error: expected launch/local_processes.sh N -- ARGUMENTS")


SRUN = """#!/usr/bin/env bash
# The tasks of a job, on this machine.
while [[ $1 == --* ]]; do shift; done
for ((i = 0; i < SLURM_NTASKS; i++)); do
  SLURM_PROCID=$i SLURM_LOCALID=$i SLURM_STEP_NODELIST=localhost SLURM_STEP_NUM_NODES=1 "$@" &
  pids+=($!)
done
code=0
for pid in "${pids[@]}"; do wait "$pid" || code=$?; done
exit $code
"""


@pytest.fixture
def slurm(checkout, tmp_path):
    """Starts a job of two processes on a Slurm that is this machine."""
    executable(tmp_path / "bin/srun", SRUN)
    executable(tmp_path / "bin/scontrol", f'#!/bin/sh\necho "$@" >> {tmp_path / "scontrol"}\n')

    def submit(*arguments, **environment):
        batch = {
            "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
            "SLURM_SUBMIT_DIR": str(checkout),
            "SLURM_JOB_ID": str(free_port(61440) - 61440),  # JAX adds them again
            "SLURM_NTASKS": "2",
            "SLURM_NTASKS_PER_NODE": "2",
            "SLURM_GPUS_ON_NODE": "2",
            "SLURM_CPUS_PER_TASK": "1",
        }
        return start(
            ["bash", checkout / "launch/slurm.sbatch", *arguments], "/", **batch | environment
        )

    return submit


def free_port(least=0):
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", random.randrange(least, 65536) if least else 0))
            return probe.getsockname()[1]


def test_slurms_warning_saves_requeues_and_the_job_goes_on_bit_for_bit(
    slurm, tmp_path, uninterrupted
):
    run = tmp_path / "run"
    job = slurm(*RUN, f"--workdir={run}")
    wait_for_step(job, run, 3)
    (srun,) = (Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text()).split()
    tasks = Path(f"/proc/{srun}/task/{srun}/children").read_text().split()
    assert len(tasks) == 2
    for task in tasks:
        os.kill(int(task), signal.SIGUSR1)
    _, err = job.communicate(timeout=120)
    assert job.returncode == 0, err
    assert re.fullmatch(r"requeue \d+\n", (tmp_path / "scontrol").read_text())
    assert 3 <= Checkpoints(run).latest() < 400
    job = slurm(*RUN, f"--workdir={run}")
    _, err = job.communicate(timeout=120)
    assert job.returncode == 0, err
    same_steps(run, uninterrupted)
    assert reported_digest(run) == reported_digest(uninterrupted)


@pytest.mark.parametrize(
    ("arguments", "environment", "expected"),
    [
        ([], {}, "no arguments: sbatch launch/slurm.sbatch --config=CONFIG"),
        (["a"], {"SLURM_GPUS_PER_TASK": "1"}, "use --gpus-per-node"),
        (["a"], {"SLURM_GPUS_ON_NODE": "8"}, "8 GPUs and 2 processes on a node"),
        (["a"], {"SLURM_SUBMIT_DIR": "/"}, "/ is no checkout of genjax"),
        (["a"], {"SLURM_SUBMIT_DIR": ""}, "submit this file with sbatch"),
    ],
)
def test_what_slurm_is_asked_for_wrongly_is_one_error(slurm, arguments, environment, expected):
    job = slurm(*arguments, **environment)
    out, err = job.communicate(timeout=30)
    assert job.returncode == 1
    assert out == ""
    assert expected in err
    assert len(err.splitlines()) == 1


def of_jobset(count):
    """What Kubernetes and JobSet make of the variables of jobset_gpu.yaml, for each pod."""
    jobset = yaml.safe_load((ROOT / "launch/jobset_gpu.yaml").read_text())
    (container,) = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"][
        "containers"
    ]
    port = free_port()
    for index in range(count):
        annotations = {
            "jobset.sigs.k8s.io/coordinator": "localhost",
            "batch.kubernetes.io/job-completion-index": str(index),
        }
        values = {}
        for one in container["env"]:
            if "valueFrom" in one:
                path = one["valueFrom"]["fieldRef"]["fieldPath"]
                value = annotations[re.fullmatch(r"metadata\.annotations\['(.*)'\]", path)[1]]
            else:
                value = one["value"].replace("$(COORDINATOR)", values.get("COORDINATOR", ""))
            values[one["name"]] = value
        assert values["GENJAX_COORDINATOR"] == "localhost:8476"
        yield values | {
            "GENJAX_COORDINATOR": f"localhost:{port}",
            "GENJAX_PROCESS_COUNT": str(count),
            "JAX_PLATFORMS": "cpu",
            # A Slurm around it, as SkyPilot's, has no say.
            "SLURM_JOB_ID": "1",
            "SLURM_STEP_NODELIST": "elsewhere",
            "SLURM_NTASKS": "1",
            "SLURM_PROCID": "0",
            "SLURM_LOCALID": "5",
        }


def of_gke(slices, hosts):
    """The variables that GKE gives the processes of TPU slices."""
    port = free_port()
    for index in range(slices * hosts):
        yield {
            "GENJAX_DISTRIBUTED": "auto",
            "TPU_WORKER_HOSTNAMES": ",".join(["localhost"] * hosts),
            "TPU_WORKER_ID": str(index % hosts),
            "MEGASCALE_COORDINATOR_ADDRESS": "localhost",
            "MEGASCALE_NUM_SLICES": str(slices),
            "MEGASCALE_SLICE_ID": str(index // hosts),
            "JAX_COORDINATOR_PORT": str(port),
            "JAX_FORCE_TPU_INIT": "1",  # although there is no chip
        }


def test_a_run_goes_on_with_the_same_batches_on_another_number_of_processes(
    tmp_path, uninterrupted
):
    """Two, four, then one: a signal to one of them stops all, and all is saved."""
    run, command = tmp_path / "run", [sys.executable, "-m", "genjax.main", *RUN]
    done = 0
    for variables in (of_jobset(2), of_gke(2, 2)):
        processes = [
            start([*command, f"--workdir={run}"], tmp_path, **names) for names in variables
        ]
        wait_for_step(processes[0], run, done + 3)
        processes[-1].send_signal(signal.SIGTERM)
        for process in processes:
            _, err = process.communicate(timeout=120)
            assert process.returncode == 128 + signal.SIGTERM, err
        assert done + 3 <= Checkpoints(run).latest() < 400
        done = Checkpoints(run).latest()
    last = start([*command, f"--workdir={run}"], tmp_path)
    _, err = last.communicate(timeout=120)
    assert last.returncode == 0, err
    same_steps(run, uninterrupted)
