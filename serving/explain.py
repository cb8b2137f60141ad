"""Why a slate holds what it holds: told from the log, after the fact, and from asking again.

What was shown is told as it was logged. What stood against it, and where other items were lost, is not in the log; the
request is run once more for it, by the generation that answered, and the answer says whether that gave the same slate.

Shape letters: K slots, N candidates.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from google.protobuf.internal.containers import MessageMap
from numpy.typing import NDArray

from candidate_gen.features import Feature, FeatureTable, RowKind
from candidate_gen.types import Query
from policy.terms import Terms
from policy.types import Draw
from policy.value import utility
from protos.impression_pb2 import FeatureValue, Impression
from protos.recommender_pb2 import ExplainResponse, Explanation, PastEvent, RecommendRequest, RecommendResponse
from serving.again import ask_again, first_difference
from serving.answers import respond, trace_of
from serving.experiments.variants import changeable
from serving.generation import Generation
from serving.pipeline import Answer

_RIVALS = 3


def explain(
    logged: Impression, generation: Generation, *, item_ids: Sequence[str] = (), features: bool = False, lost: int = 0
) -> ExplainResponse:
    """
    Args:
        generation: who answered, with the catalogue as it knew it.
        item_ids: what to explain, shown or not; empty for all that were shown.
        features: also what the ranker saw, and what each feature contributed.
        lost: how many of the items that were lost at each stage to explain too.

    Raises:
        ValueError: where the generation has no policy that knows its propensities, or the logged feature rows are
            those of another table.
    """
    if logged.schema != generation.table.fingerprint:
        raise ValueError(
            f"impression {logged.request_id} was made with feature table {logged.schema}, generation {generation.id} "
            f"has {generation.table.fingerprint}"
        )
    query, answer = ask_again(logged, generation)
    difference = first_difference(logged, query, answer, generation)
    shown = RecommendResponse()
    respond(shown, RecommendRequest(), logged=logged, query=query, generation=generation)
    told = ExplainResponse(
        impression=logged,
        reproduced=difference is None,
        diverged=".".join(difference) if difference else "",
        trace=trace_of(answer, query),
        settings=changeable(generation),
    )
    case = _Case.of(logged, generation, query, answer)
    told.history.extend(case.history(query))
    position_of = {item_id: k for k, item_id in enumerate(logged.item_id)}
    for item_id in dict.fromkeys([*(item_ids or logged.item_id), *case.lost_ids(lost)]):
        if item_id in position_of:
            explanation = case.shown(position_of[item_id])
            explanation.reasons.extend(shown.items[position_of[item_id]].reasons)
        else:
            explanation = case.lost(item_id)
        if features and explanation.actions:
            rows = case.rows(item_id)
            _fill(explanation.values, generation.table, {"item": rows[0], "pair": rows[1]})
            explanation.features.update(contributions(generation, case.query_row, *rows))
        told.items.append(explanation)
    if features:
        _fill(told.query_values, generation.table, {"query": case.query_row})
    return told


def contributions(
    generation: Generation, query_row: np.ndarray, item_row: np.ndarray, pair_row: np.ndarray
) -> dict[str, float]:
    """How much less the utility of one candidate would be with each feature at its default, one at a time."""
    table, settings = generation.table, generation.settings

    def worth(query_row: np.ndarray, item_row_N: np.ndarray, pair_row_N: np.ndarray) -> NDArray[np.float64]:
        probability_NA = generation.scorer.probabilities(query_row, item_row_N, pair_row_N)
        return utility(probability_NA, action_names=table.actions, weights=settings.weights).astype(np.float64)

    whole = float(worth(query_row, item_row, pair_row)[0])
    found = {
        feature.name: whole - float(worth(_without(query_row, feature, table, "query"), item_row, pair_row)[0])
        for feature in table.of("query")
    }
    of_item, of_pair = table.of("item"), table.of("pair")
    count = len(of_item) + len(of_pair)
    item_row_N, pair_row_N = np.repeat(item_row, count), np.repeat(pair_row, count)
    for n, feature in enumerate(of_item):
        item_row_N[n] = _without(item_row, feature, table, "item")[0]
    for n, feature in enumerate(of_pair, start=len(of_item)):
        pair_row_N[n] = _without(pair_row, feature, table, "pair")[0]
    less_N = whole - worth(query_row, item_row_N, pair_row_N)
    return found | {feature.name: float(less) for feature, less in zip((*of_item, *of_pair), less_N, strict=True)}


@dataclass(frozen=True, slots=True)
class _Case:
    """A logged slate beside the answer that the request gets now."""

    logged: Impression
    generation: Generation
    answer: Answer
    query_row: np.ndarray
    index_K: NDArray[np.int64]
    """Positions of the shown items among the candidates, -1 for one that is no candidate now."""
    draw: Draw
    terms: Terms | None
    """None where a shown item is no candidate now."""

    @classmethod
    def of(cls, logged: Impression, generation: Generation, query: Query, answer: Answer) -> "_Case":
        policy, scored = generation.policy, answer.scored
        index_K = scored.candidates.positions(generation.items.ids.rows_of(logged.item_id))
        return cls(
            logged,
            generation,
            answer,
            np.frombuffer(logged.query_row, generation.table.dtype("query")),
            index_K,
            policy.propensity_of(query, scored, index_K),
            policy.terms(query, scored, index_K) if (index_K >= 0).all() else None,
        )

    def shown(self, k: int) -> Explanation:
        """The item of slot k."""
        logged, actions, sources = self.logged, len(self.logged.action_names), len(self.logged.source_names)
        explanation = Explanation(
            item_id=logged.item_id[k],
            position=k,
            propensity=logged.propensity[k],
            flags=logged.slot_flags[k],
            terms={"utility": logged.utility[k]} if self.terms is None else self._terms(self.terms, k, self.index_K[k]),
            actions=dict(zip(logged.action_names, logged.probability[k * actions : (k + 1) * actions], strict=True)),
            ranks=_ranks(logged.source_names, logged.source_rank[k * sources : (k + 1) * sources]),
        )
        explanation.title, explanation.category = self._told_of(int(self._row_1(logged.item_id[k])[0]))
        self._add_rivals(explanation, k, self.index_K[k])
        return explanation

    def lost(self, item_id: str) -> Explanation:
        """An item that was not shown."""
        row = int(self._row_1(item_id)[0])
        explanation = Explanation(item_id=item_id, position=-1)
        explanation.title, explanation.category = self._told_of(row)
        if row < 0:
            explanation.lost = f"generation {self.generation.id} does not hold it"
            return explanation
        for name, row_R in self.answer.trace.removed.items():
            if row in row_R:
                explanation.lost = (
                    f"not scored: more than {self.generation.pipeline.most} candidates, and others ranked better"
                    if name == "most"
                    else f"removed by the filter {name!r}"
                )
                return explanation
        candidates = self.answer.scored.candidates
        n = int(candidates.positions(self._row_1(item_id))[0])
        if n < 0:
            explanation.lost = "not retrieved: no source named it"
            return explanation
        chance_K = self.draw.distribution_KN[:, n]
        k = int(chance_K.argmax()) if len(chance_K) else 0
        explanation.propensity = float(chance_K.max(initial=0.0))
        explanation.actions.update(
            zip(self.answer.scored.action_names, self.answer.scored.probability_NA[n].tolist(), strict=True)
        )
        explanation.ranks.update(_ranks(candidates.source_names, candidates.rank_NS[n].tolist()))
        if self.terms is not None and len(chance_K):
            explanation.terms.update(self._terms(self.terms, k, n))
        if explanation.propensity:
            explanation.lost = f"not drawn: its chance was largest in slot {k}, {explanation.propensity:.3g}"
            self._add_rivals(explanation, k, n)
        else:
            explanation.lost = "not drawn: rules or constraints forbade it in every slot, or its chance was 0"
        return explanation

    def lost_ids(self, most: int) -> list[str]:
        """Of each stage at which items were lost, the first `most`."""
        candidates, shown = self.answer.scored.candidates, set(self.logged.item_id)
        likeliest_N = np.argsort(-self.draw.distribution_KN.max(axis=0, initial=0.0), kind="stable")
        not_drawn = self._ids(candidates.row_N[likeliest_N[: most + len(shown)]])
        removed = [self._ids(row_R[:most]) for row_R in self.answer.trace.removed.values()]
        return [*[each for each in not_drawn if each not in shown][:most], *(each for ids in removed for each in ids)]

    def history(self, query: Query) -> list[PastEvent]:
        """What the user did, newest first."""
        past, actions = query.history, ("", *self.generation.table.actions)
        events = zip(past.row_L.tolist(), past.action_L.tolist(), past.time_ms_L.tolist(), strict=True)
        return [
            PastEvent(item_id=item_id, title=self._told_of(row)[0], action=actions[action], time_ms=time_ms)
            for item_id, (row, action, time_ms) in zip(self._ids(past.row_L), events, strict=True)
        ]

    def rows(self, item_id: str) -> tuple[np.ndarray, np.ndarray]:
        """Item and pair row of a shown item as logged, of another candidate as made again."""
        table = self.generation.table
        if item_id in self.logged.item_id:
            k = list(self.logged.item_id).index(item_id)
            item_row_K = np.frombuffer(self.logged.item_rows, table.dtype("item"))
            pair_row_K = np.frombuffer(self.logged.pair_rows, table.dtype("pair"))
            return item_row_K[k : k + 1], pair_row_K[k : k + 1]
        scored = self.answer.scored
        n = int(scored.candidates.positions(self._row_1(item_id))[0])
        return scored.item_row_N[n : n + 1], scored.pair_row_N[n : n + 1]

    def _row_1(self, item_id: str) -> NDArray[np.int64]:
        return self.generation.items.ids.rows_of([item_id])

    def _ids(self, row_N: NDArray[np.int64]) -> list[str]:
        return self.generation.items.ids.ids.take(row_N)

    def _told_of(self, row: int) -> tuple[str, str]:
        """Title and category of a row, empty for -1."""
        if row < 0:
            return "", ""
        items, vocabulary = self.generation.items, ("", *self.generation.table["category"].vocabulary)
        return items.titles.take(np.array([row]))[0], vocabulary[int(items.row_I["category"][row])]

    @staticmethod
    def _terms(terms: Terms, k: int, n: int) -> dict[str, float]:
        return {
            "utility": float(terms.utility_N[n]),
            "freshness": float(terms.freshness_N[n]),
            "rules": float(terms.rules_N[n]),
            "diversity": float(terms.diversity_KN[k, n]),
        }

    def _add_rivals(self, explanation: Explanation, k: int, n: int) -> None:
        """The likeliest others of slot k."""
        if self.terms is None:
            return
        chance_N = self.draw.distribution_KN[k].copy()
        chance_N[n] = 0.0
        ids, row_N = self.generation.items.ids.ids, self.answer.scored.candidates.row_N
        for rival in np.argsort(-chance_N, kind="stable")[:_RIVALS].tolist():
            if chance_N[rival]:
                explanation.rivals.add(
                    item_id=ids[int(row_N[rival])],
                    score=float(self.terms.adjusted_KN[k, rival]),
                    propensity=float(chance_N[rival]),
                )


def _ranks(names: Sequence[str], rank_S: Sequence[int]) -> dict[str, int]:
    return {name: rank for name, rank in zip(names, rank_S, strict=True) if rank >= 0}


def _fill(values: MessageMap[str, FeatureValue], table: FeatureTable, row_of: Mapping[RowKind, np.ndarray]) -> None:
    for kind, row in row_of.items():
        for feature in table.of(kind):
            if not feature.shape:
                value = row[feature.name][0]
                known = feature.vocabulary and value > 0
                text = feature.vocabulary[int(value) - 1] if known else ""
                values[feature.name].CopyFrom(FeatureValue(text=text) if known else FeatureValue(number=float(value)))


def _without(row: np.ndarray, feature: Feature, table: FeatureTable, kind: RowKind) -> np.ndarray:
    changed = row.copy()
    changed[feature.name] = table.empty(kind, 1)[feature.name]
    return changed
