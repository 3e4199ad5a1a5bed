"""Logits processors, and greedy and beam-search decoding of tiny models, by transformers.

/path/to/parity/bin/python tests/golden/make_generation.py [OUTPUT.npz]

For each model: the files of its folder, and for each case the tokens, -1 where nothing is, and the
scores of the beams. The cases are in transformers' own words.
"""

from __future__ import annotations

import json
import pathlib
import sys
import tempfile

import numpy as np

sys.modules["torchvision"] = None  # of no use here, and one for another torch breaks the imports

import torch  # noqa: E402
import transformers  # noqa: E402
from transformers.generation import logits_process as peer  # noqa: E402

V, NEW = 61, 12
PROMPT = np.array([[5, 17, 40, 3, 17], [-1, -1, 9, 30, 9], [-1, 2, 55, 2, 55]])
EOS = {"gpt2": [50, 28], "llama": [13]}
LIMITS = {"repetition_penalty": 1.4, "no_repeat_ngram_size": 2, "min_new_tokens": 4}
LIMITS |= {"bad_words_ids": [[26], [3, 17], [8, 37], [45, 45]]}
BEAMS = {"num_beams": 4, "num_return_sequences": 4}
CASES = {
    "greedy": {},
    "greedy_limited": LIMITS,
    "beam": BEAMS,
    "beam_stop": {**BEAMS, "early_stopping": True, "length_penalty": 0.6},
    "beam_stop_long": {**BEAMS, "early_stopping": True, "length_penalty": 2.0},
    "beam_never": {**BEAMS, "early_stopping": "never", "length_penalty": 2.0},
    "beam_short": {**BEAMS, "length_penalty": -1.0},
    "beam_short_never": {**BEAMS, "early_stopping": "never", "length_penalty": -1.0},
    "beam_limited": {**BEAMS, **LIMITS, "length_penalty": 1.4},
}
LEFT_OUT = {"gpt2": ("greedy_limited",), "llama": ("greedy",)}  # a program each to compile


