"""A modality of one's own: mono sound of 8 kHz, its data, a model of it and its judge, in one file.

The data are pure tones of three pitches. The model learns the mean spectrum of each pitch and draws
tones of it; the judge measures how many samples have one of the pitches.
"""

from __future__ import annotations

import io
import wave
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from ml_collections import ConfigDict

from genjax import config as base
from genjax.data.catalogue import Dataset
from genjax.data.sources import Columns
from genjax.evals.judges import Judge
from genjax.method import Aux, DataSpec, Field, Method, Phase
from genjax.pictures import png

LENGTH, RATE = 256, 8000
PITCHES = (500.0, 1000.0, 2000.0)  # Hz
SAMPLES = 3


def get_config() -> ConfigDict:
    config = base.base()
    config.method = config.dataset.name = "toy_audio"
    config.batch_size, config.duration = 16, "40_steps"
    config.optimizer.learning_rate, config.ema.decay = 0.1, ()
    config.evals.split, config.evals.samples, config.evals.batch_size = "test", 3, 16
    config.evals.every, config.evals.judges = "50_percent", ("toy_audio",)
    return config


# ---- data ----------------------------------------------------------------------------------------


def load(dataset: ConfigDict) -> Dataset:
    rng, time = np.random.default_rng(0), np.arange(LENGTH) / RATE

    def split(count: int) -> Columns:
        label = rng.integers(len(PITCHES), size=count).astype(np.int32)
        wave = np.sin(2 * np.pi * np.array(PITCHES)[label][:, None] * time)
        return Columns({"audio": (0.5 * wave).astype(np.float32), "label": label})

    splits = {"train": split(96), "test": split(24)}
    audio = Field("toy_audio", (LENGTH,), np.dtype(np.float32), {"sample_rate": RATE})
    facts = {"num_classes": len(PITCHES), "classes": ("low", "middle", "high")}
    fields = {"audio": audio, "label": Field("label", (), np.dtype(np.int32), facts)}
    sizes = {name: len(source) for name, source in splits.items()}
    return Dataset(DataSpec(dataset.name, fields, "audio", sizes), splits, "made of nothing")


# ---- modality ------------------------------------------------------------------------------------


def parse(given: str, field: Field) -> np.ndarray:
    with wave.open(given, "rb") as file:
        sound = np.frombuffer(file.readframes(field.shape[0]), "<i2")
    return (sound / 32767).astype(np.float32)


def player(samples: np.ndarray, field: Field) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, field.facts["sample_rate"], 0, "NONE", ""))
        sound = np.clip(np.concatenate(list(samples)), -1, 1)
        file.writeframes(np.rint(32767 * sound).astype("<i2").tobytes())
    return buffer.getvalue()


def picture(samples: np.ndarray, field: Field) -> np.ndarray:
    spectrum = np.abs(np.fft.rfft(samples, axis=-1))[:, :, None]
    return np.repeat((255 * spectrum / max(spectrum.max(), 1e-9)).astype(np.uint8), 3, axis=-1)


def files(samples: np.ndarray, field: Field) -> dict[str, bytes]:
    return {".wav": player(samples, field), ".png": png(picture(samples, field))}


# ---- method --------------------------------------------------------------------------------------


def build(config: ConfigDict, spec: DataSpec) -> Method:
    def init(key, batch):
        return {"tones": {"wave": jnp.zeros((len(PITCHES), LENGTH))}}, {"tones": {}}

    def distance(params, batch):
        return jnp.square(params["tones"]["wave"][batch["label"]] - batch["audio"]).mean(-1)

    def loss(params, mutable, batch, key, step):
        return distance(params, batch).mean(), Aux({}, {})

    def evaluate(params, mutable, batch, key):
        return {"distance": distance(params, batch)}

    def sample(params, mutable, key, num, condition, *, volume: float = 1.0):
        turns = jnp.arange(num) % len(PITCHES)
        return volume * params["tones"]["wave"][condition.get("label", turns)]

    rules = ((r"^params|^opt_state|^mutable", PartitionSpec()),)
    conditions = {"label": spec.fields["label"]}
    phases = (Phase("tones", loss),)
    return Method(init, phases, evaluate, sample, rules, conditions=conditions)


# ---- judge ---------------------------------------------------------------------------------------


class Options(NamedTuple):
    generated: int = 6


def pitch(sound: np.ndarray) -> np.ndarray:
    return np.abs(np.fft.rfft(sound, axis=-1)).argmax(-1) * RATE / LENGTH


def build_judge(options: Options, evals: ConfigDict, dataset: Dataset, mesh) -> Judge:
    def judge(samples, references, conditions):
        wanted = np.array(PITCHES)[conditions["label"]]
        return {
            "pitch_accuracy": float((pitch(samples) == wanted).mean()),
            "reference_accuracy": float((pitch(references) == wanted).mean()),
        }

    return Judge(judge, ("pitch_accuracy", "reference_accuracy"), options.generated)
