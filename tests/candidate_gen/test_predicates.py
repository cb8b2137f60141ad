import json
import operator
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from candidate_gen.items import Items
from candidate_gen.predicates import (
    MAX_CHARACTERS,
    MAX_COMPARISONS,
    MAX_DEPTH,
    Attributes,
    Comparison,
    Condition,
    Every,
    FilterError,
    Not,
    Some,
    parse,
)
from index.strings import key64

DAY_MS = 86_400_000
Told = Mapping[str, Any]
"""What an item has by attribute; None where it has nothing."""

ORDERS = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
TEXTS = ["News", "news", 'say "hi"\\', "\u00fc", "a b"]
TOLD = st.fixed_dictionaries(
    {
        "category": st.sampled_from([None, *TEXTS]),
        "price": st.sampled_from([None, -1.5, 0.0, 2.0, 1e9]),
        "published_ms": st.sampled_from([0, 1, DAY_MS, 20 * DAY_MS]),
        "available": st.booleans(),
    }
)
COMPARISONS = st.one_of(
    st.builds(
        Comparison,
        st.just("category"),
        st.sampled_from(["=", "!="]),
        st.tuples(st.sampled_from(TEXTS)),
        st.just(0),
    ),
    st.builds(
        Comparison,
        st.sampled_from(["price", "published_ms"]),
        st.sampled_from(["=", "!=", "<", "<=", ">", ">="]),
        st.tuples(st.sampled_from([-1.5, 0.0, 2.0, 1e9, float(DAY_MS)])),
        st.just(0),
    ),
    st.builds(Comparison, st.just("available"), st.sampled_from(["=", "!="]), st.tuples(st.booleans()), st.just(0)),
    *(
        st.builds(
            Comparison,
            st.just(name),
            st.just("IN"),
            st.lists(st.sampled_from(values), min_size=1, max_size=30).map(tuple),
            st.just(0),
        )
        for name, values in (
            ("category", [*TEXTS, *(f"t{n}" for n in range(30))]),
            ("price", [-1.5, 2.0, *map(float, range(30))]),
        )
    ),
)


def joined(inner: st.SearchStrategy[Condition]) -> st.SearchStrategy[Condition]:
    several = st.lists(inner, min_size=2, max_size=3).map(tuple)
    return st.one_of(st.builds(Not, inner), st.builds(Every, several), st.builds(Some, several))


CONDITIONS: st.SearchStrategy[Condition] = st.recursive(COMPARISONS, joined, max_leaves=5)


def written(condition: Condition) -> str:
    """As one would type it, with parentheses around everything but comparisons."""
    match condition:
        case Comparison(name, by, values):
            texts = [value_written(value) for value in values]
            return f"{name} {by} ({', '.join(texts)})" if by == "IN" else f"{name}{by}{texts[0]}"
        case Not(inner):
            return f"not ({written(inner)})"
        case Every(inner):
            return "(" + " AND ".join(map(written, inner)) + ")"
        case Some(inner):
            return "(" + " oR ".join(map(written, inner)) + ")"


def value_written(value: object) -> str:
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return json.dumps(value)


def holds(condition: Condition, told: Told) -> bool:
    """What the module promises, in plain Python."""
    match condition:
        case Not(inner):
            return not holds(inner, told)
        case Every(inner):
            return all(holds(each, told) for each in inner)
        case Some(inner):
            return any(holds(each, told) for each in inner)
        case Comparison(name, by, values):
            value = told[name]
            if value is None or by == "IN":
                return value in values
            return bool(ORDERS[by](value, values[0]))


def made(told: list[Told], *, first: int = 0) -> Items:
    ids = [f"i{row}" for row in range(first, first + len(told))]
    return Items.of(
        ids=ids,
        titles=ids,
        row_I=np.zeros(len(told), [("item_id", "<i4")]),
        published_ms=[each["published_ms"] for each in told],
        available=[each["available"] for each in told],
        embedding_ID=np.zeros((len(told), 2), np.float32),
        attributes={
            "category": np.array([key64(each["category"]) if each["category"] else 0 for each in told], np.uint64),
            "price": np.array([np.nan if each["price"] is None else each["price"] for each in told], np.float64),
        },
    )


ONE = made([{"category": "News", "price": 10.0, "published_ms": 19 * DAY_MS, "available": True}])


def satisfied(text: str, items: Items = ONE) -> list[int]:
    row_A: list[int] = Attributes(items).mask(parse(text)).row_A.tolist()
    return row_A


