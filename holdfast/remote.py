"""Whoever answers behind an OpenAI-compatible address: a hosted model, or a server of one's own as vLLM, llama.cpp or Ollama.

What is asked leaves this machine for whoever serves that address, through the proxy that the environment names (HTTPS_PROXY,
NO_PROXY); an address of this machine is asked directly. The API key is read from the environment when it is needed, and written
nowhere; messages repeat nothing of what was sent. Knows nothing of models, prompts and verdicts.
"""

import ipaddress
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

from holdfast.problem import Problem

Answered = TypeVar("Answered")
Request = dict[str, Any]
"""One question as the library takes it: `messages` or `prompt`, and how to draw the answer."""


def plain_address(url: str) -> str:
    """The address itself. Raises ValueError for what is none, or for one that holds a secret."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be an address as https://host/v1")
    if parts.username or parts.password or parts.query:
        raise ValueError("must hold no secret; name the key's environment variable instead")
    return url


def is_local(url: str) -> bool:
    """Whether this machine itself serves the address: what is asked there must not go through anybody's proxy."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


@dataclass(frozen=True)
class Remote:
    """A model behind an address."""

    url: str
    """Up to and with its version."""
    model: str
    """What the server calls it."""
    role: str
    """What it is to whoever asks, as `judge`."""
    key: str | None = None
    """Name of the environment variable that holds the API key; without, none is sent."""
    timeout: float = 120.0
    """Seconds until a request is given up and sent again."""
    retries: int = 5
    """How often a request that failed is sent again, each time after a longer wait."""
    parallel: int = 8
    """Requests at a time."""

    def answers(self, requests: Sequence[Request]) -> list[str]:
        """What is answered to each request; an empty text where a provider's own filter keeps silent.

        Raises:
            Problem: the server cannot be reached, refuses, or answers with something else than a completion.
        """
        if not requests:
            return []
        with self._client() as client, ThreadPoolExecutor(min(self.parallel, len(requests))) as threads:
            waiting = [threads.submit(self._answer, client, one) for one in requests]
            try:
                return [one.result() for one in waiting]
            except Problem:
                threads.shutdown(cancel_futures=True)
                raise

    def names(self) -> list[str]:
        """What the server calls its models. Raises as `answers`."""
        with self._client() as client:
            return self._explained(lambda: [one.id for one in client.models.list()])

    def _answer(self, client: Any, request: Request) -> str:
        def asked() -> Any:
            if "prompt" in request:
                return client.completions.create(model=self.model, **request).choices[0].text
            return client.chat.completions.create(model=self.model, **request).choices[0].message.content

        said = self._explained(asked)
        return said if isinstance(said, str) else ""

    def _explained(self, ask: Callable[[], Answered]) -> Answered:
        import openai

        try:
            return ask()
        except openai.APIStatusError as error:  # its message may repeat what was sent, or part of the key
            says = f"answered {error.status_code} ({type(error).__name__})"
            raise Problem(f"{self.url}: {says}; mend url, model or key of the {self.role}") from None
        except openai.APIConnectionError as error:
            says = f"cannot be reached ({type(error).__name__}, {self.retries + 1} tries)"
            raise Problem(f"{self.url}: {says}; is the {self.role}'s server running?") from None
        except (openai.OpenAIError, ValueError, LookupError, AttributeError, TypeError) as error:
            raise Problem(f"{self.url}: its answer is no completion ({type(error).__name__}); mend the url") from None

    def _client(self) -> Any:
        try:
            from openai import DefaultHttpxClient, OpenAI  # an extra, and slow to import
        except ImportError as error:
            raise Problem("endpoint: needs the openai package; run: pip install 'holdfast[endpoint]'") from error
        secret = os.environ.get(self.key, "") if self.key else "none"  # else the library sends whatever it finds
        if not secret:
            raise Problem(
                f"endpoint: the environment variable {self.key} is not set; export the {self.role}'s API key as {self.key}"
            )
        how = {"http_client": DefaultHttpxClient(trust_env=False)} if is_local(self.url) else {}
        return OpenAI(base_url=self.url, api_key=secret, timeout=self.timeout, max_retries=self.retries, **how)
