"""Who answers a page after the first."""

from protos.impression_pb2 import Impression
from serving.experiments.assignment import NOBODY, Plan
from serving.generation import Generation
from serving.parts import ActiveGeneration
from serving.rpc import StalePage


def answering_page(
    asked: Impression, plan: Plan, active: Generation, generations: ActiveGeneration
) -> tuple[Generation, Plan]:
    """The generation of the first page, and the arms of the request: nobody's, also in what was asked, where they would
    have another one answer.

    Raises:
        StalePage: it is no longer kept.
    """
    if asked.page.generation == (plan.side.generation or active.id):
        return active, plan
    kept = generations.kept(asked.page.generation)
    if kept is None:
        raise StalePage(asked.page.generation)
    asked.ClearField("experiment_arms")
    return kept, NOBODY
