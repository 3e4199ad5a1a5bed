"""Reads CLIPs: Hugging Face's `CLIPModel` and open_clip's models with two transformers.

The towers become those of `networks.vit` and `networks.text_tower`. How a model normalises its
images goes into the map of patches and the positions, exactly: ours are scaled to [-1, 1]. Names
and meanings follow https://github.com/huggingface/transformers, `models/clip`, and
https://github.com/mlfoundations/open_clip, `model.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import unflatten_dict
from jaxtyping import Float

from genjax.config import ConfigError, one_of, require
from genjax.files import read_json
from genjax.interop import architectures, safetensors, torch_file, weights
from genjax.interop.architecture import Options, Settings
from genjax.interop.huggingface import CONFIG, TOKENIZER, folder_of
from genjax.interop.leaves import STACKED, Leaf, match

Tree = Any

OPEN_CONFIG = "open_clip_config.json"
# Files of open_clip's weights that are read, the first that is there, and what reads them.
OPEN_READERS = {
    "open_clip_model.safetensors": safetensors.read,
    "open_clip_pytorch_model.bin": torch_file.read,
}
# Files that say how images are normalised; in the second, under the key "image_processor".
PREPROCESSORS = ("preprocessor_config.json", "processor_config.json")
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's
EPS = 1e-5  # of our norms
SCALE, BIAS = "logit_scale", "logit_bias"

# Keys of open_clip's sections that we read, and those that change nothing in a trained model.
_READ = {
    "vision_cfg": {"layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size"},
    "text_cfg": {"layers", "width", "heads", "mlp_ratio", "context_length", "vocab_size"},
}
_FREE = {"patch_dropout", "output_tokens", "pad_id", "eos_id"}
_FREE |= {"hf_tokenizer_name", "tokenizer_mode", "tokenizer_kwargs", "hf_model_pretrained"}
_USUAL = {"pool_type": ("tok", "argmax", "eos"), "pos_embed_type": ("learnable",)}
_USUAL |= {"proj_type": ("linear",), "timm_model_pretrained": (False, True)}
# Tensors that are no parameters.
_IGNORED = r"(.*\.)?embeddings\.position_ids|attn_mask|input_resolution|context_length|vocab_size"


class Names(NamedTuple):
    """How a library names the tensors of a tower.

    Attributes:
      blocks: before the names in a block; `{}` stands for its number.
      qkv: the layers of queries, keys and values in a block, or the one of all; the names of the
        weight and the bias follow.
      qkv_parts: these names.
      inside: our layer of a block -> theirs.
      outside: our parameter -> their tensor.
      turned: whether the map to the vector is [out, in].
    """

    blocks: str
    qkv: tuple[str, ...]
    qkv_parts: tuple[str, str]
    inside: Mapping[str, str]
    outside: Mapping[str, str]
    turned: bool


def _hugging_face(tower: str, outside: Mapping[str, str]) -> Names:
    inside = {"merge": "self_attn.out_proj", "norm1": "layer_norm1", "norm2": "layer_norm2"}
    inside |= {"up": "mlp.fc1", "down": "mlp.fc2"}
    qkv = tuple(f"self_attn.{name}_proj" for name in "qkv")
    names = f"{tower}.encoder.layers.{{}}.", qkv, (".weight", ".bias"), inside
    return Names(*names, outside, turned=True)


def _open(tower: str, outside: Mapping[str, str]) -> Names:
    inside = {"merge": "attn.out_proj", "norm1": "ln_1", "norm2": "ln_2"}
    inside |= {"up": "mlp.c_fc", "down": "mlp.c_proj"}
    names = f"{tower}transformer.resblocks.{{}}.", ("attn.in_proj",), ("_weight", "_bias"), inside
    return Names(*names, {k: f"{tower}{name}" for k, name in outside.items()}, turned=False)


_VISION, _TEXT = "vision_model.embeddings", "text_model.embeddings"
HUGGING_FACE = {
    "image": _hugging_face(
        "vision_model",
        {
            "patch/kernel": f"{_VISION}.patch_embedding.weight",
            "class_token": f"{_VISION}.class_embedding",
            "positions": f"{_VISION}.position_embedding.weight",
            "norm": "vision_model.pre_layrnorm",
            "body/norm": "vision_model.post_layernorm",
            "out/kernel": "visual_projection.weight",
        },
    ),
    "text": _hugging_face(
        "text_model",
        {
            "embed/embedding": f"{_TEXT}.token_embedding.weight",
            "positions": f"{_TEXT}.position_embedding.weight",
            "body/norm": "text_model.final_layer_norm",
            "out/kernel": "text_projection.weight",
        },
    ),
}
OPEN = {
    "image": _open(
        "visual.",
        {
            "patch/kernel": "conv1.weight",
            "class_token": "class_embedding",
            "positions": "positional_embedding",
            "norm": "ln_pre",
            "body/norm": "ln_post",
            "out/kernel": "proj",
        },
    ),
    "text": _open(
        "",
        {
            "embed/embedding": "token_embedding.weight",
            "positions": "positional_embedding",
            "body/norm": "ln_final",
            "out/kernel": "text_projection",
        },
    ),
}


class Described(NamedTuple):
    """A CLIP without its parameters.

    Attributes:
      image: options of `networks.vit.Network`.
      text: options of `networks.text_tower.Network`.
      features: size of the vectors, E.
      size: height and width of the images.
      vocabulary_size: number of values of a token.
      length: the most tokens of a text.
      loss: "infonce", or "siglip" for a model with a bias.
      mean: of the images on the scale [0, 1], which the model subtracts, by channel.
      std: what it then divides by.
      tokenizer: the path of its tokenizer.json; "" if it has none.
    """

    image: Options
    text: Options
    features: int
    size: tuple[int, int]
    vocabulary_size: int
    length: int
    loss: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    tokenizer: str


def describe(folder: str | Path) -> Described:
    """What the files next to the weights say.

    Raises:
      ConfigError: a file is missing or damaged, or describes another type of model or a computation
        that our towers do not have.
    """
    place = folder_of(folder)
    return (_described if _is_hugging_face(place) else _open_described)(place)


def _is_hugging_face(place: Path) -> bool:
    """Whether a folder is read as Hugging Face's: open_clip's may have another config.json."""
    if not (place / OPEN_CONFIG).is_file():
        return True
    file = place / CONFIG
    return file.is_file() and read_json(file).get("model_type") == "clip"


def _described(place: Path) -> Described:
    path = str(place / CONFIG)
    values = read_json(path)
    name = Settings(path, values).take("model_type", "none")
    one_of(f"{path}: model_type", name, ("clip",))

    def section(tower: str) -> Settings:
        given = values.get(f"{tower}_config") or {}, values.get(f"{tower}_config_dict") or {}
        for part in given:
            require(isinstance(part, dict), f"{path}: {tower}_config", part, "an object")
        return Settings(f"{path}: {tower}_config", {**given[0], **given[1]})

    image, text = section("vision"), section("text")
    options = {}
    for tower, of, width, hidden in (("image", image, 768, 3072), ("text", text, 512, 2048)):
        width, eps = of.take("hidden_size", width), of.take("layer_norm_eps", EPS)
        require(eps == EPS, f"{of.path}: layer_norm_eps", eps, f"{EPS}, as in our towers")
        options[tower] = {
            "width": width,
            "depth": of.take("num_hidden_layers", 12),
            "heads": of.divisor("num_attention_heads", 12 if of is image else 8, width, "width"),
            "hidden": of.take("intermediate_size", hidden),
            "activation": _activation(of),
        }
    channels = image.take("num_channels", 3)
    require(channels == 3, f"{image.path}: num_channels", channels, "3")
    options["image"] |= {"patch_size": image.take("patch_size", 32)}
    return Described(
        *_whole(options),
        Settings(path, values).take("projection_dim", 512),
        _sides(image, "image_size"),
        text.take("vocab_size", 49408),
        text.take("max_position_embeddings", 77),
        "infonce",
        *_normalisation(place),
        _tokenizer(place),
    )


def _open_described(place: Path) -> Described:
    path = str(place / OPEN_CONFIG)
    whole = read_json(path)
    values = _object(whole, "model_cfg", path)
    for key, read in _READ.items():
        for name, value in _object(values, key, path).items():
            usual = value in (None, False) or name in read | _FREE
            require(
                usual or value in _USUAL.get(name, ()),
                f"{path}: {key}.{name}",
                value,
                "none: our towers do not compute that",
            )
    for key in ("custom_text", "multimodal_cfg", "nonscalar_logit_scale"):
        value = values.get(key)
        require(not value, f"{path}: {key}", value, "none: our towers do not compute that")
    image, text = (
        Settings(f"{path}: {key}", _object(values, key, path)) for key in ("vision_cfg", "text_cfg")
    )
    activation = "quick_gelu" if values.get("quick_gelu") else "gelu_exact"
    options = {}
    for tower, of, width in (("image", image, 768), ("text", text, 512)):
        width = of.take("width", width)
        options[tower] = {
            "width": width,
            "depth": of.take("layers", 12),
            "hidden": int(width * of.take("mlp_ratio", 4.0)),
            "activation": activation,
        }
    wide, narrow = options["image"], options["text"]
    size = image.divisor("head_width", 64, wide["width"], "width")
    wide |= {"heads": wide["width"] // size, "patch_size": image.take("patch_size", 16)}
    narrow |= {"heads": text.divisor("heads", 8, narrow["width"], "width")}
    key = "preprocess_cfg"
    seen = Settings(f"{path}: {key}", _object(whole, key, path) if whole.get(key) else {})
    return Described(
        *_whole(options),
        Settings(path, values).take("embed_dim", 512),
        _sides(image, "image_size"),
        text.take("vocab_size", 49408),
        text.take("context_length", 77),
        "infonce" if values.get("init_logit_bias") is None else "siglip",
        *(_colours(seen, key, default) for key, default in (("mean", MEAN), ("std", STD))),
        _tokenizer(place),
    )


def _object(values: Mapping[str, Any], key: str, path: str) -> dict[str, Any]:
    value = values.get(key)
    require(isinstance(value, dict), f"{path}: {key}", value, "an object, as open_clip writes it")
    return value


def _whole(options: Mapping[str, Options]) -> tuple[Options, Options]:
    """The options of both towers, with what all CLIPs have."""
    return options["image"] | {"pool": "token"}, options["text"] | {"pool": "end", "causal": True}


def _activation(settings: Settings) -> str:
    known = architectures.find("gpt2").activations()
    name = settings.take("hidden_act", "quick_gelu")
    one_of(f"{settings.path}: hidden_act", name, tuple(known))
    return known[name]


def _sides(settings: Settings, key: str) -> tuple[int, int]:
    """A height and a width, given by one or two numbers."""
    value = settings.values.get(key)
    sides = [224] if value is None else value if isinstance(value, list) else [value]
    valid = len(sides) in (1, 2) and all(type(side) is int and side > 0 for side in sides)
    require(valid, f"{settings.path}: {key}", value, "a side, or a height and a width")
    return sides[0], sides[-1]


def _normalisation(place: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation by Hugging Face's files; CLIP's own if there are none."""
    for name in PREPROCESSORS:
        if (place / name).is_file():
            values = read_json(place / name)
            seen = Settings(str(place / name), values.get("image_processor", values))
            if seen.take("do_normalize", True):
                return _colours(seen, "image_mean", MEAN), _colours(seen, "image_std", STD)
            return (0.0,) * 3, (1.0,) * 3
    return MEAN, STD


