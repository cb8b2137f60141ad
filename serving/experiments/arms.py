"""What answering a request needs of experiments: who answers it, who is watched, what is computed beside it."""

from dataclasses import dataclass

from candidate_gen.types import Query
from protos.impression_pb2 import Drafted, Impression, Variation
from serving.codec import query_of
from serving.experiments.assignment import DRAFTED, Plan
from serving.experiments.canary import CanaryWatch
from serving.experiments.drafting import drafted
from serving.experiments.shadow import ShadowRunner
from serving.experiments.traffic import TrafficRouter
from serving.generation import Generation
from serving.parts import Log
from serving.pipeline import Answer


@dataclass(frozen=True, slots=True)
class Experiments:
    """Of one server."""

    router: TrafficRouter
    canaries: CanaryWatch
    shadows: ShadowRunner

    def drafted(
        self,
        plan: Plan,
        asked: Impression,
        first: tuple[Query, Generation],
        second: Generation,
        *,
        budget_s: float,
        without: frozenset[str],
    ) -> Answer:
        """The slate that the two arms of a plan draft, which is noted in what was asked; or that of the first alone,
        see `serving.experiments.drafting.drafted`, and where the two do not know the same changes of the catalogue."""
        assert plan.drafted is not None
        assert plan.second is not None
        experiment, *arms = plan.drafted
        if second.catalog_seq == first[1].catalog_seq:
            answer = drafted(first, (query_of(asked, second), second), budget_s=budget_s, without=without)
        else:
            answer = first[1].pipeline.run(first[0], budget_s=budget_s, without=without)
        if len(answer.slate.team_K):
            asked.experiment_arms[experiment] = DRAFTED
            variation = Variation.FromString(plan.second.variation) if plan.second.variation else None
            asked.drafted.CopyFrom(Drafted(arms=arms, generation=second.id, variation=variation))
        else:
            asked.experiment_arms[experiment] = arms[0]
        return answer

    def shadow(self, asked: Impression, plan: Plan, active: Generation, log: Log) -> None:
        """Have the shadows of a plan computed when there is time; returns at once."""
        for each in plan.shadows:
            try:
                generation = self.router.generation(each.side, active)
            except (KeyError, ValueError):
                self.shadows.telemetry.add("shadow", "failed")
            else:
                self.shadows.offer(asked, each, generation, log)
