"""The parts are together all tests of whole runs, and every other test is in each."""

import pytest
from parts import left_out

NAMES = [f"e2e/test_run.py::test_{i}" for i in range(8)] + ["nn/test_layers.py::test_a"]


def test_the_parts_are_all_tests():
    runs = [set(NAMES) - left_out(NAMES, f"{i}/3") for i in (1, 2, 3)]
    whole = [{name for name in run if name.startswith("e2e")} for run in runs]
    assert set.union(*whole) == set(NAMES[:8])
    assert sum(map(len, whole)) == 8
    assert {len(part) for part in whole} == {2, 3}
    assert all("nn/test_layers.py::test_a" in run for run in runs)
    assert not left_out(NAMES, "all")
    assert left_out(NAMES[::-1], "2/3") == left_out(NAMES, "2/3")


@pytest.mark.parametrize("part", ["0/3", "4/3", "3", "a/b", ""])
def test_other_parts_are_refused(part):
    with pytest.raises(ValueError, match="expected 'all', or a part such as 1/3"):
        left_out(NAMES, part)
