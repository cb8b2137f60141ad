"""The lexical index against BM25 written out, and against hostile text.

Shape letters: K results.
"""

import json
import math
import stat
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from index.lexical import LANGUAGES, MOST_WORDS, LexicalIndex

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
@settings(max_examples=30, deadline=None)
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
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_has_an_answer(index: LexicalIndex, text: str, k: int) -> None:
    hits = index.search(text, k)
    assert len(hits) <= k
    assert len(set(hits.row_K.tolist())) == len(hits)
    assert np.isfinite(hits.score_K).all()
    assert (hits.score_K > 0).all()
    assert (np.diff(hits.score_K) <= 0).all()
    assert ((hits.row_K >= 0) & (hits.row_K < len(TITLES))).all()


@given(st.lists(st.text(st.characters(), max_size=20), max_size=6))
@settings(max_examples=30, deadline=None)
def test_any_title_is_indexed(titles: list[str]) -> None:
    with TemporaryDirectory() as folder:
        index = LexicalIndex.build(Path(folder), [*titles, "lighthouse"])
    assert len(index) == len(titles) + 1
    assert len(titles) in index.search("lighthouse", 99).row_K


def test_words_beyond_the_limit_are_not_read(index: LexicalIndex) -> None:
    filler = " ".join(f"word{n}" for n in range(MOST_WORDS - 1))
    assert len(index.search(f"{filler} space", 9)) == 3
    assert len(index.search(f"{filler} another space", 9)) == 0


def test_a_repeated_word_counts_once(index: LexicalIndex) -> None:
    once, often = index.search("space", 9), index.search("space space SPACE spaces", 9)
    np.testing.assert_array_equal(once.score_K, often.score_K)


def test_a_mask_holds_and_leaves_k_where_k_exist(tmp_path: Path) -> None:
    index = LexicalIndex.build(tmp_path, [f"common title {n}" for n in range(500)])
    for share in (0.0, 0.01, 0.5, 1.0):
        allowed = np.random.default_rng(1).random(500) < share
        for k in (0, 1, 7, 600):
            hits = index.search("common", k, allowed)
            assert len(hits) == min(k, int(allowed.sum()))
            assert hits.row_K.tolist() == np.flatnonzero(allowed)[:k].tolist()


def test_no_titles_make_an_index(tmp_path: Path) -> None:
    index = LexicalIndex.build(tmp_path, [])
    assert len(index) == 0
    assert len(index.search("space", 5)) == 0
    assert len(index.search("space", 5, np.empty(0, np.bool_))) == 0


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
    with pytest.raises(ValueError, match=r"a mask of bool \(3,\) for 8 rows"):
        index.search("space", 2, np.ones(3, np.bool_))
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
