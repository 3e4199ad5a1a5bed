# %% [markdown]
# # Your own pictures: a GAN and a diffusion model
#
# Give a folder or an archive (.zip, .tar.gz) of pictures, and this notebook trains two kinds of
# model on them. Subfolders, if there are any, become classes. A few hundred pictures are the
# least, a few thousand are better. Without pictures of yours it takes emoji.

# %% tags=["setup"]

# %% [markdown]
# ## Which pictures
#
# `pictures` is a path, or `upload` to choose a file in Colab, or a data set that genjax fetches.
# They are cropped to squares of `size` pixels; 64 wants a GPU and more time.

# %% cellView="form" tags=["parameters"]
pictures = "emoji"  # @param ["emoji", "upload", "stamps", "photos"] {allow-input: true}
size = 32  # @param [16, 32, 64] {type: "raw"}
workdir = "runs/your_pictures"
durations = {"gan": "150000_examples", "diffusion": "150000_examples"}
overrides = {"gan": {}, "diffusion": {}}  # other keys of each config

# %%
from pathlib import Path

if pictures == "upload":
    from google.colab import files

    (pictures,) = files.upload()
data = {"dataset.name": pictures, "dataset.image_size": size, "dataset.validation": "10_percent"}
if Path(pictures).exists():
    data |= {"dataset.name": "folder", "dataset.path": str(Path(pictures).resolve())}

# %% [markdown]
# ## What is read
#
# Look before you train: are they cropped well, turned the right way, and all meant to be there?

# %%
from IPython.display import display
from PIL import Image

import genjax
from genjax.pictures import grid

shared = {**data, "evals.judges": (), "log.every": "5_percent", "evals.every": "20_percent"}
config = genjax.read_config("r3gan", shared)
examples = genjax.examples(config, 64)
display(Image.fromarray(grid(examples["image"], columns=16)))

# %% [markdown]
# ## A GAN
#
# R3GAN (Huang et al. 2024), with augmented pictures for its discriminator (Zhao et al. 2020):
# without them it learns a small data set by heart. A GAN draws a sample in one step, and may
# leave out kinds of pictures.


# %%
def look(seen):
    print(f"step {seen.step}")
    display(Image.fromarray(seen.picture))


gan = genjax.train(
    genjax.read_config(
        "r3gan",
        {
            **shared,
            "duration": durations["gan"],
            "gan.augment": "diffaugment",
            **overrides["gan"],
        },
    ),
    f"{workdir}/gan",
    on_eval=look,
)

# %% [markdown]
# ## A diffusion model
#
# It learns to remove noise, and draws a sample in many small steps. It is slower, trains more
# calmly, and leaves out less. It is told the classes if there are any.

# %%
labelled = "label" in examples
diffusion = genjax.train(
    genjax.read_config(
        "ddpm",
        {
            **shared,
            "duration": durations["diffusion"],
            "diffusion.class_conditional": labelled,
            **overrides["diffusion"],
        },
    ),
    f"{workdir}/diffusion",
    on_eval=look,
)

# %% [markdown]
# ## Side by side

# %%
import time

for name, run in (("GAN", gan), ("diffusion", diffusion)):
    run.sample(64)  # compiles
    start = time.perf_counter()
    samples = run.sample(64, seed=1)
    print(f"{name}: 64 samples in {time.perf_counter() - start:.2f} s")
    display(Image.fromarray(grid(samples, columns=16)))
if labelled:
    for name in diffusion.classes[:5]:
        print(name)
        display(Image.fromarray(grid(diffusion.sample(16, label=name, seed=2), columns=16)))

# %% [markdown]
# ## Are they new?
#
# Above: samples. Below: the training picture with the least difference of pixels. If they are the
# same pictures, the model has learnt them by heart: give it more pictures, or train it for a
# shorter time.

# %%
import numpy as np

known = genjax.examples(config, 4096)["image"].astype(np.float32)
for run in (gan, diffusion):
    samples = run.sample(12, seed=3)
    distances = [np.square(known - sample).sum((1, 2, 3)) for sample in samples.astype(np.float32)]
    nearest = known[np.argmin(distances, axis=1)].astype(np.uint8)
    display(Image.fromarray(grid(np.concatenate([samples, nearest]), columns=12)))

# %% [markdown]
# ## The reports

# %%
display(gan, diffusion)

# %% [markdown]
# ## Take them with you
#
# 100 samples of each as arrays, and both runs. `genjax.load(FOLDER)` samples from a run on any
# machine.

# %%
np.savez_compressed(f"{workdir}/samples.npz", gan=gan.sample(100), diffusion=diffusion.sample(100))
download(workdir)
