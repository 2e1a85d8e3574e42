"""A teacher behind an OpenAI-compatible endpoint: hosted, vLLM, `transformers serve`.

What a call may meet, and what becomes of it:

    429                      tried again after Retry-After, which holds all calls back, or else after a back-off
    408, 409, 5xx            tried again after Retry-After, or else after a back-off
    refused, reset, hang     tried again after a back-off; a call that takes longer than `timeout` is given up
    200 without an answer    tried again after a back-off
    other 4xx                not tried again: the request is at fault
    401, 403, 404, no quota  the stage stops: no request can do better
    finish_reason `length`   an answer that was paid for and is refused as `truncated`; `content_filter` as `filtered`
    anything as content      an answer that was paid for, to be read strictly

Calls that still fail after `retries` more tries have no answer, and after `FAILURES` of them in a row the stage stops.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import openai
from openai.types.chat import ChatCompletion

from gr2.errors import ConfigError, Gr2Error
from gr2.training.teachers.pace import LONGEST_WAIT, Pace, backoff, retry_after
from gr2.training.teachers.teacher import Reply, TeacherRequest

__all__ = ["FAILURES", "Endpoint", "EndpointTeacher", "unwrap"]

FAILURES = 20
FATAL = (401, 403, 404)
AGAIN = (408, 409, 429)
SHOWN = 300
THOUGHT = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)
FENCE = "```"
UNFINISHED = {"length": "truncated", "content_filter": "filtered"}
PER = 1_000_000  # tokens that a price is for


@dataclass(frozen=True)
class Endpoint:
    """Where the model is and how it may be asked; prices are per million tokens.

    `api_key_env` names the environment variable with the key, "" where the server wants none.
    """

    base_url: str
    model: str
    api_key_env: str
    concurrency: int
    timeout: float
    retries: int
    requests_per_minute: int
    price_prompt: float
    price_completion: float
    temperature: float
    max_tokens: int

    def key(self) -> str:
        """The key. Raises ConfigError if its variable is not set."""
        if not self.api_key_env:
            return "none"  # the client wants one
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            raise ConfigError(
                f"the environment variable {self.api_key_env} is not set: it must hold the API key of {self.base_url}; "
                'for a server without keys, set api_key_env = ""'
            )
        return key


def unwrap(text: str) -> str:
    """An answer without the thoughts before it and the Markdown fence around it, which many models add.

    The time is linear in its length: some models end in nothing but line breaks.
    """
    text = THOUGHT.sub("", text).strip()
    opening, _, rest = text.partition("\n")
    body, line_break, closing = rest.rpartition("\n")
    fenced = opening.rstrip() in (FENCE, f"{FENCE}json") and line_break and closing.strip() == FENCE
    return body.strip() if fenced else text


class EndpointTeacher:
    """Asks an endpoint, `concurrency` requests at once."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint, self._key = endpoint, endpoint.key()
        # Over all that is asked: a judge asks for a few replies at a time.
        self._failed = 0

    def answer(self, requests: Iterable[TeacherRequest]) -> Iterator[tuple[TeacherRequest, Reply]]:
        """Every request with its reply, as they come. Raises Gr2Error where no request can be answered.

        Whoever stops listening cancels the calls under way.
        """
        waiting = iter(requests)
        with asyncio.Runner() as runner:
            calls = _Calls(self._endpoint, self._key)
            pending: set[asyncio.Task[tuple[TeacherRequest, Reply]]] = set()
            try:
                while True:
                    new = islice(waiting, self._endpoint.concurrency - len(pending))
                    pending |= {runner.get_loop().create_task(calls.ask(request)) for request in new}
                    if not pending:
                        return
                    done, pending = runner.run(_some(pending))
                    for task in done:
                        request, reply = task.result()
                        self._failed = 0 if reply.final else self._failed + 1
                        yield request, reply
                        if self._failed >= FAILURES:
                            raise self._gone(reply)
            finally:
                for task in pending:
                    task.cancel()
                runner.run(calls.close(pending))

    def _gone(self, reply: Reply) -> Gr2Error:
        return Gr2Error(
            f"{self._endpoint.base_url}: {FAILURES} requests in a row were not answered, the last one because of "
            f"{reply.reason}: {reply.detail}; the answers so far are kept, and the same command goes on from there"
        )