@given(CONDITIONS, st.lists(TOLD, max_size=12), st.lists(TOLD, max_size=5), st.lists(TOLD, max_size=5))
def test_a_mask_is_what_plain_python_says_also_of_items_that_grew(
    condition: Condition, first: list[Told], later: list[Told], last: list[Told]
) -> None:
    predicate = parse(written(condition))
    told = [*first, *later, *last]
    expected = [row for row, each in enumerate(told) if each["available"] and holds(condition, each)]
    base = made(first)
    grown = base.appended(made(later, first=len(first)))
    whole = grown.appended(made(last, first=len(first) + len(later)))
    attributes = Attributes(base)
    assert attributes.mask(predicate).row_A.tolist() == [row for row in expected if row < len(first)]
    followed = attributes.on(grown)
    for asked in (
        followed.on(whole),
        Attributes(whole),
        Attributes(made(told)),
        attributes.on(whole),
    ):
        assert asked.mask(predicate).row_A.tolist() == expected
        assert len(asked.mask(predicate)) == len(told)
    assert followed.mask(predicate).row_A.tolist() == [row for row in expected if row < len(first) + len(later)]


@given(st.lists(TOLD, min_size=1, max_size=8), st.data())
def test_what_is_hidden_or_shown_again_follows(told: list[Told], data: st.DataObject) -> None:
    attributes, predicate = Attributes(items := made(told)), parse("NOT price < 2")
    attributes.mask(predicate)
    rows = np.array(data.draw(st.lists(st.integers(0, len(told) - 1), unique=True)), np.int64)
    for available in (False, True):
        items = items.with_available(rows, available)
        attributes = attributes.on(items)
        expected = items.available_I & [each["price"] is None or each["price"] >= 2 for each in told]
        assert attributes.mask(predicate).allowed_I.tolist() == expected.tolist()


@given(st.one_of(st.text(max_size=60), st.text('aINandORnot=!<>() ,."\\1e-+\n', max_size=60)))
@example("\ud800")
@example('a = "\ud800"')
@example("(" * 1000)
@example("NOT " * 250 + "a = 1")
def test_any_text_is_read_or_refused_in_one_line(text: str) -> None:
    told = ""
    try:
        assert parse(text).text == text
    except FilterError as error:
        told = str(error)
    assert len(told) < 250
    assert told.isprintable()


@given(CONDITIONS)
def test_what_is_written_is_read_as_it_was_meant(condition: Condition) -> None:
    def meant(read: Condition) -> Condition:
        match read:
            case Comparison(name, by, values):
                return Comparison(name, by, values, 0)
            case Not(inner):
                return Not(meant(inner))
            case Every(inner):
                return Every(tuple(map(meant, inner)))
            case Some(inner):
                return Some(tuple(map(meant, inner)))

    assert meant(parse(written(condition)).condition) == condition


def test_not_binds_before_and_and_and_before_or() -> None:
    a, b, c = (Comparison(name, "=", (1.0,), at) for name, at in (("a", 5), ("b", 13), ("c", 22)))
    assert parse("NOT a=1 AND b=1   OR c=1").condition == Some((Every((Not(a), b)), c))
    c = Comparison("c", "=", (1.0,), 21)
    assert parse("not a=1 and(b=1  or c=1)").condition == Every((Not(a), Some((b, c))))


@pytest.mark.parametrize("name", ["android", "Order", "notes", "index", "inner", "truely", "_x", "price2"])
def test_a_name_that_begins_like_a_keyword_is_a_name(name: str) -> None:
    assert parse(f"NOT {name} = 1").condition == Not(Comparison(name, "=", (1.0,), 5))


def test_what_an_item_lacks_satisfies_no_comparison_and_not_is_the_complement() -> None:
    items = made([{"category": None, "price": None, "published_ms": 0, "available": True}])
    for name, value in (("category", '"x"'), ("price", "3")):
        for by in ("=", "!=", "<", ">=") if name == "price" else ("=", "!="):
            assert satisfied(f"{name} {by} {value}", items) == []
            assert satisfied(f"NOT {name} {by} {value}", items) == [0]
        assert satisfied(f"{name} IN ({value})", items) == []
    assert satisfied('category = ""', items) == []


