"""Which of the tests of whole runs are run: a part of them, another part for another commit."""

from collections.abc import Sequence

# Folders and files of tests that run whole commands, notebooks and documents, or compile for many
# devices: two thirds of the time. All other tests are always run.
WHOLE = ("e2e/", "parallel/", "planning/", "test_configs.py", "test_docs_snippets.py")
WHOLE += ("test_gpu_benchmark.py", "training/test_stages.py", "training/test_lengths.py")


def left_out(names: Sequence[str], part: str) -> set[str]:
    """The tests of whole runs that are not in a part such as "1/3"; none if it is "all".

    Args:
      names: of all tests, as paths below tests/, in any order.
      part: number of the part, from 1, and the number of parts.

    Raises:
      ValueError: there is no such part.
    """
    if part == "all":
        return set()
    index, _, count = part.partition("/")
    if not (index.isdigit() and count.isdigit() and 1 <= int(index) <= int(count)):
        raise ValueError(f"GENJAX_TEST_PART={part!r}: expected 'all', or a part such as 1/3.")
    whole = sorted(name for name in names if name.startswith(WHOLE))
    return {name for i, name in enumerate(whole) if i % int(count) != int(index) - 1}
