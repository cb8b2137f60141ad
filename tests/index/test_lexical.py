"""The lexical index against BM25 written out, and against hostile text.

Shape letters: K results.
"""

import json
import math
import shutil
import stat
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from index import lexical
from index.lexical import GRAMS, LANGUAGES, MOST_WORDS, LexicalIndex
from index.masks import Mask

TITLES = [
    "Space Adventure",
    "Running in Space",
    "The Adventure of the Runner",
    "",
    "\u00c4rger \u00fcber \u00d6lpreise",
    "space space space",
    "\u6771\u4eac \u30bf\u30ef\u30fc",
    "!!!",
]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> LexicalIndex:
    return LexicalIndex.build(tmp_path_factory.mktemp("build") / "lexical", TITLES)


def _bm25(words: list[str], titles: list[list[str]]) -> list[float]:
    """Robertson's formula, k1 = 1.2 and b = 0.75."""
    mean = sum(len(title) for title in titles) / len(titles)
    scores = []
    for title in titles:
        score = 0.0
        for word in set(words):
            holding, tf = sum(word in other for other in titles), title.count(word)
            idf = math.log(1 + (len(titles) - holding + 0.5) / (holding + 0.5))
            score += idf * 2.2 * tf / (tf + 1.2 * (0.25 + 0.75 * len(title) / mean)) if tf else 0
        scores.append(score)
    return scores


words_of = st.sampled_from(["fox", "dog", "map", "sky", "ink"])


@given(st.lists(st.lists(words_of, max_size=8), min_size=1, max_size=12), st.lists(words_of, max_size=4))
@settings(max_examples=30)
def test_the_score_is_bm25_and_equal_scores_come_in_row_order(titles: list[list[str]], words: list[str]) -> None:
    with TemporaryDirectory() as folder:
        hits = LexicalIndex.build(Path(folder), [" ".join(title) for title in titles]).search(" ".join(words), 99)
    expected = np.array(_bm25(words, titles))
    order = [row for row in np.argsort(-expected.astype(np.float32), kind="stable") if expected[row] > 0]
    assert sorted(hits.row_K.tolist()) == sorted(order)
    np.testing.assert_allclose(hits.score_K, expected[hits.row_K], rtol=1e-5)
    for above, below in zip(range(len(hits)), range(1, len(hits)), strict=False):
        tied = hits.score_K[above] == hits.score_K[below]
        assert hits.row_K[above] < hits.row_K[below] if tied else hits.score_K[above] > hits.score_K[below]


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("space adventures", {0, 1, 2, 5}),
        ("RUNS", {1}),
        ("arger", {4}),
        ("olpreise uber", {4}),
        ("\u6771\u4eac", {6}),
        ("nothing of the kind", {2}),
        ("", set()),
        ("?! \t\n", set()),
    ],
)
def test_words_match_whatever_their_case_accents_or_ending(index: LexicalIndex, text: str, rows: set[int]) -> None:
    assert set(index.search(text, 10).row_K.tolist()) == rows


@pytest.mark.parametrize(
    "text",
    [
        'title:space AND NOT "adventure"~2',
        "+space -running",
        "row:[0 TO 9]",
        "*",
        "space^9 /space.*/",
        "(space",
        'space"',
        "space\x00adventure",
        "\ud800space\udfff",
        "space " * 5000,
        "\U0001f680 space \U0001f469\u200d\U0001f680",
        "\u202eecaps space",
    ],
)
def test_nothing_in_the_text_is_an_operator(index: LexicalIndex, text: str) -> None:
    assert {0, 1, 5} <= set(index.search(text, 10).row_K.tolist()) or "space" not in text


@given(st.text(st.characters(), max_size=60), st.integers(0, 20))
@example("x" * 100_000, 5)
@example(" ".join(f"word{n}" for n in range(10_000)), 5)
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_has_an_answer(index: LexicalIndex, text: str, k: int) -> None:
    hits = index.search(text, k)
    assert len(hits) <= k
    assert len(set(hits.row_K.tolist())) == len(hits)
    assert np.isfinite(hits.score_K).all()
    assert (hits.score_K > 0).all()
    assert (np.diff(hits.score_K) <= 0).all()
    assert ((hits.row_K >= 0) & (hits.row_K < len(TITLES))).all()


