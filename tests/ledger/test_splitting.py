from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from account_tax.ledger.dates import describe_days
from account_tax.ledger.reading import DataError, read_ledger
from account_tax.ledger.splitting import TEST, TRAIN, VALIDATION, draw_splits, split_ledger
from account_tax.ledger.units import find_rare

SECRET = "secret memo"
SETTINGS = {"train": 0.8, "validation": 0.1, "test": 0.1, "seed": 42, "stratified": True}


def make_frame(sizes: dict[str, int]) -> pd.DataFrame:
    rows = [(f"{label} {i}", label) for label, size in sizes.items() for i in range(size)]
    return pd.DataFrame(rows, columns=["seen", "label"]).sample(frac=1, random_state=0)


def random_frame(seed: int, *, grouped: bool) -> pd.DataFrame:
    """Return rows whose texts and groups repeat, some rows without a group."""
    random = np.random.RandomState(seed)
    size = random.randint(200, 600)
    frame = pd.DataFrame(
        {
            "seen": random.randint(0, size // random.randint(1, 4), size).astype(str),
            "label": random.choice(list("abcde"), size, p=[0.5, 0.2, 0.15, 0.1, 0.05]),
        }
    )
    if grouped:
        # Few texts may meet in many groups; as many groups as rows keeps the ties short.
        group = random.randint(0, size * 3, size).astype(str)
        frame["group"] = np.where(random.rand(size) < 0.2, "", group)
    return frame


def counts(frame: pd.DataFrame, drawn: np.ndarray) -> dict[str, list[int]]:
    return {
        str(label): np.bincount(drawn[(frame["label"] == label).to_numpy()], minlength=3).tolist()
        for label in sorted(frame["label"].unique())
    }


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("stratified", [False, True])
def test_no_text_and_no_group_is_in_two_splits(seed, grouped, stratified):
    frame = random_frame(seed, grouped=grouped)
    drawn = draw_splits(frame, SETTINGS | {"seed": seed, "stratified": stratified})
    assert set(drawn) == {TRAIN, VALIDATION, TEST}
    assert frame.assign(split=drawn).groupby("seen")["split"].nunique().max() == 1
    if grouped:
        named = frame.assign(split=drawn)[frame["group"] != ""]
        assert named.groupby("group")["split"].nunique().max() == 1


def test_each_class_is_split_by_the_fractions():
    frame = make_frame({"a": 1000, "b": 200, "c": 30, "d": 10})
    drawn = counts(frame, draw_splits(frame, SETTINGS))
    assert drawn == {"a": [800, 100, 100], "b": [160, 20, 20], "c": [24, 3, 3], "d": [8, 1, 1]}


def test_rounding_does_not_add_up_over_many_classes():
    frame = make_frame({f"class {i}": 14 for i in range(50)})  # 0.1 x 14 rounds to 1 in each
    total = np.bincount(draw_splits(frame, SETTINGS))
    assert total.tolist() == [560, 70, 70]


@pytest.mark.parametrize("size", [3, 4, 5, 9])
@pytest.mark.parametrize("train", [0.98, 0.8, 0.1])
def test_a_small_class_is_in_every_split(size, train):
    frame = make_frame({"small": size, "large": 100})
    rest = (1 - train) / 2
    settings = SETTINGS | {"train": train, "validation": rest, "test": rest}
    drawn = counts(frame, draw_splits(frame, settings))
    assert min(drawn["small"]) >= 1
    assert sum(drawn["small"]) == size


def test_groups_keep_near_the_fractions_of_each_class():
    random = np.random.RandomState(0)
    frame = make_frame({"a": 3000, "b": 800, "c": 150, "d": 50}).reset_index(drop=True)
    frame["group"] = random.randint(0, 1500, len(frame)).astype(str)
    for label, drawn in counts(frame, draw_splits(frame, SETTINGS)).items():
        shares = np.array(drawn) / sum(drawn)
        assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.05), label


