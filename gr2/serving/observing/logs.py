"""The server's log: a line of text or of JSON an event, on standard error. No line holds content of a request."""

from __future__ import annotations

import datetime
import json
import logging
import sys
import traceback

from gr2.errors import ConfigError

__all__ = ["JsonFormatter", "TextFormatter", "configure_logs"]

STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def _fields(record: logging.LogRecord) -> dict[str, object]:
    """What `extra` has added; names with an underscore are other libraries' own."""
    return {key: value for key, value in vars(record).items() if key not in STANDARD and not key.startswith("_")}


def _frames(record: logging.LogRecord) -> list[str]:
    """The exception's type and where it went, without its message: a message may quote the request."""
    if not record.exc_info or record.exc_info[1] is None:
        return []
    error = record.exc_info[1]
    places = [f"{frame.filename}:{frame.lineno} in {frame.name}" for frame in traceback.extract_tb(error.__traceback__)]
    return [*places, f"{type(error).__module__}.{type(error).__qualname__}"]


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message, the fields of `extra`, and an exception's frames."""

    def format(self, record: logging.LogRecord) -> str:
        """See logging.Formatter."""
        when = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line = {
            "time": when.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if frames := _frames(record):
            line["exception"] = frames
        return json.dumps(line, ensure_ascii=False, default=str)


class TextFormatter(logging.Formatter):
    """Time, level, logger and message; then the fields of `extra` and an exception's frames."""

    def format(self, record: logging.LogRecord) -> str:
        """See logging.Formatter."""
        fields = [f"{key}={value}" for key, value in _fields(record).items()]
        head = f"{self.formatTime(record)} {record.levelname.lower()} {record.name}: {record.getMessage()}"
        return "\n  ".join([" ".join([head, *fields]), *_frames(record)])


def configure_logs(style: str, level: str = "info") -> None:
    """Log everything from `level` on; `style` is "text" or "json". Raises ConfigError for other values."""
    formatters = {"text": TextFormatter, "json": JsonFormatter}
    if style not in formatters or level.upper() not in logging.getLevelNamesMapping():
        raise ConfigError(f"the log's format is text or json and its level debug to critical, got {style}, {level}")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatters[style]())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
