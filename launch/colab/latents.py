# %% [markdown]
# # Codes of pictures: a VAE, a VQ-VAE and a prior
#
# An autoencoder writes a picture as a short code and reads it back. Here you walk between the
# codes of two pictures, turn one number of a code at a time, and draw pictures from codes that no
# picture had.

# %% tags=["setup"]

# %% [markdown]
# ## How long a code, how strict a prior
#
# `latent_dim` is how many numbers the code of the VAE has. A larger `beta` keeps the codes closer
# to the prior: samples become better, reconstructions worse, and numbers that are not worth their
# price fall silent (Higgins et al. 2017).

# %% cellView="form" tags=["parameters"]
latent_dim = 10  # @param {type: "integer"}
beta = 2.0  # @param {type: "number"}
dataset = "fashion_mnist"
workdir = "runs/latents"
durations = {"vae": "20_epochs", "vqvae": "3_epochs", "vqvae_prior": "1_epochs"}
overrides = {"vae": {}, "vqvae": {}, "vqvae_prior": {}}  # other keys of each config

# %%
import numpy as np
from IPython.display import display
from PIL import Image

import genjax
from genjax.pictures import grid


def train(name, settings):
    """Trains one of the three models, or loads it if it is there."""
    shared = {"dataset.name": dataset, "evals.judges": (), "log.every": "10_percent"}
    settings = {**shared, "duration": durations[name], **settings, **overrides[name]}
    return genjax.train(name, f"{workdir}/{name}", settings)


def show(images, columns):
    display(Image.fromarray(grid(np.asarray(images), columns=columns)))


# %% [markdown]
# ## A VAE
#
# Its encoder says a mean and a spread for each number of the code; its decoder reads a code back
# (Kingma & Welling 2014). Every picture gets a fresh code in training, so that codes nearby must
# mean pictures alike.

# %%
vae = train("vae", {"vae.latent_dim": latent_dim, "vae.beta": beta})

# %% [markdown]
# ### Reconstructions
#
# Pictures that it has not seen, and below each what is left of it after the code.

# %%
images = genjax.examples(vae.config, 256, split="validation")["image"]
codes = vae.encode(images)
print(f"{images[0].size} pixels -> {codes.shape[1]} numbers")
show(np.concatenate([images[:12], vae.decode(codes[:12])]), columns=12)

# %% [markdown]
# ### Interpolation
#
# The straight line between the codes of two pictures, in equal steps. Compare it with the line
# between the pictures themselves, which only fades one into the other.

# %%
at = np.linspace(0, 1, 12)[:, None]
for first, second in ((0, 1), (2, 3), (4, 5)):
    line = (1 - at) * codes[first] + at * codes[second]
    show(vae.decode(line.astype(np.float32)), columns=12)
fading = (1 - at) * images[4].reshape(1, -1) + at * images[5].reshape(1, -1)
show(fading.reshape(-1, *images.shape[1:]).astype(np.uint8), columns=12)

# %% [markdown]
# ### Traversals
#
# One picture; in each row one number of its code goes from -3 to 3. The rows are ordered by how
# much the number varies over pictures: the last ones may have fallen silent.

# %%
spread = codes.std(axis=0)
order = np.argsort(-spread)
print("standard deviation of each number:", np.round(spread[order], 2))
steps = np.linspace(-3, 3, 11)
moved = np.tile(codes[0], (len(order[:10]), len(steps), 1))
for row, number in enumerate(order[:10]):
    moved[row, :, number] = steps
show(vae.decode(moved.reshape(-1, codes.shape[1])), columns=len(steps))

# %% [markdown]
# ### The prior
#
# In training the codes are kept close to a normal distribution. Codes that are drawn from it are
# read as new pictures.

# %%
show(vae.sample(48), columns=16)

# %% [markdown]
# ## A VQ-VAE
#
# Its code is a small grid of tokens, each the number of an entry in a codebook (van den Oord et
# al. 2017). Nothing keeps the tokens simple, so pictures keep more detail.

# %%
vqvae = train("vqvae", {})
tokens = vqvae.encode(images)
print(f"{images[0].size} pixels -> {tokens.shape[1:]} tokens")
print(tokens[0, ..., 0])
show(np.concatenate([images[:12], vqvae.decode(tokens[:12])]), columns=12)

# %% [markdown]
# A token stands for a place: the upper half of one picture's tokens over the lower half of
# another's.

# %%
half = tokens.shape[1] // 2
joined = np.concatenate([tokens[:12, :half], tokens[12:24, half:]], axis=1)
show(np.concatenate([images[:12], images[12:24], vqvae.decode(joined)]), columns=12)

# %% [markdown]
# Tokens that are drawn one by one, as often as they come, are no picture: what they are worth
# together is not known yet.

# %%
show(vqvae.sample(16), columns=16)

# %% [markdown]
# ## A prior over the tokens
#
# A small transformer learns which token follows those before it. With the decoder of the VQ-VAE
# it is a generator of pictures. The VQ-VAE is a *stage* of this run, whose weights stay as they
# are.

# %%
prior = train("vqvae_prior", {"stages.autoencoder": str(vqvae.workdir)})
show(prior.sample(48), columns=16)
show(prior.sample(48, temperature=0.8), columns=16)

# %% [markdown]
# ## The reports

# %%
display(vae, vqvae, prior)

# %% [markdown]
# ## Take it with you
#
# The codes of 256 pictures as arrays, and the three runs. `genjax.load(FOLDER)` reads a run on
# any machine.

# %%
np.savez_compressed(f"{workdir}/codes.npz", images=images, vae=codes, vqvae=tokens)
download(workdir)