def test_a_class_of_three_groups_is_in_every_split():
    frame = make_frame({"a": 300, "b": 9}).reset_index(drop=True)
    frame["group"] = [f"{label}{i % (3 if label == 'b' else 60)}" for i, label in
                      enumerate(frame["label"])]  # fmt: skip
    drawn = counts(frame, draw_splits(frame, SETTINGS))
    assert min(drawn["b"]) >= 1


def test_rows_tied_by_text_and_group_move_together():
    # x ties g1 to g2, y ties g2 to g3: one unit of four rows; the others stand alone.
    tied = pd.DataFrame({"seen": list("xxyy"), "group": ["g1", "g2", "g2", "g3"]})
    alone = pd.DataFrame({"seen": [f"t{i}" for i in range(40)], "group": [""] * 40})
    frame = pd.concat([tied, alone], ignore_index=True).assign(label="a")
    for seed in range(20):
        drawn = draw_splits(frame, SETTINGS | {"seed": seed})
        assert len(set(drawn[:4])) == 1
        assert np.bincount(drawn).min() >= 1


@pytest.mark.parametrize("grouped", [False, True])
def test_the_seed_decides_the_draw(grouped):
    frame = random_frame(1, grouped=grouped)
    first = draw_splits(frame, SETTINGS)
    assert (first == draw_splits(frame.copy(), SETTINGS)).all()
    assert (first != draw_splits(frame, SETTINGS | {"seed": 43})).any()


def test_the_draw_is_the_same_on_every_machine():
    frame = pd.DataFrame({"seen": [str(i) for i in range(12)], "label": list("ab") * 6})
    drawn = draw_splits(frame, SETTINGS)
    # Written down from a run: RandomState's stream is frozen, so no version may change it.
    assert drawn.tolist() == [1, 0, 0, 0, 0, 1, 0, 0, 0, 2, 2, 0]


def test_rare_labels_go_to_train_with_all_that_stays_with_them():
    frame = make_frame({"big": 48, "rare": 2}).reset_index(drop=True)
    plain = frame[frame["label"] == "big"]
    drawn = draw_splits(frame, SETTINGS, ["rare"])
    assert counts(frame, drawn)["rare"] == [2, 0, 0]
    assert drawn[plain.index].tolist() == draw_splits(plain, SETTINGS).tolist()
    frame["group"] = np.where(frame["label"] == "rare", "a", frame.index.astype(str))
    tied = frame.index[frame["label"] == "big"][:9]
    frame.loc[tied, "group"] = "a"
    assert set(draw_splits(frame, SETTINGS, ["rare"])[tied]) == {TRAIN}
    assert draw_splits(frame, SETTINGS, ["rare", "big"]).tolist() == [TRAIN] * 50


def test_without_stratifying_a_label_may_be_in_any_split():
    settings = SETTINGS | {"stratified": False}
    drawn = draw_splits(make_frame({"big": 48, "rare": 2}), settings)
    assert np.bincount(drawn).tolist() == [40, 5, 5]


def test_repeats_are_drawn_as_one_text_of_their_class():
    once = make_frame({"a": 100, "b": 50})
    thrice = pd.concat([once] * 3).sort_values("seen", ignore_index=True)
    assert counts(thrice, draw_splits(thrice, SETTINGS)) == {"a": [240, 30, 30], "b": [120, 15, 15]}


@pytest.mark.parametrize("change", [{"test": 0.2}, {"test": 0.0, "train": 0.9}, {"test": -0.1}])
def test_fractions_that_are_none_are_refused(change):
    with pytest.raises(DataError, match=r"data.split = .*: expected fractions above 0 that sum"):
        draw_splits(make_frame({"a": 20}), SETTINGS | change)


def test_splits_hold_every_row_once_in_the_sources_order(parameters, ledger_csv, two_classes):
    data = parameters(ledger_csv(*two_classes))
    ledger = read_ledger(data)
    splits, labels = split_ledger(ledger, data)
    assert {name: len(rows) for name, rows in splits.items()} == {
        "train": 32,
        "validation": 4,
        "test": 4,
    }
    assert labels == ["rent", "travel"]
    assert all(rows["row_id"].is_monotonic_increasing for rows in splits.values())
    every = pd.concat(splits.values()).sort_values("row_id", ignore_index=True)
    pd.testing.assert_frame_equal(every, ledger.frame, check_like=True)


