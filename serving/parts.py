"""What services are made of, as they see it, and what they share."""

import logging
import time
import uuid
from collections.abc import Sequence
from typing import Protocol

import grpc

from protos.impression_pb2 import Impression, Outcome
from serving.clock import now_ms
from serving.generation import Generation
from serving.log.catalog_log import UnknownChange
from serving.log.impression_log import CorruptLog, LogUnavailable, Status
from serving.settings import ServiceSettings
from serving.state.redis_store import LeftAlone, StateUnavailable
from serving.state.replies import Answered
from serving.state.user_state import Claim, Recalled, UserEvent, Wanted

_LOGGER = logging.getLogger("cascade.serving")
_FOR_EVER_S = 86_400.0
"""A caller that sets no deadline has one in gRPC's far future, which no lock can wait for."""


class ActiveGeneration(Protocol):
    """Who knows which generation serves; None before there is one. `Generations` is one."""

    @property
    def active(self) -> Generation | None: ...
    def catch_up(self) -> Generation | None: ...
    def kept(self, generation: str) -> Generation | None: ...


class Log(Protocol):
    """Where impressions and outcomes go; `ImpressionLog` is one."""

    @property
    def available(self) -> bool: ...
    def append(self, impression: Impression) -> None: ...
    def write_outcomes(self, outcomes: Sequence[Outcome]) -> list[Status]: ...
    def find(self, request_id: str) -> Impression | None: ...


class State(Protocol):
    """What users did and were shown lately, and which request ids are answered; `UserState` is one."""

    def recall(self, wanted: Wanted) -> Recalled: ...
    def renew(self, claim: Claim) -> None: ...
    def release(self, claim: Claim) -> None: ...
    def answer(self, claim: Claim, answered: Answered) -> None: ...
    def show(self, user_id: str, item_key_K: Sequence[int], *, time_ms: int, most: int, ttl_s: int) -> None: ...
    def push(self, events: Sequence[UserEvent]) -> list[bool]: ...
    def forget(self, user_id: str) -> None: ...


def warn(error: Exception, what: str) -> None:
    """What is expected to happen gets a line, a defect its traceback; what goes on is not said again each time."""
    if isinstance(error, LeftAlone):
        return
    expected = isinstance(error, LogUnavailable | StateUnavailable | CorruptLog | UnknownChange)
    _LOGGER.warning("%s: %s", what, error, exc_info=None if expected else error)


def server_time_ms(settings: ServiceSettings) -> int | None:
    """As of when a call is answered; None where the caller's clock is trusted."""
    return None if settings.clock == "request" else now_ms()


def deadline(context: grpc.ServicerContext, settings: ServiceSettings) -> float:
    """`time.monotonic` at which the caller stops waiting."""
    remaining_s = context.time_remaining()
    unset = remaining_s is None or remaining_s > _FOR_EVER_S
    return time.monotonic() + (settings.deadline_s if unset else remaining_s)


def new_request_id(time_ms: int) -> str:
    """For a request without one. It sorts by time."""
    return f"{time_ms:012x}{uuid.uuid4().hex[:20]}"
