"""The keys of every stage that asks a language model."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from gr2.config import INCIDENTAL, refuse_below
from gr2.prompts.render import PromptConfig
from gr2.training.teachers.endpoint import Endpoint

__all__ = ["EndpointKeys", "incidental"]

VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def incidental(default: Any) -> Any:
    """A key that decides how the work is done and not what comes of it: it may change without asking anew."""
    return field(default=default, metadata=INCIDENTAL)


@dataclass(frozen=True)
class EndpointKeys(PromptConfig):
    """An OpenAI-compatible endpoint, or a model in a folder, and how it is prompted (see `PromptConfig`).

    Attributes:
        model: the model's name at the endpoint, or the folder of the local one.
        base_url: of the endpoint, as in http://127.0.0.1:8000/v1.
        api_key_env: the environment variable that holds the API key; "" for a server that wants none.
        concurrency: requests under way at once.
        timeout: seconds after which a request is given up.
        retries: more tries for a request that failed.
        requests_per_minute: at most so many; 0 is no limit.
        price_prompt: of a million prompt tokens, in a currency of your choice.
        price_completion: of a million tokens of answers.
        max_tokens: of an answer, for `endpoint` and `local`.
    """

    model: str = ""
    base_url: str = ""
    api_key_env: str = incidental("OPENAI_API_KEY")
    concurrency: int = incidental(8)
    timeout: float = incidental(120.0)
    retries: int = incidental(5)
    requests_per_minute: int = incidental(0)
    price_prompt: float = 0.0
    price_completion: float = 0.0
    max_tokens: int = 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_below(self, 1, "max_tokens", "concurrency")
        refuse_below(self, 0, "retries", "requests_per_minute", "price_prompt", "price_completion")
        if self.timeout <= 0:
            raise ValueError(f"timeout must be above 0, got {self.timeout}")
        # Neither message repeats the value, which may hold a key.
        if self.api_key_env and not VARIABLE.fullmatch(self.api_key_env):
            raise ValueError("api_key_env must be the name of an environment variable, and not the key itself")
        if self.base_url and not _is_plain_address(self.base_url):
            raise ValueError("base_url must be http:// or https://, a host and a path, without user, password or query")

    def endpoint(self, *, temperature: float, workers: int = 1) -> Endpoint:
        """The endpoint as one of so many workers may use it."""
        per_minute = self.requests_per_minute
        return Endpoint(
            base_url=self.base_url,
            model=self.model,
            api_key_env=self.api_key_env,
            concurrency=max(1, self.concurrency // workers),
            timeout=self.timeout,
            retries=self.retries,
            requests_per_minute=per_minute and max(1, per_minute // workers),
            price_prompt=self.price_prompt,
            price_completion=self.price_completion,
            temperature=temperature,
            max_tokens=self.max_tokens,
        )


def _is_plain_address(address: str) -> bool:
    """Whether an address is one of HTTP, and holds nothing secret that an artefact would keep."""
    try:
        parts = urlsplit(address)
        parts.port  # noqa: B018
    except ValueError:
        return False
    secret = parts.username is not None or parts.query or parts.fragment
    return parts.scheme in ("http", "https") and bool(parts.hostname) and not secret
