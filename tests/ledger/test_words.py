"""Ids by words are the tokenizer's own, whatever the text is; else texts are read whole."""

import random
from pathlib import Path

import pyarrow as pa
import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from account_tax.ledger import tokens
from account_tax.ledger.tokens import load_base, read_tokens
from account_tax.ledger.words import words_of
from account_tax.parameters.config import resolve

ROOT = Path(__file__).resolve().parents[2]
ODD = [
    *("", " ", "a", "  a b", " a", "b ", "a  b", "a\tb", "a\u3000b", "a\u00a0b", "a \u200b b"),
    *("가\u0301 나", "a \u0301b", "é ̈x", "각 \u11a8", "\u0600 1", "<s> a", "a <mask> b"),
    *("[SEP] x", "x[mask]y", "＜s＞ y", "a </s>", "İstanbul ß ŉ Ǆ", "①② ㈜회사", "カﾞ が か\u3099"),
    *("العربية نص", "ﬁ ﬂ", "😀 emoji", "1,234.50 (주) A/B-c_d", "query: a", "word " * 200),
    *("A" * 300, "가나다 " * 100 + "끝", "~!@#$%^&*()_+ `"),
]


def texts_of_all_kinds(count: int) -> list[str]:
    draw = random.Random(1)
    characters = "ab1 -.,가힣é한글XYZ[]<>/ 日本ガか\u0301"
    drawn = ["".join(draw.choices(characters, k=draw.randint(1, 60))) for _ in range(count)]
    plain = [" ".join(draw.choices(["식대", "taxi", "12,000", "회사", "cafe"], k=9)) for _ in drawn]
    return [*drawn, *plain, *ODD]


def whole(texts, tokenizer, max_length):
    return tokenizer(texts, truncation=True, max_length=max_length)["input_ids"]


@pytest.mark.parametrize("recipe", ["starter", "english"])
@pytest.mark.parametrize("max_length", [8, 64])
def test_ids_are_the_tokenizers_own(recipe, max_length):
    values = resolve(ROOT, [("recipe", recipe)]).values
    _, tokenizer = load_base(values["train"]["model"])
    texts = texts_of_all_kinds(tokens.MANY)
    words = words_of(tokenizer)
    assert words
    plain = words.plain(pa.array(texts))
    assert 0.4 < plain.mean() < 0.9  # both ways are tried
    assert read_tokens(pa.array(texts), tokenizer, max_length).to_pylist() == whole(
        texts, tokenizer, max_length
    )


@pytest.mark.parametrize("text", ["a  b", "\u200b"])
def test_where_no_text_is_of_plain_words_all_are_read_whole(text):
    _, tokenizer = load_base(resolve(ROOT, [("recipe", "english")]).values["train"]["model"])
    texts = [text] * tokens.MANY
    assert read_tokens(pa.array(texts), tokenizer, 8).to_pylist() == whole(texts, tokenizer, 8)


def make_tokenizer(normalizer, splitter, words="a b ab") -> PreTrainedTokenizerFast:
    vocabulary = {word: place for place, word in enumerate(["[UNK]", *words.split()])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normalizer, splitter
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")


SPLIT = pre_tokenizers.WhitespaceSplit()


@pytest.mark.parametrize(
    ("normalizer", "splitter"),
    [
        (None, pre_tokenizers.ByteLevel()),
        (None, pre_tokenizers.Metaspace()),
        (normalizers.Replace(" b", "b"), SPLIT),
        (normalizers.Replace(Regex(r"\s"), ""), SPLIT),
        (normalizers.Strip(), SPLIT),
    ],
)
def test_where_a_text_may_be_more_than_its_words_it_is_read_whole(normalizer, splitter):
    tokenizer = make_tokenizer(normalizer, splitter)
    assert words_of(tokenizer) is None
    texts = ["a b"] * tokens.MANY
    assert read_tokens(pa.array(texts), tokenizer, 8).to_pylist() == whole(texts, tokenizer, 8)


def test_a_rule_that_nobody_thought_of_is_found_by_looking(monkeypatch):
    tokenizer = make_tokenizer(normalizers.Replace(" b", "b"), SPLIT)
    known = words_of(make_tokenizer(None, SPLIT))
    monkeypatch.setattr(tokens, "words_of", lambda _: known)
    texts = ["a b"] * tokens.MANY
    assert (
        read_tokens(pa.array(texts), tokenizer, 8).to_pylist()
        == whole(texts, tokenizer, 8)
        == [[3]] * 1000
    )
