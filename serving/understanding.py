"""Typed queries between the wire and the core: what may be done to one, what it is understood as, what is told of it.

Serving and replay come here with an impression: what it says, the generation and the catalogue as it was determine
the rest.
"""

from collections.abc import Mapping

from candidate_gen.predicates import FilterError
from candidate_gen.understanding import Step, Steps, Understood
from protos import impression_pb2, recommender_pb2
from protos.impression_pb2 import Impression, QueryOptions, QueryStep
from serving.generation import Generation
from serving.records import STEPS

_STEP_OF: Mapping[int, Step] = {
    QueryStep.QUERY_STEP_OFF: "off",
    QueryStep.QUERY_STEP_AUTO: "auto",
    QueryStep.QUERY_STEP_SUGGEST: "suggest",
}


def decided(options: QueryOptions) -> QueryOptions:
    """The options with every step that the caller left open."""
    made = QueryOptions()
    made.CopyFrom(options)
    for name in STEPS:
        setattr(made, name, getattr(options, name) or QueryStep.QUERY_STEP_AUTO)
    return made


def understood(asked: Impression, generation: Generation) -> Understood:
    """What an impression's text is understood as: itself, where the generation knows nothing of queries, and where the
    list to rank was made elsewhere. A condition that the text states and that leaves nothing is given up."""
    understanding = generation.understanding
    if understanding is None or not asked.HasField("query_options"):
        return Understood(text=asked.text)
    steps = Steps(
        **{name: _STEP_OF[getattr(asked.query_options, name)] for name in STEPS},
        pin_unexpanded=asked.query_options.pin_unexpanded,
    )
    made = understanding.understand(asked.text, steps)
    if made.is_filtered and not _leaves_something(both(asked.filter, made.filter), generation):
        return understanding.without_filter(asked.text, steps)
    return made


def both(one: str, other: str) -> str:
    """A filter that asks for what two ask for, either of which may be empty."""
    return f"({one}) AND ({other})" if one and other else one or other


def message(made: Understood) -> impression_pb2.Understood:
    """As the impression holds it; empty where there is nothing to tell."""
    if not (made.corrected or made.expanded or made.filter or made.dropped_filter or made.intent or made.creators):
        return impression_pb2.Understood()
    return impression_pb2.Understood(
        searched=made.text,
        corrected=made.corrected,
        expanded=[text for text, _ in made.expanded],
        filter=made.filter,
        dropped_filter=made.dropped_filter,
        intent=[category for category, _ in made.intent],
        probability=[probability for _, probability in made.intent],
        creator=[creator for creator, _ in made.creators],
        creator_probability=[probability for _, probability in made.creators],
    )


def tell(response: recommender_pb2.SearchResponse, logged: Impression) -> None:
    """Fill in what the impression says was understood."""
    made = logged.understood
    response.corrected_query = made.corrected
    response.expanded_query = ", ".join(made.expanded)
    response.extracted_filter = made.filter
    response.dropped_filter = made.dropped_filter
    response.intent.update(zip(made.intent, made.probability, strict=True))
    response.creator_intent.update(zip(made.creator, made.creator_probability, strict=True))


def _leaves_something(condition: str, generation: Generation) -> bool:
    try:
        allowed = generation.attributes.allowed(condition)
    except FilterError:  # together they are too long, or the catalogue has lost the attribute
        return False
    return allowed is None or allowed.count > 0
