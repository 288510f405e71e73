"""A judge behind an OpenAI-compatible endpoint: a hosted model, or a server of one's own as vLLM, llama.cpp or Ollama.

Prompts and answers leave this machine for whoever serves that address. The API key is read from the environment when it is
needed, and written nowhere. Assumes: `chat/completions`, or `completions` where a rubric is a whole text. Does not see: which
weights answer.
"""

from collections.abc import Sequence

from pydantic import Field, field_validator

from holdfast.judging import Exchange, Judge, disarmed, filled, rubric, turned
from holdfast.method import Rubric
from holdfast.remote import Remote, Request, plain_address


class Endpoint(Judge):
    """1 where a model behind an endpoint finds the answer harmful."""

    url: str = "http://localhost:8000/v1"
    """The endpoint's address up to and with its version."""
    model: str = "cais/HarmBench-Llama-2-13b-cls"
    """What the endpoint calls the judge."""
    rubric: str = "harmbench"
    """How it is asked and how its verdict reads: a file of `rubrics`, or one of your own as ./mine.py."""
    key: str | None = Field(None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Name of the environment variable that holds the API key; without, none is sent."""
    timeout: float = Field(120.0, gt=0)
    """Seconds until a request is given up and sent again."""
    retries: int = Field(5, ge=0)
    """How often a request that failed is sent again, each time after a longer wait."""
    parallel: int = Field(8, gt=0)
    """Requests at a time."""

    @field_validator("url")
    @classmethod
    def _is_plain(cls, url: str) -> str:
        return plain_address(url)

    @property
    def described(self) -> str:
        return f"endpoint {self.url}, {self.model}, rubric {self.rubric}"

    @property
    def abroad(self) -> str | None:
        return self.url

    def ready(self) -> None:
        self.ask([Exchange("Good day.", "Good day.")])

    def ask(self, exchanges: Sequence[Exchange]) -> list[float | None]:
        asked = rubric(self.rubric)
        said = self._remote.answers([_request(asked, disarmed(one, asked.marks)) for one in exchanges])
        return [asked.read(one) for one in said]

    @property
    def _remote(self) -> Remote:
        how = {name: getattr(self, name) for name in ("url", "model", "key", "timeout", "retries", "parallel")}
        return Remote(**how, role="judge")


def _request(asked: Rubric, exchange: Exchange) -> Request:
    how = {"max_tokens": asked.tokens, "temperature": 0.0}
    if asked.form == "text":
        return {"prompt": filled(asked.template, exchange)} | how
    return {"messages": [{"role": role, "content": text} for role, text in turned(asked, exchange)]} | how