@given(st.lists(st.text(st.characters(), max_size=20), max_size=6))
@settings(max_examples=30)
def test_any_title_is_indexed(titles: list[str]) -> None:
    with TemporaryDirectory() as folder:
        index = LexicalIndex.build(Path(folder), [*titles, "lighthouse"])
    assert len(index) == len(titles) + 1
    assert len(titles) in index.search("lighthouse", 99).row_K


def test_words_beyond_the_limit_are_not_read(index: LexicalIndex) -> None:
    filler = " ".join(f"w{chr(97 + n // 26)}{chr(97 + n % 26)}k" for n in range(MOST_WORDS - 1))
    assert len(index.search(f"{filler} space", 9)) == 3
    assert len(index.search(f"{filler} another space", 9)) == 0


def test_a_repeated_word_counts_once(index: LexicalIndex) -> None:
    once, often = index.search("space", 9), index.search("space space SPACE spaces", 9)
    np.testing.assert_array_equal(once.score_K, often.score_K)


def test_a_mask_holds_and_leaves_k_where_k_exist(tmp_path: Path) -> None:
    index = LexicalIndex.build(tmp_path, [f"common title {n}" for n in range(500)])
    for share in (0.0, 0.01, 0.5, 1.0):
        allowed = Mask(np.random.default_rng(1).random(500) < share)
        for k in (0, 1, 7, 600):
            hits = index.search("common", k, allowed)
            assert hits.row_K.tolist() == allowed.row_A[:k].tolist()
    last = Mask(np.arange(500) >= 490)
    assert index.search("common", 4, last).row_K.tolist() == [490, 491, 492, 493]


sentences = st.lists(st.lists(words_of, max_size=5).map(" ".join), max_size=7)


def _assert_alike(index: LexicalIndex, expected: LexicalIndex, text: str, k: int, allowed: Mask | None = None) -> None:
    found, wanted = index.search(text, k, allowed), expected.search(text, k, allowed)
    np.testing.assert_array_equal(found.row_K, wanted.row_K)
    np.testing.assert_array_equal(found.score_K, wanted.score_K)


@given(sentences, st.lists(sentences, max_size=5), words_of, words_of, st.sampled_from([1, 40, lexical._FULL]))
@settings(max_examples=20)
def test_an_index_that_grew_answers_as_one_built_of_all_and_its_older_values_as_before(
    base: list[str], parts: list[list[str]], one: str, other: str, full: int
) -> None:
    with TemporaryDirectory() as folder, patch.object(lexical, "_FULL", full):
        values = [(LexicalIndex.build(Path(folder) / "base", base), base)]
        for part in parts:
            values.append((values[-1][0].grown(part), values[-1][1] + part))
        for number, (index, titles) in enumerate(values):
            built = LexicalIndex.build(Path(folder) / f"{number}", titles)
            assert len(index) == len(titles)
            for k in (1, 3, 99):
                _assert_alike(index, built, one, k)
                _assert_alike(index, built, f"{one} {other}", k)


@pytest.mark.parametrize("full", [1, 5000, lexical._FULL])
def test_ties_are_cut_by_row_whatever_the_segments_and_the_mask(
    full: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lexical, "_FULL", full)
    titles = [f"{a} {b}" for a in ("red", "blue", "old") for b in ("fox", "dog", "map")] * 200
    built = LexicalIndex.build(tmp_path / "all", titles)
    index = LexicalIndex.build(tmp_path / "base", titles[:500])
    edges = [500, 501, 502, 503, 1000, 1001, 1500, 1799, len(titles)]
    for start, end in pairwise(edges):
        index = index.grown(titles[start:end])
    segments = index._searcher.num_segments
    assert segments == 9 if full == 1 else 2 <= segments < 9
    for share in (None, 0.5, 0.02):
        allowed = None if share is None else Mask(np.random.default_rng(2).random(len(titles)) < share)
        for text in ("fox", "red fox", "map blue old"):
            for k in (1, 10, 170, 599, len(titles)):
                _assert_alike(index, built, text, k, allowed)


