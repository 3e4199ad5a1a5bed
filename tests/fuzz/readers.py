"""The readers of files of strangers: an example each, how it is damaged, and what reads it.

A reader gives a right answer or raises ConfigError; it raises AssertionError for a wrong answer.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import flax.serialization
import mutations
import numpy as np
import scipy.io
import tokenizers as library
from datasets import dataset  # of tests/data
from gguf_files import content as gguf_content  # of tests/interop
from PIL import Image

from genjax import files
from genjax.config import ConfigError
from genjax.data import documents, folders, npz, rolls, subwords, tokenizers
from genjax.interop import (
    flax_file,
    gguf,
    gguf_model,
    gguf_tokenizer,
    huggingface_config,
    safetensors,
    torch_file,
)

GOLDEN = Path(__file__).parents[1] / "golden"


class Reader(NamedTuple):
    """Attributes:
    suffix: of the files.
    examples: contents of good files.
    mutate: damages one.
    read: reads a file.
    """

    suffix: str
    examples: Callable[[], list[bytes]]
    mutate: mutations.Mutation
    read: Callable[[Path], object]


def _npz_examples() -> list[bytes]:
    contents = []
    for save in (np.savez, np.savez_compressed):
        buffer = io.BytesIO()
        columns = np.asfortranarray(np.ones((3, 2), np.float32))
        save(buffer, a=np.arange(6, dtype=np.uint8).reshape(2, 3), b=columns, c=np.float64(3))
        contents.append(buffer.getvalue())
    return contents


def _read_npz(path: Path) -> None:
    found = dict(npz.Arrays(path))
    with np.load(path, allow_pickle=False) as theirs:
        for name, array in found.items():
            np.testing.assert_array_equal(array, theirs[name])


def _torch_examples() -> list[bytes]:
    golden = np.load(GOLDEN / "torch_file.npz")
    return [bytes(golden[key]) for key in golden.files if key.startswith("file/tensors/")]


def _read_torch(path: Path) -> None:
    for array in torch_file.read(path).values():
        assert array.nbytes <= 8 * path.stat().st_size
        array.sum()


def _safetensors_examples() -> list[bytes]:
    path = Path("example.safetensors")
    safetensors.write(path, {"a": np.ones((2, 3), np.float32), "b": np.arange(4)}, {"x": "y"})
    return [path.read_bytes()]


def _read_safetensors(path: Path) -> None:
    for array in safetensors.read(path).values():
        assert array.nbytes <= path.stat().st_size
        array.sum()


def _flax_examples() -> list[bytes]:
    tree = {"a": {"kernel": np.ones((2, 3), np.float32)}, "b": {"scale": np.arange(4)}}
    chunks = {"0": np.ones(2, np.float16), "1": np.ones(1, np.float16)}
    pieces = {flax_file.CHUNKED: True, "shape": {"0": 3, "1": 1}, "chunks": chunks}
    return [flax.serialization.msgpack_serialize(t) for t in (tree, {**tree, "c": pieces})]


def _read_flax(path: Path) -> None:
    for array in flax_file.read(path).values():
        assert array.nbytes <= path.stat().st_size
        array.sum()


def _config_examples() -> list[bytes]:
    golden = np.load(GOLDEN / "llamalikes.npz")
    return [golden[key].tobytes() for key in golden.files if key.endswith("/config.json")]


def _read_config(path: Path) -> None:
    found = huggingface_config.read(str(path), files.read_json(path))
    huggingface_config.family(huggingface_config.complete(found.options))


def _tokenizer_examples() -> list[bytes]:
    text = ["the quick brown fox, the lazy dog"] * 4
    made = [subwords.train(kind, text, 300, end=True) for kind in ("bpe", "wordpiece")]
    contents = [json.loads(tokenizer.inner.to_str()) for tokenizer in made]
    contents.append(json.loads(made[0].to_json()))
    pieces = [
        ("<unk>", 0.0),
        ("<s>", 0.0),
        ("▁the", -1.0),
        ("▁", -2.0),
        ("t", -3.0),
        ("<0x41>", -9),
    ]
    inner = library.Tokenizer(library.models.Unigram(pieces, unk_id=0, byte_fallback=True))
    inner.normalizer = library.normalizers.Sequence(
        [library.normalizers.NFKC(), library.normalizers.Replace("``", '"')]
    )
    inner.pre_tokenizer = library.pre_tokenizers.Metaspace()
    parts = [library.decoders.ByteFallback(), library.decoders.Metaspace()]
    inner.decoder = library.decoders.Sequence(parts)
    inner.post_processor = library.processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    inner.add_tokens(["foo bar"])
    contents.append(json.loads(inner.to_str()))
    inner.normalizer = library.normalizers.BertNormalizer()
    inner.pre_tokenizer = library.pre_tokenizers.Split(library.Regex(r"\w+|\s"), "isolated")
    inner.post_processor = library.processors.BertProcessing(("<s>", 1), ("<s>", 1))
    contents.append(json.loads(inner.to_str()))
    return [json.dumps(content).encode() for content in contents]


def _read_tokenizer(path: Path) -> None:
    made = tokenizers.read(path)
    for text in ("the fox", "", "foo bar é 🙂\n", "a" * 300):
        ids = made.encode(text)
        assert len(ids) == 0 or 0 <= ids.min() <= ids.max() < made.vocabulary_size
        made.decode(ids)
    made.encode_joined(["the f"], ["ox"])
    assert tokenizers.from_json(made.to_json()).to_json() == made.to_json()


def _picture_examples() -> list[bytes]:
    contents, tags = [], Image.Exif()
    tags[0x0112] = 6
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    for form in ("PNG", "JPEG", "GIF", "BMP", "WEBP"):
        buffer = io.BytesIO()
        saving = {"exif": tags} if form in ("PNG", "JPEG", "WEBP") else {}
        Image.fromarray(pixels).save(buffer, form, **saving)
        contents.append(buffer.getvalue())
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0]).convert("P").save(buffer, "PNG", transparency=3)
    return [*contents, buffer.getvalue()]


def _read_picture(path: Path) -> None:
    # The ending does not say what is inside: Pillow looks at the content.
    raw = folders.read(dataset(path=str(path.parent), max_pixels=2**20))
    image = raw.splits["train"][0]["image"]
    assert image.dtype == np.uint8
    assert image.shape == raw.fields["image"].shape


def _read_lines(path: Path) -> None:
    keys = dataset(name="text", path=str(path))
    keys.text.prompt_field = "q"
    for found in documents.corpus(keys).read().values():
        assert all(type(text) is str for text in (*found.texts, *found.prompts))
        assert len(found.texts) == len(found.prompts)


def _read_text(path: Path) -> None:
    (found,) = documents.corpus(dataset(name="text", path=str(path))).read().values()
    if found.texts:
        assert found.texts == [path.read_bytes().decode().removeprefix("\ufeff")]


def _rolls_examples() -> list[bytes]:
    cells = np.empty((1, 2), object)
    cells[0, 0], cells[0, 1] = (np.eye(n, rolls.KEYS, dtype=np.uint8) for n in (3, 5))
    contents = []
    for compressed in (False, True):
        buffer = io.BytesIO()
        scipy.io.savemat(buffer, {"traindata": cells}, do_compression=compressed)
        contents.append(buffer.getvalue())
    return contents


def _read_rolls(path: Path) -> None:
    for tunes in rolls.read(path).values():
        assert all(tune.shape[1] == rolls.KEYS and tune.max() <= 1 for tune in tunes)


def _archive_examples() -> list[bytes]:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for i, content in enumerate(_picture_examples()[:2]):
            archive.writestr(f"train/{i}.png", content)
    return [buffer.getvalue()]


def _read_archive(path: Path) -> None:
    folders.read(dataset(path=str(path), image_size=(4,), max_pixels=2**20))


def _gguf_examples() -> list[bytes]:
    return [np.load(GOLDEN / "gguf.npz")["whole"].tobytes()]


def _read_gguf(path: Path) -> None:
    for tensor in gguf.read(path).tensors.values():
        values = gguf.dequantised(tensor)
        assert values.dtype == np.float32
        assert values.nbytes <= 8 * path.stat().st_size
        values.sum()


def _gguf_models() -> list[bytes]:
    tokens = ["<unk>", "<s>", "</s>", *"abcd", "ab", "cd", "<0x41>", "abcd"]
    values = {"context_length": 16, "embedding_length": 8, "block_count": 1}
    values |= {"feed_forward_length": 4, "attention.head_count": 2}
    values = {f"llama.{key}": value for key, value in values.items()}
    of_tokenizer = {"tokens": tokens, "token_type": [2, 3, 3, 1, 1, 1, 1, 1, 1, 6, 1]}
    of_tokenizer |= {"bos_token_id": 1, "eos_token_id": 2}
    kinds = (
        {"model": "llama", "scores": [-float(i) for i in range(11)]},
        {"model": "gpt2", "pre": "gpt-2", "merges": ["a b", "c d", "ab cd"]},
    )
    shapes = {f"attn_{name}": (8, 8) for name in ("q", "k", "v", "output")}
    shapes |= {"attn_norm": (8,), "ffn_norm": (8,), "ffn_up": (4, 8), "ffn_gate": (4, 8)}
    shapes = {f"blk.0.{name}": shape for name, shape in {**shapes, "ffn_down": (8, 4)}.items()}
    shapes |= {"token_embd": (len(tokens), 8), "output_norm": (8,)}
    tensors = {f"{name}.weight": np.ones(shape, np.float32) for name, shape in shapes.items()}
    return [
        gguf_content(
            {"general.architecture": "llama", **values}
            | {f"tokenizer.ggml.{key}": value for key, value in {**of_tokenizer, **kind}.items()},
            tensors,
        )
        for kind in kinds
    ]


def _read_gguf_model(path: Path) -> None:
    model = gguf_model.read(path)
    assert model.params["embed"]["embedding"].shape[0] == model.vocabulary_size
    found = gguf_tokenizer.read(str(path), gguf.read(path).metadata)
    found.decode(found.encode("abcd"))
    assert tokenizers.from_json(found.to_json()) == found


READERS = {
    "npz": Reader(".npz", _npz_examples, mutations.of_zip, _read_npz),
    "torch": Reader(
        ".pth",
        _torch_examples,
        lambda content, rng: (
            mutations.of_zip if content.startswith(torch_file.ZIP) else mutations.of_bytes
        )(content, rng),
        _read_torch,
    ),
    "safetensors": Reader(
        ".safetensors", _safetensors_examples, mutations.of_safetensors, _read_safetensors
    ),
    "flax": Reader(".msgpack", _flax_examples, mutations.of_bytes, _read_flax),
    "config": Reader(".json", _config_examples, mutations.of_json, _read_config),
    "tokenizer": Reader(".json", _tokenizer_examples, mutations.of_json, _read_tokenizer),
    "picture": Reader(".png", _picture_examples, mutations.of_png, _read_picture),
    "archive": Reader(".zip", _archive_examples, mutations.of_zip, _read_archive),
    "lines": Reader(
        ".jsonl",
        lambda: [b'{"q": "a", "text": "b"}\n{"q": "", "text": "\\u00e9 \xc3\xa9", "n": [1, {}]}\n'],
        mutations.of_lines,
        _read_lines,
    ),
    "text": Reader(
        ".txt", lambda: [b"\xef\xbb\xbfone\r\ntwo \xe5\xba\x8a\n"], mutations.of_bytes, _read_text
    ),
    "rolls": Reader(".mat", _rolls_examples, mutations.of_bytes, _read_rolls),
    "gguf": Reader(".gguf", _gguf_examples, mutations.of_bytes, _read_gguf),
    "gguf_model": Reader(".gguf", _gguf_models, mutations.of_bytes, _read_gguf_model),
    "json": Reader(".json", lambda: [b'{"a": {"b": [1, 2]}}'], mutations.of_lines, files.read_json),
}


def outcome(reader: Reader, path: Path) -> str:
    """ "right", or "refused" with one clear error; whatever else is raised goes through."""
    try:
        reader.read(path)
    except ConfigError as error:
        return "refused" if 0 < len(str(error)) < 2000 else f"refused with {error}"
    return "right"
