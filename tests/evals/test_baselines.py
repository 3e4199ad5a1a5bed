"""Baselines by hand."""

from genjax.evals import baselines, text

PAIRS = [
    ("the red house", "la casa rossa"),
    ("the red car", "la macchina rossa"),
    ("the blue house", "la casa blu"),
    ("a blue car", "una macchina blu"),
    ("a red boat", "una barca rossa"),
    ("a blue sea", "un mare blu"),
]


def test_the_lead_is_as_long_as_the_median_target():
    write = baselines.lead(["x"] * 3, ["one", "one two", "one two three four five"])
    assert write("first second third") == "first second"
    assert write("first\nsecond third") == "first second"
    assert write("first") == "first"


def test_the_dictionary_takes_the_word_that_is_in_the_same_pairs():
    write = baselines.dictionary(*zip(*PAIRS, strict=True))
    # Dice of red and rossa is 1, of blue and blu too; "the" is in 3 pairs, "la" in the same.
    assert write("the red blue") == "la rossa blu"
    # House is in two pairs alone, and unknown words stay.
    assert write("a red house!") == "blu rossa house !"


def test_of_the_same_coefficient_the_first_word_counts():
    write = baselines.dictionary(["b"] * 3, ["z a"] * 3)
    assert write("b c") == "a c"
    assert baselines.dictionary(["b"], ["a"])("b") == "b"  # too rare
    assert text.agreement([write("b")], ["a"])["rouge_1"] == 100