async def _some(tasks: set[Any]) -> tuple[set[Any], set[Any]]:
    return await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)


class _Calls:
    """The client, and the pace that all calls keep."""

    def __init__(self, endpoint: Endpoint, key: str) -> None:
        self._endpoint, self._key = endpoint, key
        self._pace = Pace(endpoint.requests_per_minute)
        # Our own tries, so that each of them keeps the pace and is counted.
        self._client = openai.AsyncOpenAI(
            base_url=endpoint.base_url, api_key=key, max_retries=0, timeout=endpoint.timeout
        )

    async def close(self, pending: set[Any]) -> None:
        """End the calls that are under way and close the connections."""
        await asyncio.gather(*pending, return_exceptions=True)
        await self._client.close()

    async def ask(self, request: TeacherRequest) -> tuple[TeacherRequest, Reply]:
        """The reply, after as many tries as it takes or may take."""
        for tried in range(1, self._endpoint.retries + 2):
            await self._pace.turn()
            try:
                async with asyncio.timeout(self._endpoint.timeout):
                    completion = await self._client.chat.completions.create(
                        model=self._endpoint.model,
                        messages=list(request.messages),  # type: ignore[arg-type]
                        temperature=self._endpoint.temperature,
                        max_tokens=self._endpoint.max_tokens,
                    )
            # ValueError: the client lets those of its JSON parser through.
            except (TimeoutError, ValueError, openai.APIError) as error:
                reason, again, wait = self._failure(error)
                detail = self._scrubbed(str(error) or f"no answer within {self._endpoint.timeout:g} s")[:SHOWN]
            else:
                reply = self._read(completion, tried - 1)
                if reply is not None:
                    return request, reply
                reason, again, wait = "not-an-answer", True, None
                detail = self._scrubbed(f"expected a chat completion, got {completion!r}")[:SHOWN]
            if not again or tried > self._endpoint.retries:
                break
            await asyncio.sleep(backoff(tried) if wait is None else wait)
        return request, Reply(None, reason, detail, final=False, retries=tried - 1)

    def _failure(self, error: Exception) -> tuple[str, bool, float | None]:
        """Why a call failed, whether to try again, and after how many seconds if the server says so."""
        if isinstance(error, TimeoutError | openai.APITimeoutError):
            return "timeout", True, None
        if isinstance(error, openai.APIConnectionError):
            return "connection", True, None
        if not isinstance(error, openai.APIStatusError):
            return "not-an-answer", True, None
        status = error.status_code
        if status in FATAL or error.code == "insufficient_quota":
            raise Gr2Error(f"{self._endpoint.base_url} refuses: {self._scrubbed(str(error))[:SHOWN]}") from None
        wait = retry_after(error.response.headers)
        if wait is not None and wait > LONGEST_WAIT:
            raise Gr2Error(
                f"{self._endpoint.base_url} asks to wait for {wait:.0f} s; the answers so far are kept, and the same "
                "command goes on from there"
            ) from None
        if status == 429:
            self._pace.hold(wait or 0.0)
            return "rate-limited", True, wait
        return ("server-error", True, wait) if status >= 500 or status in AGAIN else ("bad-request", False, None)

    def _read(self, completion: object, retries: int) -> Reply | None:
        """The reply in a completion; None if it is none. The client does not check what servers send."""
        choices = completion.choices if isinstance(completion, ChatCompletion) else None
        if not isinstance(choices, list) or not choices or getattr(choices[0], "message", None) is None:
            return None
        content, finish = choices[0].message.content, choices[0].finish_reason
        prompt, answer = (
            getattr(completion.usage, f"{name}_tokens", None)  # type: ignore[attr-defined]
            for name in ("prompt", "completion")
        )
        prices = ((prompt, self._endpoint.price_prompt), (answer, self._endpoint.price_completion))
        cost = sum((tokens or 0) * price / PER for tokens, price in prices)
        text = self._scrubbed(content) if isinstance(content, str) else None
        reason = UNFINISHED.get(finish or "") or (None if text and text.strip() else "empty")
        return Reply(text, reason, prompt_tokens=prompt, completion_tokens=answer, cost=cost, retries=retries)

    def _scrubbed(self, text: str) -> str:
        """The text without the key, should the server have sent it back."""
        return text.replace(self._key, "***") if self._endpoint.api_key_env else text
