"""The cyclic garbage collector, told what our work is like."""

import gc

OBJECTS = 100_000
"""New containers before it looks for cycles; Python's own number is 700."""


def collect_rarely() -> None:
    """For a process that does stages of a job.

    Rows are read in masses of small containers without cycles, which go as soon as nobody needs them. Looking at them
    costs a sixth of the time, and more with more rows, as all that is kept is looked at too.
    """
    gc.set_threshold(OBJECTS)
