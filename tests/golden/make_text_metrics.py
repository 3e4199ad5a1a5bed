"""BLEU, chrF and words by sacrebleu and ROUGE by rouge-score, on awkward texts.

/path/to/parity/bin/python tests/golden/make_text_metrics.py [OUTPUT.npz]

`cases` is JSON: by name the hypotheses, for each its references, and the peers' scores; `words`
has texts and what 13a makes of them; `alike` has texts and the mean of each one's sentence BLEU
against all others, by order.
"""

from __future__ import annotations

import importlib.metadata
import json
import pathlib
import random
import sys

import numpy as np
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

CAT = "The cat sat on the mat, and purred."
CORPORA = {
    "equal": [(CAT, [CAT])],
    "near": [
        ("The cat sat on a mat and purred.", [CAT]),
        ("It's 3,000.50 dollars - or $3 - isn't it?", ["It is 3,000.50 dollars, isn't it?"]),
    ],
    "no_four_in_a_row": [("A dog sat in the garden today.", [CAT])],
    "one_match_only": [("purred loudly", [CAT])],
    "no_match": [("zyx wvu", ["abc"])],
    "one_word": [("cat", ["cat"])],
    "three_words": [("the black cat", ["the black cat"])],
    "short_of_four_and_long": [("the black cat", ["the black cat"]), (CAT, [CAT.upper()])],
    "empty_hypothesis": [("", [CAT])],
    "empty_among_others": [("", [CAT]), ("The cat sat on the mat.", [CAT]), (" \n", ["Yes."])],
    "empty_reference": [("Something.", [""]), ("The cat sat there.", ["The cat sat."])],
    "all_empty": [("", [""])],
    "several_references": [
        ("The cat sat on the mat", [CAT, "On the mat sat the cat.", "There was a cat on a mat"]),
        ("the the the the the", ["the cat the", "the the", "A cat is on the mat with the dog"]),
        ("He said (softly): no!", ["He said: 'no'!", "He (softly) said no!", "Softly: no!"]),
    ],
    "variable_references": [
        ("a b c d e f g", ["a b c d x y z", "a b c d e"]),
        ("a b c d e f g h", ["a b c q e f g h"]),
        ("one two three four", ["one two", "one two three four five six", "four three two one"]),
    ],
    "nearest_length_tie": [("a b c d e", ["a b c d", "a b c d e f"])],
    "unicode": [
        ("Ich heiße Ümlaut – “ja” … naïve café", ["Ich heiße Umlaut — „ja“… naïve cafe\u0301"]),
        ("床前明月光，疑是地上霜。", ["床前看月光，疑是地上霜。", "明月光"]),
        ("Привет,\u00a0мир!\u3000😀", ["Привет, мир! 😀😀"]),
    ],
    "punctuation": [
        ("...,,,---!!!", ["...---!!!"]),
        ("&quot;A&amp;B&quot; &lt;tag&gt; &amp;lt; <skipped> x-\ny", ['"A&B" <tag> &lt; x y']),
        ("1.5, 2,000. 3-4 a-b it's U.S.A. 9. .5 5,", ["1.5 , 2,000 . 3 - 4 a-b it 's U.S.A."]),
        ("(hi) [there] {you} a/b c\\d e_f g^h `i` ~j|k", ["hi there you a / b c \\ d e_f"]),
    ],
}
ALIKE = {
    "copies": [CAT, CAT, "A dog barked at the cat on the mat.", "the mat"],
    "lines": [hypothesis for corpus in CORPORA.values() for hypothesis, _ in corpus],
    "strangers": ["a b c", "d e f g h", "i"],
    "two": ["the cat the cat the cat", "the cat the dog the cat the end"],
}


def noise(rng: random.Random) -> str:
    """A text of marks, digits, letters and spaces of all kinds."""
    pieces = [*"aBé中19.,,..--''&;:()[]{}\\/`~|^_!? \n\t", "\u00a0", "&amp;", "&lt;", "-\n", "the"]
    return "".join(rng.choice(pieces) for _ in range(rng.randrange(30)))


def scores(corpus: list[tuple[str, list[str]]]) -> dict:
    """A corpus and what sacrebleu and rouge-score make of it."""
    hypotheses, references = zip(*corpus, strict=True)
    most = max(map(len, references))
    streams = [[given[i] if i < len(given) else None for given in references] for i in range(most)]
    found = {"hypotheses": hypotheses, "references": references}
    found["bleu"] = sacrebleu.corpus_bleu(hypotheses, streams).score
    for order in (0, 1, 2):
        score = sacrebleu.corpus_chrf(hypotheses, streams, word_order=order)
        found[f"chrf_{order}"] = score.score
    rouge = RougeScorer(["rouge1", "rouge2", "rougeL"])
    each = [rouge.score_multi(given, text) for text, given in corpus]
    found["rouge"] = [float(np.mean([row[n].fmeasure for row in each])) for n in each[0]]
    return found


def alike(texts: list[str], order: int) -> float:
    """The mean of sacrebleu's BLEU of each text against all others."""
    bleu = BLEU(max_ngram_order=order, effective_order=True)
    others = [texts[:i] + texts[i + 1 :] for i in range(len(texts))]
    found = [
        bleu.sentence_score(text, rest).score for text, rest in zip(texts, others, strict=True)
    ]
    return float(np.mean(found))


def main(path: pathlib.Path) -> None:
    """Scores and writes."""
    rng = random.Random(0)
    corpora = dict(CORPORA)
    for count in (1, 3):
        pairs = [(noise(rng), [noise(rng) for _ in range(count)]) for _ in range(40)]
        corpora[f"noise_{count}"] = pairs
    lines = [
        line for corpus in corpora.values() for text, given in corpus for line in (text, *given)
    ]
    tokenizer = Tokenizer13a()
    sets = ALIKE | {"noise": [noise(rng) for _ in range(30)]}
    written = {
        "cases": {name: scores(corpus) for name, corpus in corpora.items()},
        "words": [(line, tokenizer(line.rstrip()).split()) for line in dict.fromkeys(lines)],
        "alike": {
            name: {"texts": texts, "bleu": {n: alike(texts, n) for n in (1, 2, 3, 4, 5)}}
            for name, texts in sets.items()
        },
    }
    arrays = {name: json.dumps(value) for name, value in written.items()}
    versions = (
        f"{name} {importlib.metadata.version(name)}" for name in ("sacrebleu", "rouge-score")
    )
    arrays["peer"] = ", ".join(versions)
    np.savez_compressed(path, **arrays)


if __name__ == "__main__":
    here = pathlib.Path(__file__)
    main(pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else here.with_name("text_metrics.npz"))
