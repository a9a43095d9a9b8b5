"""Structured logs of the agent on stderr: one JSON object or one logfmt line per record.

Every module logs through `logging.getLogger(__name__)` and puts facts into `extra`:
`log.info("session opened", extra={"endpoint": address})`. Nobody parses the text of a message.
"""

import json
import logging
import sys
from collections.abc import Iterator
from datetime import UTC, datetime

MAX_VALUE = 2000
_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


def _fields(record: logging.LogRecord) -> Iterator[tuple[str, object]]:
    moment = datetime.fromtimestamp(record.created, UTC)
    yield "time", f"{moment:%FT%T}.{int(record.msecs):03d}Z"
    yield "level", record.levelname.lower()
    yield "logger", record.name
    yield "message", record.getMessage()
    for key, value in record.__dict__.items():
        if key not in _STANDARD:
            yield key, value
    if record.exc_info:
        yield "error", logging.Formatter().formatException(record.exc_info)


def _bounded(value: object) -> object:
    if value is None or isinstance(value, bool | int | float):
        return value
    text = str(value)
    return text if len(text) <= MAX_VALUE else text[:MAX_VALUE] + "..."


class JsonFormatter(logging.Formatter):
    """For collectors."""

    def format(self, record: logging.LogRecord) -> str:
        return json.dumps({key: _bounded(value) for key, value in _fields(record)})


class LogfmtFormatter(logging.Formatter):
    """For people and `journalctl`."""

    def format(self, record: logging.LogRecord) -> str:
        parts = []
        for key, value in _fields(record):
            text = str(_bounded(value))
            plain = text and not any(c in text for c in ' "=\n')
            parts.append(f"{key}={text if plain else json.dumps(text)}")
        return " ".join(parts)


def set_up(level: str, form: str) -> None:
    """Send everything to stderr. `form` is `json` or `logfmt`; replaces what was set up before."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else LogfmtFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.getLogger("asyncio").setLevel("WARNING")
    logging.raiseExceptions = False  # a full disk behind stderr must not take the agent down
    # Facts that nobody reads cost time in every record.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
