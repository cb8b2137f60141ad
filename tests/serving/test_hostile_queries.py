"""Whatever is typed gets an answer, or is told what is too long; nothing else ever happens."""

import random
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from catalog_cases import NOW_MS, running, store_of
from serving_cases import refusal

from index.generations import GenerationStore
from protos.recommender_pb2 import Context, FacetRequest, SearchRequest, SearchResponse
from serving import codec
from serving.codec import MAX_TEXT_CHARS, InvalidRequest
from serving.found import check_request, tell_found
from serving.generation import Generation
from serving.generations import Generations

_PIECES = (
    *("volume", "jazz", "AND", "OR", "NOT", "TO", "title:", "row:", "%00", "%s", "{0}", "&&", "||", "//", "^2"),
    *("*?~\\+-!()[]{}\"'`/:;<>="),
    *("$(id)", "' OR 1=1 --", "<script>", "../../etc", "x" * 60, "\0", "\x01", "\x1f", "\x7f", "\r\n", "\t", "\u2028"),
    *("\ufeff", "\ufffd", "\uffff", "\U0010ffff", "\u200b", "\u200d", "\u202e", "\u2066", "\u0301" * 9),
    *("\u05e9\u05dc\u05d5\u05dd", "\u0645\u0631\u062d\u0628\u0627", "\u6f22\u5b57", "\uff21\uff22", "\u1100\u1161"),
    *("\U0001f600", "\U0001f468\u200d\U0001f469", "\U0001f1e9\U0001f1ea", "\ufb01", "\u0130", "\u1e9e", "\u01c5"),
)


def queries(count: int, seed: int) -> Iterator[str]:
    """Pieces with a meaning to somebody, any characters, and both; some of them far too long."""
    chance = random.Random(seed)
    for n in range(count):
        length = chance.choice((1, 2, 5, 12, 40, 300))
        pieces = [
            chance.choice(_PIECES) if chance.random() < 0.6 else _character(chance)
            for _ in range(chance.randint(1, length))
        ]
        text = chance.choice(("", " ")).join(pieces)
        yield text * (10_000 // max(len(text), 1)) if n % 50 == 0 else text[: chance.choice((20, MAX_TEXT_CHARS, 9999))]


def _character(chance: random.Random) -> str:
    """Any but halves of surrogate pairs, which no message on the wire can hold."""
    while True:
        code = chance.randrange(0x110000 if chance.random() < 0.5 else 0x300)
        if not 0xD800 <= code < 0xE000:
            return chr(code)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("hostile")
    store_of(made)
    return made


def answered(generation: Generation, text: str, *, number: int) -> bool:
    """Whether anything is shown, by all that a server does but for the wire and the log; of nine in ten queries what is
    left when the text has been read, which takes the ranker's time off the test."""
    request = SearchRequest(context=Context(client_time_ms=NOW_MS), query=text, facets=[FacetRequest(field="category")])
    if number % 3 == 0:
        request.order_by = "price desc"
    asked = codec.asked(request, server_time_ms=None, new_request_id=str)
    check_request(request, asked, generation)
    query = codec.query_of(asked, generation)
    tell_found(SearchResponse(), request, query=query, generation=generation)
    if number % 10 == 0:
        return len(generation.pipeline.run(query).slate) > 0
    hydrated = generation.pipeline.hydrate(query)
    generation.lexical.search(text, 10, hydrated.allowed)
    return bool(np.isfinite(hydrated.vector_D).all())


def check(generation: Generation, count: int, *, seed: int) -> None:
    refused = shown = 0
    for number, text in enumerate(queries(count, seed)):
        if len(text) <= MAX_TEXT_CHARS and text.strip():
            shown += answered(generation, text, number=number)
            continue
        with pytest.raises(InvalidRequest, match=r"^query"):
            answered(generation, text, number=number)
        refused += 1
    assert refused > count / 100
    assert shown > count / 2


def test_hostile_queries_are_answered_or_too_long(folder: Path) -> None:
    generations = Generations(GenerationStore(folder / "generations"))
    generation = generations.follow()
    assert generation is not None
    check(generation, 2000, seed=0)
    generations.close()


@pytest.mark.slow
def test_a_hundred_thousand_hostile_queries_are_answered_or_too_long(folder: Path) -> None:
    generations = Generations(GenerationStore(folder / "generations"))
    generation = generations.follow()
    assert generation is not None
    check(generation, 100_000, seed=1)
    generations.close()


def test_hostile_bytes_reach_no_further_than_a_refusal(folder: Path) -> None:
    """Through a server: also what is no UTF-8, such as a half of a surrogate pair."""
    with running(folder) as (_, _, address), grpc.insecure_channel(address.target) as channel:
        for text in queries(150, seed=2):
            code, message = refusal(
                channel,
                "Recommender/Search",
                SearchRequest(context=Context(client_time_ms=NOW_MS), query=text).SerializeToString(),
            )
            allowed = len(text) > MAX_TEXT_CHARS or not text.strip()
            assert code == ("INVALID_ARGUMENT" if allowed else "OK"), (ascii(text), message)
        typed = SearchRequest(context=Context(client_time_ms=NOW_MS), query="half").SerializeToString()
        half = typed.replace(b"half", b"\xed\xa0\x80a")
        assert refusal(channel, "Recommender/Search", half)[0] == "INVALID_ARGUMENT"
