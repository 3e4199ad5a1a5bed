"""Fine-tuning from the command line: adapters of imported weights, on pairs, and out again."""

import json

import jax
import numpy as np
import pytest
from command_line import ROOT

from genjax.adapters import Adapter, Adapters
from genjax.config import read_module
from genjax.data.alphabets import Bytes
from genjax.interop import huggingface, peft
from genjax.main import main
from genjax.networks import decoder
from genjax.nn import low_rank
from genjax.nn.functional import functional
from genjax.training.checkpoint import Checkpoints

CONFIG = f"--config={ROOT / 'configs' / 'finetune.py'}:tiny"
OPTIONS = read_module(ROOT / "configs" / "finetune.py").SMALL
KERNELS = ("qkv", "merge", "up", "gate", "down")
SHORT = [
    *("--config.batch_size=8", "--config.evals.every=50_percent", "--config.evals.limit=8"),
    *("--config.evals.batch_size=8", "--config.dataset.name=pairs", "--config.log.every=1_steps"),
    *("--config.dataset.text.length=8", "--config.dataset.text.source_length=8"),
    *("--config.dataset.validation=8_examples", "--config.schedule.name=constant"),
    "--config.schedule.warmup=",
]
SILENT = ["--config.evals.judges=()", "--config.evals.samples=0"]


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A folder with a Hugging Face model, and a file of pairs; to be read only."""
    folder = tmp_path_factory.mktemp("given")
    net = functional(lambda rngs: decoder.Network(257, 64, **OPTIONS, rngs=rngs))
    params, _ = net.init(jax.random.key(0))
    ids, tokenizer = {"start": 256, "eos": 256}, Bytes({"eos": 256}).to_json()
    huggingface.write(folder / "base", OPTIONS, 257, 64, params, tokenizer, ids)
    lines = [json.dumps({"source": f"say {i}", "target": f"{i}!"}) for i in range(40)]
    (folder / "pairs.jsonl").write_text("\n".join(lines))
    return folder


def trained(given, workdir, *arguments, steps=4):
    pairs = f"--config.dataset.path={given / 'pairs.jsonl'}"
    weights = f"--config.weights={given / 'base'}"
    last = [f"--config.duration={steps}_steps", f"--workdir={workdir}", *arguments]
    assert main([CONFIG, *SHORT, pairs, weights, *last]) == 0
    return workdir


@pytest.fixture(scope="module")
def run(given, tmp_path_factory):
    return trained(given, tmp_path_factory.mktemp("runs") / "run")


def saved(workdir, prefix):
    """The arrays of the newest checkpoint below a prefix."""
    checkpoints = Checkpoints(workdir)
    step = checkpoints.latest()
    everywhere = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = {
        path: jax.ShapeDtypeStruct(shape, np.float32, sharding=everywhere)
        for path, shape in checkpoints.shapes(step).items()
        if path.startswith(prefix)
    }
    return jax.device_get(checkpoints.read(step, wanted))


def equal(a, b):
    assert a.keys() == b.keys() != set()
    for path, array in a.items():
        np.testing.assert_array_equal(array, b[path], err_msg=path)


def test_a_stopped_run_goes_on_as_if_it_had_not_been(given, run, tmp_path):
    trained(given, tmp_path / "again", *SILENT, steps=2)
    trained(given, tmp_path / "again", *SILENT)
    equal(saved(tmp_path / "again", "params/"), saved(run, "params/"))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert any("eval/rouge_l" in line for line in lines)
    assert any("eval/lead_rouge_l" in line for line in lines)


def test_it_answers(run, capsys):
    flags = ["--mode=sample", "--source=say 7", "--num=1", "--max_new_tokens=3"]
    assert main([f"--workdir={run}", *flags]) == 0
    assert "sample 1 of 1" in capsys.readouterr().out


def test_it_is_exported_merged_and_alone(given, run, tmp_path, capsys):
    """The base with the adapters alone is the merged model; a new run begins with them."""
    for kind in ("huggingface", "peft"):
        target = f"--output={tmp_path / kind}"
        assert main([f"--workdir={run}", "--mode=export", f"--format={kind}", target]) == 0
    base, merged = (huggingface.read(f) for f in (given / "base", tmp_path / "huggingface"))
    known = {}
    for name in KERNELS:
        path = f"body/blocks/{name}/kernel"
        layout = low_rank.layout(path, base.params["body"]["blocks"][name]["kernel"].shape)
        known[path] = Adapter(layout, 4, 32.0 / 4)
    network = peft.Network(base.options, 257, 64, known, "lora")
    adapters = Adapters("lora", {"lm": known}, {}, {})
    begun = jax.device_get(adapters.begin(jax.random.key(0), "lm"))
    factors = peft.read(tmp_path / "peft", network, base.params, begun)
    full = adapters.merge({"lm": factors, "base/lm": base.params})["lm"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), full, merged.params)
    moved = merged.params["body"]["blocks"]["down"]["kernel"]
    assert np.abs(moved - base.params["body"]["blocks"]["down"]["kernel"]).max() > 1e-3
    start = f"--config.lora.weights={tmp_path / 'peft'}"
    again = trained(given, tmp_path / "on", *SILENT, start, steps=0)
    before, after = saved(run, "params/lm/"), saved(again, "params/lm/")
    for path, array in before.items():
        np.testing.assert_allclose(after[path], array, rtol=1e-6, err_msg=path)
    equal(saved(run, "params/base/"), saved(again, "params/base/"))
    assert main([f"--workdir={run}", "--mode=export", "--format=peft", target]) == 1
    assert "not empty" in capsys.readouterr().err


def test_another_run_is_the_base(given, run, tmp_path, capsys):
    """Of a run with adapters, they are trained further; of one without, it becomes the base."""
    plain = trained(given, tmp_path / "plain", *SILENT, "--config.adapters=()", steps=0)
    start = [f"--config.checkpoint.init_from={plain}", "--config.weights="]
    on = trained(given, tmp_path / "on", *SILENT, *start, steps=1)
    base, source = saved(on, "params/base/lm/"), saved(plain, "params/lm/")
    equal({path.replace("base/", ""): array for path, array in base.items()}, source)
    assert any(path.endswith("/down/kernel/b") for path in saved(on, "params/lm/"))
    start = f"--config.checkpoint.init_from={run}"
    further = trained(given, tmp_path / "further", *SILENT, start, steps=0)
    equal(saved(further, "params/lm/"), saved(run, "params/lm/"))
    bare = ["--config.adapters=()", f"--workdir={tmp_path / 'bare'}", *SILENT]
    pairs, small = f"--config.dataset.path={given / 'pairs.jsonl'}", "--config.weights="
    assert main([CONFIG, *SHORT, pairs, small, start, "--config.duration=1_steps", *bare]) == 1
    assert "That run has adapters" in capsys.readouterr().err
    refused = [f"--workdir={plain}", "--mode=export", "--format=peft", "--output=nowhere"]
    assert main(refused) == 1
    assert "the run has none: set config.adapters" in capsys.readouterr().err
