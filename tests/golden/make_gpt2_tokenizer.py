"""Ids by two other GPT-2 tokenizers, and the first part of GPT-2's merges, which they have used.

    /path/to/parity/bin/python tests/golden/make_gpt2_tokenizer.py [OUTPUT.npz]

The peers are the npm package gpt-3-encoder (OpenAI's encoder in JavaScript, run by node) and
transformers. Both get the first `MERGES` merges of GPT-2 and the tokens that these make; the last
token ends a text, as in GPT-2.
"""

from __future__ import annotations

import json
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile

import numpy as np

sys.modules["torchvision"] = None  # of no use here, and one for another torch breaks the imports

import transformers  # noqa: E402

PACKAGE = "gpt-3-encoder@1.1.4"
MERGES = 3000
END = "<|endoftext|>"
TEXTS = (
    "Hello world",
    "The quick brown fox didn't jump; they'll say we've, I'd and it's 'sure' they're.",
    "  two spaces,\n\n\n   three,\ttabs\t\t and trailing   \n",
    "def f(x):\n    if x > 10:\n        return {'a': [1, 22, 333]}\r\n    # 100% ____ ++\n",
    "Zażółć gęślą jaźń, naïve façade, ΑΒΓαβγ, привет мир, שלום, مرحبا, हिन्दी",
    "床前明月光，疑是地上霜。\n舉頭望明月，低頭思故鄉。日本語テスト 한국어",
    "🤗🏳️‍🌈 e\u0301 \u00a0 ½ ² Ⅷ ① ٣ ﬁ ǅ \u200b|\u2028|",
    "0123456789 3.14159 1,000,000 $5 50% @home #tag a_b-c/d\\e",
    "\x00\x01\x7f control",
    "'s 't 're 've 'm 'll 'd 'S 'T don''t",
    "a" * 70 + " " * 9 + "!" * 12,
)


def node(folder: pathlib.Path, texts: tuple[str, ...]) -> list[list[int]]:
    """The ids of gpt-3-encoder."""
    script = (
        "const {encode} = require('./Encoder.js');"
        "const texts = JSON.parse(require('fs').readFileSync(0));"
        "console.log(JSON.stringify(texts.map(encode)));"
    )
    done = subprocess.run(
        ["node", "-e", script], cwd=folder, input=json.dumps(texts).encode(), check=True,
        stdout=subprocess.PIPE,
    )  # fmt: skip
    return json.loads(done.stdout)


def main(path: pathlib.Path) -> None:
    """Writes the files, the texts and their ids to `path`."""
    with tempfile.TemporaryDirectory() as scratch:
        command = ["npm", "pack", "--ignore-scripts", PACKAGE]
        subprocess.run(command, cwd=scratch, check=True, stdout=subprocess.DEVNULL)
        (archive,) = pathlib.Path(scratch).glob("*.tgz")
        with tarfile.open(archive) as file:
            file.extractall(scratch, filter="data")
        folder = pathlib.Path(scratch) / "package"
        full = (folder / "vocab.bpe").read_text("utf-8").split("\n")
        ranks = json.loads((folder / "encoder.json").read_text("utf-8"))
        ranks = {token: i for token, i in ranks.items() if i < 256 + MERGES}
        ranks[END] = len(ranks)
        full = full[: 1 + MERGES]
        vocabulary, merges = json.dumps(ranks), "\n".join(full) + "\n"
        (folder / "encoder.json").write_text(vocabulary, "utf-8")
        (folder / "vocab.bpe").write_text(merges, "utf-8")
        by_node = node(folder, TEXTS)
        files = (str(folder / "encoder.json"), str(folder / "vocab.bpe"))
        peer = transformers.GPT2Tokenizer(*files)
        by_transformers = [peer(text)["input_ids"] for text in TEXTS]
        shutil.rmtree(folder)
    version = subprocess.run(["node", "--version"], check=True, stdout=subprocess.PIPE, text=True)
    lengths = np.array([[len(ids) for ids in found] for found in (by_node, by_transformers)])
    np.savez_compressed(
        path,
        peer=f"{PACKAGE} on node {version.stdout.strip()}; transformers {transformers.__version__}",
        vocabulary=vocabulary,
        merges=merges,
        texts=json.dumps(TEXTS),
        lengths=lengths,
        node=np.concatenate(by_node),
        transformers=np.concatenate(by_transformers),
    )
    print(f"{path}: {lengths.sum(1)} ids; the peers agree: {by_node == by_transformers}")


if __name__ == "__main__":
    default = pathlib.Path(__file__).with_name("gpt2_tokenizer.npz")
    main(pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else default)
