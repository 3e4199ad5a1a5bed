"""The plans of docs/scaling.md: compiled, tabulated and drawn.

    python benchmarks/scaling.py --folder=runs/scaling          # an hour or two on two cores
    python benchmarks/scaling.py --folder=runs/scaling --only="llama 7B"

Needs the extra `plan`. Each plan is a run of `--mode=plan` in a process of its own; its JSON is
kept in the folder, and a plan that is there is not made again. Prints the table and the commands
in Markdown and writes the scaling curves as SVG. All figures are estimates: no chip has run.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

from genjax.planning.table import duration, gib
from genjax.training.chart import curves_chart
from genjax.training.sweep import alone

_LLAMA = "--config=configs/llama.py:7b --config.dataset.text.length=2048 --config.accumulation=1"
_FULL = "--config.model.lm.remat=full"
_BIG = "--config=configs/llama.py:70b --config.accumulation=1"
_DIT = "--config=configs/dit.py:imagenet256-latent"
_SMALL_DIT = f"{_DIT} --config.model.denoiser.remat=full"


def _llama(chips: int, each: int) -> str:
    return f"{_LLAMA} --config.batch_size={chips * each} --config.evals.batch_size={chips}"


# Name -> flags. The name begins with the model and ends with the chips.
PLANS = {
    "llama 7B, v5e:8x8": f"--topology=v5e:8x8 {_llama(64, 4)} {_FULL}",
    "llama 7B, v5e:16x16": f"--topology=v5e:16x16 {_llama(256, 4)} {_FULL}",
    "llama 7B, 2 slices of v5e:16x16": "--topology=v5e:16x16 --slices=2 --config.mesh.data=2 "
    f"{_llama(512, 4)} {_FULL}",
    "llama 7B, v6e:8x8": f"--topology=v6e:8x8 {_llama(64, 8)} {_FULL}",
    "llama 7B, v6e:16x16": f"--topology=v6e:16x16 {_llama(256, 8)} {_FULL}",
    "llama 7B, h100:1x8": f"--topology=h100:1x8 {_llama(8, 4)} {_FULL}",
    "llama 7B, h100:2x8": f"--topology=h100:2x8 {_llama(16, 4)} {_FULL}",
    "llama 7B, h100:4x8": f"--topology=h100:4x8 {_llama(32, 4)} {_FULL}",
    "llama 7B, h100:4x8, remat dots": f"--topology=h100:4x8 {_llama(32, 8)} "
    "--config.model.lm.remat=dots",
    "llama 70B, v5p:8x8x8": f"--topology=v5p:8x8x8 {_BIG} --config.evals.batch_size=512",
    "llama 70B, h100:4x8": f"--topology=h100:4x8 {_BIG} --config.batch_size=32",
    "gpt2, v5e:4x4": "--topology=v5e:4x4 --config=configs/gpt.py:gpt2",
    "gpt2, h100:1x8": "--topology=h100:1x8 --config=configs/gpt.py:gpt2",
    "ddpm:imagenet64, v5e:4x4": "--topology=v5e:4x4 --config=configs/ddpm.py:imagenet64",
    "ddpm:imagenet64, h100:1x8": "--topology=h100:1x8 --config=configs/ddpm.py:imagenet64",
    "DiT-XL/2, v5e:4x4": f"--topology=v5e:4x4 {_SMALL_DIT}",
    "DiT-XL/2, h100:1x8": f"--topology=h100:1x8 {_DIT}",
    "dcgan, v5e:4x4": "--topology=v5e:4x4 --config=configs/dcgan.py --config.batch_size=1024",
    "dcgan, v6e:16x16": "--topology=v6e:16x16 --config=configs/dcgan.py --config.batch_size=16384",
    "dcgan, h100:1x8": "--topology=h100:1x8 --config=configs/dcgan.py --config.batch_size=1024",
}
HEAD = (
    "| plan | memory of a device | compute | memory traffic | links and network | MFU | a second "
    "| sent / least |\n|---|---|---|---|---|---|---|---|"
)


def made(folder: Path, name: str, flags: str) -> dict:
    """The JSON of a plan, from the folder or made now."""
    path = folder / f"{re.sub('[^a-z0-9]+', '_', name.lower())}.json"
    if path.exists():
        return json.loads(path.read_text())
    command = [sys.executable, "-m", "genjax.main", "--mode=plan", *flags.split()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        sys.exit(f"{name}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    path.with_suffix(".txt").write_text(done.stdout)
    path.write_text(lines[-1] + "\n")
    return json.loads(lines[-1])


def row(name: str, plan: dict) -> str:
    """A line of the table."""
    peak, capacity = plan["hbm_peak_bytes"], plan["hbm_capacity_bytes"]
    memory = f"{gib(peak)} of {gib(capacity)}"
    if plan["hbm_bytes"] is None or not plan["fits"]:
        return f"| {name} | {memory}: does not fit | | | | | | |"
    rates = [rate(plan, f"seconds_{kind}") for kind in ("serial", "overlapped")]
    sent, least = plan["collective_bytes"], plan["least_collective_bytes"]
    cells = (
        name,
        memory,
        duration(plan["seconds_compute"]),
        duration(plan["seconds_hbm"]),
        duration(plan["seconds_ici"] + plan["seconds_dcn"]),
        f"{plan['mfu_serial']:.1%} to {plan['mfu_overlapped']:.1%}",
        f"{rounded(rates[0])} to {rounded(rates[1])} {unit(plan)}",
        f"{gib(sent)} / {gib(least)}" + (f" = {sent / least:.2f}" if least else ""),
    )
    return f"| {' | '.join(cells)} |"


def rounded(number: float) -> str:
    """Three digits of a large number."""
    return f"{float(f'{number:.3g}'):,.0f}"


def unit(plan: dict) -> str:
    """What the rates count."""
    return "tokens" if plan["tokens"] else "examples"


def rate(plan: dict, key: str) -> float:
    """Tokens or examples a second."""
    return (plan["tokens"] or plan["examples"]) / plan[key]


def curves(plans: dict[str, dict]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Tokens a second and MFU of llama 7B over the number of chips, by kind of chip and bound."""
    bounds = {"overlapped": "all at once", "serial": "one after the other"}
    drawn: dict = {"tokens_per_second": {}, "mfu": {}}
    for name, plan in plans.items():
        if not re.fullmatch(r"llama 7B, .*[0-9]", name) or not plan["fits"]:
            continue
        chip = plan["topology"].partition(":")[0]
        chips = 1
        for size in plan["mesh"].values():
            chips *= size
        for kind, said in bounds.items():
            values = {
                "tokens_per_second": rate(plan, f"seconds_{kind}"),
                "mfu": plan[f"mfu_{kind}"],
            }
            for quantity, value in values.items():
                drawn[quantity].setdefault(f"{chip}, {said}", []).append((chips, value))
    return drawn


def main() -> None:
    """Makes what is missing, prints the tables and draws the curves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", default="runs/scaling")
    parser.add_argument("--only", default="", help="plans whose names contain this")
    flags = parser.parse_args()
    folder = Path(flags.folder)
    folder.mkdir(parents=True, exist_ok=True)
    chosen = {name: plan for name, plan in PLANS.items() if flags.only in name}
    plans = {}
    for name, arguments in chosen.items():
        plans[name] = made(folder, name, arguments)
        print(row(name, plans[name]), file=sys.stderr, flush=True)
    print("\n".join([HEAD, *(row(name, plan) for name, plan in plans.items())]))
    print("\n| plan | flags |\n|---|---|")
    print("\n".join(f"| {name} | `{arguments}` |" for name, arguments in chosen.items()))
    for quantity, lines in curves(plans).items():
        if lines:
            title = f"{quantity} of llama 7B: estimates"
            svg = alone(curves_chart(title, lines, "chips"), title)
            (folder / f"llama_7b_{quantity}.svg").write_text(svg)


if __name__ == "__main__":
    main()
