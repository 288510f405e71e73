"""What a hub hands out, asked before anything slow begins: is it there, may we have it, in which form does it lie there.

Fetches nothing. Where nobody answers, what an earlier download left on this machine will do.
"""

from typing import Literal

from huggingface_hub import HfApi, constants, scan_cache_dir
from huggingface_hub.errors import CacheNotFound, GatedRepoError, RepositoryNotFoundError

from holdfast.problem import Problem, printable

Sort = Literal["model", "dataset"]


def check(name: str, sort: Sort, instead: str) -> str:
    """How a hub's model or data set can be had, as *can be fetched* or *lies in this machine's cache*.

    Args:
        instead: what to give in its place, as `--set models.base=FOLDER`.

    Raises:
        Problem: it cannot be had, or its weights are pickled; with the remedy.
    """
    page = f"https://huggingface.co/{'datasets/' if sort == 'dataset' else ''}{name}"
    try:
        HfApi().auth_check(name, repo_type=sort)
        files = HfApi().list_repo_files(name, repo_type=sort)
    except GatedRepoError as error:  # before the next: it is one of that kind
        remedy = f"accept its license at {page} and set HF_TOKEN, or give a local folder by {instead}"
        raise Problem(f"{name}: the hub hands this {sort} out only to who accepted its license; {remedy}") from error
    except RepositoryNotFoundError as error:
        raise Problem(
            f"{name}: the hub shows no {sort} of that id, or not without HF_TOKEN; give a local folder by {instead}"
        ) from error
    except Exception as error:  # offline in one of a dozen ways, each with a kind of its own
        if _cached(name, sort):
            return "lies in this machine's cache"
        remedy = f"connect and run the same command, or give a local folder by {instead}"
        raise Problem(f"{name}: the hub cannot be asked ({printable(error)[:120]}); {remedy}") from error
    if sort == "model" and not any(file.endswith(".safetensors") for file in files):
        remedy = f"convert them to safetensors and give the folder by {instead}"
        raise Problem(f"{name}: the hub holds its weights pickled alone, which can run code when opened; {remedy}")
    return "can be fetched"


def _cached(name: str, sort: Sort) -> bool:
    """Whether an earlier download of it lies in the cache."""
    try:
        return any((one.repo_id, one.repo_type) == (name, sort) for one in scan_cache_dir(constants.HF_HUB_CACHE).repos)
    except CacheNotFound:
        return False
