"""What a search tells beyond its slate: how many items match, and how their attributes are spread.

Neither is logged: both are counted anew from the generation that tells an answer.

Shape letters: M matches.
"""

import numpy as np
from numpy.typing import NDArray

from candidate_gen.items import Items
from candidate_gen.matches import range_counts, value_counts
from candidate_gen.types import NO_ROWS, Query
from protos.impression_pb2 import Impression
from protos.recommender_pb2 import Facet, FacetRequest, FacetValue, SearchRequest, SearchResponse
from serving.codec import OWN_FIELDS, InvalidRequest, Request, check_against
from serving.generation import Generation

_VALUES = 10
"""Of a facet that sets no limit."""


def check_request(request: Request, asked: Impression, generation: Generation) -> None:
    """What only the generation can tell of a request and of how its answer is to be told.

    Raises:
        InvalidRequest: see `check_against`; for a facet or a field of what is no attribute, or not of the kind that is
            needed.
    """
    check_against(asked, generation)
    attributes = generation.items.attributes
    allowed = () if request.columns else attributes
    for name in request.return_fields:
        if name not in OWN_FIELDS and name not in allowed:
            raise InvalidRequest("return_fields", name, ", ".join([*OWN_FIELDS, *sorted(allowed)]))
    if isinstance(request, SearchRequest):
        for n, facet in enumerate(request.facets):
            try:
                _counts(generation.items, facet, NO_ROWS)
            except ValueError as error:
                raise InvalidRequest(f"facets[{n}].field", facet.field, str(error)) from None


def tell_found(response: SearchResponse, request: SearchRequest, *, query: Query, generation: Generation) -> None:
    """Fill in `total_size` and `facets`."""
    allowed = generation.attributes.allowed(query.filter)
    row_M = generation.matching.rows(query.text, allowed, time_ms=query.time_ms)
    response.total_size = len(row_M)
    for facet in request.facets:
        values = [FacetValue(value=value, count=count) for value, count in _counts(generation.items, facet, row_M)]
        response.facets.append(Facet(field=facet.field, values=values))


def _counts(items: Items, facet: FacetRequest, row_M: NDArray[np.int64]) -> list[tuple[str, int]]:
    if facet.bounds:
        return range_counts(items, facet.field, row_M, bounds=facet.bounds)
    return value_counts(items, facet.field, row_M, limit=facet.limit or _VALUES)
