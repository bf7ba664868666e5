"""Loader workers whose trainer is gone."""

import multiprocessing
import os


def end_if_orphaned(worker: int) -> None:
    """End a worker whose trainer was killed while the worker started.

    torch's workers watch the process that is their parent when they begin to work. One that lost
    its parent before that watches whoever inherited it, and stays for ever, with its memory: seen
    where a trainer is killed right after its start.

    Args:
        worker: the worker's number, which does not matter.
    """
    if multiprocessing.get_start_method(allow_none=True) == "forkserver":
        return  # there the server is the parent
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid != os.getppid():
        os._exit(1)
