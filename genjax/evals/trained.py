"""The classifier whose features and labels judge generators of a data set. It is trained once.

It is an ordinary run of `genjax.methods.classifier`, in a folder of the data cache that is named
after the digests of the data and of the config.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import unflatten_dict
from ml_collections import ConfigDict

from genjax import config as configs
from genjax.config import ConfigError
from genjax.data import npz, packages, sources
from genjax.data.catalogue import Dataset
from genjax.durations import parse_duration
from genjax.evals.evaluation import Evaluation
from genjax.files import write_atomic
from genjax.methods import classifier as method
from genjax.modalities.label import label_fields
from genjax.nn.functional import Functional
from genjax.parallel.distributed import barrier, largest
from genjax.parallel.rules import path_name
from genjax.training import ema, loop, workdir
from genjax.training.assemble import assemble
from genjax.training.checkpoint import Checkpoints
from genjax.training.meter import Meter
from genjax.training.metrics import Writers, read_metrics
from genjax.training.progress import marked

logger = logging.getLogger("genjax")

Tree = Any

# By then the loss has converged on small data sets: on 1,437 digits it is below 1e-4 after 30
# epochs. Of their 180 test images the classifier gets 179 right after 40 epochs, all after 250.
MOST_EPOCHS = 40
# Sections of the config that do not affect the weights.
INDIFFERENT = ("mesh", "checkpoint", "evals", "early_stop", "log", "steps_per_dispatch")


def classifier_config() -> ConfigDict:
    """The classifier's config for any data; configs/classifier.py adds a data set."""
    config = configs.base()
    config.method = "classifier"
    config.batch_size = 64
    config.duration = "360000_examples"
    config.optimizer.learning_rate = 2e-3
    config.optimizer.weight_decay = 0.02
    config.schedule.name = "cosine"
    config.schedule.warmup = "5_percent"
    config.ema.decay = (0.99,)
    config.evals.samples = 0
    config.evals.every = "50_percent"
    config.checkpoint.minutes = 1.0
    config.log.every = "5_percent"
    with config.unlocked():
        config.model = ConfigDict(
            {"channels": (32, 64, 128), "features": 128, "patch_size": 2, "dropout": 0.25}
        )
    return config


def classifier(dataset: Dataset, data_digest: str) -> tuple[Functional, Tree]:
    """The network, images in [-1, 1] -> (features, logits), and its averaged parameters.

    It is trained on the training split if it is not in the cache. One run trains it while other
    runs wait; an interrupted training is resumed. Several processes of one run train it together
    and must share one cache.

    Raises:
      SystemExit: a signal stopped the training; its state is saved.
      ConfigError: the file of the trained parameters is damaged.
    """
    spec = dataset.spec
    labels = label_fields(spec)
    fields = {"image": spec.generated._replace(dtype=np.dtype(np.uint8)), **labels}
    names = {"image": spec.target, **{name: name for name in labels}}
    splits = {split: sources.Chosen(source, names) for split, source in dataset.splits.items()}
    dataset = dataset._replace(spec=spec._replace(fields=fields, target="image"), splits=splits)
    config = _config_for(dataset)
    name = "-".join((dataset.spec.name.replace("/", "_"), data_digest[:16], _digest(config)[:16]))
    path = packages.cache_root() / "classifiers" / name / "parameters.npz"
    first = jax.process_index() == 0
    with packages.lock(f"classifier-{name}") if first else contextlib.nullcontext():
        if not largest(int(first and path.is_file())):
            logger.info(
                "the judge needs a classifier of %s, which is now trained once, on %s; its log "
                "lines begin with 'classifier:', and it is stored in %s",
                *(dataset.spec.name, config.duration.replace("_", " "), path.parent),
            )
            with marked("classifier"):
                _train(config, dataset, path)
        barrier("classifier")
    params, accuracy = _read(path)
    logger.info(
        "the classifier of %s has an accuracy of %.2f %% on the %s split (%s)",
        *(dataset.spec.name, 100 * accuracy, config.evals.split, path),
    )
    return method.network(config, dataset.spec), params


def _digest(config: ConfigDict) -> str:
    """Of the settings that affect the weights; adding a key to all configs does not change it."""
    defaults = configs.flatten(configs.base())
    decisive = {
        key: value
        for key, value in configs.flatten(config).items()
        if key.partition(".")[0] not in INDIFFERENT
        and (key not in defaults or defaults[key] != value)
    }
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def _config_for(dataset: Dataset) -> ConfigDict:
    """`classifier_config` adapted to the images of this data set."""
    config, spec = classifier_config(), dataset.spec
    config.dataset.name = spec.name
    examples, unit = parse_duration(config.duration)
    config.duration = f"{min(int(examples), MOST_EPOCHS * len(dataset.splits['train']))}_{unit}"
    if min(spec.generated.shape[:2]) < 16:
        config.model.patch_size = 1
    splits = [name for name in ("test", "validation", "train") if dataset.splits.get(name)]
    config.evals.split = splits[0]
    return config


def _train(config: ConfigDict, dataset: Dataset, path: Path) -> None:
    """Trains, or resumes, in the folder of `path`, and writes the averaged parameters to `path`."""
    devices, folder = jax.device_count(), path.parent
    for section in (config, config.evals):  # a whole number of examples on every device
        section.batch_size = -(-section.batch_size // devices) * devices
    folder.mkdir(parents=True, exist_ok=True)
    run = assemble(config, dataset.spec)

    def start(checkpoints: Checkpoints):
        if jax.process_index() == 0:
            workdir.write_config(folder, config, run.spec, sys.argv, run.total_steps)
        if checkpoints.latest() is None:
            return run.init()
        logger.info("resuming at step %d", checkpoints.latest())
        return checkpoints.restore(run.state)

    def evaluation(writers: Writers) -> Evaluation:
        return Evaluation(run, dataset, folder, writers)

    if code := loop.train(run, dataset, folder, start, evaluation, Meter()):
        raise SystemExit(code)
    state = Checkpoints(folder).restore(run.state)
    params = ema.evaluation_params(config, state.params, state.ema)["classifier"]
    arrays = {path_name(p): leaf for p, leaf in jax.tree_util.tree_leaves_with_path(params)}
    if jax.process_index() == 0:
        history = read_metrics(folder / "metrics.jsonl")["eval/accuracy"]
        content = io.BytesIO()
        np.savez(content, accuracy=history[run.total_steps], **arrays)
        write_atomic(path, content.getvalue())


def _read(path: Path) -> tuple[Tree, float]:
    """The nested parameters that `_train` wrote, and their accuracy."""
    try:
        arrays = dict(npz.Arrays(path))
        accuracy = float(arrays.pop("accuracy"))
    except (ConfigError, OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"{path} cannot be read ({error}). Delete it: it is then rebuilt from the last "
            "checkpoint next to it."
        ) from error
    return unflatten_dict(arrays, sep="/"), accuracy
