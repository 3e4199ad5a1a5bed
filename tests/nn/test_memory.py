"""The heap is kept, and its pages are touched for the first time once."""

import subprocess
import sys

CODE = """
import resource
import numpy as np
from genjax.nn.cpu.memory import keep_heap

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        np.ones(50_000_000, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

first, told = faults(), keep_heap()
faults()
print(first, told, faults())
"""


def test_what_was_freed_is_used_again():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    before, told, after = done.stdout.split()
    if told == "True":  # glibc
        assert int(after) < 100
        assert int(before) > 5 * int(after)
    else:
        assert told == "False"
