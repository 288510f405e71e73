"""Jobs on a Ray cluster, each in a process of its own there, with the folders that they read; values are carried back here.

The cluster is the one that Ray finds (`RAY_ADDRESS`, or one started on this machine), else one is started here. No file system
need be shared: each file is put into Ray's object store once and laid down on a node when a job first needs it there. Ray is
talked to from a process of its own: losing the cluster can kill whoever talks to it. Knows nothing of what the jobs do.
"""

import contextlib
import fcntl
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy

from holdfast import disk, processes
from holdfast.problem import Problem, printable

CHECKPOINT = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")
"""What is sent of a folder."""


class Movable(Protocol):
    """A job that reads files and folders, and can be told that they are elsewhere."""

    @property
    def places(self) -> set[Path]: ...

    def moved(self, to: Callable[[Path], Path]) -> "Movable": ...


Job = TypeVar("Job", bound=Movable)
Value = TypeVar("Value")


class Parcel(NamedTuple):
    """A file or folder on its way."""

    name: str
    """What the file or folder is called."""
    digest: str
    """SHA-256 of names and contents."""
    files: dict[str, Any]
    """Each file's reference in the object store; a single file is called as `name`."""


def each(
    most: int | None,
    gpus: float | None,
    work: Callable[[Job], Value],
    jobs: Sequence[Job],
    done: Callable[[Job, Value], None],
    died: Callable[[Job, str, bool], None],
) -> None:
    """As `processes.each`, on Ray's workers, with one core and `gpus` GPUs a job.

    Args:
        most: jobs at a time; as many as the cluster has room for unless given.
        gpus: may be a fraction; 1 where the cluster has GPUs unless given, else 0.

    Raises:
        Problem: there is no Ray, no room for even one job, a worker that cannot run the work, or the cluster was lost.
    """
    items = processes.stream(partial(_drive, dict(os.environ), most, gpus, work), jobs)
    try:
        for kind, number, said in items:
            if kind == "problem":
                raise Problem(said)
            if kind == "done":
                done(jobs[number], said)
            else:
                died(jobs[number], said, kind == "died again")
    except EOFError as error:
        raise Problem(
            "Ray: the cluster was lost; finished cells are kept, the same command goes on from there once it is back"
        ) from error
    finally:
        items.close()


def _drive(
    environment: dict[str, str], most: int | None, gpus: float | None, work: Callable[[Job], Value], jobs: Sequence[Job]
) -> Iterator[tuple[str, int, Any]]:
    """Hand the jobs to Ray and tell what becomes of each: (`done`, number, value) or (`died`, number, reason)."""
    _silence()
    os.environ.update(environment)  # the server that this process was forked from may have an older one
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray's own telemetry
    try:
        import ray
    except ImportError:
        yield "problem", 0, "--executor ray: Ray is not installed; pip install 'holdfast[ray]'"
        return
    try:
        if os.environ.get("RAY_ADDRESS", "").startswith("ray://"):
            raise ValueError(
                "a ray:// address reaches no object store; give the head's as HOST:6379, on one of its nodes"
            )
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        gpus = _gpus(ray.nodes(), gpus)
    except Exception as error:  # Ray raises a dozen kinds, all meaning that there is no cluster to work on
        yield "problem", 0, f"--executor ray: {printable(error)}"
        return
    try:
        yield from _worked(ray, most, gpus, work, jobs)
    finally:
        ray.shutdown()


def _worked(
    ray: Any, most: int | None, gpus: float, work: Callable[[Job], Value], jobs: Sequence[Job]
) -> Iterator[tuple[str, int, Any]]:
    # A worker does one job, so that what an attack leaves in its process reaches no other. Ray itself tries nothing again:
    # it would do so without end where memory is short.
    remote = ray.remote(num_cpus=1, num_gpus=gpus, max_calls=1, max_retries=0)(_task)
    home, sent = ray.get_runtime_context().get_node_id(), {}
    waiting = [(number, False) for number in reversed(range(len(jobs)))]
    running: dict[Any, tuple[int, bool]] = {}
    room = most or 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    while waiting or running:
        while waiting and len(running) < room:
            job = jobs[waiting[-1][0]]
            parcels = {place: _parcel(ray, place, sent) for place in sorted(job.places)}
            running[remote.remote(work, job, parcels, home)] = waiting.pop()
        for ref in ray.wait([*running], num_returns=1)[0]:
            number, last = running.pop(ref)
            try:
                yield "done", number, ray.get(ref)
            except ray.exceptions.RayTaskError as error:
                cause = printable(error.cause)
                yield (
                    "problem",
                    number,
                    f"Ray: a worker cannot run a cell ({cause}); install the same holdfast on every node",
                )
            except ray.exceptions.RayError as error:
                reason = printable(str(error).partition("\n")[0])
                yield "died again" if last else "died", number, f"its worker died ({reason})"
                if not last:
                    waiting.insert(0, (number, True))


def _task(work: Callable[[Job], Value], job: Job, parcels: Mapping[Path, Parcel], home: str) -> Value:
    """What a worker does. On the node that the files come from they are read where they lie."""
    import ray

    if ray.get_runtime_context().get_node_id() == home:
        return work(job)
    return work(job.moved(lambda place: _unpacked(parcels[place], ray.get)))


def _gpus(nodes: list[dict[str, Any]], gpus: float | None) -> float:
    """How many GPUs a job takes. Raises ValueError where no node has that many."""
    there = max((node["Resources"].get("GPU", 0.0) for node in nodes if node["Alive"]), default=0.0)
    if gpus is None:
        return 1.0 if there else 0.0
    if gpus > there:
        raise ValueError(f"no node of the cluster has {gpus:g} GPUs (the most is {there:g}); give --gpus-per-cell less")
    return gpus


def _parcel(ray: Any, place: Path, sent: dict[Path, Parcel]) -> Parcel:
    """The file or folder in the object store; what has been sent is not sent again."""
    if place not in sent:
        folder = place.is_dir()
        paths = sorted({path for pattern in CHECKPOINT for path in place.glob(pattern)}) if folder else [place]
        digest, files = hashlib.sha256(), {}
        for path in paths:
            content = (
                numpy.asarray(numpy.memmap(path, numpy.uint8, "r")) if path.stat().st_size else numpy.zeros(0, "u1")
            )
            digest.update(f"{path.name} {content.size}\n".encode())
            digest.update(content)
            files[path.name] = ray.put(content)
        sent[place] = Parcel(place.name, digest.hexdigest(), files)
    return sent[place]


def _unpacked(parcel: Parcel, get: Callable[[Any], Any]) -> Path:
    """Where the parcel lies on this node; it is laid down if it does not yet, whole or not at all."""
    cache = disk.private(Path(tempfile.gettempdir()) / f"holdfast-{os.getuid()}")
    if cache.stat().st_uid != os.getuid():
        raise Problem(f"{cache}: belongs to somebody else; name another place by TMPDIR")
    folder, single = cache / parcel.digest, [*parcel.files] == [parcel.name]
    with open(cache / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of several workers one unpacks
        if not folder.is_dir():
            with disk.whole(folder) as aside:
                for name, ref in parcel.files.items():
                    get(ref).tofile(aside / name)
    return folder / parcel.name if single else folder


def _silence() -> None:
    """Ray's own words go into its logs (below /tmp/ray): they would tear the audit's display."""
    with open(os.devnull, "w") as nowhere, contextlib.suppress(OSError):
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