def test_a_folders_own_splits_stay(parameters, ledger_csv):
    for name in ("train", "validation", "test"):
        path = ledger_csv((f"{name} 1", "b"), (f"{name} 2", "a"), name=f"folder/{name}.csv")
    data = parameters(path.parent)
    ledger = read_ledger(data)
    splits, labels = split_ledger(ledger, data)
    assert labels == ["a", "b"]
    assert {name: ledger.texts.of(rows) for name, rows in splits.items()} == {
        name: [f"{name} 1", f"{name} 2"] for name in ("train", "validation", "test")
    }


def test_a_label_that_train_lacks_is_a_fault(parameters, ledger_csv):
    ledger_csv(("1", "a"), ("2", "b"), name="folder/train.csv")
    ledger_csv(("3", "a"), ("4", "new"), name="folder/validation.csv")
    path = ledger_csv(("5", "a"), ("6", "rare"), name="folder/test.csv")
    data = parameters(path.parent)
    with pytest.raises(DataError) as caught:
        split_ledger(read_ledger(data), data)
    assert [fault.split("Add")[0] for fault in caught.value.faults] == [
        "data.label_column = label: validation has labels that train has not: new. ",
        "data.label_column = label: test has labels that train has not: rare. ",
    ]


def test_a_group_in_two_files_of_a_folder_is_a_fault(parameters, ledger_csv):
    for name in ("train", "validation", "test"):
        rows = [(f"{name} 1", "a", "v1"), (f"{name} 2", "b", f"own {name}"), (name, "a", "")]
        path = ledger_csv(*rows, name=f"folder/{name}.csv", columns="text label voucher")
    data = parameters(path.parent, group_column="voucher")
    with pytest.raises(DataError, match=r"data\.group_column = voucher: 1 groups are in more than"):
        split_ledger(read_ledger(data), data)


def test_a_split_emptied_by_the_clean_up_is_a_fault(parameters, ledger_csv):
    for name in ("train", "validation", "test"):
        path = ledger_csv(("1", "a"), ("2", "b"), name=f"folder/{name}.csv")
    data = parameters(path.parent)
    with pytest.raises(DataError, match="no rows are left for train, validation"):
        split_ledger(read_ledger(data), data)


def test_the_samples_vouchers_stay_together(parameters):
    data = parameters("sample", group_column="voucher")
    splits, labels = split_ledger(read_ledger(data), data)
    sets = [set(rows["group"]) for rows in splits.values()]
    assert sum(map(len, sets)) == len(set.union(*sets))
    sizes = np.array([len(rows) for rows in splits.values()])
    assert sizes / sizes.sum() == pytest.approx([0.8, 0.1, 0.1], abs=0.01)
    assert all(sorted(rows["label"].unique()) == labels for rows in splits.values())


# --- rare accounts ------------------------------------------------------------------------------


@pytest.fixture
def rare(parameters, ledger_csv):
    """Twenty lines of two accounts, two of a third, and one that is written twelve times."""
    rows = [(f"{label} {i}", label) for label in ("big", "huge") for i in range(20)]
    rows += [("once", "rare"), ("again", "rare"), *[("monthly", "rent")] * 12]
    path = ledger_csv(*rows)
    return lambda **changes: parameters(path, duplicates="keep", **changes)


def test_by_default_rare_accounts_are_in_train_only(rare):
    ledger = read_ledger(rare())
    splits, labels = split_ledger(ledger, rare())
    assert labels == ["big", "huge", "rare", "rent"]
    assert {name: set(rows["label"]) for name, rows in splits.items()} == {
        "train": set(labels),
        "validation": {"big", "huge"},
        "test": {"big", "huge"},
    }
    assert ledger.rare == {"rare": 2, "rent": 1}
    assert ledger.facts()["rare accounts"] == "rare (2), rent (1), in train only"


