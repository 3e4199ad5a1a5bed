"""Models and tokenizers in files of GGUF, against transformers and SentencePiece (make_gguf.py).

SmolLM2-135M-Instruct is fetched and compared with transformers by

    python tests/interop/test_gguf_model.py
"""

import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gguf_files import content

from genjax.config import ConfigError, shipped
from genjax.data import subwords, tokenizers
from genjax.interop import gguf, gguf_model, gguf_tokenizer, pretrained
from genjax.main import main
from genjax.networks import decoder
from genjax.nn.functional import functional
from genjax.nn.positions import frequencies
from genjax.sampling import chat

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "gguf.npz")
MODELS = [n.removesuffix("/logits") for n in GOLDEN.files if re.match(r"\w+/logits", n)]
WORDS = ["the quick brown fox jumps over the lazy dog's 1234 bones, naïvely ☃"] * 4
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SIZES = {"width": 24, "depth": 2, "heads": 4, "kv_heads": 2, "head_size": 8, "hidden": 32}
MODULES = {"norm1": "attn_norm", "merge": "attn_output", "norm2": "ffn_norm", "up": "ffn_up"}
MODULES |= {"gate": "ffn_gate", "down": "ffn_down"}


def logits(model, tokens):
    network = functional(
        lambda rngs: decoder.Network(
            model.vocabulary_size, model.length, **model.options, rngs=rngs
        )
    )
    shapes, _ = jax.eval_shape(network.init, jax.random.key(0))
    assert jax.tree.map(jnp.shape, model.params) == jax.tree.map(jnp.shape, shapes)
    (out, _), _ = jax.jit(network.apply)(model.params, {}, jnp.asarray(tokens))
    return np.asarray(out)


