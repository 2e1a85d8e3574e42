"""The log: one line an event, and nothing of a request in it."""

from __future__ import annotations

import json
import logging

import pytest

from gr2.errors import ConfigError
from gr2.serving.observing.logs import JsonFormatter, TextFormatter, configure_logs


def failing() -> logging.LogRecord:
    try:
        raise ValueError("secret item 42")
    except ValueError as error:
        record = logging.makeLogRecord({"name": "gr2.x", "levelno": logging.ERROR, "levelname": "ERROR", "msg": "a %s"})
        record.args = ("request failed",)
        record.exc_info = (ValueError, error, error.__traceback__)
        record.bundle = "v1"
        record._of_another_library = 1
        return record


def test_a_json_line_has_the_fields_and_the_frames_without_the_message() -> None:
    line = JsonFormatter().format(failing())
    assert "\n" not in line
    found = json.loads(line)
    assert found["level"] == "error"
    assert found["message"] == "a request failed"
    assert found["bundle"] == "v1"
    assert found["time"].endswith("+00:00")
    assert found["exception"][-1] == "builtins.ValueError"
    assert "test_logs.py" in found["exception"][0]
    assert "_of_another_library" not in found
    assert "secret" not in line


def test_a_text_line_holds_the_same() -> None:
    text = TextFormatter().format(failing())
    assert "error gr2.x: a request failed bundle=v1" in text
    assert "test_logs.py" in text
    assert "secret" not in text


def test_an_unknown_format_or_level_is_refused() -> None:
    for style, level in (("xml", "info"), ("json", "loud")):
        with pytest.raises(ConfigError, match=f"got {style}, {level}"):
            configure_logs(style, level)


def test_configured_logs_go_to_standard_error_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    try:
        configure_logs("json", "warning")
        logging.getLogger("gr2").warning("a bundle was refused", extra={"bundle": "b"})
        logging.getLogger("gr2").info("not shown")
        (line,) = capsys.readouterr().err.splitlines()
        assert json.loads(line)["bundle"] == "b"
    finally:
        root.handlers[:] = before
        root.setLevel(level)