def test_rare_accounts_may_be_left_out(rare):
    ledger = read_ledger(rare(rare="drop"))
    assert split_ledger(ledger, rare(rare="drop"))[1] == ["big", "huge"]
    assert ledger.dropped["rare_label"] == 14
    assert ledger.rows_read == len(ledger.frame) + sum(ledger.dropped.values())


@pytest.mark.parametrize("seed", range(6))
def test_without_strata_rare_accounts_are_in_train_only_too(rare, seed):
    data = rare()
    data["split"] |= {"stratified": False, "seed": seed}
    ledger = read_ledger(data)
    assert ledger.rare == {"rare": 2, "rent": 1}
    splits, _ = split_ledger(ledger, data)
    known = [set(splits[name]["label"]) for name in ("validation", "test")]
    assert not set.union(*known) & {"rare", "rent"}


def test_a_folders_own_splits_are_refused_for_a_rare_account_where_that_is_asked(
    parameters, ledger_csv
):
    for name in ("train", "validation", "test"):
        path = ledger_csv(*[(f"{name} {n}", "a") for n in range(3)], name=f"own/{name}.csv")
    with (path.parent / "train.csv").open("a") as file:
        file.write("once,rare\n")
    data = parameters(path.parent, rare="refuse")
    with pytest.raises(DataError, match=r"data.rare = refuse: .* rare \(1\)"):
        split_ledger(read_ledger(data), data)
    assert read_ledger(parameters(path.parent, rare="train_only")).rare == {}


@pytest.mark.parametrize("changes", [{"rare": "refuse", "min_rows": 21}, {"rare": "refuse"}])
def test_rare_accounts_may_be_refused(rare, changes):
    data = rare(**changes)
    many = "big (20), huge (20), " if "min_rows" in changes else ""
    with pytest.raises(DataError) as caught:
        split_ledger(read_ledger(data), data)
    (fault,) = caught.value.faults
    assert fault.startswith(
        f"data.rare = refuse: fewer than {data['min_rows']} different texts of "
        f"{many}rare (2), rent (1). Set data.rare to train_only"
    )


def test_a_version_that_was_recorded_before_refuses_them(rare):
    data = rare()
    del data["rare"], data["min_rows"]
    with pytest.raises(DataError, match="fewer than 3 different texts of rare"):
        split_ledger(read_ledger(data), data)


def test_a_folders_own_splits_keep_their_rare_accounts(parameters, ledger_csv):
    for name in ("train", "validation", "test"):
        path = ledger_csv((f"{name} 1", "b"), (f"{name} 2", "a"), name=f"folder/{name}.csv")
    data = parameters(path.parent, min_rows=9)
    assert read_ledger(data).rare == {}
    with pytest.raises(DataError, match="none of the 6 rows"):
        read_ledger(data | {"rare": "drop"})


def test_what_rare_accounts_take_with_them_makes_no_other_account_too_small():
    """Two of the other account's three vouchers hold a line of the rare one."""
    rows = [("1", "rare", "v1"), ("2", "other", "v1"), ("3", "rare", "v2"), ("4", "other", "v2")]
    rows += [("5", "other", "v3"), *[(f"big {i}", "big", f"w{i}") for i in range(9)]]
    frame = pd.DataFrame(rows, columns=["seen", "label", "group"])
    assert find_rare(frame, 3, tied=True) == {"other": 3, "rare": 2}
    assert find_rare(frame, 3, tied=False) == {"rare": 2}


# --- by time --------------------------------------------------------------------------------------


@pytest.fixture
def dated(parameters, tmp_path):
    """Return a function that writes rows of text, label and date, and gives their parameters."""

    def write(rows, **changes):
        columns = ["text", "label", "date"]
        pd.DataFrame(rows, columns=columns).to_csv(tmp_path / "dated.csv", index=False)
        return parameters(tmp_path / "dated.csv", time_column="date", **changes)

    return write


@pytest.fixture
def two_hundred() -> list[tuple[str, str, str]]:
    """Return four rows of each of 50 days of a year, the last day first."""
    days = pd.date_range("2024-01-01", periods=50)[::-1]
    return [
        (f"line {day:%j} {i}", "ab"[i % 2], f"{day:%d.%m.%Y}") for day in days for i in range(4)
    ]