@pytest.mark.parametrize("name", MODELS)
def test_the_network_computes_what_transformers_does_of_the_file(name, tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(GOLDEN[f"{name}/file"].tobytes())
    model = pretrained.read(str(path))
    assert model[1:3] == (64, 128)
    assert pretrained.describe(str(path)) == model._replace(params=None)
    found = logits(model, GOLDEN["tokens"])
    np.testing.assert_allclose(found, GOLDEN[f"{name}/logits"], atol=1e-4, rtol=0)


# ---- files of our own --------------------------------------------------------------------------


def metadata(**changed):
    """What a file says of a network of `SIZES`."""
    values = {
        "general.architecture": "llama",
        "llama.context_length": 40,
        "llama.embedding_length": SIZES["width"],
        "llama.block_count": SIZES["depth"],
        "llama.feed_forward_length": SIZES["hidden"],
        "llama.attention.head_count": SIZES["heads"],
        "llama.attention.head_count_kv": SIZES["kv_heads"],
        "llama.attention.key_length": SIZES["head_size"],
        "llama.rope.dimension_count": SIZES["head_size"],
        "llama.attention.layer_norm_rms_epsilon": 0.5,
    }
    values |= {key.replace("__", "."): value for key, value in changed.items()}
    return {key: value for key, value in values.items() if value is not None}


def turned(array, heads):
    """Elements i and i + H / 2 of a head next to each other."""
    halves = array.reshape(heads, 2, -1, *array.shape[1:])
    return halves.swapaxes(1, 2).reshape(array.shape)


def tensors(params, tied):
    """The tensors of a file with our parameters."""
    blocks, found = params["body"]["blocks"], {}
    for layer in range(SIZES["depth"]):

        def put(name, array, layer=layer):
            found[f"blk.{layer}.{name}"] = np.asarray(array)

        for ours, theirs in MODULES.items():
            for part, array in blocks[ours].items():
                name = "bias" if part == "bias" else "weight"
                put(f"{theirs}.{name}", array[layer].T)
        for part, array in blocks["qkv"].items():
            by_head = np.asarray(array[layer])  # [D, K, (G + 2) H]: G queries, a key and a value
            lead = by_head.shape[:-2]
            by_head = by_head.reshape(*lead, SIZES["kv_heads"], -1, SIZES["head_size"])
            parts = by_head[..., :-2, :], by_head[..., -2, :], by_head[..., -1, :]
            q, k, v = (part.reshape(*lead, -1).T for part in parts)
            name = "bias" if part == "bias" else "weight"
            put(f"attn_q.{name}", turned(q, SIZES["heads"]))
            put(f"attn_k.{name}", turned(k, SIZES["kv_heads"]))
            put(f"attn_v.{name}", v)
    found["token_embd.weight"] = np.asarray(params["embed"]["embedding"])
    found["output_norm.weight"] = np.asarray(params["body"]["norm"]["scale"])
    if not tied:
        found["output.weight"] = np.asarray(params["head"]["kernel"]).T
    return found


def made(vocabulary=64, tied=True, bias=False):
    """Random parameters of a network of `SIZES`."""
    options = {**SIZES, "norm": "rms", "activation": "swiglu", "positions": "rotary"}
    network = functional(
        lambda rngs: decoder.Network(vocabulary, 40, **options, bias=bias, tied=tied, rngs=rngs)
    )
    shapes, _ = jax.eval_shape(network.init, jax.random.key(0))
    draw = np.random.default_rng(0).standard_normal
    return jax.tree.map(lambda leaf: 0.3 * draw(leaf.shape, np.float32), shapes)


def written(folder, values, arrays):
    path = folder / "model.gguf"
    path.write_bytes(content(values, arrays))
    return path


@pytest.mark.parametrize(("tied", "bias"), [(True, False), (False, True)])
def test_parameters_come_out_as_they_went_in(tied, bias, tmp_path):
    params = made(tied=tied, bias=bias)
    model = gguf_model.read(written(tmp_path, metadata(), tensors(params, tied)))
    jax.tree.map(np.testing.assert_array_equal, model.params, params)
    expected = {**SIZES, "tied": tied, "bias": bias, "norm_eps": 0.5, "rope_base": 10_000.0}
    expected["window"] = 0
    assert {key: model.options[key] for key in expected} == expected
    assert (model.vocabulary_size, model.length) == (64, 40)


def test_a_window_and_the_layers_that_have_biases(tmp_path):
    arrays = tensors(made(bias=True), True)
    values = metadata(llama__attention__sliding_window=8)
    assert gguf_model.describe(written(tmp_path, values, arrays)).options["window"] == 8
    arrays = {k: a for k, a in arrays.items() if "ffn" not in k or not k.endswith("bias")}
    found = gguf_model.read(written(tmp_path, values, arrays))
    assert (found.options["bias"], found.options["bias_of"]) == (True, "attention")
    assert "bias" not in found.params["body"]["blocks"]["up"]
    arrays = {k: a for k, a in arrays.items() if k.rpartition(".")[0] != "blk.0.attn_q"}
    arrays = {k: a for k, a in arrays.items() if not k.endswith("q.bias")}
    with pytest.raises(
        ConfigError, match=r"layers with biases=\('merge',\): expected none, or one"
    ):
        gguf_model.describe(written(tmp_path, values, arrays))


def test_the_factors_of_llama_3_are_its_scaling(tmp_path):
    arrays, scaling = tensors(made(), True), ("llama3", 32.0, 1.0, 4.0, 8192.0)
    plain = frequencies(8, 500_000.0)
    arrays["rope_freqs.weight"] = (plain / frequencies(8, 500_000.0, scaling)).astype(np.float32)
    assert 1 < arrays["rope_freqs.weight"][2] < arrays["rope_freqs.weight"][3] == 32
    values = metadata(llama__rope__freq_base=500_000.0)
    model = gguf_model.read(written(tmp_path, values, arrays))
    assert model.options["rope_scaling"] == scaling
    arrays["rope_freqs.weight"] = np.array([1, 1, 2, 32], np.float32)
    with pytest.raises(ConfigError, match=r"rope_freqs\.weight are not the factors of Llama 3\.1"):
        gguf_model.read(written(tmp_path, values, arrays))
    values = metadata(llama__rope__scaling__type="linear", llama__rope__scaling__factor=4.0)
    del arrays["rope_freqs.weight"]
    model = gguf_model.read(written(tmp_path, values, arrays))
    assert model.options["rope_scaling"] == ("linear", 4.0)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"general__architecture": "mamba"}, "architecture='mamba': expected one of llama, qwen2"),
        ({"general__architecture": None}, "architecture='none': expected one of llama"),
        ({"general__architecture": "qwen2"}, "has no qwen2.embedding_length"),
        ({"llama__block_count": None}, "has no llama.block_count"),
        ({"llama__block_count": "two"}, "block_count='two': expected a positive integer"),
        ({"llama__block_count": 10**6}, "layers=1000000: expected at most 20, as many as tensors"),
        ({"llama__block_count": 3}, r"9 missing, 0 unexpected(.|\n)*layers.2.input_layernorm"),
        ({"llama__block_count": 1}, r"9 unexpected(.|\n)*blk.1.attn_k.weight"),
        ({"llama__expert_count": 8}, "expert_count=8: expected 0"),
        ({"split__count": 3}, "split.count=3: expected one file: join its parts"),
        ({"llama__rope__scaling__type": "yarn"}, "type='yarn': expected one of none, linear"),
        ({"llama__rope__dimension_count": 4}, "dimension_count=4: expected 8, the width"),
        ({"llama__attention__head_count_kv": 3}, "head_count_kv=3: expected a divisor of"),
        ({"llama__attention__head_count_kv": [1, 2]}, "head_count_kv=array.*positive integer"),
        ({"llama__feed_forward_length": 33}, r"6 mismatched\):\n.*down_proj.weight  float32"),
    ],
)
def test_what_the_decoder_does_not_compute_is_refused(changed, message, tmp_path):
    path = written(tmp_path, metadata(**changed), tensors(made(), True))
    with pytest.raises(ConfigError, match=rf"model\.gguf.*{message}"):
        gguf_model.read(path)


