from hypothesis import given
from hypothesis import strategies as st

from candidate_gen.text import token_ids, words


def test_case_accents_and_compatibility_forms_do_not_make_another_word() -> None:
    assert words("Café  CAFÉ cafe\u0301") == ["cafe"] * 3
    assert words("ﬁne Straße") == ["fine", "strasse"]
    assert words("Jazz\u2122") == ["jazztm"]


def test_words_come_in_order_without_punctuation() -> None:
    assert words("Rock 'n' roll, vol. 2!") == ["rock", "n", "roll", "vol", "2"]
    assert words(" -- ") == []


@given(st.text(max_size=40))
def test_the_words_of_words_are_themselves(text: str) -> None:
    once = words(text)
    assert words(" ".join(once)) == once


@given(st.lists(st.text(max_size=20), max_size=5), st.integers(1, 6), st.integers(2, 50))
def test_token_ids_are_in_the_table_and_padded_on_the_right(texts: list[str], length: int, size: int) -> None:
    ids_BT = token_ids(texts, length=length, size=size)
    assert ids_BT.shape == (len(texts), length)
    for row, text in zip(ids_BT, texts, strict=True):
        filled = min(len(words(text)), length)
        assert ((row[:filled] >= 1) & (row[:filled] < size)).all()
        assert not row[filled:].any()


def test_a_word_has_the_same_token_wherever_it_stands() -> None:
    first, second = token_ids(["red wine", "Wine: red?"], length=2, size=1 << 14)
    assert first.tolist() == second.tolist()[::-1]


def test_tokens_are_crc32_for_ever() -> None:
    # 0xCBF43926 is the published check value of CRC-32: that of the digits 1 to 9.
    assert token_ids(["123456789"], length=1, size=1 << 14)[0, 0] == 1 + 0xCBF43926 % ((1 << 14) - 1)
