"""Jobs in processes of their own, so many at a time: one that crashes is told, and harms no other.

Processes are forked from a server that has imported the slow libraries once. They never hear Ctrl-C, which is the parent's
business, and they end when the parent does. Knows nothing of what the jobs do.
"""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import forkserver, get_context, parent_process, resource_tracker
from multiprocessing.connection import wait
from threading import Thread
from typing import Any, TypeVar

Job = TypeVar("Job")


def prepare(modules: Sequence[str]) -> None:
    """Start the server that processes are forked from; it imports `modules` meanwhile. One thread a process."""
    os.environ["OMP_NUM_THREADS"] = "1"
    get_context("forkserver").set_forkserver_preload([*modules])
    resource_tracker.ensure_running()  # which would make us hear again
    with _deaf():
        forkserver.ensure_running()


def each(work: Callable[[Job], None], jobs: Sequence[Job], most: int, ended: Callable[[Job, int], None]) -> None:
    """Call `work(job)` in a process for each job, at most so many at a time, and `ended(job, exit code)` as each ends.

    Whatever `ended` raises, and Ctrl-C, kills the processes still running and is passed on.
    """
    context = get_context("forkserver")
    waiting = list(reversed(jobs))
    running: dict[int, tuple[Any, Job]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < most:
                process = context.Process(target=_run, args=(work, waiting[-1]), daemon=True)
                with _deaf():
                    process.start()
                    running[process.sentinel] = process, waiting.pop()
            for sentinel in wait(list(running)):
                process, job = running.pop(sentinel)
                process.join()
                ended(job, process.exitcode)
    finally:
        for process, _ in running.values():
            process.kill()
            process.join()


def _run(work: Callable[[Job], None], job: Job) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with_parent, daemon=True).start()
    work(job)


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """What is started here never hears Ctrl-C; the parent hears it afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
