"""What transformers puts around a text, by tokenizer and by what stands beside it.

    /path/to/parity/bin/python tests/golden/make_tokenizer_rules.py [OUTPUT.npz]

The golden file holds the files of each folder, and the ids of each text with special tokens. It
also has a long text that is cut inside an added token if it is cut at a space.
"""

from __future__ import annotations

import json
import pathlib
import sys
import tempfile

import numpy as np

sys.modules["torchvision"] = None  # of no use here, and one for another torch breaks the imports

import tokenizers  # noqa: E402
import transformers  # noqa: E402

TEXTS = ("a b c", "c", "b b a c")
WORDS = {"<s>": 0, "<e>": 1, "a": 2, "b": 3, "c": 4, "<unk>": 5}
NAMES = {"bos_token": "<s>", "eos_token": "<e>"}
LONG = "a" * 65533 + "foo bar"


def words() -> tokenizers.Tokenizer:
    """A tokenizer of three words, with tokens that may begin and end a text."""
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(WORDS, unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.add_special_tokens(["<s>", "<e>"])
    return made


def template(single: str) -> tokenizers.processors.TemplateProcessing:
    """A post-processor out of these names and $A."""
    tokens = [(name, WORDS[name]) for name in ("<s>", "<e>")]
    return tokenizers.processors.TemplateProcessing(
        single=single, pair=f"{single} $B", special_tokens=tokens
    )


def folders() -> dict[str, tuple[tokenizers.Tokenizer, dict]]:
    """Name -> a tokenizer, and its tokenizer_config.json."""
    around = words()
    around.post_processor = template("<s> $A <e>")
    before = words()
    before.post_processor = template("<s> $A")
    end = words()
    end.post_processor = tokenizers.processors.BertProcessing(("<e>", 1), ("<s>", 0))
    several = words()
    several.post_processor = tokenizers.processors.Sequence(
        [tokenizers.processors.ByteLevel(), template("<s> $A")]
    )
    bytes_ = tokenizers.Tokenizer(tokenizers.models.BPE())
    bytes_.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=256, initial_alphabet=sorted(alphabet))
    bytes_.train_from_iterator(["x"], trainer)
    bytes_.add_tokens(["foo bar"])
    return {
        "none": (words(), NAMES),
        "template": (before, NAMES),
        "around": (around, NAMES),
        "bert": (end, NAMES),
        "several": (several, NAMES),
        "flag_on": (words(), {**NAMES, "add_bos_token": True}),
        "flag_off": (before, {**NAMES, "add_bos_token": False}),
        "flag_of_eos": (before, {**NAMES, "add_eos_token": True}),
        "both_flags": (words(), {**NAMES, "add_bos_token": True, "add_eos_token": True}),
        "long": (bytes_, {}),
    }


def main(path: pathlib.Path) -> None:
    """Writes the golden file."""
    arrays = {"peer": f"transformers {transformers.__version__}", "texts": np.array(TEXTS)}
    with tempfile.TemporaryDirectory() as scratch:
        for name, (made, config) in folders().items():
            place = pathlib.Path(scratch) / name
            place.mkdir()
            made.save(str(place / "tokenizer.json"))
            config = {"tokenizer_class": "PreTrainedTokenizerFast", **config}
            (place / "tokenizer_config.json").write_text(json.dumps(config))
            loaded = transformers.AutoTokenizer.from_pretrained(place)
            for file in ("tokenizer.json", "tokenizer_config.json"):
                content = (place / file).read_bytes()
                arrays[f"{name}/files/{file}"] = np.frombuffer(content, np.uint8)
            if name == "long":
                arrays["long/ids"] = np.array(loaded(LONG)["input_ids"], np.int32)
                continue
            for i, text in enumerate(TEXTS):
                arrays[f"{name}/{i}/ids"] = np.array(loaded(text)["input_ids"], np.int32)
    np.savez_compressed(path, **arrays)


if __name__ == "__main__":
    default = pathlib.Path(__file__).with_name("tokenizer_rules.npz")
    main(pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else default)
