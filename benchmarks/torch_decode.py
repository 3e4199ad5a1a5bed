"""GPT-2 decoded by transformers for some seconds: the peer of benchmarks/decode_race.py.

Prints one line of JSON. Needs PyTorch, transformers, numpy and nothing of genjax:

  python benchmarks/torch_decode.py --make=FOLDER         # GPT-2 124M with random weights
  python benchmarks/torch_decode.py --weights=FOLDER --prompt=prompt.npy [--beams=4]
      [--precision=bfloat16] [--output=tokens.npy]
"""

import argparse
import json
import sys

import numpy as np
from racing import measured

sys.modules["torchvision"] = None  # transformers needs none, and a broken one stops it
try:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel
except ModuleNotFoundError:
    sys.exit("error: this benchmark needs PyTorch and transformers: pip install -e '.[parity]'")

NEW = 128


def decoder(options):
    """The function () -> tokens [B, S]."""
    model = GPT2LMHeadModel.from_pretrained(
        options.weights, dtype=getattr(torch, options.precision)
    )
    model.generation_config.eos_token_id = None  # a text has no end
    prompt = torch.from_numpy(np.load(options.prompt)).long()
    asked = {"max_new_tokens": NEW, "do_sample": False, "num_beams": options.beams}
    given = {"attention_mask": torch.ones_like(prompt), "pad_token_id": 0}
    return lambda: model.eval().generate(prompt, **given, **asked)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--make", default="")
    parser.add_argument("--weights", default="")
    parser.add_argument("--prompt", default="")
    parser.add_argument("--beams", type=int, default=1)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--output", default="", help="keep the tokens of one call, time nothing")
    options = parser.parse_args()
    torch.manual_seed(0)
    if options.make:
        GPT2LMHeadModel(GPT2Config(initializer_range=0.1)).save_pretrained(options.make)
        print(json.dumps({"made": options.make}))
        return
    run = decoder(options)
    if options.output:
        np.save(options.output, run().numpy())
        print(json.dumps({"written": options.output}))
        return
    texts = len(np.load(options.prompt))
    print(json.dumps(measured(run, options.seconds, each=texts * NEW)))


if __name__ == "__main__":
    main()
