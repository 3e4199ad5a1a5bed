"""What unigrams and bigrams of the training texts make of held-out texts, and of the samples.

These are the baselines of language models on the same tokens. Accuracies are the share of held-out
tokens that are the most frequent one (unigram), the most frequent one after the token before them
(bigram), and the most probable one between their two neighbours in a chain of bigrams
(`bigram_gap`, for masked models). Losses are in nats a token. Every count of a unigram is one
larger; a bigram is mixed with it by Witten and Bell's weights (1991, method C).
`bigram_loss_samples` is the loss of the samples: below `bigram_loss` they are more predictable than
real texts.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, NamedTuple

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int
from ml_collections import ConfigDict

from genjax.checks import ConfigError, Range
from genjax.data import sources
from genjax.data.catalogue import Dataset
from genjax.data.windows import targets_of
from genjax.evals.judges import Judge

METRICS = ("unigram_accuracy", "unigram_loss", "bigram_accuracy", "bigram_loss")
GAP = ("bigram_gap_accuracy", "bigram_gap_loss")
SAMPLES = "bigram_loss_samples"
READ = 1024  # examples read at a time
DENSE = 8192  # the most tokens whose bigrams are held as a table, for GAP
GAPS = 2**16  # the most tokens that GAP is computed of, and how many at a time
AT_ONCE = 1024


class Options(NamedTuple):
    """The section `evals.ngrams`.

    Attributes:
      train: most examples of train that are counted; 0 for all.
      held_out: most held-out examples.
      generated: number of samples judged; 0 for those that are shown.
    """

    train: Annotated[int, Range(0, 2**40)] = 0
    held_out: Annotated[int, Range(1, 2**40)] = 2000
    generated: Annotated[int, Range(0, 2**20)] = 0


class Bigrams(NamedTuple):
    """Counts of tokens and of pairs of them.

    Attributes:
      unigrams: of each token.
      pairs: the pairs that occur, first * V + second, in order.
      counts: of each of them.
      best: the most frequent follower of each token; of one without any, the most frequent token.
      total: followers of each token.
      kinds: different followers of each token.
    """

    unigrams: Int[np.ndarray, "V"]
    pairs: Int[np.ndarray, "P"]
    counts: Int[np.ndarray, "P"]
    best: Int[np.ndarray, "V"]
    total: Int[np.ndarray, "V"]
    kinds: Int[np.ndarray, "V"]

    def nll(self, before: Int[np.ndarray, "N"], token: Int[np.ndarray, "N"]) -> np.ndarray:
        """-log p of tokens given those before them, in nats."""
        V = len(self.unigrams)
        pair = before.astype(np.int64) * V + token
        at = np.minimum(np.searchsorted(self.pairs, pair), len(self.pairs) - 1)
        count = np.where(self.pairs[at] == pair, self.counts[at], 0)
        plain, kinds = np.exp(-self.unigram_nll()[token]), self.kinds[before]
        total = self.total[before] + kinds
        mixed = (count + kinds * plain) / np.maximum(total, 1)
        return -np.log(np.where(total > 0, mixed, plain))

    def table(self) -> Float[np.ndarray, "V V"]:
        """The probability of each token after each."""
        V, kinds = len(self.unigrams), self.kinds[:, None].astype(np.float32)
        plain, total = np.exp(-self.unigram_nll()).astype(np.float32), self.total[:, None] + kinds
        mixed = kinds * plain
        mixed.reshape(-1)[self.pairs] += self.counts
        return np.where(total > 0, mixed / np.maximum(total, 1), plain).reshape(V, V)

    def unigram_nll(self) -> Float[np.ndarray, "V"]:
        """-log p of each token by its frequency, every count plus one."""
        counts = self.unigrams + 1
        return np.log(counts.sum()) - np.log(counts)


def counted(pairs: Sequence[tuple[np.ndarray, np.ndarray]], vocabulary_size: int) -> Bigrams:
    """Counts of tokens and the ones before them.

    Args:
      pairs: arrays of tokens before, and of the tokens.
      vocabulary_size: V.
    """
    V = vocabulary_size
    unigrams, found = np.zeros(V, np.int64), []
    for before, token in pairs:
        unigrams += np.bincount(token, minlength=V)
        found.append(np.unique(before.astype(np.int64) * V + token, return_counts=True))
    keys, owner = np.unique(np.concatenate([k for k, _ in found]), return_inverse=True)
    counts = np.bincount(owner, np.concatenate([c for _, c in found])).astype(np.int64)
    first = keys // V
    best = np.full(V, unigrams.argmax())
    order = np.argsort(counts, kind="stable")  # the largest of each first token comes last
    best[first[order]] = keys[order] % V
    total = np.bincount(first, counts, minlength=V).astype(np.int64)
    return Bigrams(unigrams, keys, counts, best, total, np.bincount(first, minlength=V))


def pairs_of(
    token: Int[np.ndarray, "B T"], counts: Bool[np.ndarray, "B S"] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens before, and tokens: of all places but the first where both are tokens and count."""
    valid = (token[:, 1:] >= 0) & (token[:, :-1] >= 0)
    valid = valid if counts is None else valid & counts
    return token[:, :-1][valid], token[:, 1:][valid]


