"""How both sides of benchmarks/gpu.sh time a step. Needs nothing but Python."""

import statistics
import time

BLOCKS = 7


def timed(step, finish, seconds):
    """Milliseconds a step, of blocks of steps that are waited for at their end.

    Args:
      step: does one; it may return before the device is done.
      finish: waits for the device.
      seconds: to spend about, after the first two steps, which compile.

    Returns:
      first_step_seconds, with compilation; milliseconds, the median of the blocks; lowest and
      highest; steps measured.
    """
    start = time.perf_counter()
    step()
    finish()
    first = time.perf_counter() - start
    step()
    finish()
    start = time.perf_counter()
    step()
    finish()
    each = max(1, int(seconds / BLOCKS / max(time.perf_counter() - start, 1e-6)))
    blocks = []
    for _ in range(BLOCKS):
        start = time.perf_counter()
        for _ in range(each):
            step()
        finish()
        blocks.append(1000 * (time.perf_counter() - start) / each)
    return {
        "first_step_seconds": first,
        "milliseconds": statistics.median(blocks),
        "lowest": min(blocks),
        "highest": max(blocks),
        "steps": BLOCKS * each,
    }
