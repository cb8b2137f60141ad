"""Shadow answers: what another arm would have said, computed beside the real answer and logged, never shown.

One thread of low priority and a short queue: a shadow that is slow, or hangs, costs the shadows after it and nothing
else. What does not fit into the queue is dropped and counted.
"""

import logging
import os
import queue
import threading
from contextlib import suppress
from dataclasses import dataclass

from protos.impression_pb2 import Impression
from serving.answers import record
from serving.codec import query_of
from serving.experiments.assignment import Shadow
from serving.generation import Generation
from serving.observability.telemetry import Telemetry
from serving.parts import Log

_LOGGER = logging.getLogger("cascade.serving")
_NICEST = 19


@dataclass(frozen=True, slots=True)
class _Job:
    asked: Impression
    generation: Generation
    log: Log


class ShadowRunner:
    """
    Args:
        budget_s: for each shadow, as of its deadline.
        waiting: shadows that may wait.
    """

    def __init__(self, telemetry: Telemetry, *, budget_s: float, waiting: int = 16) -> None:
        self.telemetry = telemetry
        self._budget_s = budget_s
        self._queue: queue.Queue[_Job] = queue.Queue(maxsize=waiting)
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None

    def offer(self, asked: Impression, shadow: Shadow, generation: Generation, log: Log) -> None:
        """Compute it when there is time, or never; returns at once.

        Args:
            asked: the asking half of what was shown, with the user's history; not kept.
        """
        if self._queue.full():
            self.telemetry.add("shadow", "dropped")
            return
        beside = Impression()
        beside.CopyFrom(asked)
        beside.shadow_of = asked.request_id
        beside.request_id = shadow_id(asked.request_id, shadow.experiment)
        beside.experiment_arms[shadow.experiment] = shadow.arm
        for name in ("variation", "drafted"):
            beside.ClearField(name)  # of what was shown
        if shadow.side.variation:
            beside.variation.ParseFromString(shadow.side.variation)
        try:
            self._queue.put_nowait(_Job(beside, generation, log))
        except queue.Full:
            self.telemetry.add("shadow", "dropped")
        if self._thread is None:
            self._start()

    def _start(self) -> None:
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="shadow", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        with suppress(OSError, AttributeError):  # a thread's own priority is a matter of Linux
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICEST)
        while True:
            job = self._queue.get()
            try:
                self.telemetry.add("shadow", self._answer(job))
            except Exception:
                if not self.telemetry.counts("shadow").get("failed"):
                    told = "a shadow of %s failed; this is told once and counted from now on"
                    _LOGGER.warning(told, job.asked.shadow_of, exc_info=True)
                self.telemetry.add("shadow", "failed")

    def _answer(self, job: _Job) -> str:
        query = query_of(job.asked, job.generation)
        answer = job.generation.pipeline.run(query, budget_s=self._budget_s)
        logged = record(job.asked, query=query, answer=answer, generation=job.generation, eligible=False)
        if not job.log.available:
            return "dropped"
        job.log.append(logged)
        return "logged"


def shadow_id(request_id: str, experiment: str) -> str:
    """Request id of the shadow that an experiment computes beside a request."""
    return f"{request_id}/shadow/{experiment}"