def _colours(settings: Settings, key: str, default: tuple[float, ...]) -> tuple[float, ...]:
    value = settings.values.get(key)
    numbers = default if value is None else value
    valid = isinstance(numbers, list | tuple) and len(numbers) == 3
    valid = valid and all(type(n) in (int, float) and 0 <= n <= 255 for n in numbers)
    least = "above 0" if key.endswith("std") else "from 0 on"
    valid = valid and (min(numbers) > 0 or not key.endswith("std"))
    require(valid, f"{settings.path}: {key}", value, f"three numbers {least}")
    return tuple(map(float, numbers))


def _tokenizer(place: Path) -> str:
    return str(place / TOKENIZER) if (place / TOKENIZER).is_file() else ""


# ---- parameters ----------------------------------------------------------------------------------


def read(folder: str | Path, length: int = 0) -> dict[str, Tree]:
    """The parameters of the networks of `methods.clip`: "image", "text", "similarity".

    Args:
      folder: of Hugging Face or open_clip.
      length: positions that are kept of those for texts, for shorter texts; 0 for all.

    Raises:
      ConfigError: a file is missing or damaged, or tensors do not fit what `describe` reads.
    """
    place, model = folder_of(folder), describe(folder)
    hugging_face = _is_hugging_face(place)
    names = HUGGING_FACE if hugging_face else OPEN
    path, found = weights.read(place) if hugging_face else _open_weights(place)
    tensors = {n: _flat(a) for n, a in found.items() if not re.fullmatch(_IGNORED, n)}
    leaves = {
        "image": list(_leaves(model, model.image, names["image"])),
        "text": list(_leaves(model, model.text, names["text"])),
    }
    expected = {SCALE: ()} | ({BIAS: ()} if model.loss == "siglip" else {})
    for tower, options in (("image", model.image), ("text", model.text)):
        depth = options["depth"]
        most = f"at most {len(tensors)}, as many as tensors"
        require(depth <= len(tensors), f"{place}: layers", depth, most)
        expected |= dict(pair for leaf in leaves[tower] for pair in leaf.expected(depth))
    match(f"the tensors in {path} do not fit the files next to it", expected, tensors)
    params: dict[str, Tree] = {
        tower: {leaf.path: leaf.join(tensors, options["depth"]) for leaf in leaves[tower]}
        for tower, options in (("image", model.image), ("text", model.text))
    }
    params["image"] |= _seen(params["image"], model)
    params["text"]["positions"] = params["text"]["positions"][: length or None]
    params["similarity"] = {
        ours: np.float32(tensors[name])
        for ours, name in (("scale", SCALE), ("bias", BIAS))
        if name in expected
    }
    return {name: unflatten_dict(tree, sep="/") for name, tree in params.items()}