def test_titles_added_one_by_one_make_few_segments_and_are_written_few_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []
    write = lexical._write

    def counted(folder: Path, texts: Sequence[str], **how: Any) -> None:
        written.append(len(texts))
        write(folder, texts, **how)

    index = LexicalIndex.build(tmp_path, TITLES)
    monkeypatch.setattr(lexical, "_write", counted)
    for _ in range(63):
        index = index.grown(["red"])
    assert index._searcher.num_segments == 1 + 6
    assert sum(written) <= 63 * 6
    monkeypatch.setattr(lexical, "_FULL", 64)
    before = len(written)
    for _ in range(64):
        index = index.grown(["red"])
    assert max(written[before:]) <= 32  # of four characters each
    assert index.search("red", 999).row_K.tolist() == list(range(8, 8 + 127))


def test_values_that_grow_from_one_value_do_not_meet(index: LexicalIndex) -> None:
    first = index.grown(["a lighthouse"])
    second, third = first.grown(["one windmill"]), first.grown(["two castles", "another windmill"])
    fourth = index.grown(["the windmill"])
    assert [len(each) for each in (index, first, second, third, fourth)] == [8, 9, 10, 11, 9]
    found = [each.search("windmill", 9).row_K.tolist() for each in (index, first, second, third, fourth)]
    assert found == [[], [], [9], [10], [8]]
    assert [len(each.search("castle", 9)) for each in (second, third)] == [0, 1]
    assert first.grown([]) is first


def test_growing_touches_no_folder_but_its_own_and_removes_that_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    LexicalIndex.build(tmp_path / "lexical", TITLES)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    before = {path.name: path.read_bytes() for path in (tmp_path / "lexical").iterdir()}
    loaded = LexicalIndex.load(tmp_path / "lexical")
    assert not any((tmp_path / "temporary").iterdir())
    values = [loaded]
    for _ in range(5):
        values.append(values[-1].grown(["one windmill"]))
    (folder,) = (tmp_path / "temporary").iterdir()
    newest = values[-1]
    del values
    files = {path.suffix for path in folder.iterdir()}
    assert sum(path.suffix == ".term" for path in folder.iterdir()) == newest._searcher.num_segments == 3, files
    searcher = newest._searcher
    del newest
    assert not any((tmp_path / "temporary").iterdir())
    assert searcher.num_docs == len(TITLES) + 5
    assert {path.name: path.read_bytes() for path in (tmp_path / "lexical").iterdir()} == before


def test_threads_search_while_the_index_grows(index: LexicalIndex) -> None:
    values, done = [index], Event()

    def search() -> int:
        searched = 0
        while not done.is_set() or not searched:
            newest = values[-1]
            hits = newest.search("windmill", 99)
            assert hits.row_K.tolist() == list(range(len(TITLES), len(newest)))
            searched += 1
        return searched

    with ThreadPoolExecutor(3) as threads:
        searches = [threads.submit(search) for _ in range(3)]
        for _ in range(20):
            values.append(values[-1].grown(["one windmill"]))
        done.set()
        assert all(each.result() for each in searches)


def test_segments_of_a_large_build_are_read_in_the_order_of_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lexical, "_HEAP_BYTES", 15_000_000)
    titles = [f"common {n} {n * n}x{n}" for n in range(60_000)]
    for attempt in range(3):  # tantivy orders them by chance
        index = LexicalIndex.build(tmp_path / f"{attempt}", titles)
        assert 2 <= index._searcher.num_segments < 8
        assert index.search("common", 100).row_K.tolist() == list(range(100))
        assert index.search("common", 60_000).row_K.tolist() == list(range(60_000))
    assert len(index.grown(["common words here"]).search("words", 5)) == 1


def test_an_index_whose_folder_is_gone_cannot_grow(tmp_path: Path) -> None:
    index = LexicalIndex.build(tmp_path / "lexical", TITLES)
    shutil.rmtree(tmp_path / "lexical")
    with pytest.raises(ValueError, match=r"lexical is not a tantivy index: .*No such file"):
        index.grown(["one"])


def test_no_titles_make_an_index(tmp_path: Path) -> None:
    index = LexicalIndex.build(tmp_path, [])
    assert len(index) == 0
    assert len(index.search("space", 5)) == 0
    assert len(index.search("space", 5, Mask(np.empty(0, np.bool_)))) == 0