@pytest.mark.parametrize(
    "moment",
    [
        "1970-01-20",
        "1970-01-20T00:00:00",
        "1970-01-20T00:00:00Z",
        "1970-01-20 02:00+02:00",
        "1970-01-19T19:00:00.000-05:00",
    ],
)
def test_a_time_may_be_iso_text_and_is_utc_where_no_zone_is_named(moment: str) -> None:
    assert satisfied(f'published_ms = "{moment}"') == [0]
    assert satisfied(f'published_ms > "{moment}"') == satisfied(f'published_ms < "{moment}"') == []
    assert satisfied(f'published_ms IN (7, "{moment}")') == [0]


@given(st.datetimes(timezones=st.just(UTC)))
def test_every_time_there_is_can_be_compared_with(moment: datetime) -> None:
    assert bool(satisfied(f'published_ms >= "{moment.isoformat()}"')) == (moment.timestamp() * 1000 <= 19 * DAY_MS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "at character 1: found the end, expected ( or NOT or an attribute"),
        ("price <", 'at character 8: found the end, expected a "text" or a number or false or true'),
        ("price = cheap", "at character 9: found 'cheap', expected a \"text\" or a number or false or true"),
        ("price # 3", "at character 7: found '#', expected = != < <= > >= or IN"),
        ("price = 3 category", "at character 11: found 'category', expected AND or OR or the end"),
        ("(price = 3", "at character 11: found the end, expected )"),
        ("price = 3)", "at character 10: found ')', expected the end"),
        ("price IN ()", "at character 11: found ')', expected a \"text\" or a number or false or true"),
        ("colour = 3", "at character 1: no attribute 'colour'; there are available, category, price, published_ms"),
        (
            "NOT price = true",
            "at character 5: 'price' is compared by = != < <= > >= IN with a number, not by = with True",
        ),
        ('price = "3"', "at character 1: 'price' is compared by = != < <= > >= IN with a number, not by = with '3'"),
        ("category = 3", "at character 1: 'category' is compared by = != IN with a \"text\", not by = with 3.0"),
        ('category < "a"', "at character 1: 'category' is compared by = != IN with a \"text\", not by < with 'a'"),
        (
            "available > true",
            "at character 1: 'available' is compared by = != IN with true or false, not by > with True",
        ),
        ("available = 1", "at character 1: 'available' is compared by = != IN with true or false, not by = with 1.0"),
        (
            'published_ms > "soon"',
            "at character 1: 'published_ms' is compared by = != < <= > >= IN "
            "with milliseconds or an ISO 8601 date or time, not by > with 'soon'",
        ),
        ('price = 3 AND category = "\ud800"', "at character 27: half of a surrogate pair is no character"),
        ("a" * (MAX_CHARACTERS + 1), "the filter has 1025 characters; at most 1024 are allowed"),
        ("a=1 or " * MAX_COMPARISONS + "a=1", "the filter has 33 comparisons; at most 32 are allowed"),
        ("not " * (MAX_DEPTH + 1) + "a=1", "the filter is more than 16 levels deep"),
    ],
)
@pytest.mark.parametrize("items", [ONE, made([])])
def test_what_cannot_be_is_refused_with_where_what_and_what_is_allowed(text: str, message: str, items: Items) -> None:
    with pytest.raises(FilterError) as refused:
        satisfied(text, items)
    assert str(refused.value) == message


def test_as_much_as_is_allowed_is_read() -> None:
    assert satisfied("a=1 or ".replace("a", "price") * (MAX_COMPARISONS - 1) + "price=10") == [0]
    assert satisfied("not " * MAX_DEPTH + "price=10") == [0]
    assert satisfied("(" * 500 + "price=10" + ")" * 500) == [0]
    assert satisfied("price=10".ljust(MAX_CHARACTERS)) == [0]


def test_a_mask_is_made_once_and_the_oldest_is_forgotten() -> None:
    attributes = Attributes(ONE)
    kept, forgotten = parse("price > 1"), parse("price > 2")
    first, other = attributes.mask(kept), attributes.mask(forgotten)
    for number in range(254):
        attributes.mask(parse(f"price = {number}"))
        assert attributes.mask(kept) is first
    attributes.mask(parse("price = -1"))
    assert attributes.mask(kept) is first
    assert attributes.mask(forgotten) is not other


def test_many_threads_may_ask_at_once() -> None:
    told: list[Told] = [
        {"category": None, "price": float(row % 50), "published_ms": row, "available": True} for row in range(5000)
    ]
    attributes, wrong = Attributes(made(told)), []

    def ask(seed: int) -> None:
        for most in np.random.default_rng(seed).integers(51, size=100).tolist():
            if attributes.mask(parse(f"price < {most}")).count != 100 * most:
                wrong.append(most)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
