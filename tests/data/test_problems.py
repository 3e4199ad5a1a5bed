"""Problems that are made by rule, and pairs of answers to them or to those of a file."""

import json

import numpy as np
import pytest
from datasets import dataset

from genjax.config import ConfigError
from genjax.data import catalogue, problems


def wanted(name, **keys):
    held_out = {"validation": "500_examples", "test": "300_examples"}
    text = {"text.tokenizer": "characters", "text.length": 15, "text.documents": "padded"}
    return dataset(name=name, **held_out, **text, **keys)


def told(loaded, split, token="token", mask="loss_mask"):
    """(problem, answer) of each example of a split, by its tokenizer."""
    source = loaded.splits[split]
    rows = source.take(np.arange(len(source)))
    decode = loaded.spec.generated.facts["tokenizer"].decode
    pairs = zip(rows[token], rows[mask], strict=True)
    return [(decode(row[: m.argmax()]), decode(row[m])) for row, m in pairs]


def solved(problem):
    """The answer, worked out in another way than the data do."""
    if problem.endswith(":"):
        return "".join(sorted(problem[:-1]))
    return str(eval(problem[:-1]))


def test_every_answer_is_right_and_no_problem_is_in_two_splits():
    loaded = catalogue.load(wanted("problems"))
    spec = loaded.spec
    assert spec.sizes == {"train": 22292, "validation": 500, "test": 300}
    assert catalogue.spec(wanted("problems")) == spec
    seen = {}
    for split in spec.sizes:
        for problem, answer in told(loaded, split):
            assert answer == solved(problem)
            # A sum is the same problem as its mirror image, and so is another order of digits.
            mark = "+" if "+" in problem else "*" if "*" in problem else ""
            content = frozenset(problem[:-1].split(mark)) if mark else problem
            content = answer + ":" if problem.endswith(":") else (mark, content)
            assert seen.setdefault(content, split) == split
    assert len(seen) == 23092


def test_a_row_is_a_padded_text_with_a_prompt():
    loaded = catalogue.load(wanted("sorting"))
    tokenizer, source = loaded.spec.generated.facts["tokenizer"], loaded.splits["train"]
    eos, row = tokenizer.special["eos"], source[0]
    prompt, answer = told(loaded, "train")[0]
    expected = [eos, *tokenizer.encode(prompt), *tokenizer.encode(answer), eos]
    assert row["token"].tolist() == expected + [eos] * (16 - len(expected))
    assert row["segment"].tolist() == [1] * len(expected) + [0] * (16 - len(expected))
    assert row["loss_mask"].sum() == len(answer) + 1
    assert row["bytes"] == len(answer)
    assert {name: field.shape for name, field in loaded.spec.fields.items()} == {
        "token": (16,),
        "segment": (16,),
        "loss_mask": (16,),
        "bytes": (),
        "prompt": (8,),
    }
    assert row["prompt"].tolist() == [-1] * (7 - len(prompt)) + expected[: 1 + len(prompt)]


def test_a_rejected_answer_is_wrong_by_one_digit():
    loaded = catalogue.load(wanted("arithmetic_preferences"))
    chosen = told(loaded, "train", "chosen", "chosen_mask")
    rejected = told(loaded, "train", "rejected", "rejected_mask")
    for (problem, right), (same, wrong) in zip(chosen, rejected, strict=True):
        assert problem == same
        assert right == solved(problem)
        assert sum(a != b for a, b in zip(right, wrong, strict=True)) == 1


def test_the_wrong_digit_may_be_anywhere():
    rng = np.random.default_rng(0)
    assert {problems.wrong("-7", rng) for _ in range(200)} == {f"-{d}" for d in "012345689"}
    assert len({problems.wrong("555", rng) for _ in range(400)}) == 27


def written(path, lines):
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


PAIR = {"prompt": "Say it: ", "chosen": "Yes.", "rejected": "No, no."}


def test_preferences_of_a_file(tmp_path):
    lines = [PAIR | {"prompt": f"{n}: "} for n in range(9)]
    path = written(tmp_path / "pairs.jsonl", lines)
    asked = wanted("preferences", path=str(path))
    asked.validation, asked.test = "2_examples", ""
    loaded = catalogue.load(asked)
    assert (loaded.spec.target, loaded.spec.sizes) == ("chosen", {"train": 7, "validation": 2})
    assert told(loaded, "train", "chosen", "chosen_mask")[0][1] == "Yes."
    assert told(loaded, "train", "rejected", "rejected_mask")[0][1] == "No, no."
    prompts = {
        prompt
        for split in loaded.spec.sizes
        for prompt, _ in told(loaded, split, "rejected", "rejected_mask")
    }
    assert prompts == {line["prompt"] for line in lines}


# ---- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"rejected": "Yes."}, r"the two answers of 1 of 2 pairs are equal, .*'Say it: '"),
        ({"chosen": "Certainly, my dear."}, r"1 of 2 prompts .* longer than .*length=15; .* 28"),
        ({"rejected": ""}, r"the prompt 'Say it: ' with the answer '': expected tokens of both"),
        ({"rejected": 3}, r"some lines have only one of 'chosen' and 'rejected'"),
        ({"prompt": ""}, r"the prompt '' with the answer 'Yes\.': expected tokens of both"),
    ],
)
def test_a_bad_pair_is_refused(tmp_path, line, message):
    path = written(tmp_path / "pairs.jsonl", [PAIR | {"prompt": "A: "}, PAIR | line])
    asked = wanted("preferences", path=str(path))
    asked.validation = asked.test = ""
    asked.on_corrupt = "skip"  # lines without both texts
    with pytest.raises(ConfigError, match=message):
        catalogue.load(asked)


@pytest.mark.parametrize("name", ["sorting", "sorting_preferences", "preferences"])
def test_rows_that_are_not_padded_are_refused(name, tmp_path):
    asked = wanted(name)
    asked.text.documents = "packed"
    if name == "preferences":
        asked.path = str(written(tmp_path / "pairs.jsonl", [PAIR]))
    with pytest.raises(ConfigError, match=rf"documents='packed': each row of {name} is one prompt"):
        catalogue.load(asked)


def test_other_fields_than_three_texts_are_refused(tmp_path):
    asked = wanted("preferences", path=str(written(tmp_path / "a.jsonl", [PAIR])))
    asked.fields = (("chosen", "text"),)
    with pytest.raises(ConfigError, match=r"dataset\.fields=.*preferences are three texts"):
        catalogue.load(asked)