def _open_weights(place: Path) -> tuple[Path, dict[str, np.ndarray]]:
    for name, reader in OPEN_READERS.items():
        if (place / name).is_file():
            return place / name, reader(place / name)
    raise ConfigError(f"there is no {' and no '.join(OPEN_READERS)} in {place}.")


def _flat(array: np.ndarray) -> np.ndarray:
    """A kernel over patches [D, C, h, w] as one of their elements, [h w C, D]."""
    if array.ndim != 4:
        return array
    return array.transpose(2, 3, 1, 0).reshape(-1, len(array))


def _leaves(model: Described, options: Options, names: Names) -> Iterator[Leaf]:
    """All parameters of a tower."""
    width, hidden, heads = (options[name] for name in ("width", "hidden", "heads"))
    sizes = {"merge": (width, width), "up": (width, hidden), "down": (hidden, width)}
    each = 3 * width // len(names.qkv)
    for ours, theirs, turned in zip(
        ("kernel", "bias"), names.qkv_parts, (True, False), strict=True
    ):
        tensors = tuple(f"{names.blocks}{name}{theirs}" for name in names.qkv)
        shape = (width, each) if turned else (each,)
        yield Leaf(f"{STACKED}qkv/{ours}", tensors, (shape,) * len(tensors), turned, heads, width)
    for name, theirs in names.inside.items():
        path, tensor = f"{STACKED}{name}", f"{names.blocks}{theirs}"
        inner, outer = sizes.get(name, (0, width))
        if inner:
            yield Leaf(f"{path}/kernel", (f"{tensor}.weight",), ((inner, outer),), True)
        else:
            yield Leaf(f"{path}/scale", (f"{tensor}.weight",), ((outer,),))
        yield Leaf(f"{path}/bias", (f"{tensor}.bias",), ((outer,),))
    patches = {}
    if "patch_size" in options:
        side = options["patch_size"]
        rows = 1 + (model.size[0] // side) * (model.size[1] // side)
        patches = {"patch/kernel": (3 * side**2, width), "class_token": (width,)}
    else:
        rows = model.length
    shapes = {"positions": (rows, width), "embed/embedding": (model.vocabulary_size, width)}
    shapes |= {"out/kernel": (width, model.features)} | patches
    for path, tensor in names.outside.items():
        if path in shapes:
            turned = names.turned and path == "out/kernel"
            yield Leaf(path, (tensor,), (shapes[path],), turned)
        else:
            yield Leaf(f"{path}/scale", (f"{tensor}.weight",), ((width,),))
            yield Leaf(f"{path}/bias", (f"{tensor}.bias",), ((width,),))


def _seen(tower: Mapping[str, np.ndarray], model: Described) -> dict[str, np.ndarray]:
    """The map of patches, and the positions, for images in [-1, 1].

    A model sees (y - mean) / std with y = (x + 1) / 2 of ours: x / (2 std) + (1/2 - mean) / std. Of
    the first, the kernel takes the factor; what the kernel makes of the second is the same for all
    patches, and is added to their positions.
    """
    kernel: Float[np.ndarray, "I D"] = tower["patch/kernel"].astype(np.float64)
    mean, std = np.array(model.mean), np.array(model.std)
    by_row = len(kernel) // 3  # channels are the last axis of a patch
    constant = np.tile((0.5 - mean) / std, by_row) @ kernel
    positions = tower["positions"].copy()
    positions[1:] += constant.astype(np.float32)
    scaled = kernel * np.tile(0.5 / std, by_row)[:, None]
    return {"patch/kernel": scaled.astype(np.float32), "positions": positions}
