"""Every way in which an endpoint may misbehave, over real HTTP on loopback."""

from __future__ import annotations

import email.utils
import threading
import time
from typing import Any

import pytest

from gr2.errors import ConfigError, Gr2Error
from gr2.training.teachers import pace
from gr2.training.teachers.endpoint import FAILURES, Endpoint, EndpointTeacher, unwrap
from gr2.training.teachers.teacher import Reply, TeacherRequest

KEY = "sk-secret-of-the-test"


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEACHER_KEY", KEY)
    monkeypatch.setattr(pace, "FIRST_WAIT", 0.05)


def endpoint(url: str, **changed: Any) -> Endpoint:
    values: dict[str, Any] = {
        "base_url": url,
        "model": "big",
        "api_key_env": "TEACHER_KEY",
        "concurrency": 4,
        "timeout": 10.0,
        "retries": 2,
        "requests_per_minute": 0,
        "price_prompt": 2.0,
        "price_completion": 10.0,
        "temperature": 0.7,
        "max_tokens": 64,
    }
    return Endpoint(**values | changed)


def requests(count: int) -> list[TeacherRequest]:
    return [TeacherRequest(row, 0, ({"role": "user", "content": f"list {row}"},), 1) for row in range(count)]


def ask(url: str, count: int = 1, **changed: Any) -> list[Reply]:
    replies = {
        request.row: reply for request, reply in EndpointTeacher(endpoint(url, **changed)).answer(requests(count))
    }
    return [replies[row] for row in range(count)]


def test_answers_come_with_their_tokens_and_cost(chat: Any) -> None:
    with chat.serving(lambda call: chat.completion("yes", tokens=(1000, 200))) as server:
        replies = ask(server.url, 3)
    assert replies == [Reply("yes", prompt_tokens=1000, completion_tokens=200, cost=0.004)] * 3
    sent = server.calls[0].body
    assert (sent["model"], sent["temperature"], sent["max_tokens"]) == ("big", 0.7, 64)
    assert server.calls[0].headers["authorization"] == f"Bearer {KEY}"


def test_a_server_that_counts_no_tokens_is_believed(chat: Any) -> None:
    with chat.serving(lambda call: chat.completion("yes", tokens=None)) as server:
        assert ask(server.url) == [Reply("yes")]


def test_retry_after_holds_all_calls_back(chat: Any) -> None:
    def respond(call: Any) -> Any:
        limited = chat.Response(429, b'{"error": {"message": "slow down"}}', {"retry-after": "1.2"})
        return limited if call.number == 0 else chat.completion("yes")

    with chat.serving(respond) as server:
        (reply,) = ask(server.url)
    assert (reply.text, reply.retries) == ("yes", 1)
    assert server.calls[1].at - server.calls[0].at >= 1.2


def test_calls_that_have_not_begun_wait_for_retry_after_too(chat: Any) -> None:
    def respond(call: Any) -> Any:
        return chat.Response(429, b"{}", {"retry-after": "1"}) if call.number == 0 else chat.completion("yes")

    with chat.serving(respond) as server:
        assert [reply.text for reply in ask(server.url, 3, concurrency=1)] == ["yes"] * 3
    assert server.calls[1].at - server.calls[0].at >= 1.0


def test_a_wait_of_an_hour_stops_the_stage(chat: Any) -> None:
    date = email.utils.formatdate(time.time() + 3600, usegmt=True)
    with (
        chat.serving(lambda call: chat.Response(429, b"{}", {"retry-after": date})) as server,
        pytest.raises(Gr2Error, match=r"asks to wait for 3\d\d\d s.*same command goes on"),
    ):
        ask(server.url)


@pytest.mark.parametrize("status", [500, 502, 503, 408, 409])
def test_errors_of_the_server_are_tried_again(chat: Any, status: int) -> None:
    def respond(call: Any) -> Any:
        return chat.Response(status, b"oops") if call.number == 0 else chat.completion("yes")

    with chat.serving(respond) as server:
        (reply,) = ask(server.url)
    assert (reply.text, reply.retries, len(server.calls)) == ("yes", 1, 2)


