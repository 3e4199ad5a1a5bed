# %% [markdown]
# # Write a family of models from nothing
#
# A family is a file of pure functions; training, checkpoints, evaluation, averages of the
# weights, several devices and the report come with genjax. This notebook writes one that genjax
# does not have: a normalising flow, RealNVP (Dinh et al. 2017), on pictures of digits.
#
# A flow is a function from pictures to noise that can be turned round. Its likelihood is exact:
# the density of the noise, times how much the function stretches the space around the picture.

# %% tags=["setup"]

# %% [markdown]
# ## Two numbers to turn

# %% cellView="form" tags=["parameters"]
depth = 8  # @param {type: "integer"}
duration = "800_steps"  # @param {type: "string"}
workdir = "runs/new_family"
overrides = {}  # keys of the config, such as {"realnvp.width": 512}

# %% [markdown]
# ## 1. The network
#
# A coupling layer keeps half of the numbers, and scales and shifts the others by amounts that it
# computes from the half that it keeps. That half is still there afterwards, so the step can be
# undone. Layers keep the two halves in turn, as on a chess board.
#
# Networks are modules of `flax.nnx`, made of the layers in `genjax.nn.layers`, which choose the
# fast product for each device. The first line of each cell that belongs to the family is a
# comment with the name of its file: in the end they become that file.

# %%
# realnvp.py, the network
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from genjax import config as base
from genjax.method import Aux, Method, Phase
from genjax.modalities.image import image_shape
from genjax.nn.functional import functional
from genjax.nn.layers import Linear
from genjax.parallel.rules import fsdp


class Coupling(nnx.Module):
    """The log scale and the shift of each number [B, D], out of the half that stays."""

    def __init__(self, size, width, rngs):
        self.first = Linear(size, width, rngs=rngs)
        self.second = Linear(width, width, rngs=rngs)
        self.last = Linear(width, 2 * size, init=nnx.initializers.zeros, rngs=rngs)

    def __call__(self, x):
        h = jax.nn.silu(self.second(jax.nn.silu(self.first(x))))
        log_scale, shift = jnp.split(self.last(h), 2, axis=-1)
        return jnp.tanh(log_scale), shift  # no scale is larger than e


class Flow(nnx.Module):
    """Numbers [B, D] to noise with the log of the stretching [B], or noise to numbers."""

    def __init__(self, size, width, depth, rngs):
        self.layers = nnx.List([Coupling(size, width, rngs) for _ in range(depth)])
        self.size = size

    def __call__(self, x, inverse=False, key=None, train=False):
        board = jnp.arange(self.size) % 2
        stretching = jnp.zeros(len(x))
        steps = [(layer, board if i % 2 else 1 - board) for i, layer in enumerate(self.layers)]
        for layer, stays in reversed(steps) if inverse else steps:
            log_scale, shift = layer(x * stays)
            log_scale, shift = log_scale * (1 - stays), shift * (1 - stays)
            if inverse:
                x = (x - shift) * jnp.exp(-log_scale)
            else:
                x = x * jnp.exp(log_scale) + shift
                stretching += log_scale.sum(-1)
        return x, stretching


# %% [markdown]
# ### Check it before you train
#
# A wrong formula trains too, to a number that means nothing. So hold it against something that
# you did not write. `functional` makes two pure functions of the network, `init` and `apply`. The
# inverse must undo the function, and the stretching must be the determinant of the Jacobian,
# which JAX computes for us.

