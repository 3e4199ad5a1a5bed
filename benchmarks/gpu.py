"""What one GPU does with genjax: right numbers first, then speed beside PyTorch. See gpu.sh.

  golden     losses, gradients, samples, training and a resumed run of four small networks, held
             against what a CPU has computed, in exact float32, in the GPU's float32 and in bfloat16
  race       the training steps of GPT-2 124M, DiT-B/2, DCGAN at 64 x 64 and the U-Net of
             configs/ddpm.py:cifar10 in bfloat16, on made-up batches: time, memory, MFU, and what
             --mode=plan estimates; the same networks by torch.compile
  same       both sides' losses and gradients of the same parameters

First all is checked and compiled, several processes at a time; then each measurement runs alone.
Every process has a time limit. A part that fails is reported and stops no other. Everything is in
one JSON file, which is written anew after each group of parts. The exit code is 0 if no part
failed, else 1. Parts for which PyTorch is missing are left out, and the file says so. --tiny is a
dry run, for a CPU too: the race at the sizes of the checks, and these in exact float32 alone.

  python benchmarks/gpu.py [--output=gpu.json] [--minutes=8] [--seconds=8] [--networks=gpt2,dit]
      [--only=golden,race] [--torch_python=PATH] [--torch_mode=default] [--tiny]
"""

import argparse
import contextlib
import datetime
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from gpu_parts import FAILED, LEFT_OUT, OK, record
from gpu_sizes import NETWORKS
from racing import FOLDER, among, several

STAGES = ("golden", "race", "same")
PRECISIONS = ("highest", "float32", "bfloat16")  # as in gpu_checks.py
LEAST_SECONDS = 5  # with less time left no process is started
AHEAD, MFU, NEAR = 1.0, 0.45, 0.25  # goals: of torch's time, of GPT-2's use, of the plan's error


class Child(NamedTuple):
    """One process.

    Attributes:
      parts: that it reports, in its order.
      command: without the interpreter.
      seconds: that it may take.
      torch: whether PyTorch's interpreter runs it.
      needed: whether its failure is one of the whole; what only saves time is not.
    """

    parts: tuple[str, ...]
    command: tuple[str, ...]
    seconds: float
    torch: bool = False
    needed: bool = True


def groups(flags, folder):
    """The processes to start, in groups that run at the same time: all that is timed runs alone.

    Both sides compile for the race beforehand. PyTorch does so apart, since it runs a whole step.
    """
    ours, theirs, tiny = "gpu_genjax.py", "gpu_torch.py", ("--tiny",) if flags.tiny else ()
    mode = ("--eager",) if flags.torch_eager else (f"--mode={flags.torch_mode}",)
    first = [Child(("environment",), (ours, "environment", "--networks=dcgan"), 60)]
    second = []
    for name in flags.networks:
        only = f"--networks={name}"
        if "golden" in flags.only:
            types = PRECISIONS[:1] if flags.tiny else PRECISIONS
            parts = tuple(f"golden/{name}/{precision}" for precision in types)
            command = (ours, "golden", only, f"--precisions={','.join(types)}")
            first.append(Child(parts, command, 150))
        if "race" in flags.only:
            first.append(Child((f"warm/{name}",), (ours, "warm", only, *tiny), 150, needed=False))
            command = (theirs, "warm", only, *tiny, *mode)
            parts = (f"torch_warm/{name}",)
            second.append(Child(parts, command, 150, torch=True, needed=False))
    yield first
    if second:
        yield second
    for name in flags.networks if "race" in flags.only else ():
        arguments = ("race", f"--networks={name}", f"--seconds={flags.seconds}", *tiny)
        parts = tuple(f"{part}/{name}" for part in ("genjax", "mfu", "plan"))
        yield [Child(parts, (ours, *arguments), 150)]
        parts = tuple(f"{part}/{name}" for part in ("torch", "torch_flops"))
        yield [Child(parts, (theirs, *arguments, *mode), 150, torch=True)]
    if "same" in flags.only and not flags.no_torch:
        arguments = (f"--networks={','.join(flags.networks)}", f"--folder={folder}")
        parts = tuple(f"share/{name}" for name in flags.networks)
        yield [Child(parts, (ours, "share", *arguments), 90)]
        parts = tuple(f"same/{name}" for name in flags.networks)
        yield [Child(parts, (theirs, "same", *arguments), 90, torch=True)]


