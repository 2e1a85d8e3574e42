"""The settings of the stage `traces`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from gr2.config import INCIDENTAL
from gr2.prompts.render import PromptConfig
from gr2.training.teachers.endpoint import Endpoint

__all__ = ["TracesConfig"]

VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def _incidental(default: Any) -> Any:
    """A key that decides how the work is done and not what comes of it: it may change without asking anew."""
    return field(default=default, metadata=INCIDENTAL)


@dataclass(frozen=True)
class TracesConfig(PromptConfig):
    """Which lists, which teacher, and how it is asked; the keys of `PromptConfig` say how prompts are written.

    Attributes:
        lists: the stage whose training lists are used, `midtrain` or `prerank`; those that lack their target are not.
        list_size: candidates a list, the first ones.
        limit: lists to use, drawn with the seed; 0 is all.
        teacher: `evidence` needs no model; `endpoint` is an OpenAI-compatible server; `local` a model in a folder.
        sampling: `rejection` hides the target and asks again until it comes first; `targeted` shows it.
        attempts: at each list, until an answer is accepted.
        temperature: of the sampling, for the evidence teacher of its scores.
        max_tokens: of an answer, for `endpoint` and `local`.
        neighbours: co-purchased items of each item that the evidence teacher counts.
        folds: divisions of the users; the evidence about a list is from users of other folds.
        model: the model's name at the endpoint, or the folder of the local one.
        base_url: of the endpoint, as in http://127.0.0.1:8000/v1.
        api_key_env: the environment variable that holds the API key; "" for a server that wants none.
        concurrency: requests under way at once.
        timeout: seconds after which a request is given up.
        retries: more tries for a request that failed.
        requests_per_minute: at most so many; 0 is no limit.
        price_prompt: of a million prompt tokens, in a currency of your choice.
        price_completion: of a million tokens of answers.
        batch: prompts that the local model answers at once.
        workers: processes of a Ray Data job that share the lists; 0 is none, and the stage asks itself.
        address: a Ray cluster, "auto" for the one this machine is part of; "" starts one here.
    """

    lists: Literal["midtrain", "prerank"] = "midtrain"
    list_size: int = 10
    limit: int = 0
    teacher: Literal["evidence", "endpoint", "local"] = "evidence"
    sampling: Literal["rejection", "targeted"] = "rejection"
    attempts: int = 4
    temperature: float = 1.0
    max_tokens: int = 1024
    neighbours: int = 64
    folds: int = 5
    model: str = ""
    base_url: str = ""
    api_key_env: str = _incidental("OPENAI_API_KEY")
    concurrency: int = _incidental(8)
    timeout: float = _incidental(120.0)
    retries: int = _incidental(5)
    requests_per_minute: int = _incidental(0)
    price_prompt: float = 0.0
    price_completion: float = 0.0
    batch: int = _incidental(8)
    workers: int = _incidental(0)
    address: str = _incidental("")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("attempts", "max_tokens", "neighbours", "concurrency", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("limit", "retries", "requests_per_minute", "price_prompt", "price_completion", "workers"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("list_size", "folds"):
            if getattr(self, name) < 2:
                raise ValueError(f"{name} must be at least 2, got {getattr(self, name)}")
        if self.temperature < 0 or (self.temperature == 0 and self.teacher != "endpoint"):
            raise ValueError(f"temperature must be above 0, got {self.temperature}")
        if self.timeout <= 0:
            raise ValueError(f"timeout must be above 0, got {self.timeout}")
        # Neither message repeats the value, which may hold a key.
        if self.api_key_env and not VARIABLE.fullmatch(self.api_key_env):
            raise ValueError("api_key_env must be the name of an environment variable, and not the key itself")
        if self.base_url and not _is_plain_address(self.base_url):
            raise ValueError("base_url must be http:// or https://, a host and a path, without user, password or query")
        if self.teacher == "endpoint" and not (self.base_url and self.model):
            raise ValueError("teacher = 'endpoint' needs base_url (http://HOST:PORT/v1) and model (its name there)")
        if self.teacher == "local" and not self.model:
            raise ValueError("teacher = 'local' needs model, a folder with a causal language model")

    @property
    def rounds(self) -> int:
        """Attempts that may differ: shown the target, the evidence teacher always says the same."""
        return 1 if (self.teacher, self.sampling) == ("evidence", "targeted") else self.attempts

    def endpoint(self, *, workers: int = 1) -> Endpoint:
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
            temperature=self.temperature,
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
