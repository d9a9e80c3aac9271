"""What processes of one program owe each other."""

import multiprocessing
import os
import threading


def exit_with_parent() -> None:
    """Let this process end as soon as the one that asked for it has, however that ended."""
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
