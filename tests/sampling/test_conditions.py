"""Conditions: from flags, from files, from held-out examples."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from genjax.config import ConfigError
from genjax.data import captions, sources
from genjax.data.alphabets import Bytes
from genjax.method import DataSpec, Field
from genjax.sampling import conditions

INT32 = np.dtype(np.int32)
CLOTHES = ("bags", "hats", "shirts", "shoes")
LABEL = sources.image_fields((2, 2, 1), 4, CLOTHES)["label"]
PROMPT = Field("text", (None,), INT32, {"tokenizer": Bytes({}), "begin": ()})
CAPTION = captions.field(Bytes({"eos": 256}), 6)
GREY = Field("image", (2, 3, 1), np.dtype(np.uint8))
KNOWN = {"label": LABEL, "prompt": PROMPT, "image": GREY}


def picture(path, value):
    Image.new("L", (3, 2), value).save(path)
    return str(path)


def texts(rows):
    return [bytes(row["prompt"].tolist()).decode() for row in rows]


def numbers(rows):
    return [int(row["label"]) for row in rows]


# ---- flags ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["3"], [3]),
        (["shoes"], [3]),
        (["1", "hats", "2"], [1, 1, 2]),
        (["(1, 2)"], [1, 2]),
        (["[3]"], [3]),
        (["('shoes', 0)", "2"], [3, 0, 2]),
    ],
)
def test_labels_are_repeated_or_in_a_tuple(given, expected):
    rows = conditions.parse(KNOWN, {"label": given})
    assert numbers(rows) == expected
    assert all(row.keys() == {"label"} and row["label"].dtype == INT32 for row in rows)


def test_texts_are_not_read_as_python():
    rows = conditions.parse(KNOWN, {"prompt": ["(1, 2)", "7", "'a'"]})
    assert texts(rows) == ["(1, 2)", "7", "'a'"]


def test_one_value_goes_with_as_many_as_there_are_of_the_others(tmp_path):
    file = picture(tmp_path / "a.png", 7)
    given = {"label": ["(1, 2, 3)"], "prompt": ["a", "bc", "d"], "image": [file]}
    rows = conditions.parse(KNOWN, given)
    assert (numbers(rows), texts(rows)) == ([1, 2, 3], ["a", "bc", "d"])
    assert all((row["image"] == 7).all() and row["image"].shape == (2, 3, 1) for row in rows)
    assert conditions.parse(KNOWN, {}) == []


def test_numbers_that_do_not_go_together_are_refused():
    for label in ["(1, 2)"], ["1", "2"]:
        with pytest.raises(
            ConfigError, match=r"2 of label, 3 of prompt\. Expected one value for all"
        ):
            conditions.parse(KNOWN, {"label": label, "prompt": ["a", "b", "c"]})


def test_a_value_that_is_none_says_which_flag_it_was():
    for flag, text, said in (
        ("label", "shoos", "--label: 'shoos': expected a class from 0 to 3, or a name: shoes"),
        ("label", "(1, 4)", "--label: '4': expected a class from 0 to 3"),
        ("prompt", "", "--prompt: .*at least one character"),
        ("image", "gone.png", "--image: 'gone.png': expected the file of a picture"),
    ):
        with pytest.raises(ConfigError, match=said):
            conditions.parse(KNOWN, {flag: [text]})


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"\xef\xbb\xbfab\n", "ab"),
        (b"ab\r\n", "ab"),
        (b"ab\n\n", "ab\n"),
        ("\u5e8a".encode(), "\u5e8a"),
    ],
)
def test_a_prompt_file_is_read_without_mark_and_last_line_end(content, expected, tmp_path):
    path = tmp_path / "prompt.txt"
    path.write_bytes(content)
    assert texts(conditions.parse(KNOWN, {"prompt_file": [str(path)]})) == [expected]


def test_files_of_a_text_may_be_several_and_are_instead_of_it(tmp_path):
    paths = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for path in paths:
        path.write_text(f"of {path.name}\n")
    rows = conditions.parse(KNOWN, {"prompt_file": list(map(str, paths)), "label": ["1"]})
    assert (texts(rows), numbers(rows)) == (["of a.txt", "of b.txt"], [1, 1])
    for given in (["prompt", "prompt_file"], ["prompt_file", "prompt"]):
        with pytest.raises(ConfigError, match="--prompt and --prompt_file are both given"):
            conditions.parse(KNOWN, {flag: [str(paths[0])] for flag in given})
    with pytest.raises(ConfigError, match=r"--prompt_file=.*gone\.txt: No such file"):
        conditions.parse(KNOWN, {"prompt_file": [str(tmp_path / "gone.txt")]})
    paths[0].write_text("\n")
    with pytest.raises(ConfigError, match=r"--prompt_file: .*at least one character"):
        conditions.parse(KNOWN, {"prompt_file": [str(paths[0])]})


def test_flags_are_the_conditions_and_files_of_texts():
    assert conditions.flags_of(KNOWN) == ["label", "prompt", "prompt_file", "image"]


def test_a_condition_named_text_is_also_given_by_prompt():
    known = {"text": KNOWN["prompt"]}
    assert conditions.flags_of(known) == ["text", "text_file", "prompt", "prompt_file"]
    (row,) = conditions.parse(known, {"prompt": ["ab"]})
    np.testing.assert_array_equal(row["text"], conditions.parse(known, {"text": ["ab"]})[0]["text"])
    assert conditions.from_values(known, {"prompt": "ab"})[0].keys() == {"text"}
    with pytest.raises(ConfigError, match="--text and --prompt are both given"):
        conditions.parse(known, {"text": ["ab"], "prompt": ["ab"]})


# ---- files ---------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of pictures that is not the one in which the command runs."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    made = tmp_path / "there"
    (made / "pictures").mkdir(parents=True)
    picture(made / "pictures" / "a.png", 7)
    picture(made / "pictures" / "b.png", 9)
    return made


def wrote(folder, name, content):
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(folder / name)


def test_a_table_has_a_column_a_condition_and_files_beside_it(folder):
    content = 'label,image,prompt\nshoes,pictures/a.png,"a, b"\n0,pictures/b.png,"two\nlines"\n'
    rows = [
        {"label": "shoes", "image": "pictures/a.png", "prompt": "a, b"},
        {"label": 0, "image": str(folder / "pictures/b.png"), "prompt": "two\nlines"},
    ]
    written = "\n\n".join(json.dumps(row) for row in rows) + "\n"
    for name, text in (("a.csv", content), ("bom.csv", "\ufeff" + content), ("a.jsonl", written)):
        found = conditions.read(KNOWN, wrote(folder, name, text))
        assert (numbers(found), texts(found)) == ([3, 0], ["a, b", "two\nlines"])
        assert [int(row["image"].max()) for row in found] == [7, 9]
        assert all(row.keys() == KNOWN.keys() for row in found)


def test_lines_of_json_end_with_newlines_alone(folder):
    text = json.dumps({"prompt": "one\u2028line"}, ensure_ascii=False)
    assert texts(conditions.read(KNOWN, wrote(folder, "a.jsonl", text))) == ["one\u2028line"]


def test_a_text_that_is_called_like_a_file_stays_what_it_says(folder):
    wrote(folder, "cat", "of another kind")
    assert texts(conditions.read(KNOWN, wrote(folder, "a.csv", "prompt\ncat\n"))) == ["cat"]


def test_an_npz_has_an_array_of_each_condition(folder):
    images = np.arange(12, dtype=np.uint8).reshape(2, 2, 3, 1)
    np.savez(folder / "a.npz", label=np.array([3, 1]), image=images)
    rows = conditions.read(KNOWN, str(folder / "a.npz"))
    assert numbers(rows) == [3, 1]
    np.testing.assert_array_equal([row["image"] for row in rows], images)
    assert all(row["label"].dtype == INT32 for row in rows)


def test_numbers_outside_their_range_are_refused(folder):
    share = {"mix": Field("real", (), np.dtype(np.float32), {"range": (0.0, 1.0)})}
    np.savez(folder / "a.npz", mix=np.array([0.0, 1.5]))
    with pytest.raises(ConfigError, match="mix: expected numbers from 0 to 1"):
        conditions.read(share, str(folder / "a.npz"))


def test_prompts_in_an_npz_are_filled_up_on_the_left(folder):
    tokens = np.array([[-1, 97, 98], [99, 100, 101]])
    np.savez(folder / "a.npz", prompt=tokens)
    facts = {**PROMPT.facts, "vocabulary_size": 256}
    rows = conditions.read({"prompt": PROMPT._replace(facts=facts)}, str(folder / "a.npz"))
    np.testing.assert_array_equal([row["prompt"] for row in rows], tokens)


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.npz"])
def test_a_column_that_is_no_condition_is_named(folder, name):
    if name == "a.npz":
        np.savez(folder / name, labels=np.array([1]))
    else:
        wrote(folder, name, "labels\n1\n" if name == "a.csv" else '{"labels": 1}')
    said = rf"--conditions=.*{name}.*'labels' is not a condition of this run\. Nearest: label"
    with pytest.raises(ConfigError, match=said):
        conditions.read(KNOWN, str(folder / name))
    with pytest.raises(ConfigError, match=r"'labels' is not a condition of this run\. It has none"):
        conditions.read({}, str(folder / name))


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.csv", "label\n"), ("a.csv", ""), ("a.jsonl", ""), ("a.jsonl", "\n\n"), ("a.npz", None)],
)
def test_a_file_without_rows_is_refused(folder, name, content):
    if content is None:
        np.savez(folder / name, label=np.zeros(0, np.int32))
    else:
        wrote(folder, name, content)
    with pytest.raises(ConfigError, match=rf"--conditions=.*{name} has no rows"):
        conditions.read(KNOWN, str(folder / name))


def test_arrays_of_different_length_are_refused(folder):
    np.savez(folder / "a.npz", label=np.arange(3), image=np.zeros((2, 2, 3, 1), np.uint8))
    with pytest.raises(ConfigError, match=r"arrays of different lengths \(label 3, image 2\)"):
        conditions.read(KNOWN, str(folder / "a.npz"))


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"label": np.array([1, 4])}, "label.*expected classes from 0 to 3"),
        ({"label": np.array([-1])}, "label.*expected classes from 0 to 3"),
        ({"label": np.array([1.5])}, r"label.*float64.*expected int32 of shape \[N\]"),
        ({"label": np.array([[1], [2]])}, r"label.*\[2, 1\].*expected int32 of shape \[N\]"),
        ({"label": np.array(1)}, r"label.*expected int32 of shape \[N\]"),
        ({"label": np.array(["shoes"])}, r"label.*expected int32 of shape \[N\]"),
        ({"image": np.zeros((2, 2, 2, 1), np.uint8)}, r"image.*expected uint8 of shape \[N, 2, 3"),
        ({"prompt": np.zeros((2, 3), np.float32)}, r"prompt.*expected int32 of shape \[N, any"),
        ({"caption": np.full((1, 6), 257)}, "caption.*expected tokens from 0 to 256"),
    ],
)
def test_arrays_of_another_kind_are_refused(folder, arrays, said):
    np.savez(folder / "a.npz", **arrays)
    with pytest.raises(ConfigError, match=rf"--conditions=.*a\.npz.*{said}"):
        conditions.read({**KNOWN, "caption": CAPTION}, str(folder / "a.npz"))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", "label\n1\n", "expected a .csv, .jsonl or .npz file, or a split of the data"),
        ("test", "", "expected a .csv, .jsonl or .npz file, or a split of the data"),
        ("a.npz", "no archive", "cannot be read"),
        ("a.jsonl", "{", "cannot be read"),
        ("a.jsonl", "3\n", "line 1: not a JSON object"),
        ("a.jsonl", '{"label": 1}\n{"label": 4}', "row 2, label: '4': expected a class"),
        ("a.jsonl", '{"prompt": null}', "row 1, prompt: expected a text or a number"),
        ("a.csv", "label,prompt\n1\n", "row 1, prompt: expected a text or a number"),
        ("a.csv", "label\n1,2\n", "row 1: more values than columns"),
        ("a.csv", "label,image\n1,gone.png\n", "row 1, image: 'gone.png': expected the file"),
        ("a.csv", b"label\n\xff\n", "is not UTF-8"),
    ],
)
def test_files_that_cannot_be_read(folder, name, content, said):
    with pytest.raises(ConfigError, match=said):
        conditions.read(KNOWN, wrote(folder, name, content))


def test_a_file_that_is_not_there(folder):
    for name in ("gone.csv", "gone.jsonl", "gone.npz"):
        with pytest.raises(ConfigError, match=rf"--conditions.*{name}.*[nN]o such file"):
            conditions.read(KNOWN, str(folder / name))


# ---- held-out examples ---------------------------------------------------------------------------


def test_held_out_examples_are_spread_the_same_and_in_turn():
    source = sources.Columns({"label": np.arange(50, dtype=np.int32)})
    order = sources.order(50)
    np.testing.assert_array_equal(conditions.held_out(source, 20)["label"], order[:20])
    np.testing.assert_array_equal(conditions.held_out(source, 30)["label"], order[:30])
    again = conditions.held_out(source, 110)["label"]
    np.testing.assert_array_equal(again, np.concatenate([order, order, order[:10]]))


def test_conditions_are_found_in_the_data_by_their_names():
    known = {**KNOWN, "hint": GREY._replace(facts={"field": "mask"})}
    fields = {"label": LABEL, "mask": GREY, "image": GREY}
    spec = DataSpec("made", fields, "image", {})
    found = conditions.in_data(known, spec)
    assert found == {"label": "label", "image": "image", "hint": "mask"}
    assert conditions.in_data({"prompt": PROMPT}, spec) == {}


# ---- for methods ---------------------------------------------------------------------------------

SPEC = DataSpec("made", {"image": GREY, "label": LABEL}, "image", {})


def test_labels_are_those_given_or_each_class_in_turn():
    key = jax.random.key(0)
    given = conditions.labels(SPEC, True, 3, {"label": np.array([2, 0, 2])}, key)
    assert given.dtype == np.int32
    np.testing.assert_array_equal(given, [2, 0, 2])
    starts = set()
    for seed in range(20):
        turns = np.asarray(conditions.labels(SPEC, True, 9, {}, jax.random.key(seed)))
        np.testing.assert_array_equal(np.diff(turns) % 4, 1)
        starts.add(int(turns[0]))
    assert starts == {0, 1, 2, 3}
    assert conditions.labels(SPEC, False, 3, {}, key) is None


def test_labels_that_cannot_be_are_refused():
    key, given = jax.random.key(0), {"label": np.array([2, 0, 2])}
    with pytest.raises(ConfigError, match=r"the model has no such condition: leave it out\.$"):
        conditions.labels(SPEC, False, 3, given, key)
    with pytest.raises(ConfigError, match=r"no such condition: .*or train with gan\.labels=True"):
        conditions.labels(SPEC, False, 3, given, key, "gan.labels=True")
    with pytest.raises(ConfigError, match=r"expected 4 labels, got an array of \(3,\)"):
        conditions.labels(SPEC, True, 4, given, key)


def test_a_condition_that_is_needed():
    assert conditions.required({"prompt": 3}, "prompt") == 3
    with pytest.raises(ConfigError, match=r"--image is missing: .*--conditions=test"):
        conditions.required({"prompt": 3}, "image")
