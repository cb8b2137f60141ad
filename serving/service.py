"""The Recommender service: each call is one straight line from bytes to bytes."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from hashlib import blake2b

import grpc

from candidate_gen.live import LIVE
from candidate_gen.types import Query
from index.strings import key64, keys64
from protos import recommender_pb2
from protos.impression_pb2 import Degraded, Impression
from serving import answers, codec
from serving import suggest as suggestions
from serving.admission import Admission, CallerGone, DeadlinePassed, Turn
from serving.canaries import FAULTS, check_answers
from serving.experiments.arms import Experiments
from serving.experiments.assignment import NOBODY, Plan
from serving.experiments.variants import without_chance
from serving.found import check_request
from serving.generation import Generation, GenerationMismatch
from serving.live import Live
from serving.log.catalog_log import UnknownChange
from serving.log.impression_log import CorruptLog, LogUnavailable
from serving.observability.telemetry import Telemetry, current_call
from serving.page_answering import answering_page
from serving.parts import ActiveGeneration, Log, State, deadline, new_request_id, server_time_ms, warn
from serving.pipeline import Answer, Trace
from serving.rpc import Handlers, Unavailable, UnknownRequest, handlers
from serving.settings import ServiceSettings
from serving.state.redis_store import StateUnavailable
from serving.state.replies import Answered, Replies, other_question
from serving.state.user_state import LEASE_S, Claim, ClaimedElsewhere, Recalled, Wanted
from serving.what_if import explained

_REHEARSAL_S = 10.0


class RecommenderService:
    """Recommend, Search and Rank.

    Args:
        state: None serves everybody without history.
        log: None logs nothing: for tests and previews.
        live: None leaves the sources that learn while they serve with nothing to say.
        answered: who made a logged impression, with the catalogue as it was; None where nobody can explain one.
        experiments: None where there are none.
    """

    def __init__(
        self,
        generations: ActiveGeneration,
        *,
        state: State | None,
        log: Log | None,
        telemetry: Telemetry,
        settings: ServiceSettings,
        live: Live | None = None,
        answered: Callable[[Impression], Generation] | None = None,
        experiments: Experiments | None = None,
    ) -> None:
        self._generations = generations
        self._state = state
        self._log = log
        self._live = live
        self._answered = answered
        self._experiments = experiments
        self._telemetry = telemetry
        self._settings = settings
        self.admission = Admission(
            running=settings.running, waiting=settings.waiting, tenant_per_s=settings.tenant_per_s
        )
        self._replies = Replies(most=settings.replies)
        self._lately = deque[Impression](maxlen=settings.rehearsed)

    def handlers(self) -> Handlers:
        methods = ("Recommend", "Search", "Rank", "Suggest", "Explain")
        return handlers(
            recommender_pb2.DESCRIPTOR.services_by_name["Recommender"],
            self._telemetry,
            methods={name: getattr(self, name.lower()) for name in methods},
        )

    def rehearse(self, generation: Generation) -> None:
        """Have a generation answer the latest requests, which nobody is shown and nothing learns from: its pages are
        read and its caches full when it begins to serve. Requests that it would refuse are passed over, and so is what
        is left after `_REHEARSAL_S`.

        Raises:
            GenerationMismatch: where it fails one of them, or answers it without a part of itself.
        """
        until = time.monotonic() + _REHEARSAL_S
        for asked in list(self._lately):
            if time.monotonic() > until:
                return
            try:
                codec.check_against(asked, generation)
            except codec.InvalidRequest:
                continue
            try:
                check_answers(generation.pipeline, [codec.query_of(asked, generation)], wrong=FAULTS)
            except Exception as error:
                raise GenerationMismatch(
                    f"generation {generation.id} fails a request of late ({asked.request_id!r}): {error}"
                ) from error

    def recommend(self, wire: bytes, context: grpc.ServicerContext) -> bytes:
        return self._call(recommender_pb2.RecommendRequest(), recommender_pb2.RecommendResponse(), wire, context)

    def search(self, wire: bytes, context: grpc.ServicerContext) -> bytes:
        return self._call(recommender_pb2.SearchRequest(), recommender_pb2.SearchResponse(), wire, context)

    def rank(self, wire: bytes, context: grpc.ServicerContext) -> bytes:
        return self._call(recommender_pb2.RankRequest(), recommender_pb2.RankResponse(), wire, context)

    def suggest(self, wire: bytes, context: grpc.ServicerContext) -> bytes:
        until = deadline(context, self._settings)
        request = recommender_pb2.SuggestRequest()
        codec.parse(request, wire)
        time_ms = suggestions.check(request, server_time_ms=server_time_ms(self._settings))
        with self.admission.enter(until, tenant=request.context.tenant, priority=request.context.priority):
            generation = self._active()
            current_call().generation = generation.id
            return suggestions.suggest(request, generation, time_ms=time_ms).SerializeToString()

    def explain(self, wire: bytes, context: grpc.ServicerContext) -> bytes:
        turn = Turn(context, deadline(context, self._settings))
        request = recommender_pb2.ExplainRequest()
        codec.parse(request, wire)
        asked = codec.explained(request)
        with self.admission.enter(turn.until):
            if asked is not None:
                logged: Impression | None = self._preview(asked, turn)
            else:
                logged = self._log.find(request.request_id) if self._log is not None else None
            if logged is None or self._answered is None:
                raise UnknownRequest(request.request_id)
            return explained(request, logged, answered=self._answered).SerializeToString()

    def _preview(self, request: codec.Request, turn: Turn) -> Impression:
        """The impression that a request would make now; nothing remembers it."""
        asked = codec.asked(request, server_time_ms=server_time_ms(self._settings), new_request_id=new_request_id)
        active, before = self._active(), Trace()
        plan = NOBODY if self._experiments is None else self._experiments.router.plan(asked, active)
        check_request(request, asked, active)
        self._recall(asked, None, before, forgotten_ms=active.profiles.forgotten_ms(asked.user_id))
        generation, query, answer = self._answer(plan, asked, active, before, turn)
        answer.trace.follow(before)
        return answers.record(asked, query=query, answer=answer, generation=generation, eligible=False)

    def _call(
        self, request: codec.Request, response: answers.Response, wire: bytes, context: grpc.ServicerContext
    ) -> bytes:
        turn = Turn(context, deadline(context, self._settings))
        codec.parse(request, wire)
        self.admission.check(turn.until, tenant=request.context.tenant, priority=request.context.priority)
        asked = codec.asked(
            request,
            server_time_ms=server_time_ms(self._settings),
            new_request_id=new_request_id,
        )
        current_call().request_id = asked.request_id
        if request.validate_only:
            generation = self._active()
            check_request(request, asked, generation)
            response.request_id = asked.request_id
            response.generation = generation.id
            return response.SerializeToString()
        if request.request_id and not request.no_log:
            digest = blake2b(wire, digest_size=16).digest()
            once = partial(self._once, request, response, asked, digest, turn)
            answered, repeated = self._replies.answer(asked.request_id, digest, turn.until, once)
            if not repeated:
                return answered.reply
            self._telemetry.add("repeated", "memory")
            return self._as_now(answered, response, asked)
        return self._slate(request, response, asked, turn)

    def _once(
        self,
        request: codec.Request,
        response: answers.Response,
        asked: Impression,
        digest: bytes,
        turn: Turn,
    ) -> Answered:
        """The slate of a request that has an id, made by one process alone, whichever it is sent to.

        Raises:
            DeadlinePassed: where another process has claimed the id and is not done in time.
        """
        claim = Claim.of(asked.request_id, asked.user_id, digest) if self._state is not None else None
        pause_s = 0.002
        while True:
            attempt = Impression()
            attempt.CopyFrom(asked)
            try:
                return Answered(self._slate(request, response, attempt, turn, claim), asked.time_ms)
            except ClaimedElsewhere:
                response.Clear()
            except BaseException:
                if self._state is not None and claim is not None:
                    self._state.release(claim)
                raise
            if turn.left_s < pause_s:
                raise DeadlinePassed("the deadline passed while another server was at work on this request id")
            self._telemetry.add("state", "waited")
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 0.02)

    def _slate(
        self,
        request: codec.Request,
        response: answers.Response,
        asked: Impression,
        turn: Turn,
        claim: Claim | None = None,
    ) -> bytes:
        """
        Args:
            claim: to be had before anything is shown.

        Raises:
            ClaimedElsewhere: it cannot be had now.
        """
        call, came_at = current_call(), time.perf_counter()
        with self.admission.enter(turn.until, tenant=asked.tenant, priority=request.context.priority):
            turn.proceed()
            before = Trace()
            before.stage_ms["wait"] = 1000 * (time.perf_counter() - came_at)
            active = self._active()
            plan = NOBODY if self._experiments is None else self._experiments.router.plan(asked, active)
            if asked.HasField("page"):
                active, plan = answering_page(asked, plan, active, self._generations)
            call.generation = active.id
            check_request(request, asked, active)
            with before.stage("lookup"):
                known = self._found(asked) if request.request_id and not request.no_log else None
            if known is not None:
                return self._told_again(request, response, known, active)
            with before.stage("state"):
                claimed_until = time.monotonic() + LEASE_S
                recalled = self._recall(asked, claim, before, forgotten_ms=active.profiles.forgotten_ms(asked.user_id))
                if recalled.answered is not None:
                    self._telemetry.add("repeated", "state")
                    return self._as_now(recalled.answered, response, asked)
            log = None if request.no_log else self._log
            if log is not None and not log.available:
                before.degraded |= Degraded.DEGRADED_LOG_UNAVAILABLE
            turn.proceed()
            generation, query, answer = self._answer_by(plan, asked, active, before, turn)
            call.generation = generation.id
            beside = codec.copied(asked) if plan.shadows and log is not None else None
            trace = answer.trace
            trace.follow(before)
            with trace.stage("record"):
                whole = not len(answer.slate.team_K)  # two arms draw from two sets of candidates
                eligible = whole and key64(asked.request_id) < self._settings.eligible_share * 2.0**64
                logged = answers.record(asked, query=query, answer=answer, generation=generation, eligible=eligible)
            if claim is not None and recalled.claimed and time.monotonic() > claimed_until:
                self._renew(claim)
            if log is not None:
                with trace.stage("log"):
                    self._append(log, logged)
            with trace.stage("encode"):
                answers.respond(
                    response,
                    request,
                    logged=logged,
                    query=query,
                    generation=generation,
                    row_K=answer.scored.candidates.row_N[answer.slate.index_K],
                )
                if request.debug == recommender_pb2.DEBUG_LEVEL_SUMMARY:
                    response.trace.CopyFrom(answers.trace_of(answer, query))
                reply = response.SerializeToString()
            trace.degraded = logged.degraded
            call.trace = trace
            self._lately.append(logged)
            if self._state is not None and not request.no_log:
                self._note(self._state, logged, claim if recalled.claimed else None, reply)
        if beside is not None and log is not None and self._experiments is not None:
            self._experiments.shadow(beside, plan, active, log)
        return reply

    def _answer_by(
        self,
        plan: Plan,
        asked: Impression,
        active: Generation,
        before: Trace,
        turn: Turn,
    ) -> tuple[Generation, Query, Answer]:
        """By the arms of a request; where they fail, by the generation in use."""
        started = time.monotonic()
        try:
            generation, query, answer = self._answer(plan, asked, active, before, turn)
        except CallerGone:
            raise
        except Exception as error:
            if self._experiments is not None:
                self._experiments.canaries.observe(plan.canaries, failed=True)
            if not plan.arms or isinstance(error, DeadlinePassed):
                raise
            arms = ", ".join(f"{experiment}={arm}" for experiment, arm in plan.arms.items())
            if not self._telemetry.counts("arm_failed").get(arms):
                warn(error, f"the arms {arms} cannot answer; this is told once and counted from now on")
            self._telemetry.add("arm_failed", arms)
            before.degraded |= Degraded.DEGRADED_ARM_FAILED
            for name in ("live_hits", "variation", "drafted"):
                asked.ClearField(name)
            return self._answer(NOBODY, asked, active, before, turn)
        if plan.canaries and self._experiments is not None:
            self._experiments.canaries.observe(
                plan.canaries, degraded=bool(answer.trace.degraded), ms=1000 * (time.monotonic() - started)
            )
        return generation, query, answer

    def _answer(
        self,
        plan: Plan,
        asked: Impression,
        active: Generation,
        before: Trace,
        turn: Turn,
    ) -> tuple[Generation, Query, Answer]:
        generation = active
        if self._experiments is not None and plan.arms:
            generation = self._experiments.router.generation(plan.side, active)
            if plan.side.variation:
                asked.variation.ParseFromString(plan.side.variation)
        with before.stage("state"):
            query = self._told(codec.query_of(asked, generation), asked, generation, before)
        chance = not before.degraded & Degraded.DEGRADED_LOG_UNAVAILABLE
        if not chance:
            generation = without_chance(generation)
        budget_s, without = turn.left_s, frozenset(before.skipped_sources)
        if plan.second is not None and chance and self._experiments is not None:
            second = self._experiments.router.generation(plan.second, active)
            answer = self._experiments.drafted(
                plan, asked, (query, generation), second, budget_s=budget_s, without=without
            )
        else:
            answer = generation.pipeline.run(query, budget_s=budget_s, without=without, proceed=turn.proceed)
        turn.proceed()
        return generation, query, answer

    def _told_again(
        self, request: codec.Request, response: answers.Response, known: Impression, generation: Generation
    ) -> bytes:
        """The answer of an impression in the log."""
        self._telemetry.add("repeated", "log")
        codec.check_remembered(known, known.time_ms, generation)
        query = codec.query_of(known, generation)
        answers.respond(response, request, logged=known, query=query, generation=generation)
        answers.withdraw(response, generation.items)
        return response.SerializeToString()

    def _as_now(self, answered: Answered, response: answers.Response, asked: Impression) -> bytes:
        """An answer given before, without what the catalogue has stopped showing since.

        Raises:
            InvalidRequest: where the user was forgotten since.
        """
        generation = self._active()
        codec.check_remembered(asked, answered.made_ms, generation)
        response.ParseFromString(answered.reply)
        withdrawn = answers.withdraw(response, generation.items)
        return response.SerializeToString() if withdrawn else answered.reply

    def _active(self) -> Generation:
        """The generation as of now. Where the catalogue log fails, as it was: what is known can still be shown."""
        try:
            generation = self._generations.catch_up()
        except (CorruptLog, LogUnavailable, UnknownChange) as error:
            warn(error, "the catalogue log cannot be followed")
            self._telemetry.add("catalog", "not_followed")
            generation = self._generations.active
        if generation is None:
            raise Unavailable("no generation is active yet; publish one with `cascade train` and `cascade export`")
        return generation

    def _found(self, asked: Impression) -> Impression | None:
        """The impression that this request id has already made, before a restart or long ago."""
        if self._log is None:
            return None
        try:
            known = self._log.find(asked.request_id)
        except Exception as error:
            warn(error, "the log cannot be searched")
            return None
        if known is not None and not codec.same_question(asked, known):
            raise other_question(asked.request_id)
        return known

    def _recall(self, asked: Impression, claim: Claim | None, trace: Trace, *, forgotten_ms: int) -> Recalled:
        """What the user state knows that is later than `forgotten_ms`, noted in `asked`."""
        if self._state is None:
            return Recalled()
        window_ms = int(3_600_000 * self._settings.shown_hours)
        wanted = Wanted(
            asked.user_id,
            since_ms=forgotten_ms,
            shown=self._settings.shown_most if window_ms else 0,
            shown_since_ms=max(asked.time_ms - window_ms, forgotten_ms),
            claim=claim,
        )
        try:
            recalled = self._state.recall(wanted)
        except (ClaimedElsewhere, codec.InvalidRequest):
            raise
        except Exception as error:
            recalled = Recalled(refused=(str(error),))
            warn(error, "user state cannot be read")
        if recalled.refused:
            self._telemetry.add("defaulted", "history")
            trace.degraded |= Degraded.DEGRADED_DEFAULT_FEATURES
        if recalled.skipped:
            self._telemetry.add("state", "skipped", recalled.skipped)
        codec.remember(asked, *recalled.history)
        asked.shown_item_key.extend(recalled.shown_key_X.tolist())
        return recalled

    def _renew(self, claim: Claim) -> None:
        """
        Raises:
            ClaimedElsewhere: it took so long that another process has begun.
        """
        try:
            if self._state is not None:
                self._state.renew(claim)
        except StateUnavailable as error:
            warn(error, "nobody knows whether another server answers this request too")

    def _note(self, state: State, logged: Impression, claim: Claim | None, reply: bytes) -> None:
        """For the requests to come: what was shown, and the answer to this one."""
        if claim is not None:
            state.answer(claim, Answered(reply, logged.time_ms))
        if self._settings.shown_hours and logged.user_id:
            state.show(
                logged.user_id,
                keys64(logged.item_id).tolist(),
                time_ms=logged.time_ms,
                most=self._settings.shown_most,
                ttl_s=int(3600 * self._settings.shown_hours) + 1,
            )

    def _told(self, query: Query, asked: Impression, generation: Generation, trace: Trace) -> Query:
        """The query with what the live sources say of it, which is noted in `asked`."""
        if self._live is None or query.only_row_N is not None:
            return query
        try:
            allowed = generation.attributes.allowed(query.filter)
            codec.tell(asked, self._live.named(query, generation, allowed), generation)
        except Exception as error:
            warn(error, "live sources cannot be asked")
            trace.degraded |= Degraded.DEGRADED_SOURCE_ERROR
            trace.skipped_sources |= dict.fromkeys(LIVE, "error")
        return replace(query, live=codec.live_hits(asked, generation))

    def _append(self, log: Log, logged: Impression) -> None:
        try:
            log.append(logged)
            self._telemetry.add("log", "stored")
        except Exception as error:
            warn(error, "an impression cannot be logged")
            self._telemetry.add("log", "failed")
            logged.degraded |= Degraded.DEGRADED_LOG_UNAVAILABLE
