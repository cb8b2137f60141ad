"""Suggestions for what is being typed, from the generation's completions and its catalogue as it is now."""

import numpy as np
from numpy.typing import NDArray

from candidate_gen.completions import Kind, Suggested
from candidate_gen.types import Query
from protos import recommender_pb2
from protos.recommender_pb2 import Suggestion, SuggestionKind
from serving import codec
from serving.generation import Generation

MAX_SUGGESTIONS = 50
_DEFAULT = 10
_KIND_OF = {
    Kind.QUERY: SuggestionKind.SUGGESTION_COMPLETION,
    Kind.CATEGORY: SuggestionKind.SUGGESTION_CATEGORY,
    Kind.TITLE: SuggestionKind.SUGGESTION_ITEM,
}


def check(request: recommender_pb2.SuggestRequest, *, server_time_ms: int | None) -> int:
    """As of when it is to be answered.

    Args:
        server_time_ms: None trusts the caller's clock.

    Raises:
        InvalidRequest: naming the field.
    """
    time_ms = codec.checked_time_ms(request.context, server_time_ms=server_time_ms)
    codec.check_string("prefix", request.prefix, codec.MAX_TEXT_CHARS)
    if request.HasField("page_size"):
        codec.check_whole("page_size", request.page_size, 1, MAX_SUGGESTIONS)
    return time_ms


def suggest(
    request: recommender_pb2.SuggestRequest, generation: Generation, *, time_ms: int
) -> recommender_pb2.SuggestResponse:
    """What may be searched for, best first. Nothing that only items could answer which are hidden, deleted, not
    published yet or blocked; and nothing where the generation has no completions.

    Raises:
        InvalidRequest: for a feature of the context that the generation does not know.
    """
    codec.check_columns("context.features", request.context.features, generation.table.profile)
    response = recommender_pb2.SuggestResponse(generation=generation.id)
    if generation.completions is None:
        return response
    surface = request.context.surface or "search"
    query = Query(request_id="", time_ms=time_ms, surface=surface, size=_DEFAULT, text=request.prefix)

    def shown(key_N: NDArray[np.uint64]) -> NDArray[np.bool_]:
        return _may_be_shown(key_N, query, generation)

    size = request.page_size if request.HasField("page_size") else _DEFAULT
    for each in generation.completions.starting(request.prefix, size, shown=shown):
        response.suggestions.append(_suggestion(each, generation))
    return response


def _may_be_shown(key_N: NDArray[np.uint64], query: Query, generation: Generation) -> NDArray[np.bool_]:
    items = generation.items
    row_N = items.ids.rows(key_N)
    shown_N = row_N >= 0
    shown_N[shown_N] = items.available_I[row_N[shown_N]] & (items.published_ms_I[row_N[shown_N]] <= query.time_ms)
    if generation.rules is not None and shown_N.any():
        shown_N[shown_N] = ~generation.rules.judged(query, row_N[shown_N]).barred_N
    return shown_N


def _suggestion(each: Suggested, generation: Generation) -> Suggestion:
    made = Suggestion(kind=_KIND_OF[each.kind], text=each.text, score=each.score)
    if each.kind == Kind.QUERY and each.edits:
        made.kind = SuggestionKind.SUGGESTION_CORRECTION
    if each.kind == Kind.TITLE:
        made.item_id = generation.items.ids.ids[int(generation.items.ids.rows(np.array([each.item_key], np.uint64))[0])]
    return made
