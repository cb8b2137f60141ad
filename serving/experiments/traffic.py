"""Who answers each request: the traffic in force over the generations that its arms name.

Traffic is an entry of the catalogue log, so all servers of a store share it and it survives them. A server takes up
what another set with its next request, or, where arms name a generation that it does not hold, as soon as it is loaded;
until then the traffic before stays in force here.
"""

import logging
import threading
from contextlib import closing

from index.generations import GenerationStore
from protos.admin_pb2 import SetTrafficRequest
from protos.impression_pb2 import Impression, Variation
from serving.experiments.assignment import INTERLEAVE, Plan, Side, Traffic
from serving.experiments.drafting import check_teams
from serving.experiments.held import HeldGenerations
from serving.experiments.variants import varied
from serving.generation import Generation
from serving.generations import Generations
from serving.log.catalog_log import FILE, CatalogLog, Change, Entry, UnknownChange
from serving.log.impression_log import CorruptLog, LogUnavailable

MAX_GENERATIONS = 3
"""That arms may name; each is loaded beside the one in use."""
_LOGGER = logging.getLogger("cascade.serving")


class StaleTraffic(RuntimeError):
    """Somebody else set the traffic first."""

    def __init__(self, etag: str, now: str) -> None:
        super().__init__(f"etag: {etag!r} given, the traffic in force has {now!r}; read it with GetTraffic, try again")


