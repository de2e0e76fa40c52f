"""Logs as JSON lines on stderr, each with the request that it belongs to. Never a key, never a file's content."""

import json
import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime

from store.settings import Settings

REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)
FIELDS = ("method", "route", "status", "ms", "project")


class JsonLines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "request_id": REQUEST_ID.get(),
        }
        line |= {field: getattr(record, field) for field in FIELDS if hasattr(record, field)}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class PlainLines(logging.Formatter):
    """Lines for people."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        fields = [f"{field}={getattr(record, field)}" for field in FIELDS if hasattr(record, field)]
        request_id = REQUEST_ID.get()
        fields += [f"request_id={request_id}"] if request_id else []
        return " ".join([super().format(record), *fields])


def set_up_logs(settings: Settings) -> None:
    """Send this program's and uvicorn's logs to stderr in the form that the settings name. The access log is ours."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        JsonLines() if settings.log_format == "json" else PlainLines("%(asctime)s %(levelname)s %(name)s: %(message)s")
    )
    for name in ("semievol", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)
    logging.getLogger("uvicorn.error").handlers = []
    access = logging.getLogger("uvicorn.access")
    access.handlers, access.propagate, access.disabled = [], False, True
