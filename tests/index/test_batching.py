"""The micro-batcher under real threads.

Shape letters: B queries, D embedding width, K results.
"""

import gc
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray

from index.batching import Batcher, Found

SEED_BD = np.arange(64, dtype=np.float32)[:, None]


class Echo:
    """Answers with the query's number, k times; notes every batch, and waits at a gate before each."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, int]] = []
        self.threads: set[int] = set()
        self.entered = threading.Event()
        self.gate = threading.Semaphore(0)

    def __call__(self, query_BD: NDArray[np.float32], k: int) -> Found:
        self.entered.set()
        self.gate.acquire()
        self.threads.add(threading.get_ident())
        self.batches.append((len(query_BD), k))
        if (query_BD < 0).any():
            raise ArithmeticError("a negative query")
        row_BK = np.repeat(query_BD.astype(np.int64), k, axis=1)
        return row_BK, row_BK.astype(np.float32)


def _waiting(batcher: Batcher[int], count: int) -> None:
    """Return when so many queries wait in line."""
    while len(batcher._line._waiting) < count:
        threading.Event().wait(0.001)


def _gathered(
    echo: Echo, asks: list[tuple[float, int]], *, most: int = 256
) -> tuple[list[Callable[[], Found]], Batcher[int]]:
    """Ask while a first batch is held at the gate, then let everything through."""
    batcher: Batcher[int] = Batcher(echo, most=most)
    with ThreadPoolExecutor(len(asks) + 1) as threads:
        threads.submit(batcher.search, SEED_BD[0], 1)
        echo.entered.wait()
        answers = []
        for number, (value, k) in enumerate(asks):
            answers.append(threads.submit(batcher.search, np.array([value], np.float32), k))
            _waiting(batcher, number + 1)
        echo.gate.release(len(asks) + 1)
    return [answer.result for answer in answers], batcher


def test_everyone_gets_the_answer_to_their_own_query() -> None:
    echo = Echo()
    echo.gate.release(10**6)
    batcher: Batcher[int] = Batcher(echo, most=8)

    def asked(number: int) -> None:
        for turn in range(40):
            row_K, score_K = batcher.search(np.array([number + 100 * turn], np.float32), number % 3 + 1)
            assert row_K.tolist() == [number + 100 * turn] * (number % 3 + 1)
            assert score_K.dtype == np.float32

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(asked, range(16)))
    assert sum(size for size, _ in echo.batches) == 16 * 40
    assert max(size for size, _ in echo.batches) <= 8
    assert len(echo.threads) == 1, "only one thread may touch a GPU's resources"
    batcher.close()


def test_queries_that_wait_together_are_one_batch() -> None:
    echo = Echo()
    _gathered(echo, [(number, 2) for number in range(5)])
    assert echo.batches == [(1, 1), (5, 2)]


def test_a_batch_holds_no_more_than_it_may() -> None:
    echo = Echo()
    _gathered(echo, [(number, 1) for number in range(5)], most=2)
    assert echo.batches == [(1, 1), (2, 1), (2, 1), (1, 1)]


def test_queries_for_different_ks_do_not_meet() -> None:
    echo = Echo()
    answers, _ = _gathered(echo, [(0, 3), (1, 7), (2, 3), (3, 7)])
    assert echo.batches == [(1, 1), (2, 3), (2, 7)]
    assert [answer()[0].tolist() for answer in answers] == [[0] * 3, [1] * 7, [2] * 3, [3] * 7]


def test_a_callers_own_batch_is_never_split_however_large() -> None:
    echo = Echo()
    echo.gate.release(10)
    batcher: Batcher[int] = Batcher(echo, most=4)
    row_BK, _ = batcher.search_batch(SEED_BD, 1)
    assert row_BK[:, 0].tolist() == list(range(64))
    assert echo.batches == [(64, 1)]


def test_an_error_reaches_everyone_in_the_batch_and_nobody_after_it() -> None:
    echo = Echo()
    answers, batcher = _gathered(echo, [(0, 2), (-1, 2)])
    for answer in answers:
        with pytest.raises(ArithmeticError, match="a negative query"):
            answer()
    echo.gate.release()
    assert batcher.search(SEED_BD[5], 1)[0].tolist() == [5]


def test_a_batch_that_is_not_full_waits_for_more_and_a_full_one_starts() -> None:
    echo = Echo()
    echo.gate.release(10)
    batcher: Batcher[int] = Batcher(echo, most=3, wait_ms=3_600_000)
    with ThreadPoolExecutor(3) as threads:
        answers = [threads.submit(batcher.search, SEED_BD[number], 1) for number in range(2)]
        _waiting(batcher, 2)
        assert not any(answer.done() for answer in answers)
        answers.append(threads.submit(batcher.search, SEED_BD[2], 1))
    assert echo.batches == [(3, 1)]


def test_closing_answers_those_who_wait_and_refuses_those_who_come() -> None:
    echo = Echo()
    batcher: Batcher[int] = Batcher(echo, most=3, wait_ms=3_600_000)
    with ThreadPoolExecutor(2) as threads:
        answers = [threads.submit(batcher.search, SEED_BD[number], 1) for number in range(2)]
        _waiting(batcher, 2)
        echo.gate.release(10)
        batcher.close()
    assert [answer.result()[0].tolist() for answer in answers] == [[0], [1]]
    assert not batcher._thread.is_alive()
    with pytest.raises(RuntimeError, match="closed"):
        batcher.search(SEED_BD[0], 1)
    batcher.close()


def test_a_batcher_that_nobody_holds_ends_its_thread() -> None:
    batcher: Batcher[int] = Batcher(Echo())
    thread = batcher._thread
    del batcher
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()


@pytest.mark.parametrize(("most", "wait_ms"), [(0, 0.0), (1, -1.0), (1, float("nan"))])
def test_a_size_or_time_that_makes_no_sense_is_refused(most: int, wait_ms: float) -> None:
    with pytest.raises(ValueError, match=r"most is 0|wait_ms is"):
        Batcher(Echo(), most=most, wait_ms=wait_ms)