def test_a_file_without_an_embedding_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"token_embd\.weight=None: expected a tensor"):
        gguf_model.read(written(tmp_path, metadata(), {"a": np.ones(4, np.float32)}))


# ---- tokenizers --------------------------------------------------------------------------------


def byte_level(pre="gpt-2", **changed):
    """Metadata of a byte-level BPE, and the tokenizer that they are taken from."""
    tokenizer = subwords.train("bpe", WORDS, 330, end=False)
    model = json.loads(tokenizer.inner.to_str())["model"]
    tokens = [*sorted(model["vocab"], key=model["vocab"].get), "<|im_start|>", "<|im_end|>"]
    values = {
        "model": "gpt2",
        "pre": pre,
        "tokens": tokens,
        "token_type": [1] * (len(tokens) - 2) + [3, 3],
        "merges": [" ".join(merge) for merge in model["merges"]],
        "bos_token_id": len(tokens) - 2,
        "eos_token_id": len(tokens) - 1,
        **changed,
    }
    found = {f"tokenizer.ggml.{key}": value for key, value in values.items()}
    return tokenizer, found | {"tokenizer.chat_template": TEMPLATE}


def as_read(values, folder):
    """The metadata as they are read from a file."""
    return gguf.read(written(folder, values, {"a": np.ones(4, np.float32)})).metadata


def test_a_byte_level_tokenizer_is_read(tmp_path):
    original, values = byte_level()
    found = gguf_tokenizer.read("m.gguf", as_read(values, tmp_path))
    for text in (*WORDS, "foxes  jump\n\tover 12", "", "日本 <|im_end|>"):
        ids = found.encode(text)
        np.testing.assert_array_equal(ids, original.encode(text))
        assert found.decode(ids) == text
    first, last = (len(found.spelling) - n for n in (2, 1))
    assert (found.special, found.begins) == ({"bos": first, "eos": last}, ())
    ids = found.encode_marked("<|im_start|>fox<|im_end|>")
    np.testing.assert_array_equal(ids, [first, *original.encode("fox"), last])
    np.testing.assert_array_equal(  # the text of a user is not read so, before or after
        found.encode("<|im_end|>"), original.encode("<|im_end|>")
    )
    again = tokenizers.from_json(found.to_json())
    assert again == found
    assert again.chat_template == TEMPLATE


def test_the_name_of_the_pre_tokenizer_decides_on_words(tmp_path):
    def words(pre, text):
        _, values = byte_level(pre)
        found = gguf_tokenizer.read("m.gguf", as_read(values, tmp_path))
        pieces = found.inner.pre_tokenizer.pre_tokenize_str(text)
        return "|".join(piece for piece, _ in pieces), found

    text = "Don't 1234\n\n  DON'T"
    assert words("gpt-2", text)[0] == "Don|'t|Ġ1234|ĊĊĠ|ĠDON|'|T"
    assert words("smollm", text)[0] == "Don|'t|Ġ|1|2|3|4|ĊĊĠ|ĠDON|'|T"
    assert words("qwen2", text)[0] == "Don|'t|Ġ|1|2|3|4|ĊĊ|Ġ|ĠDON|'T"
    split, llama = words("llama-bpe", text)
    assert split == "Don|'t|Ġ|123|4|ĊĊ|Ġ|ĠDON|'T"
    assert llama.begins == (llama.special["bos"],)


