"""Fine-tuning by adapters: SmolLM2-135M learns to write the synopsis of a Debian package.

Default: LoRA of rank 16 on all linear maps of the blocks: 4.3 million parameters are trained, and
134.5 million are frozen. The model reads a description and a line that asks for the synopsis, and
only the synopsis counts in the loss. The packages for validation and test are those of
summarise.py.
  command    NPROC=1 launch/local.sh --config=configs/finetune.py
             launch/local.sh --workdir=runs/finetune --mode=sample --source="This package has ..."
             launch/local.sh --workdir=runs/finetune --mode=eval
             launch/local.sh --workdir=runs/finetune --mode=export --format=peft
  hardware   one CPU core of two
  time       31 minutes (busy)
  score      ROUGE-L 31.5 on 200 packages of the test split; the model untrained with three examples
             (few_shot) 12.5, the description's first words 24.1

Other weights: --config.weights=DIR, a folder of Hugging Face, or a .gguf file. Adapters to start
from: --config.lora.weights=DIR, a folder of peft. The whole model instead of adapters:
--config.adapters="()" and a learning rate of 1e-5 to 5e-5.

Presets, as in --config=configs/finetune.py:tiny:
  tiny       a very small network with random weights, and docstrings: a test of the installation
             in about a minute
  few_shot   the model as it is, with three examples in the prompt; nothing is trained;
             --mode=eval gives its score, in 8 minutes
  dora       the same by DoRA
"""

from pathlib import Path

from ml_collections import ConfigDict

from genjax import config as base

IMPORT = base.read_module(Path(__file__).with_name("import_lm.py"))
TINY = base.read_module(Path(__file__).with_name("summarise.py")).TINY

# The network of the preset tiny, which has no weights to take it from.
SMALL = {"width": 32, "depth": 2, "heads": 4, "kv_heads": 2, "norm": "rms", "bias": False}
SMALL |= {"positions": "rotary", "activation": "swiglu"}

TEMPLATE = "Description:\n{}\n\nSynopsis:\n"
SHOTS = (
    "Description:\nThis package contains a small program that converts between the character "
    "encodings of text files. It detects the encoding of its input.\n\nSynopsis:\n"
    "converter for character encodings of text files\n\n"
    "Description:\nlibfoo is a library to read and write archives. This package has the header "
    "files that are needed to build programs with it.\n\nSynopsis:\n"
    "library to read and write archives - development files\n\n"
    "Description:\nA game in which you move blocks to fill lines. It can be played by one or two "
    "people, over a network too.\n\nSynopsis:\nfalling blocks game for one or two players\n\n"
)


def get_config() -> ConfigDict:
    """package_summaries, for two CPU cores."""
    config = IMPORT.get_config()
    config.weights = "smollm2"
    config.adapters = ((r"blocks/\w+/kernel$", 16),)
    config.lora.alpha = 32.0
    config.dataset.name = "package_summaries"
    config.dataset.validation = config.dataset.test = "2_percent"
    config.dataset.text.template = TEMPLATE
    config.dataset.text.source_length = 128
    config.dataset.text.length = 32
    config.dataset.text.cut = True
    config.batch_size = 8
    config.evals.batch_size = 32
    config.duration = "100_steps"
    config.precision = "auto"
    config.optimizer.learning_rate = 5e-4
    config.optimizer.weight_decay = 0.0
    config.schedule.name = "cosine"
    config.schedule.warmup = "5_percent"
    config.evals.every = "50_percent"
    config.evals.limit = 128
    config.evals.samples = 16
    config.evals.judges = ("overlap",)
    config.log.every = "5_steps"
    with config.unlocked():
        config.evals.overlap = ConfigDict({"baseline": "lead", "generated": 200})
    return config


def resolve(config: ConfigDict) -> ConfigDict:
    """Takes the network and the tokenizer from the weights; without any, the network is small."""
    if config.weights:
        return IMPORT.resolve(config)
    with config.unlocked():
        config.model.lm = ConfigDict(SMALL | config.model.lm.to_dict())
    return config


PRESETS = {
    "tiny": {key: value for key, value in TINY.items() if not key.startswith("model.")}
    | {"weights": "", "adapters": ((r"blocks/\w+/kernel$", 4),), "optimizer.learning_rate": 1e-2},
    "few_shot": {
        "adapters": (),
        "duration": "0_steps",
        "schedule.name": "constant",
        "schedule.warmup": "",
        "dataset.text.template": SHOTS + TEMPLATE,
    },
    "dora": {"lora.kind": "dora"},
}