def models() -> dict[str, transformers.PreTrainedModel]:
    """Models whose biases, norms and positions count; their weights are short, to compress."""
    gpt2 = {"vocab_size": V, "n_positions": 24, "n_embd": 32, "n_layer": 2, "n_head": 4}
    llama = {
        **{"vocab_size": V, "max_position_embeddings": 64, "hidden_size": 32},
        **{"intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4},
        "num_key_value_heads": 2,
    }
    made = {
        "gpt2": transformers.GPT2LMHeadModel(transformers.GPT2Config(**gpt2)),
        "llama": transformers.LlamaForCausalLM(transformers.LlamaConfig(**llama)),
    }
    generator = torch.Generator().manual_seed(1)
    for model in made.values():
        with torch.no_grad():
            for key, value in model.named_parameters():
                is_scale = key.endswith("weight") and ("norm" in key or ".ln_" in key)
                size = 0.1 if "ln_f.bias" in key else 0.4  # it would choose the same token always
                fresh = size * torch.randn(value.shape, generator=generator) + float(is_scale)
                value.copy_(fresh.bfloat16())
        model.eval().generation_config.bos_token_id = None
    return made


def continued(model: transformers.PreTrainedModel, case: dict) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [B, K, P + NEW], and scores [B, K] if there are beams.

    One prompt at a time if tokens are penalised, as transformers takes no padding from the prompts
    of beams then.
    """
    eos = EOS[model.config.model_type]
    given = {**case, "eos_token_id": eos, "pad_token_id": 0, "do_sample": False}
    alone = "repetition_penalty" in case and "num_beams" in case
    tokens, scores = [], []
    for rows in PROMPT[:, None] if alone else PROMPT[None]:
        rows = rows[:, (rows >= 0).any(0)]
        made = model.generate(
            torch.from_numpy(np.maximum(rows, 0)),
            attention_mask=torch.from_numpy(rows >= 0).long(),
            max_new_tokens=NEW,
            return_dict_in_generate=True,
            output_scores=True,
            **given,
        )
        new = made.sequences[:, rows.shape[1] :].numpy()
        new = np.pad(new, ((0, 0), (0, NEW - new.shape[1])))
        ends = np.isin(new, eos)
        new = np.where(np.cumsum(ends, 1) - ends > 0, -1, new)
        tokens.append(new.reshape(len(rows), -1, NEW))
        if "num_beams" in case:
            scores.append(made.sequences_scores.numpy().reshape(len(rows), -1))
    new = np.concatenate(tokens)
    before = np.repeat(PROMPT[:, None], new.shape[1], 1)
    return np.concatenate([before, new], -1), np.concatenate(scores) if scores else np.zeros(0)


def processed() -> dict[str, np.ndarray]:
    """What transformers' classes make of random logits."""
    draw = np.random.default_rng(0)
    logits = draw.normal(size=(4, V), scale=2.0).astype(np.float32)
    history = draw.integers(0, 6, (4, 11))
    history[1, :4], history[:, -2:] = -1, history[:, 5:7]
    # -1 is no token there: one past the vocabulary stands for it, which all of them leave out
    ids, values = torch.from_numpy(np.where(history < 0, V, history)), torch.from_numpy(logits)
    padding = torch.tensor([0, 4, 0, 0])
    classes = {
        "temperature": peer.TemperatureLogitsWarper(0.7),
        "top_k": peer.TopKLogitsWarper(5),
        "top_k_all": peer.TopKLogitsWarper(99),
        "top_p": peer.TopPLogitsWarper(0.8),
        "top_p_small": peer.TopPLogitsWarper(0.01),
        "min_p": peer.MinPLogitsWarper(0.1),
        "repetition_penalty": peer.RepetitionPenaltyLogitsProcessor(1.3, padding),
        "no_repeat_1gram": peer.NoRepeatNGramLogitsProcessor(1),
        "no_repeat_2gram": peer.NoRepeatNGramLogitsProcessor(2),
        "no_repeat_3gram": peer.NoRepeatNGramLogitsProcessor(3),
        "banned": peer.NoBadWordsLogitsProcessor(
            [[8], [60], *([a, 20 + a] for a in range(6)), [int(x) for x in history[0, -3:]]]
        ),
        "allowed": peer.PrefixConstrainedLogitsProcessor(lambda batch, ids: [1, 5, 44], 1),
        "minimum_early": peer.MinNewTokensLengthLogitsProcessor(5, 7, [7, 33]),
        "minimum_late": peer.MinNewTokensLengthLogitsProcessor(5, 6, [7, 33]),
    }
    whole = transformers.LogitsProcessorList(
        classes[name]
        for name in ("repetition_penalty", "no_repeat_2gram", "banned", "minimum_early", "allowed")
    )
    drawn = transformers.LogitsProcessorList(
        [
            classes["repetition_penalty"],
            *(peer.TemperatureLogitsWarper(1.7), peer.TopKLogitsWarper(30)),
            *(peer.TopPLogitsWarper(0.9), peer.MinPLogitsWarper(0.05)),
        ]
    )
    arrays = {"processors/logits": logits, "processors/history": history.astype(np.int32)}
    for name, process in {**classes, "chain": whole, "chain_drawn": drawn}.items():
        arrays[f"processors/{name}"] = process(ids, values.clone()).numpy()
    return arrays


def main(path: pathlib.Path) -> None:
    """Makes all and writes."""
    arrays = {"peer": f"transformers {transformers.__version__}, torch {torch.__version__}"}
    arrays |= {"prompt": PROMPT.astype(np.int32), "cases": json.dumps(CASES)}
    arrays |= {"eos": json.dumps(EOS)} | processed()
    for name, model in models().items():
        with tempfile.TemporaryDirectory() as scratch:
            model.save_pretrained(scratch)
            for file in ("config.json", "model.safetensors"):
                content = (pathlib.Path(scratch) / file).read_bytes()
                arrays[f"{name}/files/{file}"] = np.frombuffer(content, np.uint8)
        for case in sorted(CASES.keys() - LEFT_OUT[name]):
            tokens, scores = continued(model, CASES[case])
            arrays[f"{name}/{case}/tokens"] = tokens.astype(np.int32)
            arrays[f"{name}/{case}/scores"] = scores
    np.savez_compressed(path, **arrays)


if __name__ == "__main__":
    default = pathlib.Path(__file__).with_name("generation.npz")
    main(pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else default)