class TrafficRouter:
    """Threads share it; for a request it takes no lock."""

    def __init__(self, generations: Generations) -> None:
        self._generations = generations
        self._held = HeldGenerations(generations)
        self._traffic = Traffic()
        self._seen = -1
        """Last change of the catalogue that was looked at for traffic."""
        self._setting = threading.Lock()
        self._variants: dict[Side, tuple[Generation, Generation]] = {}
        """By side, the generation as it is and as the side changes it."""
        self.follow_error = ""
        """Why the traffic in force could not be taken up; empty where it was."""

    @property
    def traffic(self) -> Traffic:
        return self._traffic

    def plan(self, asked: Impression, active: Generation) -> Plan:
        """What experiments make of a request, which is noted in it."""
        if active.catalog_seq > self._seen:
            self._look(active.catalog_seq)
        traffic = self._traffic
        plan = traffic.plan(asked)
        asked.traffic = traffic.etag
        asked.experiment_arms.update(plan.arms)
        return plan

    def generation(self, side: Side, active: Generation) -> Generation:
        """Who answers for a side; made once for each state of the catalogue.

        Raises:
            KeyError: the side's generation is not at hand.
            ValueError: the generation does not have what the side changes.
        """
        base = self._held.get(side.generation) if side.generation else active
        if not side.variation:
            return base
        known = self._variants.get(side)
        if known is None or known[0] is not base:
            known = self._variants[side] = (base, varied(base, Variation.FromString(side.variation)))
        return known[1]

    def set(self, request: SetTrafficRequest, *, time_ms: int) -> Traffic:
        """Put this traffic in the place of what is in force: loaded, warm, on disk and in force when it returns.

        Raises:
            StaleTraffic: somebody else was first.
            ValueError: what is wrong with which experiment.
            UnknownGeneration, CorruptGeneration, GenerationMismatch: see `Generation.load`.
        """
        traffic = Traffic.of(request, "")
        if len(traffic.generations) > MAX_GENERATIONS:
            named = ", ".join(sorted(traffic.generations))
            raise ValueError(f"arms name the generations {named}; allowed: at most {MAX_GENERATIONS}")
        with self._setting:
            self._require(request.etag)
            self._held.hold(self._traffic.generations | traffic.generations)
            self._check(traffic)

            def plan(_: Generation) -> Change:
                self._require(request.etag)
                return SetTrafficRequest(experiments=request.experiments, reason=request.reason)

            self._generations.change(plan, time_ms=time_ms)
            self._look(self._generations.catalog.head())
            self._held.hold(self._traffic.generations)
            return self._traffic

    def take_back(self, experiment: str, arm: str, *, etag: str, reason: str, time_ms: int) -> bool:
        """Give an arm of a canary no more traffic, unless somebody has set the traffic since; whether that was done."""
        done = False

        def plan(_: Generation) -> Change | None:
            nonlocal done
            entry = self.entry()
            if entry is None or str(entry.seq) != etag:
                return None
            assert isinstance(entry.request, SetTrafficRequest)
            changed = SetTrafficRequest(experiments=entry.request.experiments, reason=reason)
            for each in (each for asked in changed.experiments if asked.name == experiment for each in asked.arms):
                each.weight = 0.0 if each.name == arm else each.weight
            done = True
            return changed

        with self._setting:
            self._generations.change(plan, time_ms=time_ms)
            self._look(self._generations.catalog.head())
        return done

    def follow(self) -> None:
        """Load what the traffic in force names, and take it up. What fails is told in `follow_error`, and what is in
        force here stays."""
        try:
            entry = self.entry()
            if entry is not None:
                with self._setting:
                    traffic = _traffic_of(entry)
                    if not self._holds(traffic):
                        self._held.hold(self._traffic.generations | traffic.generations)
                    self._look(self._generations.catalog.head())
                    self._held.hold(self._traffic.generations)
            self.follow_error = ""
        except Exception as error:
            message = str(error) or type(error).__name__
            if message != self.follow_error:
                unexpected = not isinstance(error, ValueError | OSError | LogUnavailable)
                _LOGGER.error("the traffic in force cannot be taken up: %s", message, exc_info=unexpected)
            self.follow_error = message

    def entry(self) -> Entry | None:
        """The last that set the traffic."""
        catalog = self._generations.catalog
        return catalog.traffic(until=catalog.head())

    def _look(self, seq: int) -> None:
        """Take up the traffic as of a change of the catalogue, if all that it names is at hand; else `follow` does."""
        self._seen = max(self._seen, seq)
        try:
            entry = self._generations.catalog.traffic(until=seq)
            if entry is None or entry.seq <= int(self._traffic.etag or 0):
                return
            traffic = _traffic_of(entry)
        except (CorruptLog, LogUnavailable, UnknownChange) as error:
            _LOGGER.warning("the traffic in force cannot be read: %s", error)
            return
        if self._holds(traffic):
            self._traffic, self._variants = traffic, {}
            told = ", ".join(each.name for each in traffic.experiments) or "no experiments"
            _LOGGER.info("traffic %s is in force: %s", traffic.etag, told)

    def _holds(self, traffic: Traffic) -> bool:
        return all(each in self._held for each in traffic.generations)

    def _require(self, etag: str) -> None:
        entry = self.entry()
        now = str(entry.seq) if entry is not None else ""
        if etag != now:
            raise StaleTraffic(etag, now)

    def _check(self, traffic: Traffic) -> None:
        """Every arm once, as it would answer.

        Raises:
            ValueError: naming the experiment and the arm.
        """
        active = self._generations.catch_up()
        if active is None:
            raise ValueError("no generation is active, so there is nothing that arms could be checked against")
        for experiment in traffic.experiments:
            made = []
            for arm in experiment.arms:
                try:
                    made.append(self.generation(arm.side, active))
                    if arm.side.variation:
                        made[-1].warm_up()
                except ValueError as error:
                    raise ValueError(f"experiment {experiment.name!r}, arm {arm.name!r}: {error}") from None
            if experiment.mode == INTERLEAVE:
                try:
                    check_teams(made[0], made[1])
                except ValueError as error:
                    raise ValueError(f"experiment {experiment.name!r}: {error}") from None


def generations_named(store: GenerationStore) -> set[str]:
    """By the arms of the traffic in force, which `GenerationStore.prune` must keep.

    Raises:
        CorruptLog, LogUnavailable, UnknownChange: see `CatalogLog`.
    """
    with closing(CatalogLog(store.root / FILE)) as log:
        entry = log.traffic(until=log.head())
    return _traffic_of(entry).generations if entry is not None else set()


def _traffic_of(entry: Entry) -> Traffic:
    """
    Raises:
        UnknownChange: for experiments that this version cannot follow.
    """
    assert isinstance(entry.request, SetTrafficRequest)
    try:
        return Traffic.of(entry.request, str(entry.seq))
    except ValueError as error:
        raise UnknownChange(f"change {entry.seq} set traffic that cannot be followed: {error}") from error
