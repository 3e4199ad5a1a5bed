"""What stands around a text, which tokens a model knows, and texts beside prompts.

What transformers gave with the same folders is in the golden file; how it is made anew stands in
`tests/golden/make_tokenizer_rules.py`.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tokenizers as library
from datasets import dataset

from genjax.config import ConfigError
from genjax.data import subwords, text, tokenizers
from genjax.data.alphabets import Bytes
from genjax.interop import huggingface
from genjax.method import DataSpec
from genjax.methods.lm import prompt_field
from genjax.modalities import text as texts

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "tokenizer_rules.npz")
FOLDERS = sorted({key.split("/")[0] for key in GOLDEN.files if "/0/ids" in key})


def folder(name, tmp_path):
    """A folder of the golden file."""
    for key in GOLDEN.files:
        if key.startswith(f"{name}/files/"):
            (tmp_path / key.rsplit("/", 1)[1]).write_bytes(GOLDEN[key].tobytes())
    return tmp_path


def prompt_of(made, documents="stream"):
    """The field of a prompt to a model with this tokenizer."""
    example = {"token": np.zeros(9, np.int32)}
    fields = text.fields(example, made, tokenizers.special_tokens(made))
    return prompt_field(DataSpec("x", fields, "token", {"train": 1}), documents)


@pytest.mark.parametrize("name", FOLDERS)
def test_a_prompt_begins_as_by_transformers(name, tmp_path):
    made = tokenizers.read(folder(name, tmp_path))
    assert made.special == {"bos": 0, "eos": 1}
    for i, given in enumerate(GOLDEN["texts"].tolist()):
        expected = GOLDEN[f"{name}/{i}/ids"].tolist()
        prompt = texts.parse(given, prompt_of(made)).tolist()
        # What ends a text does not end a prompt.
        assert prompt == [n for n in expected if not (n == 1 and expected[-1] == 1)]
    again = tokenizers.from_json(made.to_json())
    assert again.begins == made.begins


@pytest.mark.parametrize(("name", "begins"), [("none", ()), ("template", (0,))])
def test_documents_begin_as_prompts_do(name, begins, tmp_path, monkeypatch):
    monkeypatch.setenv("GENJAX_DATA", str(tmp_path / "cache"))
    place = folder(name, tmp_path)
    (tmp_path / "t.jsonl").write_text('{"text": "a b c"}\n{"text": "c c"}\n')
    wanted = dataset(name="text", path=str(tmp_path / "t.jsonl"))
    wanted.text.tokenizer, wanted.text.length = str(place), 4
    loaded = text.load(wanted)
    first = loaded.splits["train"][0]["token"].tolist()
    assert first == [*begins, 2, 3, 4, 1, *begins, 4, 4][:5]
    assert loaded.spec.generated.facts["special"]["start"] == (begins[0] if begins else 1)
    # Rows of whole documents begin with what ends the one before, where nothing else does.
    wanted.text.documents, wanted.text.length = "padded", 6
    rows = text.load(wanted).splits["train"]
    assert rows[0]["token"].tolist() == [*(begins or (1,)), 2, 3, 4, 1, 1, 1]
    assert prompt_of(tokenizers.read(place), "padded").facts["begin"] == (begins or (1,))


def test_what_is_exported_begins_texts_as_the_run_did():
    """Of packed documents each begins with the end of the one before: the file is told."""
    made = subwords.train("bpe", ["one two three"], 300, end=True)
    end = made.special["eos"]
    description = huggingface.Description("gpt2", {}, 300, 8, {"start": end, "eos": end})
    plain = huggingface.tokenizer_files(description, made.to_json(), ())["tokenizer.json"]
    assert plain["post_processor"] is None
    told = huggingface.tokenizer_files(description, made.to_json(), (end,))["tokenizer.json"]
    loaded = library.Tokenizer.from_str(json.dumps(told))
    assert loaded.encode("one").ids == [end, *made.encode("one").tolist()]
    assert loaded.encode("one", add_special_tokens=False).ids == made.encode("one").tolist()


def test_an_added_token_is_not_cut_in_two(tmp_path):
    made = tokenizers.read(folder("long", tmp_path))
    long = "a" * 65533 + "foo bar"
    np.testing.assert_array_equal(made.encode(long), GOLDEN["long/ids"])
    assert len(made.encode(long)) == 65534


def test_tokens_that_the_model_does_not_know_are_left_out(foreign, caplog):
    whole = tokenizers.read(foreign).vocabulary_size
    inner = library.Tokenizer.from_file(str(foreign / "tokenizer.json"))
    inner.add_special_tokens(["[PAD]"])
    inner.add_tokens(["hotdog"])
    inner.save(str(foreign / "tokenizer.json"))
    (foreign / "tokenizer_config.json").write_text(
        '{"bos_token": "<s>", "eos_token": "</s>", "pad_token": "[PAD]"}'
    )
    assert tokenizers.read(foreign).vocabulary_size == whole + 2
    (foreign / "config.json").write_text(json.dumps({"vocab_size": whole}))
    made = tokenizers.read(foreign)
    assert made.vocabulary_size == whole
    assert made.special == {"bos": 1, "eos": 2}
    assert "'[PAD]', 'hotdog' are left out" in caplog.text
    assert made.decode(made.encode("hotdog")) == "hotdog"
    assert max(made.encode("the hotdog")) < whole


def test_tokens_of_encoders_have_roles_by_their_own_names_or_the_usual_ones(foreign):
    inner = library.Tokenizer.from_file(str(foreign / "tokenizer.json"))
    names = ["[CLS]", "[SEP]", "[PAD]", "[MASK]"]
    inner.add_special_tokens([*names, "<gap>"])
    inner.save(str(foreign / "tokenizer.json"))
    bos, eos, pad, mask, gap = map(inner.token_to_id, (*names, "<gap>"))
    given = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    (foreign / "tokenizer_config.json").write_text(json.dumps(given | {"mask_token": "<gap>"}))
    found = tokenizers.read(foreign)
    assert found.special == {"bos": bos, "eos": eos, "pad": pad, "mask": gap}
    assert tokenizers.from_json(found.to_json()).special == found.special
    assert tokenizers.special_tokens(found) == {"start": 1, "eos": eos, "pad": pad}  # its own
    (foreign / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"} | given))
    assert tokenizers.read(foreign).special["eos"] == 2
    (foreign / "tokenizer_config.json").unlink()
    assert tokenizers.read(foreign).special["mask"] == mask


def test_dropout_of_merges_is_off(tmp_path):
    made = subwords.train("bpe", ["the theme of the thesis " * 20], 300, end=False)
    state = json.loads(made.inner.to_str())
    state["model"]["dropout"] = 0.9
    (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    found = tokenizers.read(tmp_path)
    for _ in range(5):
        assert found.encode("the theme").tolist() == made.encode("the theme").tolist()


def test_an_end_that_is_text_too_is_still_read(foreign):
    """Such as a newline: it ends what is drawn, and texts that have it keep it."""
    (foreign / "config.json").write_text('{"eos_token_id": 2}')
    space = tokenizers.read(foreign).inner.token_to_id("▁the")
    (foreign / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, space]}))
    made = tokenizers.read(foreign)
    assert made.special == {"bos": 1, "eos": 2, "eos_2": space}
    assert made.decode(made.encode("the hot")) == "the hot"
    assert made.spelling[space] == b" the"


def test_a_prompt_and_its_text_are_encoded_as_one(foreign, tmp_path, monkeypatch):
    made = tokenizers.read(foreign)
    ((ids, prompt),) = made.encode_joined(["the h"], ["ot the"])
    assert ids.tolist() == made.encode("the hot the").tolist()
    assert made.decode(ids[:prompt]) == "the h"
    alone = [*made.encode("the h"), *made.encode("ot the")]
    assert ids.tolist() != alone  # encoded alone, the text begins with a space
    # A token of both is one of the text.
    ((ids, prompt),) = made.encode_joined(["t"], ["he"])
    assert made.decode(ids) == "the"
    assert prompt == 0
    assert Bytes({}).encode_joined(["ab"], ["c"])[0].prompt == 2
    assert made.encode_joined(["the"], [""])[0].prompt == len(made.encode("the"))
    # In the data too.
    monkeypatch.setenv("GENJAX_DATA", str(tmp_path / "cache"))
    (tmp_path / "t.jsonl").write_text('{"q": "the h", "text": "ot the"}\n' * 2)
    wanted = dataset(name="text", path=str(tmp_path / "t.jsonl"))
    wanted.text.tokenizer, wanted.text.length = str(foreign), 12
    wanted.text.prompt_field, wanted.text.documents = "q", "padded"
    row = text.load(wanted).splits["train"][0]
    assert made.decode(row["token"]) == "the hot the"
    assert made.decode(row["token"][row["loss_mask"]]).strip() == "ot the"


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "unigram"])
def test_text_without_spaces_takes_no_time_of_its_square(kind):
    """100,000 letters in one word took seven seconds, four times as many a hundred."""
    letters = "".join(np.random.default_rng(0).choice(list("ACGT"), 10_000))
    parts = list(subwords.words([letters]))
    assert "".join(parts) == letters
    assert max(map(len, parts)) == subwords.LONGEST_WORD
    made = subwords.train(kind, [letters], 300, end=False)
    if kind != "wordpiece":
        assert made.decode(made.encode(letters)) == letters


def test_what_has_spaces_is_trained_on_as_it_is():
    prose = "a few words, \n  and\tmore " * 9000
    assert list(subwords.words([prose])) == list(subwords.chunks(prose))
    mixed = "ab  cd\n" + "x" * 600 + " yz \n"
    parts = list(subwords.words([mixed]))
    assert "".join(parts) == mixed
    assert parts[:2] == ["ab", "  cd"]


def test_an_interrupt_is_heard_while_the_library_computes(tmp_path):
    code = (
        "import numpy as np; from genjax.data import subwords\n"
        "text = ''.join(np.random.default_rng(0).choice(list('ACGT'), 10**6))\n"
        "print('begun', flush=True); subwords.train('unigram', [text], 4096, True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout.readline() == b"begun\n"
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert b"KeyboardInterrupt" in said
    assert process.returncode != 0


def test_a_tokenizer_that_panics_or_explodes_is_one_clear_error(foreign):
    def panic():
        raise type("PanicException", (BaseException,), {})("index out of bounds")

    with pytest.raises(ConfigError, match=r"failed: index out of bounds"):
        subwords.guarded(panic)
    state = json.loads((foreign / "tokenizer.json").read_text())
    replace = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 100}
    state["normalizer"] = {"type": "Sequence", "normalizers": [replace] * 5}
    (foreign / "tokenizer.json").write_text(json.dumps(state))
    with pytest.raises(ConfigError, match="more than 1000 characters of one"):
        tokenizers.read(foreign)
    state["normalizer"] = None
    state["post_processor"]["special_tokens"]["<s>"]["ids"] = [1] * 1000
    state["post_processor"]["special_tokens"]["<s>"]["tokens"] = ["<s>"] * 1000
    (foreign / "tokenizer.json").write_text(json.dumps(state))
    with pytest.raises(ConfigError, match="1000 in all: expected at most 16"):
        tokenizers.read(foreign)
