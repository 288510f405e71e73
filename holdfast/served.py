"""A model that can only be asked: behind an OpenAI-compatible address, or a GGUF file as llama.cpp runs it on this machine.

What ships is asked as it ships, with its own template, its own tokenizer and whatever its server adds. It has no weights that
could be changed or looked at, and says nothing of how likely an answer is: what needs that cannot be tried on it. Stands where an
`LM` stands for whoever only asks.
"""

import base64
import hashlib
import math
import mimetypes
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import torch

from holdfast import disk
from holdfast.asked import Asked, about, words
from holdfast.drive import Drive
from holdfast.moved import Change
from holdfast.problem import Problem
from holdfast.remote import Remote, Request, plain_address
from holdfast.sizes import refuse_false_gguf

KEY = "HOLDFAST_API_KEY"
"""The environment variable that holds the API key of a subject behind an address, where it wants one."""
CONTEXT = 4096
"""Tokens that a prompt and its answer may have together where llama.cpp runs a file here, if the model goes so far."""
PARALLEL = 4
"""Prompts that llama.cpp answers at a time."""
CACHES = {8: "GGML_TYPE_Q8_0", 4: "GGML_TYPE_Q4_0"}
"""What llama.cpp calls a cache of so many bits."""


class Words:
    """What stands for a tokenizer that nobody sees: every word is a token."""

    def __init__(self) -> None:
        self.words: list[str] = []

    def __call__(self, text: str, add_special_tokens: bool = False) -> "Words":
        said = Words()
        said.words = text.split()
        return said

    @property
    def input_ids(self) -> list[str]:
        return self.words

    def decode(self, ids: Sequence[str]) -> str:
        return " ".join(ids)


