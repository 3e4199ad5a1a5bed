"""Exports models to the formats of other libraries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from genjax.config import ConfigError, one_of
from genjax.data import tokenizers
from genjax.interop import huggingface
from genjax.method import DataSpec

Tree = Any

FORMATS = ("huggingface",)


def require_empty(folder: Path) -> None:
    """Raises ConfigError if there is something in a folder that is to be written."""
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty: give another --output, or delete it.")


def write(
    kind: str,
    folder: Path,
    config: ConfigDict,
    spec: DataSpec,
    params: dict[str, Tree],
) -> None:
    """Writes a model into `folder`, in a format of FORMATS.

    "huggingface" is for `from_pretrained` of transformers: a decoder of method lm, written as the
    type of model that has its options.

    Args:
      kind: the format.
      folder: created if missing.
      config: the run's config.
      spec: of the run's data.
      params: by network.

    Raises:
      ConfigError: the format does not support this model, or there are several processes.
    """
    one_of("--format", kind, FORMATS)
    network = config.model.get("network")
    if (config.method, spec.generated.kind, network) != ("lm", "text", "decoder"):
        raise ConfigError(
            f"--format={kind} is for language models with model.network='decoder'; this run is "
            f"method {config.method!r} with {network!r} on {spec.name}."
        )
    if jax.process_count() > 1:
        raise ConfigError("--mode=export runs in one process: start it alone.")
    facts = spec.generated.facts
    special, tokenizer = dict(facts["special"]), facts["tokenizer"]
    begins = tokenizers.begins(tokenizer, special, config.dataset.text.documents)
    special["start"] = tokenizer.special.get("bos", special["start"])
    if special["start"] not in tokenizer.special.values():
        del special["start"]  # such as a newline, after which a text may begin
    huggingface.write(
        folder,
        config.model.lm.to_dict(),
        config.model.vocabulary_size or facts["vocabulary_size"],
        config.model.length or spec.generated.shape[0] - 1,
        jax.device_get(params["lm"]),
        tokenizer.to_json(),
        special,
        begins,
    )
