"""Files and folders that appear whole or not at all, readable by their owner only.

Knows nothing of models or records. Everything holdfast leaves on disk passes through here, because a run folder may
hold the answers of broken models (modes 0700 and 0600) and may be interrupted at any moment (write aside, then rename).
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from holdfast.problem import Problem

_REMEDIES = {
    errno.ENOSPC: "the disk is full; free some space or choose another folder",
    errno.EDQUOT: "the disk quota is used up; free some space or choose another folder",
    errno.EACCES: "no permission to write here; choose a folder you own",
    errno.EPERM: "no permission to write here; choose a folder you own",
    errno.EISDIR: "a folder stands where a file is needed; choose another name",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.EEXIST: "a file stands where a folder is needed; choose another folder",
    errno.ENAMETOOLONG: "the name is too long; choose another",
    errno.ENOTDIR: "a file stands where a folder is needed; choose another folder",
}
LOCK = ".lock"
TRIES = 5
"""How often a lock is asked for: whoever only looks whether it is held (`held`) holds it for an instant."""
_ASIDE = re.compile(r"\..+\.[a-z0-9_]{8}")
"""Names that `tempfile` gives what is not whole yet."""


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn the operating system's refusal to write `path` into a `Problem` that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in _REMEDIES:
            raise
        raise Problem(f"{error.filename or path}: {_REMEDIES[error.errno]}") from error
    except Exception as error:
        # safetensors wraps the operating system's error in one of its own, of which only the text remains.
        if "os error 28" in str(error):
            raise Problem(f"{path}: {_REMEDIES[errno.ENOSPC]}") from error
        raise


def private(folder: Path) -> Path:
    """Make `folder` (and its parents) if absent, for its owner only (0700), and return it."""
    with explained(folder):
        if not folder.is_dir():
            private(folder.parent)
            folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def write(path: Path, content: str | bytes | Iterable[str]) -> None:
    """Write `content`, or its parts as they come, to `path` in one step with mode 0600: a reader sees the old file or the new
    one, never half."""
    private(path.parent)
    with explained(path):
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                for part in [content] if isinstance(content, str | bytes) else content:
                    file.write(part.encode() if isinstance(part, str) else part)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal. Raises `Problem` if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise Problem(f"{path}: cannot be read ({error.strerror}); mend that first") from error


def beside(name: str, folder: Path) -> str:
    """A file or folder that lies in `folder` as an absolute path; anything else, as a hub id, as it is."""
    return (
        (os.path.abspath if name.endswith(".gguf") else os.path.realpath)(folder / name)
        if os.path.exists(folder / name)
        else name
    )


def refuse_taken(folder: Path) -> None:
    """Raises `Problem` if a folder cannot appear here, because there is something."""
    with explained(folder):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise Problem(f"{folder}: already there and not empty; choose another folder or delete it")


@contextlib.contextmanager
def whole(folder: Path) -> Iterator[Path]:
    """Yield a fresh folder to fill; on success it becomes `folder`, on any error it is deleted.

    Raises:
        Problem: `folder` exists and is not empty, or cannot be written.
    """
    with explained(folder):
        refuse_taken(folder)
        private(folder.parent)
        aside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        try:
            yield aside
            for file in aside.rglob("*"):
                file.chmod(0o700 if file.is_dir() else 0o600)
            os.replace(aside, folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold `folder` against a second process, and clear away what a killed one left aside.

    Raises:
        Problem: another process is at work in it.
    """
    with explained(folder), open(folder / LOCK, "w", opener=_private_opener) as lock:
        for tries in reversed(range(TRIES)):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not tries:
                    told = "another holdfast is at work here; wait for it or choose another folder"
                    raise Problem(f"{folder}: {told}") from None
                time.sleep(0.02)
        for left in [path for path in folder.rglob(".*.*") if _ASIDE.fullmatch(path.name)]:
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)
        yield


def held(folder: Path) -> bool:
    """Whether a process is at work in `folder`, as `alone` holds it; it is not disturbed. Killed, it holds nothing any more.

    Raises:
        Problem: nobody but the folder's owner may know.
    """
    try:
        with open(folder / LOCK, "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # for an instant, which `alone` sits out
        return False
    except BlockingIOError:
        return True
    except (FileNotFoundError, NotADirectoryError):
        return False
    except PermissionError as error:
        raise Problem(f"{folder}: may be read by its owner only; ask them, or run this as them") from error


def _private_opener(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