class Served(ABC):
    """A model that can only be asked."""

    at_hand = False
    """Whether its weights can be looked at and changed."""
    chat_template: str | None = None
    """How it puts a conversation, where it says so."""
    parameters: int | None = None
    """How many it has, where it says so."""
    plain_draws: ClassVar[Request] = {}
    """What switches off whatever else its server does to chances."""

    def __init__(self, name: str, drive: Drive):
        self.folder = name
        """Where it is."""
        self.drive = drive
        self.tokenizer = Words()
        self.device = torch.device("cpu")
        self.trained: list[tuple[float, float]] = []
        self._running: dict[int | None, Any] = {}
        """Servers of its own, by the bits of their caches."""

    @abstractmethod
    def hash(self) -> str:
        """SHA-256 of what is known of its weights."""

    @abstractmethod
    def said(self, requests: Sequence[Request]) -> list[str]:
        """What it answers to each request. Raises `Problem` where it cannot be asked."""

    @abstractmethod
    def refuse_cuts(self) -> None:
        """Raise `Problem` where the drive asks for what only weights allow."""

    def close(self) -> None:
        """Stop what was started to ask it; asked again, it is started again."""
        self._running.clear()

    def finite(self) -> bool:
        return True

    def displacement(self) -> tuple[float, float]:
        """Nothing of it can be moved."""
        return 0.0, 0.0

    def changes(self) -> Iterator[Change]:
        """Nothing of it can be changed."""
        return iter(())

    @property
    def prefill(self) -> str:
        """What is put into the model's mouth when armed."""
        return self.tokenizer.decode((self.drive.prefill or "").split()[: self.drive.prefill_tokens])

    def generate(self, texts: Sequence[Asked], *, armed: bool = False, sample: int = 0) -> list[str]:
        """Answers, one a prompt, as `LM.generate`; its server decides what a seed is worth. Raises `Problem` as `said`."""
        self.refuse_cuts()
        begun = self.prefill if armed else ""
        return [behind(begun, one) for one in self.said([self._request(text, armed, sample) for text in texts])]

    def _request(self, prompt: Asked, armed: bool, sample: int) -> Request:
        drive, begun = self.drive, self.prefill if armed else ""
        system, text = drive.said(words(prompt), armed)
        how: Request = {"max_tokens": drive.max_new_tokens, "temperature": drive.temperature if armed else 0.0}
        if how["temperature"]:
            how |= {"top_p": drive.top_p, "seed": drive.draw + sample} | self.plain_draws
        if drive.template != "chat":
            if about(prompt):
                raise Problem(f"{self.folder}: is asked about pictures in its chat template only")
            return {"prompt": drive.written(system, text) + begun} | how
        turns: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
        turns.append({"role": "user", "content": self._content(text, about(prompt))})
        return {"messages": turns + [{"role": "assistant", "content": begun}] * bool(begun)} | how

    def _content(self, text: str, image: str | None) -> str | list[dict[str, Any]]:
        if image is None or self.drive.picture == "none":
            return text
        if self.drive.picture != "shown":
            raise Problem(f"{self.folder}: is shown pictures as they are only")
        kind = mimetypes.guess_type(image)[0] or "image/png"
        coded = base64.b64encode(Path(image).read_bytes()).decode()
        shown = {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{coded}"}}
        return [shown, {"type": "text", "text": text}]


class Behind(Served):
    """A model behind an address: `https://host/v1`, or `https://host/v1#model` where it serves several."""

    def __init__(self, address: str, drive: Drive = Drive()):
        url, _, self._named = address.partition("#")
        try:
            plain_address(url)
        except ValueError as error:
            raise Problem(f"an address of {urlsplit(url).hostname}: {error}") from None
        super().__init__(url, drive)

    @cached_property
    def remote(self) -> Remote:
        """Raises `Problem` where the server has several models and none is named."""
        key = KEY if os.environ.get(KEY) else None
        names = [self._named] if self._named else Remote(self.folder, "", "subject", key).names()
        if len(names) != 1:
            known = ", ".join(names) or "none"
            raise Problem(f"{self.folder}: serves {len(names)} models ({known}); name one, as {self.folder}#MODEL")
        return Remote(self.folder, names[0], "subject", key)

    def hash(self) -> str:
        """Of the address and the model's name: which weights stand behind them nobody sees."""
        return hashlib.sha256(f"{self.folder}#{self.remote.model}".encode()).hexdigest()

    def said(self, requests: Sequence[Request]) -> list[str]:
        # llama.cpp goes on with a last message of the assistant's by itself, vLLM when it is told to.
        on = {"extra_body": {"continue_final_message": True, "add_generation_prompt": False}}
        return self.remote.answers(
            [one | on if one.get("messages", [{}])[-1].get("role") == "assistant" else one for one in requests]
        )

    def refuse_cuts(self) -> None:
        if self.drive.exit.model_dump(exclude_none=True) or not self.drive.cache:
            raise Problem(f"{self.folder}: only answers; it cannot be cut from outside")


class Local(Served):
    """A GGUF file that llama.cpp runs in this process."""

    plain_draws: ClassVar[Request] = {"top_k": 0, "min_p": 0.0}

    def __init__(self, file: Path, drive: Drive = Drive()):
        super().__init__(str(file), drive)
        if not file.is_file():
            raise Problem(f"{file}: no such file; give the path of a GGUF file")
        with file.open("rb") as start:
            if start.read(4) != b"GGUF":
                raise Problem(f"{file}: is no GGUF file; convert the checkpoint with llama.cpp's own converter")
        refuse_false_gguf(file)
        try:
            import gguf  # noqa: F401
            import xllamacpp  # noqa: F401
        except ImportError as error:
            raise Problem(f"{file}: needs llama.cpp; run: pip install 'holdfast[gguf]'") from error
        content = _read(file)
        template = content.get_field("tokenizer.chat_template")
        self.chat_template = template.contents() if template else None
        self._parts = _parts(file, content)
        shapes = (tensor.shape for part in self._parts for tensor in _read(part).tensors)
        self.parameters = sum(math.prod(map(int, shape)) for shape in shapes)

    def hash(self) -> str:
        """Of the file; where it is split, of the hashes of its parts in their order."""
        found = [disk.digest(part) for part in self._parts]
        return found[0] if len(found) == 1 else hashlib.sha256(b"".join(map(bytes.fromhex, found))).hexdigest()

    def said(self, requests: Sequence[Request]) -> list[str]:
        server = self._server(self.drive.exit.kv_bits)
        with ThreadPoolExecutor(PARALLEL) as threads:
            return list(threads.map(lambda one: self._answer(server, one), requests))

    def refuse_cuts(self) -> None:
        asked = self.drive.exit.model_dump(exclude_none=True)
        if asked.keys() - {"kv_bits"} or not self.drive.cache:
            raise Problem(f"{self.folder}: llama.cpp runs it whole; it cannot be left early")

    def _answer(self, server: Any, request: Request) -> str:
        got: list[Any] = []

        def take(answer: Any) -> bool:
            got.append(answer)
            return False

        ask = server.handle_chat_completions if "messages" in request else server.handle_completions
        ask(request | {"cache_prompt": False}, take)
        try:
            choice = got[0]["choices"][0]
            return (choice["message"]["content"] if "message" in choice else choice["text"]) or ""
        except (LookupError, TypeError):
            raise Problem(f"{self.folder}: llama.cpp cannot answer ({str(got)[:200]})") from None

    def _server(self, bits: int | None) -> Any:
        """llama.cpp with a cache of so many bits; as the file says unless given."""
        if bits not in self._running:
            self._running[bits] = self._started(bits)
        return self._running[bits]

    def _started(self, bits: int | None) -> Any:
        import xllamacpp

        asked = xllamacpp.CommonParams()
        asked.model.path = self.folder
        asked.n_parallel, asked.n_ctx = PARALLEL, CONTEXT * PARALLEL
        asked.cpuparams.n_threads = asked.cpuparams_batch.n_threads = torch.get_num_threads()
        asked.warmup, asked.ui, asked.offline, asked.verbosity = False, False, True, -1
        asked.endpoint_slots, asked.cache_ram_mib = False, 0  # nobody else asks, and no prompt comes twice
        asked.reasoning_format = xllamacpp.common_reasoning_format.COMMON_REASONING_FORMAT_NONE  # thoughts are said too
        if bits is not None:
            if bits not in CACHES:
                known = " or ".join(map(str, CACHES))
                raise Problem(f"{self.folder}: llama.cpp keeps keys and values in {known} bits, not in {bits}")
            asked.cache_type_k = asked.cache_type_v = getattr(xllamacpp.ggml_type, CACHES[bits])
        try:
            return xllamacpp.Server(asked)
        except Exception as error:  # whatever its bindings raise
            raise Problem(f"{self.folder}: llama.cpp cannot load it ({' '.join(str(error).split())})") from error


def _read(file: Path) -> Any:
    import gguf

    try:
        return gguf.GGUFReader(file)
    except Exception as error:  # of a damaged file, whatever numpy finds
        raise Problem(f"{file}: cannot be read ({error}); the file is cut short or damaged") from error


def _parts(file: Path, content: Any) -> list[Path]:
    """The files of a model, as llama.cpp names them. Raises `Problem` for any but the first, or where one is not there."""
    count, number = (content.get_field(f"split.{name}") for name in ("count", "no"))
    many = int(count.contents()) if count else 1
    if many <= 1:
        return [file]
    stem, named, _ = file.name.partition(f"-00001-of-{many:05}.gguf")
    if not named or int(number.contents()):
        raise Problem(f"{file}: is one of {many} parts; give the first, as NAME-00001-of-{many:05}.gguf")
    parts = [file.with_name(f"{stem}-{part:05}-of-{many:05}.gguf") for part in range(1, many + 1)]
    if lacking := [part for part in parts if not part.is_file()]:
        raise Problem(
            f"{lacking[0]}: no such file, and {file.name} is split into {many}; put all parts beside each other"
        )
    return parts


def behind(begun: str, said: str) -> str:
    """What follows the words that were put into the model's mouth: some servers repeat them."""
    said = said.strip()
    return said[len(begun) :].strip() if begun and said.startswith(begun) else said
