"""Jobs in processes of their own, so many at a time: each carries a value back; one that crashes is told, and harms no other.

Processes are forked from a server that has imported the slow libraries once. They never hear Ctrl-C, which is the parent's
business, and they end when the parent does. Knows nothing of what the jobs do.
"""

import contextlib
import gc
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import current_process, forkserver, get_context, parent_process, resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple, TypeVar, cast

Job = TypeVar("Job")
Value = TypeVar("Value")
_GREEDY = 3
_STILL = 10
"""So many times the seconds it may compute a copy may stand still, before it is given up."""
_LOOK = 0.2
"""Seconds between two looks of a copy for its parent."""
GRACE = 5.0
"""Seconds that a process has to end by itself once its value is here."""


class Sent(NamedTuple):
    """What comes out of a process of `each`."""

    value: Any
    last: bool = True
    """Whether it is the job's value, and not something said meanwhile."""


def prepare(modules: Sequence[str]) -> None:
    """Start the server that processes are forked from; it imports `modules` meanwhile. One thread a process."""
    os.environ["OMP_NUM_THREADS"] = "1"
    get_context("forkserver").set_forkserver_preload([*modules])
    resource_tracker.ensure_running()  # which would make us hear again
    with _deaf():
        forkserver.ensure_running()


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """Processes started inside know nothing of the script that runs here: a script that starts some, and has no guard of
    `__name__`, would else be run again by each of them. What they do must not be defined in that script."""
    main, kept = sys.modules["__main__"], {}
    for name in ("__file__", "__spec__"):
        if hasattr(main, name):
            kept[name] = getattr(main, name)
            setattr(main, name, None)
    try:
        yield
    finally:
        for name, value in kept.items():
            setattr(main, name, value)


def each(
    most: int,
    work: Callable[..., Value],
    jobs: Sequence[Job],
    done: Callable[[Job, Value], None],
    died: Callable[[Job, str, bool], None],
    heard: Callable[[Any], None] | None = None,
) -> None:
    """Call `work(job)` in a process for each job, at most so many at a time, and hand each value to `done(job, value)`.

    A process that ends without a value is told to `died(job, reason, last)`; its job is tried once more, after all others,
    and the second time is the last. Whatever these two raise, and Ctrl-C, kills the processes still running and is passed on.

    Where `heard` is given, `work(job, say)` is called instead, and what it says meanwhile goes to `heard` as it comes.
    """
    waiting = [(job, False) for job in reversed(jobs)]
    running: dict[Any, tuple[Any, Connection, Job, bool]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < most:
                with _deaf():
                    process, values = _started(_saying if heard else _once, work, waiting[-1][0])
                    running[process.sentinel] = process, values, *waiting.pop()
            for sentinel in _ready(running):
                process, values, job, last = running[sentinel]
                sent = _received(values)
                if sent and heard and not sent.last:
                    heard(sent.value)
                    continue
                del running[sentinel]
                values.close()
                _end(process, GRACE)
                if sent:
                    done(job, sent.value)
                    continue
                reason = f"its process ended with code {process.exitcode}"
                died(job, f"{reason} (a negative code is a signal; -9 is often memory)", last)
                if not last:
                    waiting.insert(0, (job, True))
    finally:
        for process, values, *_ in running.values():
            values.close()
            _end(process, 0)


def stream(work: Callable[[Job], Iterator[Value]], job: Job) -> Iterator[Value]:
    """What `work(job)` yields in a process of its own, one by one. Raises EOFError if that process dies before it is through.

    Once nobody asks for more, the process is ended.
    """
    with _deaf():
        process, values = _started(_all, work, job)
    try:
        while (item := values.recv()) is not None:
            yield item[0]
    finally:
        values.close()
        process.terminate()
        _end(process, GRACE)


@contextlib.contextmanager
def unswept() -> Iterator[None]:
    """Nobody looks for garbage inside: a million records that are made there are none, and all of them were looked through again
    and again."""
    swept = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if swept:
            gc.enable()


@contextlib.contextmanager
def meanwhile(work: Callable[[], Value], pays: bool) -> Iterator[Callable[[], Value]]:
    """Some work done in a copy of this process, which has all that is here already, while the block is at other work; what the
    block is given waits for the work and returns its value. Where that does not pay, where there is one core only, and where
    the copy died, the work is done here, when asked for. The copy ends with the block, whatever it does then.

    The copy has no other threads of this process; what they hold stays locked there.
    """
    if not pays or (os.cpu_count() or 1) < 2 or current_process().daemon:
        yield work
        return
    out, into = get_context("fork").Pipe(duplex=False)
    parent, child = os.getpid(), os.fork()
    if child == 0:
        try:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            Thread(target=_end_without, args=(parent,), daemon=True).start()
            gc.disable()  # it would touch, and so copy, what both have
            out.close()
            into.send(work())
        finally:
            os._exit(0)
    into.close()

    def value() -> Value:
        try:
            return cast(Value, out.recv())
        except (EOFError, OSError):
            return work()

    try:
        yield value
    finally:
        out.close()
        os.kill(child, signal.SIGKILL)  # nobody has waited for it yet, so that the number is still its own
        os.waitpid(child, 0)


def unbounded(work: Callable[[], object], seconds: int, memory: int) -> str | None:
    """In what way somebody else's work, tried in a copy of this process, takes more than so many seconds or bytes; None if it
    does not. What it raises otherwise is no matter of this.

    The copy may only compute: other threads of this process, and whatever locks they hold, are not there. One that waits for
    such a lock computes nothing: it is ended, and says nothing of the work.
    """
    child = os.fork()
    if child == 0:
        code = 0
        try:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            whole = pages * resource.getpagesize() + memory
            resource.setrlimit(resource.RLIMIT_AS, (whole, whole))
            resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
            signal.signal(signal.SIGXCPU, signal.SIG_DFL)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, _STILL * seconds)
            work()
        except MemoryError:
            code = _GREEDY
        except BaseException:  # whatever it is, this copy must not go on with what the process was at
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code == -signal.SIGALRM:
        return None
    if code in (-signal.SIGXCPU, -signal.SIGKILL):
        return f"does not end within {seconds} s"
    return f"takes more than {memory >> 20} MiB" if code else None