def test_train_is_before_validation_and_that_before_test(dated, two_hundred):
    data = dated(two_hundred)
    splits, _ = split_ledger(read_ledger(data), data)
    assert describe_days(splits) == {
        "train": ["2024-01-01", "2024-02-09"],
        "validation": ["2024-02-10", "2024-02-14"],
        "test": ["2024-02-15", "2024-02-19"],
    }
    assert {name: len(rows) for name, rows in splits.items()} == {
        "train": 160, "validation": 20, "test": 20
    }  # fmt: skip
    assert all(rows["row_id"].is_monotonic_increasing for rows in splits.values())


def test_rows_without_a_date_are_set_aside_with_line_and_reason(dated, two_hundred):
    rows = [*two_hundred, ("late", "a", ""), ("later", "b", SECRET), ("", "a", ""), ("x", "", "")]
    ledger = read_ledger(dated(rows))
    assert ledger.rejects == {
        "no date in date": {"rows": 1, "first": ["dated.csv line 202"]},
        "no readable date in date": {"rows": 1, "first": ["dated.csv line 203"]},
    }
    assert ledger.dropped["unreadable"] == 2
    assert (ledger.dropped["no_text"], ledger.dropped["no_label"]) == (1, 1)
    assert ledger.rows_read == len(ledger.frame) + sum(ledger.dropped.values()) == 204
    with pytest.raises(DataError, match="2 of 204 rows can't be read") as caught:
        read_ledger(dated(rows, on_error="fail"))
    assert SECRET not in str(caught.value)


def test_the_earliest_of_equal_texts_stays(dated, two_hundred):
    ledger = read_ledger(
        dated([("again", "a", "19.02.2024"), *two_hundred, ("again", "a", "01.01.2024")])
    )
    again = ledger.texts.of(ledger.frame).index("again")
    assert ledger.frame.loc[again, ["row_id", "split"]].tolist() == [201, "train"]
    assert ledger.dropped["duplicate"] == 1


def test_accounts_that_come_after_train_are_left_out_and_named(dated, two_hundred):
    new = [(f"new {i}", "new", "19.02.2024") for i in range(5)]
    rare = [("rare 1", "rare", "01.01.2024"), ("rare 2", "rare", "19.02.2024")]
    data = dated([*two_hundred, *new, *rare])
    ledger = read_ledger(data)
    splits, labels = split_ledger(ledger, data)
    assert labels == ["a", "b", "rare"]
    assert set(splits["test"]["label"]) == {"a", "b"}
    assert ledger.rare == {"new": 5, "rare": 2}
    assert ledger.dropped["rare_label"] == 6
    assert ledger.facts()["rare accounts"] == "new (5), rare (2), left out after train"
    dropped = read_ledger(data | {"rare": "drop"})
    assert sorted(set(dropped.frame["label"])) == ["a", "b"]
    refused = data | {"rare": "refuse"}
    with pytest.raises(
        DataError, match=r"fewer than 3 different texts, or none in train, of new \(5\), rare \(2\)"
    ):
        split_ledger(read_ledger(refused), refused)


def test_a_column_that_decides_nothing_is_refused_with_its_key(dated, two_hundred, parameters):
    rows = [
        (text, label, f"{i % 12 + 1}/{i % 11 + 1}/2024")
        for i, (text, label, _) in enumerate(two_hundred)
    ]
    with pytest.raises(DataError, match=r"data\.time_column = date: .*Set data.date_order"):
        read_ledger(dated(rows))
    assert read_ledger(dated(rows, date_order="mdy")).facts()["dates"].endswith(", read as mdy")
    with pytest.raises(DataError, match=r"data\.time_column = date: 2 different days"):
        read_ledger(dated(two_hundred[:8]))


