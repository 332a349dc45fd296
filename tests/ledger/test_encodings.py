from __future__ import annotations

import pytest

from account_tax.errors import Refused
from account_tax.ledger.encodings import find_encoding

TEXTS = {
    "utf-8": "택시 이용,여비교통비\nBüro\n",
    "cp949": "택시 이용,여비교통비\n점심 식대,복리후생비\n",
    "cp1252": "Büro;Straße;Ärzte\nCafé;garçon – 10 €\n",
}
WESTERN = "l’hôtel «Œuvre»;¿Qué? 20 m²;50 £ ½ –––––;Kjøkken & Røros®;MÜLLER/Öl…“Ä”;\xa0\xa0é"


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("before", [0, 200_000])
def test_an_encoding_is_found_however_late_it_shows(tmp_path, name, before):
    (tmp_path / "x.csv").write_bytes(b"a,b\n" * before + TEXTS[name].encode(name))
    assert find_encoding(tmp_path / "x.csv").name == name


def test_signs_beside_words_are_western(tmp_path):
    (tmp_path / "x.csv").write_bytes(WESTERN.encode("cp1252"))
    assert find_encoding(tmp_path / "x.csv").name == "cp1252"


@pytest.mark.parametrize("name", ["utf-8", "cp949"])
def test_a_broken_line_changes_no_verdict(tmp_path, name):
    (tmp_path / "x.csv").write_bytes((TEXTS[name] * 20).encode(name) + b"\xff\xff\n")
    assert find_encoding(tmp_path / "x.csv").name == name


@pytest.mark.parametrize("name", ["utf-8", "cp949"])
def test_a_line_longer_than_is_judged_may_end_anywhere(tmp_path, name):
    (tmp_path / "x.csv").write_bytes(b"a" + ("가" * 10_000 + "\n").encode(name))
    assert find_encoding(tmp_path / "x.csv").name == name


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("gb18030", "摘要,科目\n出租车费,差旅费\n办公用品,管理费用\n"),
        ("shift_jis", "適用,勘定科目\nタクシー代,旅費交通費\n会議費用\n"),
        ("cp1251", "Описание;Счёт\nТакси;Командировки\n"),
        ("big5", "摘要,科目\n計程車費,差旅費\n"),
        ("cp1251", "memo;account\nTaxi to client office - Такси;Travel and hotels\n"),
        ("gb18030", "memo;account\nTaxi to client office - 出租;Travel and hotels\n"),
        ("shift_jis", "memo;account\nTaxi to client office - 交通費;Travel and hotels\n"),
        ("cp874", "memo;account\nTaxi to client office - ค่าแท็กซี่;Travel and hotels\n"),
        ("cp1250", "opis;konto\nUsługi taksówkowe;Podróże służbowe\n"),
        ("mac-roman", "texte;compte\nDéjeuner café;Réceptions\nHôtel;Déplacements\n"),
        ("iso8859-15", "texte;compte\nCafé 5 €;Réceptions\n"),
    ],
)
def test_text_of_another_country_is_refused_not_guessed(tmp_path, name, text):
    (tmp_path / "x.csv").write_bytes(text.encode(name))
    with pytest.raises(Refused, match=r"Set data\.encoding"):
        find_encoding(tmp_path / "x.csv")
    assert find_encoding(tmp_path / "x.csv", name).name == name


def test_utf_16_that_is_named_needs_no_mark(tmp_path):
    (tmp_path / "x.csv").write_bytes("적요,계정\n".encode("utf-16-le"))
    assert find_encoding(tmp_path / "x.csv", "utf-16").name == "utf-16-le"


@pytest.mark.parametrize("name", ["utf-16-le", "utf-16-be"])
def test_dense_hangul_without_a_mark_is_utf_16(tmp_path, name):
    lines = "적요,계정\n" + "서울택시요금지급건입니다출장비용정산처리,여비교통비\n" * 200
    (tmp_path / "x.csv").write_bytes(lines.encode(name))
    assert find_encoding(tmp_path / "x.csv").name == name


def test_a_few_nuls_make_no_utf_16(tmp_path):
    (tmp_path / "x.csv").write_bytes(b"text,label\na\0\0,b\nc\0,d\n")
    assert find_encoding(tmp_path / "x.csv").name == "utf-8"
