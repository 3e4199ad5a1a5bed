"""SeqGAN's synthetic task (Yu et al. 2017, section 4), with the numbers that it leaves out.

The data are texts of an oracle, an LSTM with weights N(0, 1) over 5,000 tokens; a text has 20.
The paper's figure of merit, `nll_oracle`, is the oracle's -log p of generated texts, in nats a
token. A lower one than the oracle's own entropy is no success but a collapse, so each row has

  nll_oracle  E_q[-log p]     entropy  E_q[-log q]     KL(q|p), their difference
  nll_test    E_p[-log q]                              KL(p|q) = nll_test - the oracle's entropy

  python benchmarks/seqgan_oracle.py --workdir=DIR [--epochs=120] [--discriminator=1000]
      [--game=200] [--critic=5] [--rollouts=16] [--baseline] [--rewarded=500] [--samples=10000]
      [--seed=0]

The sizes of the networks, the batches of 64, the optimizers, the 10,000 texts of the oracle and the
120 epochs of likelihood are those of the authors' code. It updates the discriminator 46,875 times
before the game and 4,687 times for each of the 200 updates of the generator, for which no CPU has
time: here --discriminator and --critic times, on texts drawn for each update. The authors' oracle
is a file of theirs; this one is drawn anew, by --seed. Its discriminator is regularised by 0.2 of
its last layer's squared weights, this one only by dropout.

The rows RLOO and PPO start from the same generator, after likelihood, and are told what no GAN is:
their reward is the oracle's log p, and the penalty is the divergence from the uniform distribution,
so that they maximise -KL(q|p). "without penalty" has the reward alone, as the figure of merit has.
Each of their --rewarded steps draws 128 texts.

DIR keeps the run: the same command goes on after a stop. results.jsonl in it has a line for each
row that is printed.

Published log: 9.07 (likelihood), 8.68 (SeqGAN).
"""

import argparse
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from genjax import config as configs
from genjax.data.alphabets import Characters
from genjax.method import DataSpec, Field
from genjax.methods import lm, rl_lm, text_game
from genjax.networks import decoder, recurrent
from genjax.nn.functional import functional
from genjax.training.assemble import assemble
from genjax.training.checkpoint import Checkpoints

V, T, WIDTH, BATCH, TEXTS = 5000, 20, 32, 64, 10_000
CHUNK = 250  # texts whose logits are in memory
FACTS = {"vocabulary_size": V, "special": {"start": 0}, "tokenizer": Characters("a", {})}
SPEC = DataSpec(
    "oracle",
    {"token": Field("text", (T + 1,), np.dtype(np.int32), FACTS)},
    "token",
    {"train": TEXTS},
)
LSTM = functional(lambda rngs: recurrent.Network(V, T, width=WIDTH, rngs=rngs))
MODEL = text_game.TextGame(LSTM, None, text_game.Options(), SPEC)
# The oracle's score is a reward for each token, so that all terms have the size of KL(q|p).
REWARDED = {"answers": 128, "max_new_tokens": T, "temperature": 1.0, "average": "token"}
GAMES = {
    "RLOO": REWARDED | {"advantage": "rloo", "beta": 1 / T},
    "RLOO without penalty": REWARDED | {"advantage": "rloo", "beta": 0.0},
    "PPO": REWARDED | {"advantage": "gae", "scale": True, "decay": 1.0, "beta": 1 / T, "passes": 2},
}


def normal(params, deviation, seed):
    """Parameters of the same shapes, N(0, deviation^2)."""
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(seed)
    drawn = [jnp.asarray(deviation * rng.normal(size=p.shape), jnp.float32) for p in leaves]
    return jax.tree.unflatten(tree, drawn)


def at_temperature(params, temperature):
    """The same network with logits divided by the temperature."""
    return {**params, "head": jax.tree.map(lambda p: p / temperature, params["head"])}


@jax.jit
def _drawn(params, key):
    nothing = jnp.zeros((CHUNK, T), jnp.int32)
    return text_game.complete(MODEL, params, {}, nothing, nothing[:, 0], key)


@jax.jit
def _nll(params, token):
    before = jnp.pad(token[:, :-1], ((0, 0), (1, 0)))
    (logits, _), _ = LSTM.apply(params, {}, before)
    each = jnp.take_along_axis(jax.nn.log_softmax(logits), token[..., None], -1)
    return -each.mean((1, 2))