@pytest.mark.parametrize(("status", "reason"), [(500, "server-error"), (429, "rate-limited")])
def test_a_call_that_fails_every_time_has_no_answer_and_is_not_final(chat: Any, status: int, reason: str) -> None:
    with chat.serving(lambda call: chat.Response(status, b'{"error": {"message": "no"}}')) as server:
        (reply,) = ask(server.url, retries=1)
    assert (reply.text, reply.reason, reply.final, reply.retries) == (None, reason, False, 1)
    assert len(server.calls) == 2


def test_a_hang_is_given_up_and_tried_again(chat: Any) -> None:
    never = threading.Event()

    def respond(call: Any) -> Any:
        return chat.Response(until=never) if call.number == 0 else chat.completion("yes")

    with chat.serving(respond) as server:
        (reply,) = ask(server.url, timeout=0.5)
    assert (reply.text, reply.retries) == ("yes", 1)


def test_a_server_that_only_hangs_costs_its_time_and_no_more(chat: Any) -> None:
    began = time.monotonic()
    with chat.serving(lambda call: chat.Response(until=threading.Event())) as server:
        (reply,) = ask(server.url, timeout=0.3, retries=1)
    assert (reply.reason, reply.final) == ("timeout", False)
    assert time.monotonic() - began < 5


def test_a_reset_connection_is_tried_again(chat: Any) -> None:
    def respond(call: Any) -> Any:
        return chat.Response(reset=True) if call.number == 0 else chat.completion("yes")

    with chat.serving(respond) as server:
        (reply,) = ask(server.url)
    assert (reply.text, reply.retries) == ("yes", 1)


def test_a_refused_connection_is_no_answer(chat: Any) -> None:
    (reply,) = ask(chat.closed_port(), retries=1)
    assert (reply.text, reply.reason, reply.final, reply.retries) == (None, "connection", False, 1)


def test_a_truncated_answer_is_kept_with_its_cost_and_not_asked_again(chat: Any) -> None:
    with chat.serving(lambda call: chat.completion('{"expl', finish="length", tokens=(10, 64))) as server:
        (reply,) = ask(server.url)
    assert (reply.text, reply.reason, reply.final) == ('{"expl', "truncated", True)
    assert reply.completion_tokens == 64
    assert len(server.calls) == 1


@pytest.mark.parametrize(
    ("text", "finish", "reason"), [("a", "content_filter", "filtered"), ("", "stop", "empty"), (None, "stop", "empty")]
)
def test_an_answer_without_use_is_final(chat: Any, text: str | None, finish: str, reason: str) -> None:
    with chat.serving(lambda call: chat.completion(text, finish=finish)) as server:
        (reply,) = ask(server.url)
    assert (reply.reason, reply.final, len(server.calls)) == (reason, True, 1)


@pytest.mark.parametrize("body", [b"<html>busy</html>", b'{"choices": [', b'{"choices": []}', b"[]", b"null", b""])
@pytest.mark.parametrize("kind", ["application/json", "text/html"])
def test_a_200_that_is_no_completion_is_tried_again(chat: Any, body: bytes, kind: str) -> None:
    def respond(call: Any) -> Any:
        broken = chat.Response(body=body, headers={"content-type": kind})
        return broken if call.number == 0 else chat.completion("yes")

    with chat.serving(respond) as server:
        (reply,) = ask(server.url)
    assert (reply.text, reply.retries) == ("yes", 1)


def test_a_request_at_fault_is_not_tried_again(chat: Any) -> None:
    with chat.serving(lambda call: chat.Response(400, b'{"error": {"message": "context too long"}}')) as server:
        (reply,) = ask(server.url)
    assert (reply.reason, reply.final, len(server.calls)) == ("bad-request", False, 1)
    assert "context too long" in reply.detail


@pytest.mark.parametrize("status", [401, 403, 404])
def test_what_no_request_can_mend_stops_at_once(chat: Any, status: int) -> None:
    with (
        chat.serving(lambda call: chat.Response(status, b'{"error": {"message": "no such thing"}}')) as server,
        pytest.raises(Gr2Error, match="no such thing"),
    ):
        ask(server.url, 50, concurrency=1)
    assert len(server.calls) == 1


