"""Fixtures of the end-to-end tests."""

import pytest
from command_line import Cli


@pytest.fixture
def cli(tmp_path):
    return Cli(tmp_path)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    """The workdir of a whole tiny run; to be read only."""
    folder = tmp_path_factory.mktemp("finished")
    Cli(folder).train(folder / "run")
    return folder / "run"