def test_sentencepiece_tokens_are_found_by_their_scores(tmp_path):
    golden = json.loads(str(GOLDEN["sentencepiece"]))
    values = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": golden["tokens"],
        "tokenizer.ggml.token_type": golden["types"],
        "tokenizer.ggml.scores": golden["scores"],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.eot_token_id": 2,
    }
    found = gguf_tokenizer.read("m.gguf", as_read(values, tmp_path))
    for text, ids, decoded in zip(*(golden[k] for k in ("texts", "ids", "decoded")), strict=True):
        assert found.encode(text).tolist() == ids, text
        assert found.decode(ids) == decoded
    assert (found.special, found.begins) == ({"bos": 1, "eos": 2}, (1,))
    assert found.chat_template == ""


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model": "bert"}, "model='bert': expected one of gpt2, llama"),
        ({"pre": "tekken"}, "pre='tekken': expected one of gpt-2, smollm, llama-bpe, qwen2"),
        ({"token_type": [1, 3]}, "token_type=array.*expected 3.. numbers, one for each token"),
        ({"merges": ["a b c"]}, r"merges=\['a', 'b', 'c'\]: expected two tokens"),
        ({"merges": ["q zz"]}, "tokenizers failed|not a tokenizer"),
        ({"tokens": ["a", "b", "a"]}, "the token 'a' comes 2 times"),
        ({"eos_token_id": 5000}, r"eos_token_id=5000: expected a token from 0 to 3"),
    ],
)
def test_a_tokenizer_that_is_not_known_is_refused(changed, message, tmp_path):
    _, values = byte_level(**changed)
    with pytest.raises(ConfigError, match=rf"m\.gguf: .*{message}"):
        gguf_tokenizer.read("m.gguf", as_read(values, tmp_path))


# ---- from the command line ---------------------------------------------------------------------


def test_one_command_makes_a_run_of_a_file_and_keeps_its_template(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GENJAX_DATA", str(tmp_path / "cache"))
    original, values = byte_level()
    count = len(values["tokenizer.ggml.tokens"])
    path = written(tmp_path, metadata() | values, tensors(made(count), True))
    run = f"--workdir={tmp_path / 'run'}"
    config = f"--config={shipped() / 'import_lm.py'}"
    assert main([config, f"--config.weights={path}", "--config.evals.samples=0", run]) == 0
    path.unlink()
    assert main([run, "--mode=sample", "--prompt=the", "--num=1", "--max_new_tokens=3"]) == 0
    assert "the" in capsys.readouterr().out
    assert tokenizers.read(tmp_path / "run" / "tokenizer.json").chat_template == TEMPLATE
    assert main([run, "--mode=export", f"--output={tmp_path / 'out'}"]) == 0
    exported = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert exported["chat_template"] == TEMPLATE
    again = tokenizers.read(tmp_path / "out" / "tokenizer.json")
    assert again.chat_template == TEMPLATE
    np.testing.assert_array_equal(again.encode("the fox"), original.encode("the fox"))
    (tmp_path / "out" / "chat_template.jinja").write_text("{{ messages }}")
    assert tokenizers.read(tmp_path / "out").chat_template == "{{ messages }}"


def compare():
    """Compares SmolLM2 with transformers, and says by how much the logits differ."""
    model = pretrained.read("smollm2")
    tokenizer = tokenizers.read(pretrained.tokenizer("smollm2"))
    for number, messages in enumerate(json.loads(str(GOLDEN["smollm2/chats"]))):
        wanted = {k: GOLDEN[f"smollm2/{number}/{k}"] for k in ("ids", "entries", "logits", "best")}
        text = chat.rendered(tokenizer, messages)
        assert text == str(GOLDEN[f"smollm2/{number}/text"])
        ids = tokenizer.encode_marked(text)
        np.testing.assert_array_equal(ids, wanted["ids"])
        found = logits(model, ids[None])[0]
        gap = np.abs(found[:, wanted["entries"]] - wanted["logits"]).max()
        agree = (found.argmax(-1) == wanted["best"]).mean()
        print(
            f"chat {number}, {len(ids)} tokens: the logits differ by at most {gap:.2g}, of "
            f"{np.abs(wanted['logits']).max():.3g}; {agree:.0%} of the best tokens agree"
        )
        np.testing.assert_allclose(found[:, wanted["entries"]], wanted["logits"], atol=2e-4)


if __name__ == "__main__":
    compare()
