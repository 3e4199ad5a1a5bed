"""Commands of genjax.main, one after the other, for the benchmarks that make whole runs."""

import contextlib
import io
import sys

from genjax.config import ConfigError
from genjax.flags import parse
from genjax.main import MODES
from genjax.main import main as genjax


def options(parser):
    """The flags of a benchmark and, as `overrides`, its --config.KEY=VALUE.

    Leaves with one clear error.
    """
    found, rest = parser.parse_known_args()
    try:
        if strange := [word for word in rest if not word.startswith("--config.")]:
            raise ConfigError(f"{strange[0]} is no flag of this benchmark; --help lists them.")
        found.overrides = parse(rest, MODES)[1]
    except ConfigError as error:
        sys.exit(f"error: {error}")
    return found


def command(folder, overrides, *arguments):
    """One command on the run in `folder`; leaves with its code if that is not 0."""
    changed = [f"--config.{key}={value}" for key, value in overrides.items()]
    if code := genjax([f"--workdir={folder}", *changed, *arguments]):
        sys.exit(code)


def evaluated(folder, overrides, *arguments):
    """The metrics by name that --mode=eval prints, without making any samples."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        command(folder, overrides | {"evals.samples": 0}, "--mode=eval", *arguments)
    lines = (line.split() for line in printed.getvalue().splitlines())
    return {words[0]: float(words[1]) for words in lines if len(words) == 2}
