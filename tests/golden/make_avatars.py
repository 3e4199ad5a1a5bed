"""The parts of DiceBear's style "pixel-art" (CC0 1.0) as resvg draws them, each and together.

/path/to/parity/bin/python tests/golden/make_avatars.py [OUTPUT.npz]

The style is that of the package dicebear-styles, without what is not drawn. It is stored beside the
pictures, so that tests need no network. A mask hides by its opacity here, as in genjax: the style's
own attribute asks for its luminance.
"""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import io
import json
import pathlib
import sys
import xml.sax.saxutils

import numpy as np
import resvg_py
from PIL import Image

COLORS = {
    **{"skin": "#b68655", "hair": "#bd1700", "clothing": "#5bc0de", "eyes": "#697b94"},
    **{"glasses": "#4b4b4b", "hat": "#614f8a", "mouth": "#de0f0d", "accessories": "#ffd700"},
}


def markup(elements: list, variants: dict[str, list]) -> str:
    """SVG of elements; `variants` has the elements of each part that is drawn."""
    made = []
    for element in elements:
        tag = "g" if element["type"] == "component" else element["name"]
        children = element.get("children", [])
        if element["type"] == "component":
            children = variants.get(element["name"], [])
        given = ""
        for name, value in element.get("attributes", {}).items():
            value = COLORS[value["name"]] if isinstance(value, dict) else value
            value = value.replace("mask-type:luminance", "mask-type:alpha")
            given += f" {name}={xml.sax.saxutils.quoteattr(value)}"
        made.append(f"<{tag}{given}>{markup(children, variants)}</{tag}>")
    return "".join(made)


def rendered(style: dict, variants: dict[str, list], head: bool) -> np.ndarray:
    """RGBA uint8 [16, 16, 4]."""
    elements = [e for e in style["canvas"]["elements"] if head or e["type"] == "component"]
    outer = " ".join(f'{name}="{value}"' for name, value in style["attributes"].items())
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16" width="16" height="16" '
        f"{outer}>{markup(elements, variants)}</svg>"
    )
    png = resvg_py.svg_to_bytes(svg_string=svg)
    return np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGBA"))


def main() -> None:
    file = importlib.resources.files("dicebear_styles").joinpath("pixel-art.json")
    style = json.loads(file.read_text("utf-8"))
    style = {key: style[key] for key in ("meta", "canvas", "attributes", "components")}
    parts = {
        f"{name}/{variant}": rendered(style, {name: made["elements"]}, head=False)
        for name, component in style["components"].items()
        for variant, made in component["variants"].items()
    }
    rng = np.random.default_rng(0)
    faces, chosen = [], []
    for _ in range(12):
        pick = {n: str(rng.choice([*c["variants"]])) for n, c in style["components"].items()}
        elements = {n: style["components"][n]["variants"][v]["elements"] for n, v in pick.items()}
        faces.append(rendered(style, elements, head=True))
        chosen.append(json.dumps(pick))
    output = sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).with_name("avatars.npz")
    np.savez_compressed(
        output,
        style=np.frombuffer(json.dumps(style, ensure_ascii=False).encode(), np.uint8),
        colors=np.array(json.dumps(COLORS)),
        names=np.array([*parts]),
        parts=np.stack([*parts.values()]),
        chosen=np.array(chosen),
        faces=np.stack(faces),
        version=np.array(
            [f"{n} {importlib.metadata.version(n)}" for n in ("resvg_py", "dicebear-styles")]
        ),
    )


if __name__ == "__main__":
    main()