def _started(how: Callable[..., None], work: Callable[..., Any], job: Job) -> tuple[Any, Connection]:
    """A process at work on the job, and where what it sends comes out."""
    context = get_context("forkserver")
    values, into = context.Pipe(duplex=False)
    process = context.Process(target=how, args=(work, job, into), daemon=True)
    process.start()
    into.close()  # what is left is the process's own end
    return process, values


def _ready(running: dict[Any, tuple[Any, Connection, Job, bool]]) -> list[Any]:
    """The sentinels of processes that have sent a value or ended, waiting for the first."""
    ready = wait([*running, *(values for _, values, *_ in running.values())])
    return [sentinel for sentinel, (_, values, *_) in running.items() if sentinel in ready or values in ready]


def _received(values: Connection) -> Sent | None:
    """What a process has sent. Nothing where it was killed, though it were while it sent."""
    try:
        return values.recv() if values.poll() else None
    except (EOFError, OSError):
        return None


def _end(process: Any, grace: float) -> None:
    """Wait so many seconds for a process that has nothing more to do, then kill it."""
    if grace:
        process.join(grace)
    if process.is_alive():
        process.kill()
    process.join()


def _once(work: Callable[[Job], Value], job: Job, into: Connection) -> None:
    """What a process of `each` does."""
    _begin()
    _send(into, Sent(work(job)))


def _saying(work: Callable[[Job, Callable[[Any], None]], Value], job: Job, into: Connection) -> None:
    """What a process of `each` does that is heard meanwhile."""
    _begin()
    _send(into, Sent(work(job, lambda said: _send(into, Sent(said, last=False)))))


def _all(work: Callable[[Job], Iterator[Value]], job: Job, into: Connection) -> None:
    """What the process of `stream` does."""
    _begin()
    for value in work(job):
        _send(into, (value,))
    _send(into, None)


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with_parent, daemon=True).start()


def _send(into: Connection, value: Any) -> None:
    try:
        into.send(value)
    except BrokenPipeError:  # the parent was killed; nobody is left to be told
        os._exit(1)


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _end_without(parent: int) -> None:
    """End this copy when the process is gone that it is a copy of."""
    while os.getppid() == parent:
        time.sleep(_LOOK)
    os._exit(1)


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """What is started here never hears Ctrl-C; the parent hears it afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