def drawn(params, count, seed):
    """`count` texts [count, T]."""
    key = jax.random.key(seed)
    chunks = -(-count // CHUNK)
    parts = [np.asarray(_drawn(params, jax.random.fold_in(key, i))) for i in range(chunks)]
    return np.concatenate(parts)[:count]


def nll(params, token):
    """-log p per token, in nats: the mean over the texts."""
    parts = [token[i : i + CHUNK] for i in range(0, len(token), CHUNK)]
    return float(np.concatenate([np.asarray(_nll(params, part)) for part in parts]).mean())


def judged(params, oracle, held_out, entropy, count):
    """The numbers of the module's docstring for the model with these parameters."""
    own = drawn(params, count, 7)
    found = {"nll_oracle": nll(oracle, own), "entropy": nll(params, own)}
    found["nll_test"] = nll(params, held_out[:count])
    found["kl_q_p"] = found["nll_oracle"] - found["entropy"]
    found["kl_p_q"] = found["nll_test"] - entropy
    found["distinct"] = len(np.unique(own)) / V
    return {name: round(value, 4) for name, value in found.items()}


def assembled(options):
    config = configs.base()
    config.method, config.seed, config.batch_size = "text_gan", options.seed, BATCH
    first = options.epochs * (TEXTS // BATCH)
    config.duration = f"{first + options.discriminator + options.game}_steps"
    config.optimizer.name, config.optimizer.learning_rate = "adam", 0.01
    config.optimizer.clip_norm = 5.0
    other = {"learning_rate": 1e-4, "clip_norm": 0.0}
    config.optimizer.networks = ConfigDict({"discriminator": other})
    config.ema.decay = ()
    with config.unlocked():
        config.text_gan = ConfigDict(
            {
                "pretraining": f"{first}_steps",
                "discriminator_pretraining": f"{options.discriminator}_steps",
                "critic_steps": options.critic,
                "rollouts": options.rollouts,
                "baseline": options.baseline,
            }
        )
        networks = {"generator": {"width": WIDTH}, "discriminator": {"dropout": 0.25}}
        config.model = ConfigDict({"network": "text_cnn", "language": "recurrent", **networks})
    return assemble(config, SPEC), first


def rows_of(step, seed, critic):
    """The texts of a step: the first slice goes through all of them in each epoch."""
    epoch, place = divmod(step, TEXTS // BATCH)
    order = np.random.default_rng([seed, epoch]).permutation(TEXTS)
    others = np.random.default_rng([seed, epoch, place]).integers(TEXTS, size=(critic - 1) * BATCH)
    return np.concatenate([order[place * BATCH :][:BATCH], others])


def report(folder, name, found):
    line = json.dumps({"row": name, **found})
    print(line, flush=True)
    with (folder / "results.jsonl").open("a") as file:
        file.write(line + "\n")


def oracles(folder, oracle, held_out, entropy, count):
    """The oracle itself, and at lower temperatures: what a collapse looks like."""
    for name, temperature in (("1", 1.0), ("0.5", 0.5), ("0 (greedy)", 1e-4)):
        own = at_temperature(oracle, temperature)
        found = judged(own, oracle, held_out, entropy, count)
        if temperature < 1e-3:  # one text, and any other is impossible
            found |= {"nll_test": None, "kl_p_q": None}
        report(folder, f"oracle at temperature {name}", found)


def train(folder, options, oracle, held_out, entropy):
    """Likelihood, then the game; the numbers of both on the way and at the end."""
    texts = drawn(oracle, TEXTS, 1)
    run, first = assembled(options)
    checkpoints = Checkpoints(folder / "run", run.config)
    begun, start = checkpoints.latest() or 0, time.perf_counter()
    game = first + options.discriminator
    with jax.set_mesh(run.mesh):
        state = checkpoints.restore(run.state) if begun else run.init()
        if not begun:  # as the authors' generator begins
            small = normal(state.params["generator"], 0.1, options.seed + 1)
            params = {**state.params, "generator": small, "rollout": jax.tree.map(jnp.copy, small)}
            shardings = jax.tree.map(lambda leaf: leaf.sharding, run.state)
            state = jax.device_put(state.replace(params=params), shardings)
        for step in range(begun, run.total_steps):
            rows = texts[rows_of(step, options.seed, options.critic)]
            token = np.pad(rows, ((0, 0), (1, 0)))
            state, output = run.step(state, {"token": jax.device_put(token)})
            done = step + 1
            every = 10 * (TEXTS // BATCH) if done <= first else max(options.game // 20, 1)
            look = (
                done % every == 0 if done <= first else done > game and (done - game) % every == 0
            )
            if not look and done not in (first, game, run.total_steps):
                continue
            checkpoints.save(state, done, {})
            metrics = {k: float(v[0] / max(v[1], 1e-9)) for k, v in output.metrics.items()}
            found = judged(state.params["generator"], oracle, held_out, entropy, 1000)
            kept = ("reward", "real_accuracy", "fake_accuracy", "generator_2/entropy")
            found |= {k: round(v, 4) for k, v in metrics.items() if k.endswith(kept) and v}
            seconds = round(time.perf_counter() - start)
            report(folder, f"step {done} of {run.total_steps}", {**found, "seconds": seconds})
            if done == first:  # kept, as where other games may begin
                kept_apart = Checkpoints(folder / "run", run.config, "likelihood")
                kept_apart.save(state, done, {})
                kept_apart.wait()
                rows_of_likelihood(folder, state, oracle, held_out, entropy, options.samples)
    checkpoints.wait()
    found = judged(state.params["generator"], oracle, held_out, entropy, options.samples)
    report(folder, "SeqGAN", found)


def rows_of_likelihood(folder, state, oracle, held_out, entropy, count):
    for temperature in (1.0, 0.9, 0.8, 0.7):
        own = at_temperature(state.params["generator"], temperature)
        found = judged(own, oracle, held_out, entropy, count)
        report(folder, f"likelihood at temperature {temperature:g}", found)


def rewarded(folder, name, generator, oracle, held_out, entropy, options):
    """A policy gradient from a generator towards the oracle; a row of it, unless it is there."""
    file = folder / "results.jsonl"
    if any(json.loads(line)["row"] == name for line in file.read_text().splitlines()):
        return
    mask = Field("mask", (T + 1,), np.dtype(bool))
    spec = SPEC._replace(fields={**SPEC.fields, "loss_mask": mask})
    chosen = rl_lm.Options(**GAMES[name])
    value = None
    if chosen.advantage == "gae":
        sizes = {"width": WIDTH, "depth": 1, "heads": 2, "outputs": 1}
        value = functional(lambda rngs: decoder.Network(V, T, **sizes, rngs=rngs))

    def reward(params, mutable, tokens, batch):
        return np.log(V) - _nll(params["oracle"], tokens[:, 1:])

    def uniform(params, mutable, batch):
        return jnp.zeros((*batch["token"][:, 1:].shape, V))

    language = lm.Language(LSTM, lm.Options(), spec, T)
    method = rl_lm.from_networks(language, chosen, (), reward, uniform, value)
    asked = {
        "token": jnp.zeros((1, T + 1), jnp.int32),
        "loss_mask": jnp.arange(T + 1)[None] > 0,
    }
    params, mutable = method.init(jax.random.key(options.seed), asked)
    params = {**params, "lm": generator}
    optimizer = optax.chain(optax.clip_by_global_norm(5.0), optax.adam(1e-3))
    loss = method.phases[0].loss

    @jax.jit
    def step(params, moments, oracle, key):
        batch = method.prepare({**params, "oracle": oracle}, mutable, asked, key, 0)
        for _ in range(chosen.passes):
            grads = jax.grad(lambda p: loss(p, mutable, batch, key, 0)[0])(params)
            change, moments = optimizer.update(grads, moments)
            params = optax.apply_updates(params, change)
        return params, moments

    moments, start, key = optimizer.init(params), time.perf_counter(), jax.random.key(options.seed)
    for number in range(options.rewarded):
        params, moments = step(params, moments, oracle, jax.random.fold_in(key, number))
    found = judged(params["lm"], oracle, held_out, entropy, options.samples)
    report(folder, name, {**found, "seconds": round(time.perf_counter() - start)})


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--epochs", type=int, default=120, help="of likelihood")
    parser.add_argument("--discriminator", type=int, default=1000, help="its steps before the game")
    parser.add_argument("--game", type=int, default=200, help="updates of the generator")
    parser.add_argument("--critic", type=int, default=5, help="discriminator's updates a step")
    parser.add_argument("--rollouts", type=int, default=16)
    parser.add_argument("--baseline", action="store_true")
    parser.add_argument("--rewarded", type=int, default=500, help="steps of RLOO and of PPO")
    parser.add_argument("--samples", type=int, default=10_000, help="of each row")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--oracle-only", action="store_true")
    options = parser.parse_args()
    folder = Path(options.workdir)
    folder.mkdir(parents=True, exist_ok=True)
    params, _ = LSTM.init(jax.random.key(0))
    oracle = normal(params, 1.0, options.seed)
    held_out = drawn(oracle, options.samples, 2)
    entropy = nll(oracle, held_out)
    oracles(folder, oracle, held_out, entropy, options.samples)
    if options.oracle_only:
        return
    train(folder, options, oracle, held_out, entropy)
    run, _ = assembled(options)
    generator = Checkpoints(folder / "run", run.config, "likelihood").restore(run.state)
    for name in GAMES:
        given = generator.params["generator"], oracle, held_out, entropy, options
        rewarded(folder, name, *given)


if __name__ == "__main__":
    main()