def run(child, python, seconds, environment):
    """Runs a process for so many seconds at most; the records of its parts."""
    command = [python, str(FOLDER / child.command[0]), *child.command[1:]]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        start = time.monotonic()
        process = subprocess.Popen(
            command, stdout=out, stderr=err, env=environment, start_new_session=True
        )
        try:
            code = process.wait(seconds)
            reason = f"the process ended with code {code}"
        except subprocess.TimeoutExpired:
            reason = f"stopped after {seconds:.0f} s"
        finally:
            with contextlib.suppress(ProcessLookupError):  # torch leaves workers behind
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        passed = time.monotonic() - start
        out.seek(0)
        err.seek(0)
        records, errors = {}, err.read()
        for line in out:
            with contextlib.suppress(ValueError):  # a library's print, or a line cut short
                entry = json.loads(line)
                if isinstance(entry, dict) and entry.get("part") in child.parts:
                    records[entry["part"]] = entry
    missing = [name for name in child.parts if name not in records]
    known = sum(entry["seconds"] for entry in records.values())
    for name in missing[:1]:
        error = f"{reason}\n{errors}"
        records[name] = record(name, FAILED, passed - known, error=error)
    for name in missing[1:]:
        records[name] = record(name, LEFT_OUT, error=f"{missing[0]} came before: {reason}")
    if not child.needed:
        records = {
            name: entry | {"status": LEFT_OUT} if entry["status"] == FAILED else entry
            for name, entry in records.items()
        }
    return records


def outcome(child, flags, left, environment):
    """The records of a process that is started if there is something to run it, and time."""
    reason = ""
    if child.torch and flags.no_torch:
        reason = f"{flags.torch_python} has no PyTorch"
    elif left < LEAST_SECONDS:
        reason = f"no time is left of {flags.minutes:g} minutes"
    if reason:
        return {name: record(name, LEFT_OUT, error=reason) for name in child.parts}
    python = flags.torch_python if child.torch else sys.executable
    return run(child, python, left if flags.tiny else min(child.seconds, left), environment)


def has_torch(python):
    return not subprocess.run(
        [python, "-c", "import torch"], capture_output=True, check=False
    ).returncode


def compared(parts, networks):
    """By network: both sides, their ratio, MFU, and the plan beside the measurement."""
    summary = {}
    for name in networks:
        results = {
            side: parts[f"{side}/{name}"]["result"]
            for side in ("genjax", "mfu", "plan", "torch", "torch_flops")
            if parts.get(f"{side}/{name}", {}).get("status") == OK
        }
        if not results:
            continue
        ours, theirs = (results.get(s, {}).get("milliseconds") for s in ("genjax", "torch"))
        summary[name] = results | {"times_torch": theirs / ours if ours and theirs else None}
        share = results.get("mfu", {}).get("mfu")
        if share and ours and theirs:
            summary[name]["torch_mfu"] = share * ours / theirs
        if share and "torch_flops" in results:
            # Torch counts all of causal attention, as published MFUs often do.
            flops = results["torch_flops"]["flops"] / results["mfu"]["model_flops"]
            summary[name]["mfu_by_torch_flops"] = share * flops
    return summary


def goals(networks):
    """Which of the goals were reached; None of what was not measured."""

    def least(value, most):
        return None if value is None else value >= most

    ahead = {f"{n} ahead of torch": least(t["times_torch"], AHEAD) for n, t in networks.items()}
    share = networks.get("gpt2", {}).get("mfu", {}).get("mfu")
    plans = {
        f"{n}'s plan within {NEAR:.0%}": abs(t["plan"]["overlapped_to_measured"] - 1) <= NEAR
        if "plan" in t
        else None
        for n, t in networks.items()
    }
    return ahead | {f"gpt2 at an MFU of {MFU:.0%}": least(share, MFU)} | plans


