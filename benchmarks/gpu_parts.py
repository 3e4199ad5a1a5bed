"""The parts of benchmarks/gpu.sh: each says in one line of JSON how it went.

A part that fails says why, and the next one goes on. Needs nothing but Python.
"""

import json
import sys
import time
import traceback

OK, FAILED, LEFT_OUT = "ok", "failed", "left out"
LONGEST = 2000  # characters of an error


class Differs(Exception):
    """Numbers that should agree do not; its `result` has them."""

    def __init__(self, message, result):
        super().__init__(message)
        self.result = result


def record(name, status, seconds=0.0, result=None, error=""):
    return {
        "part": name,
        "status": status,
        "seconds": round(seconds, 3),
        "result": result or {},
        "error": error[-LONGEST:],
    }


def part(name, work):
    """Does a part and prints its record; returns its result, None if it fails.

    Args:
      name: of the part, as in "golden/unet/bfloat16".
      work: returns the result, or raises.
    """
    start, status, result, error = time.perf_counter(), OK, None, ""
    try:
        result = work()
    except Differs as differs:
        status, result, error = FAILED, differs.result, str(differs)
    except Exception as problem:
        traceback.print_exc(file=sys.stderr)
        status, error = FAILED, f"{type(problem).__name__}: {problem}"
    seconds = time.perf_counter() - start
    print(json.dumps(record(name, status, seconds, result, error)), flush=True)
    return result if status == OK else None
