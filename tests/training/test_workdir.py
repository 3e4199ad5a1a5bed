"""The description of a run in its folder: what the data look like, and what has changed of it."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from etils import epath

from genjax import config as configs
from genjax import files
from genjax.config import ConfigError
from genjax.data import sources, tokenizers
from genjax.data.alphabets import Bytes, Characters
from genjax.method import DataSpec, Field
from genjax.training import workdir
from genjax.training.averages import Diverged
from genjax.training.metrics import read_metrics


def text(tokenizer, length):
    special = {"start": tokenizer.special["eos"], **tokenizer.special}
    size = tokenizer.vocabulary_size
    facts = {"vocabulary_size": size, "special": special, "tokenizer": tokenizer}
    return Field("text", (length,), np.dtype(np.int32), facts)


def pairs():
    """Two texts, each with a tokenizer of its own, labels with names, and a mask."""
    fields = {
        "source": text(Characters("abc äß☃", {"eos": 7}), 12),
        "token": text(Bytes({"eos": 256}), 9),
        "label": sources.image_fields((1, 1, 1), 2, ("cat", "dog"))["label"],
        "mask": Field("mask", (24, 48, 1), np.dtype(np.uint8)),
        "weight": Field("real", (), np.dtype(np.float32), {"unit": "g"}),
    }
    return DataSpec("pairs", fields, "token", {"train": 100, "test": 10})


def write(folder, spec=None):
    workdir.write_config(folder, configs.base(), spec or pairs(), ["here"], 12, "0123")
    return folder


def test_a_spec_comes_back_as_it_was_with_a_tokenizer_of_each_text(tmp_path):
    folder, spec = write(tmp_path), pairs()
    assert workdir.read_spec(folder) == spec
    found = workdir.read_spec(folder)
    kinds = {name: type(field.facts.get("tokenizer")) for name, field in found.fields.items()}
    assert (kinds["source"], kinds["token"]) == (Characters, Bytes)
    assert found.fields["label"].facts["classes"] == ("cat", "dog")
    assert all(isinstance(f.dtype, np.dtype) for f in found.fields.values())
    files = {path.name for path in folder.glob("tokenizer*")}
    assert files == {"tokenizer.json", "tokenizer_source.json"}
    assert tokenizers.read(folder / "tokenizer_source.json").encode("ß☃").tolist() == [4, 6]
    stored = json.loads((folder / "config.json").read_text())["data"]
    assert stored == workdir.spec_to_json(spec)
    assert stored["fields"]["source"]["facts"]["tokenizer"]["file"] == "tokenizer_source.json"
    assert (workdir.read_digest(folder), workdir.read_length(folder)) == ("0123", 12)
    assert workdir.spec_from_json(stored, folder) == spec


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_source.json"])
def test_another_tokenizer_of_any_text_is_refused(tmp_path, name):
    file = write(tmp_path) / name
    file.write_text(file.read_text().replace("eos", "bos"))
    with pytest.raises(ConfigError, match=f"{name} is not the tokenizer that the run was trained"):
        workdir.read_spec(tmp_path)
    file.unlink()
    with pytest.raises(ConfigError, match=f"{name} is missing"):
        workdir.read_spec(tmp_path)


def test_the_description_of_a_run_is_copied_with_its_tokenizers_and_stages(tmp_path):
    run = write(tmp_path / "run")
    write(run / "stages" / "first")
    write(run / "stages" / "first" / "stages" / "inner")
    (run / "metrics.jsonl").write_text("")
    copy = tmp_path / "copy"
    workdir.copy_description(run, copy)
    shutil.rmtree(run)
    for place in ("", "stages/first", "stages/first/stages/inner"):
        assert workdir.read_spec(copy / place) == pairs()
    assert not (copy / "metrics.jsonl").exists()
    with pytest.raises(ConfigError, match="holds no run"):
        workdir.copy_description(run, tmp_path / "other")


def changed(**fields):
    spec = pairs()
    return spec._replace(fields={**spec.fields, **fields})


def without(field, fact):
    return field._replace(facts={k: v for k, v in field.facts.items() if k != fact})


def test_what_has_changed_has_a_line_each():
    spec = pairs()
    assert workdir.changes(spec, pairs()) == []
    label = spec.fields["label"]
    cases = {
        "fields.mask.shape: [24, 48, 1] -> [24, 24, 1]": changed(
            mask=spec.fields["mask"]._replace(shape=(24, 24, 1))
        ),
        "fields.mask.kind: mask -> image": changed(mask=spec.fields["mask"]._replace(kind="image")),
        "fields.label.facts.classes: ['cat', 'dog'] -> ['dog', 'cat']": changed(
            label=label._replace(facts={**label.facts, "classes": ("dog", "cat")})
        ),
        "fields.label.facts.classes: ['cat', 'dog'] -> absent": changed(
            label=without(label, "classes")
        ),
        "target: token -> source": spec._replace(target="source"),
        "sizes.train: 100 -> 99": spec._replace(sizes={"train": 99, "test": 10}),
        "name: pairs -> couples": spec._replace(name="couples"),
    }
    for line, now in cases.items():
        found = workdir.changes(spec, now)
        assert f"  {line}" in found, found
    (sha256,) = workdir.changes(spec, changed(source=text(Characters("abd äß☃", {"eos": 7}), 12)))
    assert sha256.startswith("  fields.source.facts.tokenizer.sha256: ")


def test_what_data_have_gained_is_no_change():
    spec, label = pairs(), pairs().fields["label"]
    unnamed = changed(label=without(label, "classes"))
    assert workdir.changes(unnamed, spec) == []
    more = spec._replace(fields={**spec.fields, "depth": Field("real", (), np.dtype(np.float32))})
    assert workdir.changes(spec, more) == []
    assert workdir.changes(more, spec) != []


def test_changed_data_are_refused_under_a_run_that_has_begun(tmp_path):
    write(tmp_path)
    now = pairs()._replace(sizes={"train": 99, "test": 10})
    workdir.check_same_data(tmp_path, now, False)  # nothing is saved yet
    (tmp_path / "checkpoints" / "4").mkdir(parents=True)
    with pytest.raises(
        ConfigError, match=r"(?s)data are not what they were.*sizes\.train: 100 -> 99"
    ):
        workdir.check_same_data(tmp_path, now, False)
    workdir.check_same_data(tmp_path, now, True)
    workdir.check_same_data(tmp_path, pairs(), False)


def test_a_runs_own_tokenizer_takes_the_place_of_a_file_that_has_gone(tmp_path):
    write(tmp_path)
    dataset = configs.base().dataset
    dataset.text.tokenizer = str(tmp_path / "gone.json")
    own = workdir.with_own_tokenizer(dataset, tmp_path)
    assert own.text.tokenizer == str(tmp_path / "tokenizer.json")
    assert dataset.text.tokenizer == str(tmp_path / "gone.json")
    (tmp_path / "gone.json").write_text("{}")
    assert workdir.with_own_tokenizer(dataset, tmp_path) is dataset
    dataset.text.tokenizer = "bytes"
    assert workdir.with_own_tokenizer(dataset, tmp_path) is dataset


# ---- the lock ------------------------------------------------------------------------------------


def held(folder, content):
    """The lock of a folder, as another process holds it."""
    file = open(folder / "lock", "a+b")  # noqa: SIM115
    fcntl.flock(file, fcntl.LOCK_EX)
    file.write(content)
    file.flush()
    return file


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"pid 7 on there\n", r"\(pid 7 on there\)"),
        (b"\xff\xfe\x00\x80" * 100, r"\(\?[ -~]*\)"),
        (b"", r"\(unknown\)"),
    ],
)
def test_a_lock_that_is_held_is_refused_whatever_is_in_it(tmp_path, content, said):
    with held(tmp_path, content), pytest.raises(ConfigError, match=f"another run {said}"):
        workdir.locked(epath.Path(tmp_path)).__enter__()


def test_of_simultaneous_starts_one_runs_and_the_others_name_it(tmp_path):
    """Real processes: each holds the lock for a moment if it gets it."""
    code = (
        "import sys\n"
        "from etils import epath\n"
        "from genjax.training import workdir\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "with workdir.lock(epath.Path(sys.argv[1])) as holder:\n"
        "    print(holder or 'mine', flush=True)\n"
        "    sys.stdin.readline()\n"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    command = [sys.executable, "-c", code, str(tmp_path)]
    processes = [subprocess.Popen(command, **pipes) for _ in range(3)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    said = [process.stdout.readline().strip() for process in processes]
    for process in processes:
        process.communicate("\n", timeout=60)
    (first,) = [p for p, text in zip(processes, said, strict=True) if text == "mine"]
    others = [text for text in said if text != "mine"]
    assert len(others) == 2
    assert all(text.startswith(f"pid {first.pid} on ") for text in others)
    assert (tmp_path / "lock").read_bytes() == b""  # nobody's name stays in it


def fails(folder, files, error=ConfigError, begun=False):
    """A start that writes these files, and then finds that something is wrong."""
    with workdir.locked(epath.Path(folder)) as begin:
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(content)
        if begun:
            begin()
        raise error("wrong")


def test_a_start_that_fails_leaves_nothing_in_a_folder_that_was_not_there(tmp_path):
    names = ("log.txt", "config.json", "tokenizer.json", "metrics.jsonl", "tensorboard/x")
    with pytest.raises(ConfigError, match="wrong"):
        fails(tmp_path / "runs" / "new", dict.fromkeys(names, ""))
    assert not (tmp_path / "runs" / "new").exists()


@pytest.mark.parametrize("name", ["metrics.jsonl", "checkpoints/5/state", "stages/a/x", "mine"])
def test_a_start_that_fails_keeps_what_has_begun(tmp_path, name):
    with pytest.raises(ConfigError, match="wrong"):
        fails(tmp_path / "new", {name: "something"})
    assert (tmp_path / "new" / name).exists()


@pytest.mark.parametrize(
    ("error", "begun"),
    [(ConfigError, True), (Diverged, True), (MemoryError, False), (KeyboardInterrupt, False)],
)
def test_a_run_that_fails_keeps_its_log(tmp_path, error, begun):
    with pytest.raises(error, match="wrong"):
        fails(tmp_path / "new", {"log.txt": "why", "metrics.jsonl": ""}, error, begun)
    assert (tmp_path / "new" / "log.txt").read_text() == "why"


def test_what_cannot_be_removed_does_not_hide_what_was_wrong(tmp_path):
    """Such as a link to a folder, where a folder is expected."""

    def linked(message):
        (tmp_path / "new" / "tensorboard").symlink_to(tmp_path)
        return ConfigError(message)

    with pytest.raises(ConfigError, match="wrong"):
        fails(tmp_path / "new", {}, linked)


def test_a_folder_that_was_there_is_kept(tmp_path):
    partial = tmp_path / ".report.html.77.partial"
    partial.write_text("")
    os.utime(partial, (time.time() - 2 * files.OLD,) * 2)
    (tmp_path / "log.txt").write_text("")
    with pytest.raises(ConfigError, match="wrong"):
        fails(tmp_path, {})
    assert {path.name for path in tmp_path.iterdir()} == {"log.txt", "lock"}


@pytest.mark.parametrize("content", ["[" * 200_000, '{"a":' * 200_000, '{"config": {}}', "\xff"])
def test_a_config_that_is_damaged_or_deep_is_one_error(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigError, match="is damaged or of another version"):
        workdir.read_config(epath.Path(tmp_path))
    assert workdir.read_source(epath.Path(tmp_path)) is None
    (tmp_path / "metrics.jsonl").write_text(f'{content}\n{{"step": 1, "train/loss": 2.0}}\n')
    assert read_metrics(tmp_path / "metrics.jsonl") == {"train/loss": {1: 2.0}}
