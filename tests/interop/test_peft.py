"""Adapters that peft made (make_peft.py), read, merged and written back.

What is written here is what peft wrote itself, where it can be, and with which its logits were
those of the golden file. To let it read a folder of ours:

    python tests/interop/test_peft.py FOLDER
    /path/to/parity/bin/python tests/golden/make_peft.py FOLDER
"""

from __future__ import annotations

import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from genjax.adapters import Adapter, Adapters
from genjax.config import ConfigError
from genjax.interop import huggingface, peft, safetensors
from genjax.networks import decoder
from genjax.nn import low_rank
from genjax.nn.functional import functional

FOLDER = pathlib.Path(__file__).parents[1] / "golden"
GOLDEN, MODELS = np.load(FOLDER / "peft.npz"), np.load(FOLDER / "huggingface.npz")
NAMES = [name.removesuffix("/logits") for name in GOLDEN.files if name.endswith("/logits")]
ALPHA = 4.0
RANKS = {  # our ranks: those of three matrices in one are summed if each has an A of its own
    "llama": {"qkv": 4, "down": 2},
    "llama_one": {"qkv": 3, "merge": 3, "gate": 5},
    "llama_dora": {"qkv": 2, "merge": 2, "up": 2},
    "llama_patterns": {"qkv": 8, "head": 2},
    "gpt2": {"qkv": 3, "down": 3},
}


def put(golden, name, folder):
    folder.mkdir(parents=True, exist_ok=True)
    for key in golden.files:
        if key.startswith(f"{name}/files/"):
            (folder / key.rsplit("/", 1)[1]).write_bytes(golden[key].tobytes())
    return folder


def path_of(module):
    return "head/kernel" if module == "head" else f"body/blocks/{module}/kernel"


def network(name, base, ranks=None, kind=None):
    """The network of a model with adapters."""
    kernels, adapters = flatten_dict(base.params, sep="/"), {}
    for module, rank in (ranks or RANKS[name]).items():
        path = path_of(module)
        found = low_rank.layout(f"lm/{path}", kernels[path].shape)
        adapters[path] = Adapter(found, rank, ALPHA / rank)
    kind = kind or ("dora" if "dora" in name else "lora")
    return peft.Network(base.options, base.vocabulary_size, base.length, adapters, kind)


def begun(net):
    key = jax.random.key(0)
    factors = {
        path: low_rank.begin(key, adapter.layout, adapter.rank, net.kind)
        for path, adapter in net.adapters.items()
    }
    return jax.device_get(unflatten_dict(factors, sep="/"))


def logits(base, net, factors):
    adapters = Adapters(net.kind, {"lm": net.adapters}, {}, {})
    full = adapters.merge({"lm": factors, "base/lm": base.params})["lm"]
    model = functional(
        lambda rngs: decoder.Network(base.vocabulary_size, base.length, **base.options, rngs=rngs)
    )
    (out, _), _ = model.apply(full, {}, jnp.asarray(MODELS["tokens"]))
    return np.asarray(out)


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases")
    return {name: huggingface.read(put(MODELS, name, folder / name)) for name in ("llama", "gpt2")}


def base_of(bases, name):
    return bases[str(GOLDEN[f"{name}/model"])]


@pytest.mark.parametrize("name", NAMES)
def test_adapters_are_read_and_written_back(name, tmp_path, bases):
    """The logits are those of peft, which keeps them apart; what is written is what it wrote."""
    base, folder = base_of(bases, name), put(GOLDEN, name, tmp_path / "theirs")
    net = network(name, base)
    factors = peft.read(folder, net, base.params, begun(net))
    found, expected = logits(base, net, factors), GOLDEN[f"{name}/logits"]
    assert np.abs(expected - MODELS[f"{GOLDEN[f'{name}/model']}/logits"]).max() > 0.1
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    ours = tmp_path / "ours"
    peft.write(ours, net, ALPHA, base.params, factors, "the/base")
    again = peft.read(ours, net, base.params, begun(net))
    np.testing.assert_allclose(logits(base, net, again), found, atol=1e-5)
    if name in ("llama", "llama_patterns"):  # the A of ours is that of three matrices
        return
    before, after = (safetensors.read(f / peft.WEIGHTS) for f in (folder, ours))
    assert before.keys() == after.keys()
    for key, array in before.items():
        np.testing.assert_allclose(after[key], array, rtol=1e-6, atol=1e-6, err_msg=key)
    theirs, written = (json.loads((f / peft.CONFIG).read_text()) for f in (folder, ours))
    assert written.pop("base_model_name_or_path") == "the/base"
    targets = {name: set(c.pop("target_modules")) for name, c in (("a", theirs), ("b", written))}
    ends = {name: {t.rsplit(".", 1)[-1] for t in found} for name, found in targets.items()}
    assert ends["a"] == ends["b"]
    assert written.items() <= theirs.items(), written.items() - theirs.items()


