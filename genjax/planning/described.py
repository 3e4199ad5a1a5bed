"""What data look like without having them, and a run that is put together on that alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from genjax import method as methods
from genjax.data import catalogue, corpora, rolls, text, tokenizers
from genjax.data.alphabets import Bytes, Characters, Tokenizer
from genjax.method import DataSpec, Field, Stage
from genjax.training import codes, lengths, stages
from genjax.training.assemble import Assembly, assemble

GPT2 = 50_257  # tokens of GPT-2's tokenizer, the end of text counted
FIRST, LAST = 0x10000, 0x10FFFF  # code points that stand for tokens
EXAMPLES = 10**6  # in place of a number that only the data know; it decides no shape


def spec(dataset: ConfigDict) -> DataSpec:
    """What the examples of `config.dataset` look like: of texts and rolls without reading any.

    Their numbers of examples stand for unknown ones. A trained tokenizer is replaced by one of as
    many tokens. What no key tells, such as the letters of `characters`, is read from the data.

    Raises:
      ConfigError: as for `catalogue.spec`.
    """
    sizes = dict.fromkeys(("train", "validation"), EXAMPLES)
    if dataset.name in rolls.NAMES:
        shape = (dataset.text.length + 1,)
        fields = {
            "frame": Field("roll", (*shape, rolls.KEYS), np.dtype(np.uint8)),
            "segment": Field("mask", shape, np.dtype(np.int32)),
        }
        return DataSpec(dataset.name, fields, "frame", sizes)
    if dataset.name in corpora.TEXTS and (tokenizer := _tokenizer(dataset.text)) is not None:
        row = np.zeros(dataset.text.length + 1, np.int32)
        example = {"token": row, "bytes": np.float32(0)}
        if dataset.text.documents != "stream":
            example["segment"] = row
        if dataset.text.prompt_field:
            example["loss_mask"] = row.astype(bool)
        special = tokenizers.special_tokens(tokenizer)
        return DataSpec(dataset.name, text.fields(example, tokenizer, special), "token", sizes)
    return catalogue.spec(dataset)


def _tokenizer(options: ConfigDict) -> Tokenizer | None:
    """One with as many tokens as that of `config.dataset.text`; None if the data decide."""
    name = options.tokenizer
    tokenizers.check(name, options.vocabulary_size)
    if name == "characters":
        return None
    if name == "bytes":
        return Bytes({"eos": 256})
    if name in (*tokenizers.TRAINED, "gpt2"):
        size = GPT2 if name == "gpt2" else options.vocabulary_size
        if size > LAST - FIRST:
            return None
        letters = "".join(map(chr, range(FIRST, FIRST + size - 1)))
        return Characters(letters, {"eos": size - 1})
    return tokenizers.make(name, (), 0, 0, end=True)


def run(
    config: ConfigDict,
    devices: list[jax.Device],
    folder: epath.Path,
    stored: DataSpec | None,
    load: Callable[[str], ConfigDict],
) -> Assembly:
    """The run of a config on these devices; no data are read, no stage is trained.

    Args:
      config: of the run, its precision settled.
      devices: that it is for; they need not be here.
      folder: the workdir of the run, if there is one.
      stored: what the data of a run that is there look like; None of a new one.
      load: the name of a stage -> its config, of a stage that the config names by a config.

    Raises:
      ConfigError: config, data and devices do not go together.
    """
    stages.check_codes(config)
    if stored is not None:
        staged, own, data = stages.find(config, folder), stored, None
    else:
        staged, own = _stages(config, folder, load), spec(config.dataset)
        data = own
        if coded := stages.codes_of(config, staged):
            own = codes.code_spec(coded, own)
    config = lengths.settle(config, own, folder, staged)
    if not staged:
        return assemble(config, own, devices=devices)
    return assemble(config, own, stages.build(config, own, staged, data), devices)


def _stages(
    config: ConfigDict, folder: epath.Path, load: Callable[[str], ConfigDict]
) -> Mapping[str, Stage]:
    """The stages of a run that is to begin, in the order of the config."""
    trained = config.copy_and_resolve_references()
    with trained.unlocked():
        trained.stages = ConfigDict(
            {name: given for name, given in config.stages.items() if not stages.is_config(given)}
        )
    found = stages.find(trained, folder)
    return {name: found.get(name) or _stage(name, load(name)) for name in config.stages}


def _stage(name: str, config: ConfigDict) -> Stage:
    """A stage that is not trained yet; one that has stages itself is not known before it is."""
    looks = spec(config.dataset)
    method = methods.build(config, looks)
    alone = method.codec is not None and method.apply is None
    shapes = stages.network_shapes(method, looks)
    networks = method.codec.networks if alone else tuple(shapes[0])
    return Stage(name, config, looks, method, networks)
