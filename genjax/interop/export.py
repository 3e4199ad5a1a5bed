"""Exports models to the formats of other libraries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from genjax.adapters import BASE, Adapters
from genjax.config import ConfigError, one_of
from genjax.data import prompted, tokenizers
from genjax.interop import bert, encoder_decoder, huggingface, peft
from genjax.interop.architecture import Description
from genjax.method import DataSpec

Tree = Any

FORMATS = ("huggingface", "peft")


def require_empty(folder: Path) -> None:
    """Raises ConfigError if there is something in a folder that is to be written."""
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty: give another --output, or delete it.")


def _decoder_sizes(config: ConfigDict, spec: DataSpec) -> tuple[dict[str, Any], int, int]:
    """The options, vocabulary and positions of the decoder of a run."""
    template = config.dataset.text.template
    pairs = prompted.of_pairs(spec, template) if config.method == "lm" else None
    length = (pairs.rows if pairs else spec).generated.shape[0] - 1
    return (
        config.model.lm.to_dict(),
        config.model.vocabulary_size or spec.generated.facts["vocabulary_size"],
        config.model.length or length,
    )


def with_adapters(
    config: ConfigDict, spec: DataSpec, adapters: Adapters | None, key: str
) -> peft.Network:
    """The decoder of a run with its adapters, as `interop.peft` reads and writes it.

    Raises:
      ConfigError: the run has no decoder, or no adapters; the message begins with `key`.
    """
    network = config.model.get("network")
    is_decoder = (config.method, network) in WRITERS and network == "decoder"
    if not is_decoder or spec.generated.kind != "text":
        raise ConfigError(
            f"{key} is for language models with model.network='decoder'; this run is "
            f"method {config.method!r} with {network!r} on {spec.name}."
        )
    if adapters is None or "lm" not in adapters.networks:
        raise ConfigError(
            f"{key} is for adapters, and the run has none: set config.adapters in training, such "
            "as ((r'blocks/qkv/kernel', 8),), or export the model with --format=huggingface."
        )
    sizes = _decoder_sizes(config, spec)
    return peft.Network(*sizes, adapters.networks["lm"], adapters.kind)


def write(
    kind: str,
    folder: Path,
    config: ConfigDict,
    spec: DataSpec,
    params: dict[str, Tree],
    adapters: Adapters | None = None,
) -> None:
    """Writes a model into `folder`, in a format of FORMATS.

    "huggingface" is for `from_pretrained` of transformers, with adapters merged. `WRITERS` has the
    models: a decoder is written as the type that has its options, an encoder as BERT, an encoder
    with a decoder as T5, BART or Marian. "peft" is for `PeftModel.from_pretrained` of peft: the
    adapters alone of a decoder.

    Args:
      kind: the format.
      folder: created if missing.
      config: the run's config.
      spec: of the run's data.
      params: by network.
      adapters: of the run's method.

    Raises:
      ConfigError: the format does not support this model, the run has no adapters to write, or
        there are several processes.
    """
    one_of("--format", kind, FORMATS)
    made = config.method, config.model.get("network")
    if kind == "huggingface" and (made not in WRITERS or spec.generated.kind != "text"):
        known = " or ".join(f"method {method} with {network}" for method, network in WRITERS)
        raise ConfigError(
            f"--format={kind} is for language models: {known}, on text; this run is method "
            f"{made[0]!r} with {made[1]!r} on {spec.name}."
        )
    if jax.process_count() > 1:
        raise ConfigError("--mode=export runs in one process: start it alone.")
    if kind == "peft":
        network = with_adapters(config, spec, adapters, "--format=peft")
        base, factors = (jax.device_get(params[name]) for name in (f"{BASE}lm", "lm"))
        peft.write(folder, network, config.lora.alpha, base, factors, config.get("weights", ""))
        return
    WRITERS[made](folder, config, spec, adapters.merge(params) if adapters else params)


def _decoder(folder: Path, config: ConfigDict, spec: DataSpec, params: dict[str, Tree]) -> None:
    facts = spec.generated.facts
    special, tokenizer = dict(facts["special"]), facts["tokenizer"]
    begins = tokenizers.begins(tokenizer, special, config.dataset.text.documents)
    special["start"] = tokenizer.special.get("bos", special["start"])
    if special["start"] not in tokenizer.special.values():
        del special["start"]  # such as a newline, after which a text may begin
    huggingface.write(
        folder,
        *_decoder_sizes(config, spec),
        jax.device_get(params["lm"]),
        tokenizer.to_json(),
        special,
        begins,
    )


def _encoder(folder: Path, config: ConfigDict, spec: DataSpec, params: dict[str, Tree]) -> None:
    tokenizer = spec.generated.facts["tokenizer"]
    special = {"mask": spec.generated.facts["vocabulary_size"], **tokenizer.special}
    own = jax.device_get(params["encoder"])
    bert.write(
        folder,
        config.model.encoder.to_dict(),
        len(own["embed"]["embedding"]),
        config.model.length or spec.generated.shape[0],
        own,
        tokenizer.to_json(),
        special,
    )


def _pair(folder: Path, config: ConfigDict, spec: DataSpec, params: dict[str, Tree]) -> None:
    """Writes the model of method seq2seq, and its tokenizer."""
    facts, sizes = spec.generated.facts, config.model
    special, tokenizer = facts["special"], facts["tokenizer"]
    start = special["start"] if config.seq2seq.start < 0 else config.seq2seq.start
    texts = [field.shape[0] for field in spec.fields.values() if field.kind == "text"]
    lengths = (sizes.get("source_length") or max(texts), sizes.get("length") or max(texts))
    own = jax.device_get(params["seq2seq"])
    size = own["embed"]["embedding"].shape[0]
    described = Description("", {}, size, max(lengths), special)
    files = huggingface.tokenizer_files(described, tokenizer.to_json(), tokenizer.begins)
    options = config.model.seq2seq.to_dict()
    encoder_decoder.write(folder, options, size, lengths, start, own, special, files)


# (method, network) -> what writes its models.
WRITERS = {
    ("lm", "decoder"): _decoder,
    ("rl_lm", "decoder"): _decoder,
    ("preference", "decoder"): _decoder,
    ("masked_lm", "encoder"): _encoder,
    ("seq2seq", "encoder_decoder"): _pair,
}