def test_loading_gives_the_same_answers_and_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    built = LexicalIndex.build(tmp_path / "lexical", TITLES, language="de")
    before = {path.name: path.read_bytes() for path in (tmp_path / "lexical").iterdir()}
    assert not any("lock" in name for name in before)
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o644 for path in (tmp_path / "lexical").iterdir())
    loaded = LexicalIndex.load(tmp_path / "lexical")
    assert loaded.language == "de"
    for text in ("space", "\u00e4rger", "adventure space"):
        found, expected = loaded.search(text, 5), built.search(text, 5)
        np.testing.assert_array_equal(found.row_K, expected.row_K)
        np.testing.assert_array_equal(found.score_K, expected.score_K)
    assert {path.name: path.read_bytes() for path in (tmp_path / "lexical").iterdir()} == before


def test_a_loaded_index_outlives_its_files(tmp_path: Path) -> None:
    index = LexicalIndex.build(tmp_path, TITLES)
    for path in tmp_path.iterdir():
        path.unlink()
    assert len(index.search("space adventure", 9)) == 4


def test_two_builds_answer_alike(tmp_path: Path) -> None:
    titles = [f"{a} {b}" for a in ("red", "blue", "old") for b in ("fox", "dog", "map")] * 400
    first, second = (LexicalIndex.build(tmp_path / name, titles) for name in "ab")
    for text in ("red fox", "old", "map blue old"):
        np.testing.assert_array_equal(first.search(text, 700).row_K, second.search(text, 700).row_K)
        np.testing.assert_array_equal(first.search(text, 700).score_K, second.search(text, 700).score_K)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_language_finds_a_title_by_its_own_words(language: str, tmp_path: Path) -> None:
    assert LexicalIndex.build(tmp_path, ["alpha beta", "gamma"], language=language).search("beta", 5).row_K[0] == 0


def test_misuse_names_what_is_wrong(index: LexicalIndex, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="language is 'xx', it must be one of ar, da"):
        LexicalIndex.build(tmp_path, [], language="xx")
    with pytest.raises(ValueError, match="k is -2"):
        index.search("space", -2)
    with pytest.raises(ValueError, match="a mask of 3 rows for an index of 8"):
        index.search("space", 2, Mask(np.ones(3, np.bool_)))
    (tmp_path / "stray").touch()
    with pytest.raises(ValueError, match="is not empty"):
        LexicalIndex.build(tmp_path, [])


@pytest.mark.parametrize(
    ("name", "contents", "message"),
    [
        ("lexical.json", None, "does not describe a lexical index: FileNotFound"),
        ("lexical.json", "{}", "does not describe a lexical index: KeyError"),
        ("lexical.json", json.dumps({"language": "xx", "count": 8}), "says language 'xx'"),
        ("lexical.json", json.dumps({"language": "en", "count": 9}), "holds 8 titles, lexical.json says 9"),
        ("meta.json", None, "is not a tantivy index"),
        ("meta.json", "{", "is not a tantivy index"),
        ("*.idx", None, "is not a tantivy index"),
        ("*.term", "", "is not a tantivy index"),
    ],
)
def test_a_damaged_folder_is_one_line(name: str, contents: str | None, message: str, tmp_path: Path) -> None:
    LexicalIndex.build(tmp_path, TITLES)
    (path,) = tmp_path.glob(name)
    if contents is None:
        path.unlink()
    else:
        path.write_text(contents)
    with pytest.raises(ValueError, match=message) as raised:
        LexicalIndex.load(tmp_path)
    assert "\n" not in str(raised.value)


def test_runs_of_letters_find_what_is_misspelt(tmp_path: Path) -> None:
    titles = ["Ceiling Fan", "Chandelier", "Shower Head"]
    grams = LexicalIndex.build(tmp_path / "grams", titles, language=GRAMS)
    assert grams.search("chandelear", 3).row_K.tolist() == [1]
    assert LexicalIndex.build(tmp_path / "words", titles).search("chandelear", 3).row_K.tolist() == []
    assert LexicalIndex.load(tmp_path / "grams").search("HEADS", 3).row_K.tolist() == [2]
    assert grams.grown(["Fan Blade"]).search("blad", 3).row_K.tolist() == [3]