def table(networks):
    """The networks, a line each."""

    def shown(value, form):
        return "-" if value is None else form.format(value)

    lines = [
        f"{'':8} {'genjax ms':>10} {'MFU':>6} {'GiB':>6} {'torch ms':>9} {'GiB':>6} "
        f"{'torch / genjax':>14} {'planned ms':>16}"
    ]
    for name, results in networks.items():
        ours, theirs, planned = (results.get(side, {}) for side in ("genjax", "torch", "plan"))
        memory = [
            shown(side.get("peak_memory_bytes") and side["peak_memory_bytes"] / 2**30, "{:.1f}")
            for side in (ours, theirs)
        ]
        estimates = [planned.get(f"milliseconds_{how}") for how in ("overlapped", "serial")]
        lines.append(
            f"{name:8} {shown(ours.get('milliseconds'), '{:.2f}'):>10} "
            f"{shown(results.get('mfu', {}).get('mfu'), '{:.1%}'):>6} {memory[0]:>6} "
            f"{shown(theirs.get('milliseconds'), '{:.2f}'):>9} {memory[1]:>6} "
            f"{shown(results['times_torch'], '{:.2f}'):>14} "
            f"{' to '.join(shown(e, '{:.2f}') for e in estimates):>16}"
        )
    return "\n".join(lines)


def write(path, report):
    """Writes the report in one go: whoever reads it finds it whole."""
    staged = path.with_name(path.name + ".new")
    staged.write_text(json.dumps(report, indent=1) + "\n")
    os.replace(staged, path)


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=Path, default=Path("gpu.json"))
    parser.add_argument("--minutes", type=float, default=8.0, help="for everything")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    parser.add_argument("--networks", type=several(among(NETWORKS)), default=list(NETWORKS))
    parser.add_argument("--only", type=several(among(STAGES)), default=list(STAGES))
    parser.add_argument("--torch_python", default=sys.executable)
    parser.add_argument("--torch_mode", default="default", help="of torch.compile")
    parser.add_argument("--torch_eager", action="store_true", help="do not compile torch's side")
    parser.add_argument("--tiny", action="store_true", help="the sizes of the checks")
    flags = parser.parse_args()
    flags.no_torch = not has_torch(flags.torch_python)
    return flags


def main():
    flags = arguments()
    start, began = time.monotonic(), datetime.datetime.now(datetime.UTC)
    parts, report = {}, {"format": 1, "began": began.isoformat(timespec="seconds")}
    report["tiny"], report["parts"] = flags.tiny, parts
    scratch = Path(tempfile.mkdtemp())
    cache = {"JAX_COMPILATION_CACHE_DIR": str(scratch / "xla")}
    cache |= {"TORCHINDUCTOR_CACHE_DIR": str(scratch / "inductor")}
    environment = {**cache, **os.environ, "PYTHONUNBUFFERED": "1"}
    try:
        for group in groups(flags, scratch):
            left = 60 * flags.minutes - (time.monotonic() - start)
            shared = {} if len(group) == 1 else {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
            settings = (flags, left, environment | shared)
            with ThreadPoolExecutor(len(group)) as pool:
                outcomes = [pool.submit(outcome, child, *settings) for child in group]
            records = {}
            for done in outcomes:
                records |= done.result()
            parts |= records
            for name, entry in records.items():
                error = entry["error"].strip().splitlines()[-1:] if entry["error"] else []
                line = ": ".join([entry["status"], *error])
                print(f"{entry['seconds']:7.1f} s  {name}: {line}", flush=True)
            report["networks"] = compared(parts, flags.networks)
            report["goals"] = goals(report["networks"])
            report["failed"] = [name for name, entry in parts.items() if entry["status"] == FAILED]
            report["seconds"] = round(time.monotonic() - start, 1)
            write(flags.output, report)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if report["networks"]:
        print(table(report["networks"]))
    for goal, reached in report["goals"].items():
        outcome_word = {None: "not measured", True: "reached", False: "missed"}[reached]
        print(f"goal: {goal}: {outcome_word}")
    failed = report["failed"]
    print(f"{report['seconds']:.0f} s; {len(failed)} parts failed; wrote {flags.output}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