def test_an_account_without_quota_stops_at_once(chat: Any) -> None:
    body = b'{"error": {"message": "pay first", "code": "insufficient_quota"}}'
    with chat.serving(lambda call: chat.Response(429, body)) as server, pytest.raises(Gr2Error, match="pay first"):
        ask(server.url)


def test_a_server_that_is_gone_stops_after_so_many_failures(chat: Any) -> None:
    with pytest.raises(Gr2Error, match=f"{FAILURES} requests in a row.*connection.*same command goes on"):
        ask(chat.closed_port(), 100, retries=0)


def test_failures_add_up_over_calls_that_ask_little(chat: Any) -> None:
    teacher = EndpointTeacher(endpoint(chat.closed_port(), retries=0))
    requests = [TeacherRequest(row, 0, ({"role": "user", "content": "rank"},), 1) for row in range(FAILURES // 2)]
    assert len(list(teacher.answer(requests))) == len(requests)
    with pytest.raises(Gr2Error, match=f"{FAILURES} requests in a row"):
        list(teacher.answer(requests))


def test_the_key_is_in_no_reply_and_no_error(chat: Any) -> None:
    echo = f'{{"error": {{"message": "wrong key {KEY}"}}}}'.encode()
    with chat.serving(lambda call: chat.Response(500, echo)) as server:
        (reply,) = ask(server.url, retries=0)
    assert "***" in reply.detail
    assert KEY not in reply.detail
    with chat.serving(lambda call: chat.completion(f"your key is {KEY}")) as server:
        assert ask(server.url)[0].text == "your key is ***"
    with chat.serving(lambda call: chat.Response(401, echo)) as server, pytest.raises(Gr2Error) as caught:
        ask(server.url)
    assert KEY not in str(caught.value)


def test_a_key_that_is_not_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEACHER_KEY")
    with pytest.raises(ConfigError, match=r"TEACHER_KEY is not set.*api_key_env"):
        EndpointTeacher(endpoint("http://127.0.0.1:1/v1"))
    assert EndpointTeacher(endpoint("http://127.0.0.1:1/v1", api_key_env=""))


def test_as_many_requests_as_allowed_are_under_way(chat: Any) -> None:
    together, most, lock = 0, 0, threading.Lock()
    gate = threading.Event()

    def respond(call: Any) -> Any:
        nonlocal together, most
        with lock:
            together += 1
            most = max(most, together)
            if together == 3:
                gate.set()
        gate.wait(5)
        with lock:
            together -= 1
        return chat.completion("yes")

    with chat.serving(respond) as server:
        assert len(ask(server.url, 12, concurrency=3)) == 12
    assert most == 3


def test_requests_keep_the_pace(chat: Any) -> None:
    with chat.serving(lambda call: chat.completion("yes")) as server:
        began = time.monotonic()
        ask(server.url, 5, requests_per_minute=300)
    assert time.monotonic() - began >= 4 * 0.2


def test_who_stops_listening_ends_the_calls(chat: Any) -> None:
    never = threading.Event()

    def respond(call: Any) -> Any:
        return chat.completion("yes") if call.number == 0 else chat.Response(until=never)

    with chat.serving(respond) as server:
        answers = EndpointTeacher(endpoint(server.url, concurrency=2)).answer(requests(10))
        assert next(answers)[1].text == "yes"
        began = time.monotonic()
        answers.close()  # type: ignore[attr-defined]
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ('{"a": 1}', '{"a": 1}'),
        ('<think>\nwell\n</think>\n\n{"a": 1}', '{"a": 1}'),
        ('```json\n{"a": 1}\n```', '{"a": 1}'),
        ('<think></think>```\n{"a": 1}\n```\n', '{"a": 1}'),
        ("Sure! ```json\n{}\n```", "Sure! ```json\n{}\n```"),
    ],
)
def test_thoughts_and_fences_are_taken_off(text: str, plain: str) -> None:
    assert unwrap(text) == plain


def test_line_breaks_without_end_are_taken_off_at_once() -> None:
    began = time.monotonic()
    assert unwrap("```json\n" + "\n" * 100_000 + "x").endswith("\nx")
    assert unwrap("```json\nx" + "\n" * 100_000 + "```") == "x"
    assert time.monotonic() - began < 2
