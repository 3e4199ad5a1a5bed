"""The commands of README.md and docs/ are understood, and can be played from top to bottom.

Those of docs/results.md are a record, with words such as CONFIG and DIR in place of many commands.
"""

import re
import shlex
from pathlib import Path

import pytest

from genjax import config as configs
from genjax import main
from genjax.evals import judges
from genjax.flags import parse

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
PAGES.remove("docs/results.md")


def commands(page):
    """Flags and overrides of every indented `launch/local.sh` of a page."""
    text = re.sub(r"\\\n\s+", "", (ROOT / page).read_text())
    found = re.findall(r"^    (?:\w+=\S+ )*launch/local\.sh (.*)$", text, re.MULTILINE)
    return [parse(shlex.split(line, comments=True), main.MODES) for line in found]


def workdir(flags):
    return flags.workdir or "runs/" + Path(flags.config).name.replace(".py", "").replace(":", "_")


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_understood(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    trained = {f"runs/{path.stem}": str(path) for path in ROOT.glob("configs/*.py")}
    for flags, overrides in commands(page):
        if not flags.config and not flags.workdir:  # of no run
            assert (flags.mode, overrides) == ("solvers", {})
            continue
        if flags.config:
            trained[workdir(flags)] = flags.config
        experiment = configs.read_experiment(trained[workdir(flags)])
        configs.given(experiment, overrides, judges.with_sections)


@pytest.mark.parametrize("page", PAGES)
def test_every_run_of_a_page_has_a_workdir_of_its_own(page):
    runs = {}
    for flags, overrides in commands(page):
        if flags.config and flags.mode == "train":
            given = (flags.config, overrides)
            assert runs.setdefault(workdir(flags), given) == given
    assert page != "README.md" or len(runs) > 3
