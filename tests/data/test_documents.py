from __future__ import annotations

import json

import pytest
from datasets import dataset as base

from genjax.config import ConfigError
from genjax.data import documents


def dataset(path, **text):
    made = base(name="text", path=str(path))
    for key, value in text.items():
        made.text[key] = value
    return made


def texts(path, **text):
    return {s: d.texts for s, d in documents.corpus(dataset(path, **text)).read().items()}


def put(root, files):
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def lines(*values):
    return "".join(json.dumps(value) + "\n" for value in values)


def test_a_file_is_one_document_as_it_stands(tmp_path):
    put(tmp_path, {"a.txt": b"\xef\xbb\xbfone\r\ntwo\xe2\x80\xa8\n", "b": "no suffix"})
    assert texts(tmp_path / "a.txt") == {"train": ["one\r\ntwo\u2028\n"]}
    assert texts(tmp_path / "b") == {"train": ["no suffix"]}
    assert documents.corpus(dataset(tmp_path / "a.txt")).single


def test_a_byte_that_is_no_utf8_is_named_where_it_stands(tmp_path):
    for mark in (b"", b"\xef\xbb\xbf"):
        put(tmp_path, {"a.txt": mark + b"ab\xffcd"})
        with pytest.raises(ConfigError, match=rf"byte 0xff at offset {len(mark) + 2} "):
            texts(tmp_path / "a.txt")


def test_a_folder_is_a_document_for_each_file_by_path(tmp_path):
    files = {"b.txt": "B", "a/z.md": "Z", "a/c.txt": "C", ".hid/x.txt": "x", ".y.txt": "y"}
    files |= {"p.png": b"\xff", "empty.txt": "", "lines.jsonl": lines({"text": "J1"}, {"text": ""})}
    put(tmp_path, files)
    assert texts(tmp_path) == {"train": ["C", "Z", "B", "J1"]}
    assert not documents.corpus(dataset(tmp_path)).single


def test_files_and_folders_that_are_called_so_are_splits(tmp_path):
    put(tmp_path / "a", {"train.txt": "t", "valid.txt": "v", "test.txt": "e", "readme.md": "r"})
    assert texts(tmp_path / "a") == {"train": ["t"], "validation": ["v"], "test": ["e"]}
    assert documents.corpus(dataset(tmp_path / "a")).single
    put(tmp_path / "b", {"train/2.txt": "2", "train/1.txt": "1", "val.jsonl": lines({"text": "v"})})
    assert texts(tmp_path / "b") == {"train": ["1", "2"], "validation": ["v"]}
    assert not documents.corpus(dataset(tmp_path / "b")).single
    put(tmp_path / "code", {"train.py": "t", "test.py": "e", "test/x.py": "x"})
    assert texts(tmp_path / "code") == {"train": ["x", "e", "t"]}
    put(tmp_path / "b", {"train.txt": "again"})
    with pytest.raises(ConfigError, match=r"train and train\.txt: expected one"):
        documents.corpus(dataset(tmp_path / "b"))
    put(tmp_path / "c", {"train.txt": "t", "test/x.png": "x"})
    with pytest.raises(ConfigError, match=r"c/test holds no text"):
        documents.corpus(dataset(tmp_path / "c"))


def test_fields_of_json_lines(tmp_path):
    put(tmp_path, {"a.jsonl": lines({"q": "1+1=", "a": "2", "n": 3}) + " \n\n" + lines({"a": ""})})
    assert texts(tmp_path / "a.jsonl", field="a") == {"train": ["2"]}
    put(tmp_path, {"a.jsonl": lines({"q": "1+1=", "a": "2"}, {"q": "p", "a": ""})})
    read = documents.corpus(dataset(tmp_path / "a.jsonl", field="a", prompt_field="q")).read
    assert read() == {"train": documents.Documents(["2", ""], ["1+1=", "p"])}
    put(tmp_path, {"u.jsonl": '{"text": "a\u2028b\u0085c"}\n'})
    assert texts(tmp_path / "u.jsonl") == {"train": ["a\u2028b\x85c"]}
    put(tmp_path, {"a.txt": "x"})
    with pytest.raises(ConfigError, match="prompt_field='q' is a field of JSON Lines"):
        documents.corpus(dataset(tmp_path / "a.txt", prompt_field="q"))


def test_a_missing_field_names_its_own_key(tmp_path):
    put(tmp_path, {"a.jsonl": '{"text": "a"}'})
    with pytest.raises(ConfigError, match=r"field 'q', but .*dataset\.text\.prompt_field"):
        documents.corpus(dataset(tmp_path / "a.jsonl", prompt_field="q")).read()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", r"line 2: not a JSON object \(Expecting"),
        ('["text"]', r"line 2: not a JSON object .*Expected one JSON object per line"),
        (
            '{"txet": "a", "n": 1}',
            r"line 2: .*'text', but there is no such field. The fields are 'txet', 'n'",
        ),
        ('{"text": 7}', r"line 2: .*field 'text', but it is 7"),
        ('{"text": "\\ud800"}', r"line 2: .*half a surrogate pair, U\+D800"),
        ("[" * 100_000, r"line 2: not a JSON object .*nested too deeply"),
        ('{"text": "a", "text": "b"}', r"line 2: .*the key 'text' appears twice"),
    ],
)
def test_a_bad_line_is_named_or_left_out(tmp_path, line, said, caplog):
    path = tmp_path / "a.jsonl"
    path.write_text(lines({"text": "first"}) + line + "\n" + lines({"text": "last"}))
    with pytest.raises(ConfigError, match=said):
        texts(path)
    wanted = dataset(path)
    wanted.on_corrupt = "skip"
    assert documents.corpus(wanted).read()["train"].texts == ["first", "last"]
    assert "left out 1 damaged" in caplog.text


@pytest.mark.parametrize(
    ("content", "offset", "byte"),
    [(b"ab\xffcd", 2, "ff"), (b"\xe6\x97", 0, "e6"), (b"a\xed\xa0\x80", 1, "ed")],
)
def test_what_is_not_utf8_is_named_with_its_offset(tmp_path, content, offset, byte):
    put(tmp_path, {"good.txt": "g", "bad.txt": content})
    with pytest.raises(
        ConfigError, match=rf"bad\.txt is not UTF-8: byte 0x{byte} at offset {offset} "
    ):
        texts(tmp_path)
    wanted = dataset(tmp_path)
    wanted.on_corrupt = "skip"
    assert documents.corpus(wanted).read()["train"].texts == ["g"]


def test_nothing_to_read_is_one_clear_error(tmp_path):
    for path, said in (
        ("", "needs dataset.path"),
        (tmp_path / "gone", "no such file or folder"),
        (tmp_path, r"holds no text. Expected files that end in \.txt"),
    ):
        with pytest.raises(ConfigError, match=said):
            documents.corpus(dataset(path))


def test_the_digest_sees_every_change(tmp_path):
    put(tmp_path, {"a.txt": "1", "b.txt": "2"})
    before = documents.corpus(dataset(tmp_path)).digest
    assert documents.corpus(dataset(tmp_path)).digest == before
    assert documents.corpus(dataset(tmp_path, field="x")).digest != before
    (tmp_path / "b.txt").rename(tmp_path / "c.txt")
    renamed = documents.corpus(dataset(tmp_path)).digest
    put(tmp_path, {"c.txt": "3"})
    assert len({before, renamed, documents.corpus(dataset(tmp_path)).digest}) == 3
