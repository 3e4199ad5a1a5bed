"""The files in launch/ are valid for the engines that read them, and refuse to start unfinished."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet

LAUNCH = Path(__file__).parent.parent.parent / "launch"
JOBSETS = ("jobset_gpu.yaml", "jobset_tpu.yaml")
# https://docs.skypilot.co/en/latest/reference/yaml-spec.html
SKY_FIELDS = {
    "": {
        *("name", "workdir", "num_nodes", "resources", "envs", "secrets", "file_mounts"),
        *("setup", "run", "config"),
    },
    "resources": {
        *("infra", "accelerators", "accelerator_args", "cpus", "memory", "instance_type"),
        *("use_spot", "disk_size", "disk_tier", "network_tier", "image_id", "ports", "labels"),
        *("autostop", "any_of", "ordered", "job_recovery"),
    },
    "resources.job_recovery": {"strategy", "max_restarts_on_errors"},
}


def read(name):
    return yaml.safe_load((LAUNCH / name).read_text())


def filled(name):
    """The text of a file whose placeholders are filled in."""
    text = (LAUNCH / name).read_text()
    for placeholder, value in {"NAME": "one", "IMAGE": "here/genjax:1", "BUCKET": "two"}.items():
        text = text.replace(f"<{placeholder}>", value)
    return text


def at(content, path):
    """The tables at a dotted path."""
    tables = [content]
    for key in filter(None, path.split(".")):
        tables = [table[key] for table in tables if key in table]
    return tables


def tool(name, *arguments):
    """What a linter says; "" is good."""
    path = Path(sys.executable).with_name(name)
    done = subprocess.run([path, *arguments], capture_output=True, text=True)
    return done.stdout + done.stderr + ("" if done.returncode == 0 else f"exit {done.returncode}")


def test_shell_scripts(tmp_path):
    scripts = [*sorted(LAUNCH.glob("*.sh")), LAUNCH / "slurm.sbatch"]
    for part in ("setup", "run"):
        scripts.append(tmp_path / f"sky_{part}.sh")
        scripts[-1].write_text(read("sky.yaml")[part])
    assert len(scripts) >= 8
    assert tool("shellcheck", "--shell=bash", *scripts) == ""


def test_the_image():
    assert tool("hadolint", LAUNCH / "Dockerfile") == ""


@pytest.mark.parametrize("name", JOBSETS)
def test_jobsets_are_valid_and_their_numbers_agree(name):
    jobset = yaml.safe_load(filled(name))
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    # A model of JobSet and of what is in it: a wrong type is an error, an unknown field is lost.
    assert JobsetV1alpha2JobSet.from_dict(jobset).to_dict() == jobset
    (job,) = jobset["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    assert spec["parallelism"] == spec["completions"]
    (container,) = spec["template"]["spec"]["containers"]
    values = {one["name"]: one.get("value") for one in container["env"]}
    if "GENJAX_PROCESS_COUNT" in values:
        assert int(values["GENJAX_PROCESS_COUNT"]) == spec["completions"]
        assert jobset["spec"]["coordinator"]["replicatedJob"] == job["name"]
    else:
        topology = spec["template"]["spec"]["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
        rows, columns = map(int, topology.split("x"))
        chips = container["resources"]["limits"]["google.com/tpu"]
        assert rows * columns == spec["completions"] * chips


@pytest.mark.parametrize("name", JOBSETS)
def test_a_jobset_is_started_when_it_is_filled_in_and_not_before(name, tmp_path):
    kubectl = tmp_path / "kubectl"
    kubectl.write_text("#!/bin/sh\necho kubectl $*\n")
    kubectl.chmod(0o755)

    def start(file):
        return subprocess.run(
            ["bash", LAUNCH / "jobset.sh", file, "--namespace=research"],
            env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
        )

    refused = start(LAUNCH / name)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith(f"error: fill in {LAUNCH / name}")
    assert set(re.findall("<[A-Z]+>", refused.stderr)) == {"<NAME>", "<IMAGE>", "<BUCKET>"}
    (tmp_path / name).write_text(filled(name))
    started = start(tmp_path / name)
    assert started.stdout == f"kubectl apply --filename={tmp_path / name} --namespace=research\n"
    assert started.returncode == 0


def test_the_task_of_skypilot_has_its_fields_and_wants_a_workdir():
    task = read("sky.yaml")
    for path, fields in SKY_FIELDS.items():
        for table in at(task, path):
            assert set(table) <= fields, path
    # SkyPilot refuses a variable without a value.
    assert [name for name, value in task["envs"].items() if value is None] == ["WORKDIR"]
    assert all(isinstance(value, str) for value in task["envs"].values() if value is not None)


def test_each_node_of_skypilot_gets_its_place(tmp_path):
    """`run`, with a python that prints what it is given."""
    task, python = read("sky.yaml"), tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\nenv | grep ^GENJAX_ | sort\necho "$@"\n')
    python.chmod(0o755)

    def run(rank, **given):
        nodes = {
            "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
            "SKYPILOT_NUM_NODES": "2",
            "SKYPILOT_NODE_RANK": str(rank),
        }
        environment = nodes | {name: value or "" for name, value in task["envs"].items()} | given
        return subprocess.run(
            ["bash", "-c", task["run"]],
            env={"PATH": os.environ["PATH"]} | environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()

    arguments = "--config.batch_size=64 --config.seed=1"
    given = {"WORKDIR": "gs://b/run", "CONFIG": "dit:tiny", "ARGUMENTS": arguments}
    command = f"-m genjax.main --config=dit:tiny --workdir=gs://b/run {arguments}"
    assert run(1, **given) == [
        "GENJAX_COORDINATOR=10.0.0.1:8476",
        "GENJAX_PROCESS_COUNT=2",
        "GENJAX_PROCESS_INDEX=1",
        command,
    ]
    assert run(0, **given, EXTRAS="tpu,gcs") == ["GENJAX_DISTRIBUTED=auto", command]


def test_no_file_has_a_password_or_key():
    for path in LAUNCH.iterdir():
        if path.is_file():
            assert not re.search(r"(?i)(token|password|secret|api_?key)\s*[:=]", path.read_text())
