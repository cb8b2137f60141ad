"""A request explained beside what it would have got: from another generation or other settings, as of the same moment.

It is what a replay does, by the code that serves, and nobody is shown it: nothing is logged or remembered.
"""

from collections.abc import Callable

from index.generations import CorruptGeneration, UnknownGeneration
from protos.impression_pb2 import Impression
from protos.recommender_pb2 import ExplainRequest, ExplainResponse, WhatIf
from serving.again import recorded_again
from serving.codec import InvalidRequest, Unsupported, copied
from serving.explain import explain
from serving.generation import Generation, GenerationMismatch
from serving.log.impression_log import CorruptLog


class InvalidWhatIf(InvalidRequest):
    """Another way to answer that there cannot be; what is wrong with it is the reason."""

    def __init__(self, number: int, why: ValueError) -> None:
        ValueError.__init__(self, f"what_ifs[{number}]: {why}")


def explained(
    request: ExplainRequest, logged: Impression, *, answered: Callable[[Impression], Generation]
) -> ExplainResponse:
    """
    Args:
        logged: the impression to explain, logged or as it would be.
        answered: who makes an impression of this generation and variation, with the catalogue as it knew it.

    Raises:
        InvalidWhatIf: naming it, and what is wrong with it.
        Unsupported: for a slate of two arms.
        UnknownGeneration, CorruptGeneration, GenerationMismatch, CorruptLog: see `serving.again.Past`.
    """
    if logged.HasField("drafted"):
        raise Unsupported("slates that two arms drafted are not explained yet; see their slot_team")

    def of(impression: Impression, generation: Generation) -> ExplainResponse:
        return explain(impression, generation, item_ids=request.item_ids, features=request.features, lost=request.lost)

    told = of(logged, answered(logged))
    for number, what_if in enumerate(request.what_ifs):
        asked = _asked_otherwise(logged, what_if)
        try:
            generation = answered(asked)
        except (UnknownGeneration, CorruptGeneration, GenerationMismatch, CorruptLog):
            raise
        except ValueError as error:
            raise InvalidWhatIf(number, error) from None
        told.what_ifs.append(of(recorded_again(asked, generation), generation))
    return told


def _asked_otherwise(logged: Impression, what_if: WhatIf) -> Impression:
    asked = copied(logged)
    for name in ("experiment_arms", "traffic", "variation"):
        asked.ClearField(name)
    if what_if.generation:
        asked.generation = what_if.generation
    if what_if.variation.ByteSize():
        asked.variation.CopyFrom(what_if.variation)
    return asked
