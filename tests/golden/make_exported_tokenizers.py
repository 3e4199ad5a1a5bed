"""What transformers makes of tokenizers that genjax trained and exported.

    python tests/interop/test_exported_tokenizers.py FOLDER
    /path/to/parity/bin/python tests/golden/make_exported_tokenizers.py [OUTPUT.npz] [FOLDER]

The first command trains them and writes the folders that genjax exports; transformers loads each
with `AutoTokenizer` and encodes and decodes texts. The golden file holds the files of the folders
too, so that without FOLDER the tokenizers of the golden file that there is are loaded again.
"""

from __future__ import annotations

import pathlib
import sys
import tempfile

import numpy as np

sys.modules["torchvision"] = None  # of no use here, and one for another torch breaks the imports

import transformers  # noqa: E402

TEXTS = (
    "the quick brown fox jumps over the lazy dog.",
    "  Leading spaces, a tab\tand\n\nnew lines \n",
    "Of numbers 1234567890, 3.14159 and signs: (a+b)*c != [d] {e} `f` @g #h $i %j ^k &l ~m",
    "naïve café, Ærøskøbing, Ελλάδα, 床前明月光, 🙂👩‍🚀 e\u0301",
    "def f(x):\n    return x**2  # don't",
    "x",
)


def stored(path: pathlib.Path, folder: pathlib.Path) -> None:
    """Writes the folders that a golden file holds."""
    golden = np.load(path)
    for key in golden.files:
        if "/files/" in key:
            name, _, file = key.split("/")
            (folder / name).mkdir(exist_ok=True)
            (folder / name / file).write_bytes(golden[key].tobytes())


def main(path: pathlib.Path, folder: pathlib.Path) -> None:
    """Loads each tokenizer of the folder, and writes."""
    arrays = {"peer": f"transformers {transformers.__version__}", "texts": np.array(TEXTS)}
    for place in sorted(child for child in folder.iterdir() if child.is_dir()):
        loaded = transformers.AutoTokenizer.from_pretrained(place)
        for i, text in enumerate(TEXTS):
            ids = loaded(text, add_special_tokens=False)["input_ids"]
            arrays[f"{place.name}/{i}/ids"] = np.array(ids, np.int32)
            arrays[f"{place.name}/{i}/text"] = loaded.decode([*ids, loaded.eos_token_id], True)
        arrays[f"{place.name}/eos"] = loaded.eos_token_id
        arrays[f"{place.name}/length"] = loaded.model_max_length
        for file in ("tokenizer.json", "tokenizer_config.json"):
            arrays[f"{place.name}/files/{file}"] = np.frombuffer(
                (place / file).read_bytes(), np.uint8
            )
    np.savez_compressed(path, **arrays)


if __name__ == "__main__":
    beside = pathlib.Path(__file__).with_name("exported_tokenizers.npz")
    output = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else beside
    with tempfile.TemporaryDirectory() as scratch:
        given = pathlib.Path(sys.argv[2]) if len(sys.argv) > 2 else pathlib.Path(scratch)
        if len(sys.argv) < 3:
            stored(beside, given)
        main(output, given)
