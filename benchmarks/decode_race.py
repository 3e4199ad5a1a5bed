"""Tokens a second of GPT-2 124M with random weights, raced against transformers.

A prompt of 32 tokens and 128 more, one text or eight, greedy and with four beams; float32 and
bfloat16, which with ours is the compute type of float32 parameters, with theirs all. Ours is the
method's `sample`, jitted, as --mode=sample runs it; theirs is `generate`. transformers makes the
weights (N(0, 0.1), so that the choices are clear), and before the race both sides have to choose
the same tokens in float32. Needs transformers and PyTorch in the other Python.

  python benchmarks/decode_race.py --torch_python=PATH [--settings=1x1,8x1,1x4,8x4] [--rounds=3]
      [--seconds=20] [--precisions=float32,bfloat16]
"""

import argparse
import json
import os
import sys
import tempfile
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from racing import FOLDER, among, measured, race, several, started

from genjax import config as configs
from genjax import method as methods
from genjax.data.alphabets import Bytes
from genjax.method import DataSpec, Field
from genjax.modes.runs import fast_on_cpu
from genjax.nn.cpu.memory import keep_heap

VALUES, PROMPT, NEW = 50257, 32, 128
PRECISIONS = ("float32", "bfloat16")
SETTINGS = ((1, 1), (8, 1), (1, 4), (8, 4))


def setting(text):
    """Texts and beams, of a word such as 8x4."""
    texts, beams = map(int, text.split("x"))
    return texts, beams


def prompts(texts):
    return np.random.default_rng(0).integers(0, VALUES, (texts, PROMPT), np.int32)


def decoder(weights, precision, texts, beams):
    """The jitted function () -> tokens [B, S]."""
    path = str(FOLDER.parent / "configs" / "import_lm.py")
    config = configs.load(path, {"weights": str(weights), "precision": precision})
    facts = {"vocabulary_size": VALUES, "special": {"start": 0}, "tokenizer": Bytes({})}
    token = Field("text", (PROMPT + NEW + 1,), np.dtype(np.int32), facts)
    spec = DataSpec("made", {"token": token}, "token", {"train": 1})
    method = methods.build(config, spec)
    params = jax.tree.map(jnp.asarray, method.pretrained()[0])
    _, mutable = jax.eval_shape(method.init, jax.random.key(0), None)
    draw = partial(method.sample, max_new_tokens=NEW, temperature=0, beams=beams)
    jitted = jax.jit(
        lambda p, prompt: draw(p, mutable, jax.random.key(0), texts, {"prompt": prompt})
    )
    prompt = jnp.asarray(prompts(texts))
    return lambda: jax.block_until_ready(jitted(params, prompt))


def compare(options, folder, texts, beams):
    """Stops unless both sides choose the same tokens."""
    path = folder / f"prompt{texts}.npy"
    np.save(path, prompts(texts))
    asked = (f"--weights={folder}", f"--prompt={path}", f"--beams={beams}")
    started(options.torch_python, "torch_decode.py", *asked, f"--output={folder / 'tokens.npy'}")
    theirs = np.load(folder / "tokens.npy")
    ours = np.asarray(decoder(folder, "float32", texts, beams)())
    same = (ours == theirs).mean()
    print(f"{texts} texts, {beams} beams: {same:.1%} of the tokens are the same", flush=True)
    if same < 1:
        sys.exit("error: the two sides choose different tokens")


def raced(options, folder, texts, beams):
    common = (f"--weights={folder}", f"--beams={beams}", f"--seconds={options.seconds}")
    prompt = f"--prompt={folder / f'prompt{texts}.npy'}"
    sides = {}
    for precision in options.precisions:
        given = (*common, f"--precision={precision}")
        sides[f"genjax, {precision}"] = partial(
            started, sys.executable, Path(__file__).name, *given, f"--texts={texts}"
        )
    for precision in options.precisions:
        given = (*common, f"--precision={precision}", prompt)
        sides[f"transformers, {precision}"] = partial(
            started, options.torch_python, "torch_decode.py", *given
        )
    race(f"{texts} texts, {beams} beams", "tokens/s", sides, options.rounds)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--torch_python", default=sys.executable)
    parser.add_argument("--settings", type=several(setting), default=SETTINGS, help="texts x beams")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--precisions", type=several(among(PRECISIONS)), default=PRECISIONS)
    parser.add_argument("--weights", default="", help="our side alone; for the race")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    parser.add_argument("--texts", type=int, default=1)
    parser.add_argument("--beams", type=int, default=1)
    options = parser.parse_args()
    if options.weights:
        keep_heap()
        run = decoder(options.weights, options.precision, options.texts, options.beams)
        with fast_on_cpu(configs.base()):
            print(json.dumps(measured(run, options.seconds, each=options.texts * NEW)))
        return
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before the race")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        started(options.torch_python, "torch_decode.py", f"--make={folder}")
        for texts, beams in options.settings:
            compare(options, folder, texts, beams)
        for texts, beams in options.settings:
            raced(options, folder, texts, beams)
    print(f"load {os.getloadavg()[0]:.1f} after the race")


if __name__ == "__main__":
    main()