def test_a_source_that_is_split_already_is_not_split_by_time(parameters, ledger_csv):
    for name in ("train", "validation", "test"):
        path = ledger_csv(
            ("x", "a", "2024-01-01"), name=f"folder/{name}.csv", columns="text label date"
        )
    with pytest.raises(DataError, match=r"data\.time_column = date: the source is split already"):
        read_ledger(parameters(path.parent, time_column="date"))


def test_groups_are_counted_in_words(parameters, ledger_csv):
    rows = [(f"line {i}", "ab"[i % 2], f"g{i % 30}" * (i % 5 > 0)) for i in range(100)]
    path = ledger_csv(*rows, columns="text label voucher")
    found = read_ledger(parameters(path, group_column="voucher")).facts()["groups"]
    assert found == "24 in the column voucher; 20 rows without one, each a group of its own"


def test_columns_that_hold_nothing_are_refused_together(parameters, ledger_csv):
    rows = [(f"line {i}", "ab"[i % 2], *[" "] * 3, str(i)) for i in range(100)]
    path = ledger_csv(*rows, columns="text label voucher shop sum full")
    named = {"group_column": "voucher", "supplier_column": "shop", "amount_column": "sum"}
    with pytest.raises(DataError) as caught:
        read_ledger(parameters(path, **named))
    expected = (
        "data.{} = {}: no row has a value there. Name another column, or set data.{} to null."
    )
    assert caught.value.faults == [expected.format(key, name, key) for key, name in named.items()]
    with pytest.raises(DataError, match=r"data\.time_column = sum: no row has a value"):
        read_ledger(parameters(path, time_column="sum"))
    read_ledger(parameters(path, **dict.fromkeys(named, "full")))


# --- suppliers ------------------------------------------------------------------------------------


def test_rows_of_suppliers_that_train_never_saw_are_marked(parameters, ledger_csv):
    rows = [(f"line {i}", "ab"[i % 2], f"shop {i % 60}" * (i % 7 > 0)) for i in range(200)]
    path = ledger_csv(*rows, columns="text label shop")
    data = parameters(path, supplier_column="shop")
    splits, _ = split_ledger(read_ledger(data), data)
    names = [rows[number][2] for number in splits["train"]["row_id"]]
    for part in splits.values():
        expected = [bool(rows[i][2]) and rows[i][2] not in names for i in part["row_id"]]
        assert part["unseen"].tolist() == expected
        assert "supplier" not in part
    assert splits["test"]["unseen"].any()
    assert "unseen" not in split_ledger(read_ledger(parameters(path)), data)[0]["test"]


def test_without_a_supplier_column_the_first_of_several_text_columns_names_the_merchant(
    parameters, ledger_csv
):
    rows = [(f"shop {i % 60}" * (i % 7 > 0), f"line {i}", "ab"[i % 2]) for i in range(200)]
    path = ledger_csv(*rows, columns="shop text label")
    found, named = (
        split_ledger(read_ledger(data), data)[0]
        for data in (
            parameters(path, text_columns=["shop", "text"]),
            parameters(path, text_columns=["text", "shop"], supplier_column="shop"),
        )
    )
    known = {rows[number][0] for number in found["train"]["row_id"]}
    expected = [rows[i][0] not in {"", *known} for i in found["test"]["row_id"]]
    assert found["test"]["unseen"].tolist() == expected
    assert any(expected)
    assert named["test"]["unseen"].tolist() == expected


def test_a_first_text_column_of_free_text_is_no_suppliers(parameters, ledger_csv):
    rows = [(f"line {i % 110}", f"shop {i % 60}", "ab"[i % 2]) for i in range(200)]
    path = ledger_csv(*rows, columns="text shop label")
    columns = ["text", "shop"]
    free = read_ledger(parameters(path, text_columns=columns))
    named = read_ledger(parameters(path, text_columns=columns, supplier_column="text"))
    first = read_ledger(parameters(path, text_columns=columns[::-1]))
    found = [("supplier" in each.frame, each.typed) for each in (free, named, first)]
    assert found == [
        (False, {}),
        (True, {"suppliers": "110 in the column text"}),
        (True, {"suppliers": "60 in the column shop"}),
    ]
