"""Waiting for other processes, on machines that may be slow."""

import os
import time

PATIENCE_S = 600


def wait_for(condition, alive=lambda: True):
    """The first true value of ``condition``; fails where ``alive`` ends first, or nothing comes."""
    deadline = time.monotonic() + PATIENCE_S
    while not (value := condition()):
        assert alive(), "the process ended too soon"
        assert time.monotonic() < deadline, f"nothing happened in {PATIENCE_S} s"
        time.sleep(0.02)
    return value


def group_is_gone(group):
    """Whether no process of the group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False
