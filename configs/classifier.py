"""A classifier of labelled images, whose features and predictions judge generators.

`genjax.evals.features` trains it automatically, once per data set, with these settings (from
genjax/evals/trained.py); this config trains it on its own.

Default: Fashion-MNIST, a convolutional network of 0.49M parameters, 360,000 examples.
  command    launch/local.sh --config=configs/classifier.py
  hardware   2 CPU cores
  time       3 min (340 s of CPU time in all)
  score      accuracy of 91.8 % on the 10,000 test images
             (trained on all of train: --config.dataset.validation= --config.evals.split=test)

Presets, as in --config=configs/classifier.py:tiny:
  tiny       8 x 8 digits, a test of the installation in seconds
  avatars    the twelve attributes of characters in pixel art, by a head each: 100.0 % right on
             test, after 6 minutes on one core (busy), trained by the judge `attributes`
"""

from ml_collections import ConfigDict

from genjax.evals.trained import classifier_config


def get_config() -> ConfigDict:
    """Fashion-MNIST, for two CPU cores."""
    config = classifier_config()
    config.dataset.name = "fashion_mnist"
    config.dataset.validation = "5_percent"
    return config


PRESETS = {
    "tiny": {
        "dataset.name": "digits",
        "dataset.validation": "10_percent",
        "dataset.test": "10_percent",
        "duration": "300_steps",
        "model.patch_size": 1,
        "model.channels": (16, 32),
        "model.features": 32,
    },
    "avatars": {"dataset.name": "avatars", "model.patch_size": 1},
}