def gaps_of(
    token: Int[np.ndarray, "B T"], counts: Bool[np.ndarray, "B S"] | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens before, tokens, and tokens after, where all belong together and count."""
    valid = np.ones(token[:, 2:].shape, bool)
    valid = valid if counts is None else valid & counts[:, 1:] & counts[:, :-1]
    return tuple(part[valid] for part in (token[:, :-2], token[:, 1:-1], token[:, 2:]))


def _read(source: Sequence, most: int, target: str, parts: Callable) -> list[tuple]:
    """The `parts` of the examples of a split, or of `most` spread over it."""
    chosen = sources.order(len(source))[: most or None]
    found = []
    for start in range(0, len(chosen), READ):
        batch = sources.take(source, chosen[start : start + READ])
        counts = targets_of(batch["segment"]) if "segment" in batch else None
        if "loss_mask" in batch:
            wanted = batch["loss_mask"][:, 1:].astype(bool)
            counts = wanted if counts is None else counts & wanted
        found.append(parts(batch[target], counts))
    return found


def scores(
    bigrams: Bigrams, before: Int[np.ndarray, "N"], token: Int[np.ndarray, "N"]
) -> dict[str, float]:
    """`METRICS` of tokens and the ones before them."""
    values = (
        (token == bigrams.unigrams.argmax()).mean(),
        bigrams.unigram_nll()[token].mean(),
        (token == bigrams.best[before]).mean(),
        bigrams.nll(before, token).mean(),
    )
    return dict(zip(METRICS, map(float, values), strict=True))


def gap_scores(
    bigrams: Bigrams,
    before: Int[np.ndarray, "N"],
    token: Int[np.ndarray, "N"],
    after: Int[np.ndarray, "N"],
) -> dict[str, float]:
    """`GAP` of tokens between two others: p(x | a, b) is p(x | a) p(b | x), normalised."""
    table, correct, nll = bigrams.table(), 0, 0.0
    backwards = np.ascontiguousarray(table.T)
    for start in range(0, len(token), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        joint = table[before[part]] * backwards[after[part]]
        correct += (joint.argmax(1) == token[part]).sum()
        of_token = np.take_along_axis(joint, token[part][:, None], 1)[:, 0]
        nll += (np.log(joint.sum(1)) - np.log(of_token)).sum()
    return dict(zip(GAP, (float(correct / len(token)), float(nll / len(token))), strict=True))


def build_judge(options: Options, evals: ConfigDict, dataset: Dataset, mesh: Mesh) -> Judge:
    """The judge; nothing is counted before it is needed.

    Raises:
      ConfigError: the data are not texts.
    """
    spec, split = dataset.spec, evals.split
    if spec.generated.kind != "text":
        raise ConfigError(
            f"config.evals.judges: ngrams counts tokens of texts, but {spec.target!r} of "
            f"{spec.name} is of kind {spec.generated.kind!r}."
        )

    @functools.cache
    def baselines() -> tuple[Bigrams, dict[str, float]]:
        values, held_out = spec.generated.facts["vocabulary_size"], dataset.splits[split]
        train = _read(dataset.splits["train"], options.train, spec.target, pairs_of)
        bigrams = counted(train, values)

        def joined(parts: Callable) -> Iterator[np.ndarray]:
            rows = _read(held_out, options.held_out, spec.target, parts)
            return map(np.concatenate, zip(*rows, strict=True))

        metrics = scores(bigrams, *joined(pairs_of))
        gaps = [part[:GAPS] for part in joined(gaps_of)]
        if values <= DENSE and len(gaps[0]):
            metrics |= gap_scores(bigrams, *gaps)
        return bigrams, metrics

    def judge(samples: np.ndarray, references: np.ndarray, conditions: dict) -> dict[str, float]:
        bigrams, metrics = baselines()
        before, token = pairs_of(np.asarray(samples))
        return metrics | ({SAMPLES: float(bigrams.nll(before, token).mean())} if len(token) else {})

    return Judge(judge, (*METRICS, *GAP, SAMPLES), options.generated)
