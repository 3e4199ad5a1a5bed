"""Pairs out of a package index made by hand, its snapshot, and source packages kept together."""

import json
import sys

import pytest
from datasets import arrays, dataset

from genjax.config import ConfigError
from genjax.data import catalogue, debian, packages, splits

PACKAGES = """Package: fog
Source: weather (1.2-3)
Description: grey and wet
Description-md5: 01

Package: fog-dev
Source: weather
Description-md5: 02

Package: sun
Description-md5: 03
"""
ENGLISH = """Package: fog
Description-md5: 01
Description-en: grey and wet
 It hides
 the hills.
 .
 Two kinds:
  * high
  * low

Package: fog-dev
Description-md5: 02
Description-en: grey and wet - headers
 It hides
 the hills.

Package: sun
Description-md5: 03
Description-en: GNU

Package: moon
Description-md5: 04
Description-en: pale light
 Shines at night.
"""
ITALIAN = """Package: fog
Description-md5: 01
Description-it: grigia e umida
 Nasconde le colline.
 .
 Due tipi:

Package: sun
Description-md5: 03
Description-it: GNU

Package: moon
Description-md5: 04
Description-it: luce pallida
 Brilla di notte.
 .
 Tre.
"""


@pytest.fixture(autouse=True)
def environment(tmp_path, monkeypatch):
    monkeypatch.setenv("GENJAX_DATA", str(tmp_path / "cache"))


@pytest.fixture
def index(tmp_path):
    folder = tmp_path / "lists"
    folder.mkdir()
    for name, text in (
        ("deb_main_binary-amd64_Packages", PACKAGES),
        ("deb_main_i18n_Translation-en", ENGLISH),
        ("deb_main_i18n_Translation-it", ITALIAN),
    ):
        (folder / name).write_text(text)
    return folder


def test_descriptions_and_their_synopses(index):
    assert debian.pairs("package_summaries", index) == [
        ("It hides the hills.\nTwo kinds:\n * high\n * low", "grey and wet", "weather"),
        ("It hides the hills.", "grey and wet - headers", "weather"),
        ("Shines at night.", "pale light", "moon"),
    ]


def test_translations_are_joined_by_the_sum_of_the_description(index):
    assert debian.pairs("translation/it", index) == [
        ("grey and wet", "grigia e umida", "weather"),
        ("It hides the hills.", "Nasconde le colline.", "weather"),
        ("Two kinds:\n * high\n * low", "Due tipi:", "weather"),
    ]  # not of moon, which has another number of paragraphs; GNU is the same in both


def test_the_index_is_fetched_once_and_stored(index, monkeypatch, tmp_path):
    fetched = []
    monkeypatch.setattr(
        packages, "fetch_index", lambda languages, folder: fetched.append(languages) or index
    )
    asked = dataset(name="translation/it", **{"text.length": 40})
    loaded = catalogue.load(asked)
    assert list(loaded.spec.fields) == ["source", "target"]
    rows = arrays(loaded.splits["train"])
    decode = loaded.spec.generated.facts["tokenizer"].decode
    assert [decode(row) for row in rows["target"]][:2] == ["grigia e umida", "Nasconde le colline."]
    again = catalogue.load(asked)
    assert (fetched, again.route) == ([("en", "it")], loaded.route)
    file = tmp_path / "cache" / "debian" / "translation-it.jsonl"
    assert packages.sha256(file) in loaded.route
    copied = tmp_path / "copy.jsonl"
    copied.write_bytes(file.read_bytes())
    from_copy = catalogue.load(dataset(name="translation/it", path=str(copied)))
    assert from_copy.spec.sizes == {"train": 3}
    assert catalogue.load(dataset(name="pairs", path=str(copied))).spec.sizes == {"train": 3}


def test_apt_is_asked_for_the_languages_in_folders_of_its_own(index, monkeypatch, tmp_path):
    """A stand-in for apt-get, which copies the index to where it is told to put its lists."""
    program = tmp_path / "bin" / "apt-get"
    program.parent.mkdir()
    program.write_text(
        f"""#!{sys.executable}
import pathlib, shutil, sys
given = dict(part.split("=", 1) for part in sys.argv[1:] if "=" in part)
lists, cache = (pathlib.Path(given[f"Dir::{{name}}"]) for name in ("State::lists", "Cache"))
assert sys.argv[-1] == "update" and (lists / "partial").is_dir()
assert (cache / "archives" / "partial").is_dir()
assert given["Acquire::Languages"] == "en,it" and given["Acquire::GzipIndexes"] == "false"
shutil.copytree({str(index)!r}, lists, dirs_exist_ok=True)
"""
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    rows, _ = debian.load("translation/it", "")
    assert rows == debian.pairs("translation/it", index)
    stored = [path.name for path in (tmp_path / "cache" / "debian").iterdir()]
    assert stored == ["translation-it.jsonl"]


def test_pairs_of_one_source_package_are_in_one_split(tmp_path):
    rows = [{"source": f"a{i}", "target": "b", "group": f"g{i // 7}"} for i in range(210)]
    path = tmp_path / "stored.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    keys = {"validation": "10_percent", "test": "15_examples"}
    loaded = catalogue.load(dataset(name="package_summaries", path=str(path), **keys))
    decode = loaded.spec.generated.facts["tokenizer"].decode
    groups = {
        split: {int(decode(row)[1:]) // 7 for row in arrays(source)["source"]}
        for split, source in loaded.splits.items()
    }
    assert {split: len(g) * 7 for split, g in groups.items()} == loaded.spec.sizes
    assert loaded.spec.sizes == {"train": 168, "validation": 21, "test": 21}
    assert len(set.union(*groups.values())) == 30
    with pytest.raises(ConfigError, match="take all of the 2 groups of examples"):
        splits.carve_groups(["a", "b"], dataset(validation="100_percent"))


def test_what_is_no_index(tmp_path, index, monkeypatch):
    (index / "deb_main_i18n_Translation-it").unlink()
    with pytest.raises(
        ConfigError, match=r"gives no pair.*Packages, Translation-en, Translation-it"
    ):
        debian.load("translation/it", str(index))
    damaged = tmp_path / "a.jsonl"
    for text in ('{"source": "a"}', '{"source": 1, "target": "b", "group": "c"}', "", "no"):
        damaged.write_text(text)
        with pytest.raises(ConfigError, match=r"a\.jsonl.*source, target, group"):
            debian.load("package_summaries", str(damaged))
    with pytest.raises(ConfigError, match=r"none\.jsonl cannot be read"):
        debian.load("package_summaries", str(tmp_path / "none.jsonl"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"apt-get is not installed.*Run it on such a machine"):
        debian.load("package_summaries", "")
    assert not list((tmp_path / "cache" / "debian").glob("*"))


def test_of_pairs_with_one_source_the_first_is_kept():
    english = {str(i): debian.Described(f"p{i}", f"synopsis {i}", ("the same",)) for i in range(2)}
    assert debian.summaries(english, {"p1": "other"}) == [("the same", "synopsis 0", "p0")]
