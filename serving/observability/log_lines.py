"""What a server says on stderr: lines to read, or one JSON object a line for machines."""

import json
import logging
import time
from datetime import UTC, datetime
from typing import Literal

from serving.observability.telemetry import Call, current_call

LogFormat = Literal["text", "json"]

_EXTRAS = ("defect", "method", "code", "milliseconds", "stages", "unsaid")
"""What a record may carry besides its message."""
_SLOW_EVERY_S = 1.0
_LOGGER = logging.getLogger("cascade.serving")


def say(log_format: LogFormat) -> None:
    """Have everything that `cascade` logs from INFO on said in this process, in one form."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if log_format == "json" else TextLines())
    logger = logging.getLogger("cascade")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)


class JsonLines(logging.Formatter):
    """time, level, logger and message; request_id and generation of the call that it is about, where there is one;
    defect where a caller was told one; error with the traceback."""

    def format(self, record: logging.LogRecord) -> str:
        call = current_call()
        fields = {
            "time": _time(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "request_id": call.request_id,
            "generation": call.generation,
            **{name: getattr(record, name, "") for name in _EXTRAS},
            "error": self.formatException(record.exc_info) if record.exc_info else "",
        }
        return json.dumps({name: value for name, value in fields.items() if value or name == "message"})


class TextLines(logging.Formatter):
    """The same for people; a traceback stands below its line."""

    def format(self, record: logging.LogRecord) -> str:
        request_id = current_call().request_id
        about = f" [{request_id}]" if request_id else ""
        line = f"{_time(record)} {record.levelname} {record.name}{about}: {record.getMessage()}".replace("\n", "\\n")
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class SlowCalls:
    """Says of a call that took longer than `slow_ms` where the time went; once a second at most, with how many others
    were as slow since."""

    def __init__(self, slow_ms: float) -> None:
        self._slow_ms = slow_ms
        self._again_at = 0.0
        self._unsaid = 0

    def __call__(self, call: Call) -> None:
        if call.ms <= self._slow_ms:
            return
        now = time.monotonic()
        if now < self._again_at:
            self._unsaid += 1
            return
        self._again_at, unsaid, self._unsaid = now + _SLOW_EVERY_S, self._unsaid, 0
        stages = {name: round(ms, 2) for name, ms in call.trace.stage_ms.items()} if call.trace is not None else {}
        _LOGGER.warning(
            "%s took %.0f ms%s%s",
            call.method,
            call.ms,
            "".join(f", {name} {ms:g}" for name, ms in stages.items()),
            f"; {unsaid} others were slow" if unsaid else "",
            extra={
                "method": call.method,
                "code": call.code,
                "milliseconds": round(call.ms, 2),
                "stages": stages,
                "unsaid": unsaid,
            },
        )


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
