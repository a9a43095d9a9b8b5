"""Structured logs on stderr: one logfmt line, or one JSON object, per record.

Set up by `main.py`. Modules log through `logging.getLogger(__name__)` with facts in `extra`.
"""

import json
import logging
import sys
from collections.abc import Iterator
from datetime import UTC, datetime

FORMATS = ("logfmt", "json")
LEVELS = ("debug", "info", "warning", "error")
_VALUE_MAX = 2000
_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


class StructuredFormatter(logging.Formatter):
    """`json` or logfmt."""

    def __init__(self, *, as_json: bool) -> None:
        super().__init__()
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        facts = dict(self._facts(record))
        if self._as_json:
            return json.dumps(facts, ensure_ascii=False)
        return " ".join(f"{key}={_quoted(value)}" for key, value in facts.items())

    def _facts(self, record: logging.LogRecord) -> Iterator[tuple[str, object]]:
        moment = datetime.fromtimestamp(record.created, UTC)
        yield "time", f"{moment:%FT%T}.{int(record.msecs):03d}Z"
        yield "level", record.levelname.lower()
        yield "logger", record.name.removeprefix("orchestrator.")
        yield "message", _bounded(record.getMessage())
        for key, value in record.__dict__.items():
            if key not in _STANDARD:
                yield key, _bounded(value)
        if record.exc_info:
            yield "error", self.formatException(record.exc_info)


def set_up(level: str, form: str) -> None:
    """Replaces what was set up before. Raises KeyError for an unknown level."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(StructuredFormatter(as_json=form == "json"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.getLevelNamesMapping()[level.upper()])
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    logging.raiseExceptions = False  # a full disk behind stderr must not stop the orchestrator


def _bounded(value: object) -> object:
    if value is None or isinstance(value, bool | int | float):
        return value
    text = str(value)
    return text if len(text) <= _VALUE_MAX else text[:_VALUE_MAX] + "..."


def _quoted(value: object) -> str:
    text = str(value)
    plain = text and not any(c in text for c in ' "=\n')
    return text if plain else json.dumps(text, ensure_ascii=False)