def test_what_the_folder_leaves_over_begins_as_ever(tmp_path, bases):
    """A higher rank than the folder's: the function is the same, and more of it can be trained."""
    base, folder = base_of(bases, "llama"), put(GOLDEN, "llama", tmp_path)
    net = network("llama", base, {"qkv": 6, "down": 2, "up": 3})
    factors = peft.read(folder, net, base.params, begun(net))
    expected = GOLDEN["llama/logits"]
    np.testing.assert_allclose(logits(base, net, factors), expected, atol=1e-4)
    own, fresh = factors["body"]["blocks"]["qkv"]["kernel"], begun(net)["body"]["blocks"]
    np.testing.assert_array_equal(own["a"][..., 4:], fresh["qkv"]["kernel"]["a"][..., 4:])
    assert (own["b"][:, 4:] == 0).all()


def test_what_does_not_fit_is_refused(tmp_path, bases):
    llama, gpt2 = bases["llama"], bases["gpt2"]
    folder = put(GOLDEN, "llama", tmp_path / "llama")

    def refused(message, ranks=None, base=llama, kind="lora", folder=folder):
        net = network("llama", base, ranks, kind)
        with pytest.raises(ConfigError, match=message):
            peft.read(folder, net, base.params, begun(net))

    refused("rank for body/blocks/qkv/kernel=3: expected at least 4.*3 matrices", {"qkv": 3})
    refused("4 tensors such as 'model.layers.0.mlp.down_proj.lora_A'.*config.adapters", {"qkv": 4})
    refused("config.lora.kind='dora': expected 'lora'", kind="dora")
    refused("tensors such as 'model.layers.0.*that it was trained on", {"qkv": 4}, gpt2)
    refused("there is no adapter_config.json", folder=tmp_path)
    wide = llama._replace(options=llama.options | {"width": 24})
    wide = wide._replace(params=unflatten_dict({
        k: np.zeros([24 if n == 16 else n for n in v.shape], np.float32)
        for k, v in flatten_dict(llama.params, sep="/").items()
    }, sep="/"))  # fmt: skip
    refused(r"lora_A in .*=\[2, 16\]: expected \[2, 24\]: the adapters are of another", None, wide)
    faults = {"bias": "all", "r": 0, "peft_type": "IA3", "rank_pattern": {"(": 1}}
    for key, value in (faults | {"alpha_pattern": {"(a+)+": 1}}).items():
        other = put(GOLDEN, "llama", tmp_path / key)
        path = other / peft.CONFIG
        path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
        refused(f"{key}=.*expected", folder=other)
    net = network("llama", gpt2, {"qkv": 2})
    embed = Adapter(low_rank.layout("lm/embed/embedding", (61, 24)), 2, 1.0)
    net = net._replace(adapters={"embed/embedding": embed})
    with pytest.raises(ConfigError, match=r"--format=peft: peft has no adapter like .*embedding"):
        peft.write(tmp_path / "out", net, ALPHA, gpt2.params, begun(net))


def main(target: pathlib.Path) -> None:
    """Writes the adapters of the golden file as ours, with the logits that we compute."""
    for name in NAMES:
        model = str(GOLDEN[f"{name}/model"])
        base = huggingface.read(put(MODELS, model, target / "bases" / model))
        net = network(name, base)
        theirs = put(GOLDEN, name, target / "theirs" / name)
        factors = peft.read(theirs, net, base.params, begun(net))
        peft.write(target / name, net, ALPHA, base.params, factors)
        np.save(target / name / "logits.npy", logits(base, net, factors))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