# %%
net = functional(lambda rngs: Flow(size=6, width=16, depth=4, rngs=rngs))
params, mutable = net.init(jax.random.key(0))
# The last layers begin at zero, where every function is right: move all weights away from there.
leaves, tree = jax.tree.flatten(params)
keys = jax.random.split(jax.random.key(1), len(leaves))
params = jax.tree.unflatten(
    tree, [x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
)
x = jax.random.normal(jax.random.key(2), (1, 6))


@jax.jit
def forward(x):
    return net.apply(params, mutable, x)[0]


noise, stretching = forward(x)
back = net.apply(params, mutable, noise, inverse=True)[0][0]
jacobian = jax.jacfwd(lambda row: forward(row[None])[0][0])(x[0])
print("x - inverse(forward(x)):", jnp.abs(back - x).max())
print("stretching:", stretching[0], "log |det J|:", jnp.linalg.slogdet(jacobian)[1])
assert jnp.abs(back - x).max() < 1e-4
assert jnp.abs(stretching[0] - jnp.linalg.slogdet(jacobian)[1]) < 1e-4

# %% [markdown]
# ## 2. The family
#
# `build(config, spec)` gives a `Method`: what a family is, as data.
#
# | part | what it does |
# |---|---|
# | `init(key, batch)` | makes the parameters, a dict with one entry for each network |
# | `phases` | the moves of a training step: here one, `loss` descends over the network "flow" |
# | `evaluate(...)` | numbers for each held-out example; the log has their means and errors |
# | `sample(...)` | draws pictures; what stands behind the `*` becomes an option of `run.sample` |
# | `rules` | how parameters are split over devices: `fsdp` splits each large array |
#
# Functions are pure: randomness comes from `key` alone, which depends on the seed and the step.
# That is why a run resumes bit for bit.
#
# Pixels are whole numbers, and a density of whole numbers can grow without end. So each gets noise
# as wide as a level (Uria et al. 2013): these digits have 17 levels, 16 apart. Then the result is
# scaled to about [-1, 1]. Both count in the likelihood: 7 bits for the scale, less 4 for the level.
# Without any model a pixel costs log2(17) = 4.09 bits.


# %%
# realnvp.py, the family
class Options(NamedTuple):
    """The section `config.realnvp`, and its defaults."""

    width: int = 128
    depth: int = 8
    level: int = 16  # from one level of brightness to the next; 1 in most pictures


def build(config, spec):
    """The flow of `config.realnvp` on the pictures of `spec`."""
    options = base.read_options(config.realnvp, "realnvp", Options)
    shape = image_shape(spec, "realnvp")  # (H, W, C)
    size = shape[0] * shape[1] * shape[2]
    net = functional(lambda rngs: Flow(size, options.width, options.depth, rngs))

    def init(key, batch):
        params, mutable = net.init(key)
        return {"flow": params}, {"flow": mutable}

    def bits_per_dim(params, mutable, batch, key):
        image = batch["image"]  # uint8 [B, H, W, C]
        x = (image + options.level * jax.random.uniform(key, image.shape)) / 128 - 1
        z, stretching = net.apply(params["flow"], mutable["flow"], x.reshape(len(x), size))[0]
        log_density = jax.scipy.stats.norm.logpdf(z).sum(-1) + stretching
        return 7 - jnp.log2(options.level) - log_density / (size * jnp.log(2))

    def loss(params, mutable, batch, key, step):
        return bits_per_dim(params, mutable, batch, key).mean(), Aux(metrics={}, mutable=mutable)

    def evaluate(params, mutable, batch, key):
        return {"bits_per_dim": bits_per_dim(params, mutable, batch, key)}

    def sample(params, mutable, key, num, condition, *, temperature=1.0):
        z = temperature * jax.random.normal(key, (num, size))
        x = net.apply(params["flow"], mutable["flow"], z, inverse=True)[0][0]
        return (
            jnp.clip((x + 1) * 128 - options.level / 2, 0, 255)
            .astype(jnp.uint8)
            .reshape(num, *shape)
        )

    phases = (Phase("flow", loss),)
    return Method(init, phases, evaluate, sample, rules=((r".*", fsdp),))


# %% [markdown]
# ## 3. The config
#
# `base.base()` has the settings that all families share. `method` names the module that has
# `build`: `__main__` is this notebook. So you may change a cell above, run it again, and train
# again.


# %%
# realnvp.py, the config
def get_config():
    """8 x 8 digits, for a minute of a CPU."""
    config = base.base()
    config.method = "realnvp"
    config.dataset.name = "digits"
    config.dataset.validation = config.dataset.test = "10_percent"
    config.batch_size = 128
    config.duration = "800_steps"
    config.optimizer.weight_decay = 0.01
    config.schedule.name, config.schedule.warmup = "cosine", "5_percent"
    with config.unlocked():
        config.realnvp = ConfigDict(Options()._asdict())
    return config


# %%
import genjax

config = get_config()
config.method = "__main__"
config.duration, config.realnvp.depth = duration, depth
config.log.every, config.evals.every = "10_percent", "20_percent"
config = base.override(config, overrides)

# %% [markdown]
# ## 4. Train it

# %%
from IPython.display import display
from PIL import Image


def show(picture):
    """These digits are small: three times their size."""
    display(picture.resize((3 * picture.width, 3 * picture.height), Image.Resampling.NEAREST))


def look(seen):
    bits, error = seen.metrics["eval/bits_per_dim"], seen.metrics["eval/bits_per_dim_se"]
    print(f"step {seen.step}: {bits:.3f} ± {error:.3f} bits per dimension")
    show(Image.fromarray(seen.picture))


run = genjax.train(config, workdir, on_eval=look)

# %% [markdown]
# There are only 1,437 digits to learn from. Train longer, in another `workdir`, and the loss of
# training falls on while these numbers rise: the flow learns them by heart.

# %% [markdown]
# ## 5. Everything else is there
#
# Samples with the option that you have just written, the likelihood of the test split, the
# report.

# %%
for temperature in (0.5, 0.7, 1.0):
    show(run.picture(run.sample(32, temperature=temperature)))
run.evaluate(split="test")

# %%
run

# %% [markdown]
# A wrong name is answered like any of genjax's own.

# %%
try:
    run.sample(8, temprature=0.5)
except base.ConfigError as error:
    print(error)

# %% [markdown]
# ## 6. Make it a file
#
# The cells that begin with `# realnvp.py` are the family. Written into one file, they are a
# config that any machine trains: `genjax --config=realnvp.py`, or `genjax.train("realnvp.py",
# ...)`. To fit the file, the config says `realnvp`, its own name.

# %%
from pathlib import Path

cells = {cell.splitlines()[0]: cell for cell in In if cell.startswith("# realnvp.py")}
Path("realnvp.py").write_text("\n\n\n".join(cells.values()) + "\n")
again = genjax.train(
    "realnvp.py", f"{workdir}_file", {"duration": "50_steps", "schedule.warmup": "10_steps"}
)
print(again)

# %% [markdown]
# ## Where to go on
#
# - Tell the network the class: `conditions=label_condition(spec, True)` in `Method`, and the
#   label as an input of `Coupling`.
# - Several networks in a game, networks that follow others, targets made once a step, other data:
#   `docs/extending.md`.
# - `genjax/method.py` is the whole contract, in a few pages.
#
# ## Take it with you

# %%
download("realnvp.py")
download(workdir)
