"""Parts of config.json that several architectures share: rotary positions, biases, windows."""

from __future__ import annotations

from typing import Any

from genjax.config import one_of, require
from genjax.interop.architecture import Options, Part, Settings

_LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
_SHARE = "partial_rotary_factor"
_ROPE = {"default": (), "linear": ("factor",), "llama3": _LLAMA3}


def rope(share: float | None = None, names: tuple[str, str] = ("", "")) -> Part:
    """Rotary positions from `rope_theta` and `rope_scaling`, or version 5's `rope_parameters`.

    Args:
      share: the default of `partial_rotary_factor`; None if only 1 is supported.
      names: other keys of the base and of that share, which are read and written as well.
    """
    base_key, share_key = names

    def read(settings: Settings, options: Options, length: int) -> Options:
        values = settings.values.get("rope_scaling") or settings.values.get("rope_parameters") or {}
        path = f"{settings.path}: rope"
        nested = not isinstance(values, dict) or any(isinstance(v, dict) for v in values.values())
        require(not nested, path, values, "an object of numbers and a rope_type")
        inner = Settings(path, values)
        turned = 1.0 if share is None else share
        for given, key in ((settings, share_key or _SHARE), (settings, _SHARE), (inner, _SHARE)):
            if share is None:
                given.only(key, 1.0)
            turned = given.take(key, turned)
        require(0 < turned <= 1, f"{path}: {_SHARE}", turned, "above 0, at most 1")
        base = settings.take(base_key or "rope_theta", 10_000.0)
        base = inner.take("rope_theta", settings.take("rope_theta", base))
        kind = inner.take("rope_type", inner.take("type", "default"))
        one_of(f"{path}: rope_type", kind, tuple(_ROPE))
        numbers = [inner.take(n, float(length) * (n == _LLAMA3[-1])) for n in _ROPE[kind]]
        rising = kind != "llama3" or numbers[1] < numbers[2]
        listed = ", ".join(("rope_theta", *_ROPE[kind]))
        expected = f"numbers above 0 for {listed}, and the low factor below the high one"
        require(min([base, *numbers]) > 0 and rising, path, values, expected)
        scaling = (kind, *numbers) if numbers else ()
        return {"rope_base": base, "rope_scaling": scaling} | (
            {} if share is None else {"rotary_share": turned}
        )

    def write(o: Options, length: int) -> dict[str, Any]:
        kind, *numbers = o["rope_scaling"] or ("default",)
        scaling = {"rope_type": kind, **dict(zip(_ROPE[kind], numbers, strict=True))}
        if kind == "llama3":
            scaling[_LLAMA3[-1]] = int(scaling[_LLAMA3[-1]])
        values = {
            base_key or "rope_theta": o["rope_base"],
            "rope_scaling": scaling if numbers else None,
        }
        if share is not None:
            values[share_key or _SHARE] = o["rotary_share"]
        return values

    return Part(read, write)


def biases(keys: dict[str, bool], which: dict[tuple[bool, ...], str]) -> Part:
    """Biases of linear layers by keys that are true or false.

    Args:
      keys: each key and its default.
      which: values of the keys -> `bias_of`, "" if no layer has a bias.
    """

    def read(settings: Settings, options: Options, length: int) -> Options:
        values = tuple(settings.take(key, default) for key, default in keys.items())
        return {"bias": bool(which[values]), "bias_of": which[values] or "all"}

    def write(o: Options, length: int) -> dict[str, Any]:
        wanted = o["bias_of"] if o["bias"] else ""
        values = next(values for values, name in which.items() if name == wanted)
        return dict(zip(keys, values, strict=True))

    return Part(read, write)


def window(default: int, chosen: bool = False) -> Part:
    """A window in all layers, from `sliding_window`, of which null means none.

    A window as long as the model is none.

    Args:
      default: of `sliding_window`.
      chosen: whether `use_sliding_window`, and `layer_types` or `max_window_layers`, say which
        layers have it: all or none.
    """

    def read(settings: Settings, options: Options, length: int) -> Options:
        absent = "sliding_window" not in settings.values
        null = not absent and settings.values["sliding_window"] is None
        size = 0 if null else settings.take("sliding_window", default)
        if chosen and not settings.take("use_sliding_window", False):
            size = 0
        if size >= length or not size:
            return {"window": 0}
        kinds = settings.values.get("layer_types")
        if kinds is None:
            first = settings.values.get("max_window_layers", 28) if chosen else 0
            require(type(first) is int, f"{settings.path}: max_window_layers", first, "an integer")
            depth = options["depth"]
            kinds = ["sliding_attention" if i >= first else "full_attention" for i in range(depth)]
        same = isinstance(kinds, list) and len(set(map(str, kinds))) == 1
        expected = "one type of attention in all layers, as in the decoder"
        require(same, f"{settings.path}: layer_types", kinds, expected)
        one_of(f"{settings.path}: layer_types", kinds[0], ("full_attention", "sliding_attention"))
        return {"window": size if kinds[0] == "sliding_attention" else 0}

    def write(o: Options, length: int) -> dict[str, Any]:
        values: dict[str, Any] = {"sliding_window": o["window"] or None}
        if chosen:
            values |= {"use_sliding_window": bool(o["window"]), "max_window_layers": 0}
            kind = "sliding_attention" if o["window"] else "full_attention"
            values["layer_types"] = [kind] * o["depth"]
        return values

    return Part(read, write)
