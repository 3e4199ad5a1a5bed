# %% [markdown]
# # Train a diffusion model, and look at it while it learns
#
# genjax trains generative models in JAX. This notebook trains its main job, the config `ddpm`: a
# diffusion model of pictures of clothes (Fashion-MNIST), told the class of each.

# %% tags=["setup"]

# %% [markdown]
# ## What to train
#
# A duration carries its unit: `"120000_examples"`, `"5_epochs"`, `"4000_steps"`. Longer is
# better.

# %% cellView="form" tags=["parameters"]
dataset = "fashion_mnist"  # @param ["fashion_mnist", "mnist10k", "digits"] {allow-input: true}
duration = "120000_examples"  # @param {type: "string"}
workdir = "runs/quickstart"
overrides = {}  # any other key of the config, such as {"batch_size": 64}

# %% [markdown]
# ## The config
#
# A config holds every setting. Change any of them by its name; a wrong name is answered with the
# nearest one.

# %%
import genjax

config = genjax.read_config(
    "ddpm",
    {
        "dataset.name": dataset,
        "duration": duration,
        "diffusion.class_conditional": True,
        "log.every": "5_percent",
        **overrides,
    },
)
print(config.model)

# %% [markdown]
# ## The data

# %%
from IPython.display import display
from PIL import Image

from genjax.pictures import grid

examples = genjax.examples(config, 32)
display(Image.fromarray(grid(examples["image"], columns=16)))

# %% [markdown]
# ## Train
#
# `on_eval` is called after each evaluation, ten times in a run. The samples always begin with the
# same noise, so you see each picture become clear. Stop the cell whenever you like: the run is
# saved, and the same cell goes on where it stopped, bit for bit.


# %%
def look(seen):
    print(f"step {seen.step}, {seen.metrics['eval/bits_per_dim']:.3f} bits per dimension")
    display(Image.fromarray(seen.picture))


run = genjax.train(config, workdir, on_eval=look)

# %% [markdown]
# ## Sample
#
# A class is given by its number or its name, one for all samples or one for each.

# %%
print(*run.classes, sep=", ")
display(run.picture(run.sample(40, label=[*range(10)], seed=1)))
display(run.picture(run.sample(16, label=run.classes[-1], seed=2)))

# %% [markdown]
# The options of sampling are keywords too: more steps are more exact, and guidance above 1 makes
# the class plainer and the pictures more alike. Each row has the same noise. A second call with
# other values compiles nothing.

# %%
import numpy as np

rows = [run.sample(10, label=[*range(10)], steps=steps, seed=3) for steps in (2, 4, 8, 16)]
display(Image.fromarray(grid(np.concatenate(rows), columns=10)))
rows = [run.sample(10, label=[*range(10)], guidance=scale, seed=3) for scale in (1.0, 2.0, 4.0)]
display(Image.fromarray(grid(np.concatenate(rows), columns=10)))

# %% [markdown]
# ## Resume
#
# The same call finds a finished run and loads it. With a longer duration it trains on.

# %%
run = genjax.train(config, workdir)
print(run)
# run = genjax.train(config, workdir, {"duration": "240000_examples"}, on_eval=look)

# %% [markdown]
# ## Evaluate
#
# The metrics of held-out examples, here of the test split. Judges of the samples are named the
# same way: `run.evaluate(judges=["fidelity"])` trains a small classifier of the data first and
# takes longer.

# %%
run.evaluate(limit=256)

# %% [markdown]
# ## The report
#
# Curves, samples, metrics, config and environment of the run, in one page.

# %%
run

# %% [markdown]
# ## Take it with you
#
# The folder of the run is everything: `genjax.load(FOLDER)` samples from it on any machine.

# %%
display(run.picture(run.sample(64, seed=4)))
download(workdir)
