import pytest

from account_tax.launch.schedule import Schedule

BATCH = {"train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 2}


def schedule(rows=1000, world_size=1, **training):
    training = {"num_train_epochs": 2, "max_steps": None, **training}
    values = {"train": {"deepspeed": BATCH, "training": training}}
    found = Schedule.read(values, {"rows": {"train": rows, "test": 9}}, world_size)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("given", "steps"),
    [
        ({}, 250),  # 1,000 rows, 8 a step, 2 epochs
        ({"world_size": 2}, 126),  # the last of 63 is filled
        ({"num_train_epochs": 0.5}, 63),
        ({"max_steps": 7}, 7),
        ({"num_train_epochs": "auto"}, 750),  # 6 epochs
        ({"num_train_epochs": "auto", "rows": 161}, 189),  # 9 of 21 steps
        ({"num_train_epochs": "auto", "rows": 20}, 36),  # 12 of 3
    ],
)
def test_steps_are_counted_as_trainer_counts_them(given, steps):
    assert schedule(**given).steps == steps


@pytest.mark.parametrize(
    ("training", "checkpoints"),
    [
        ({"save_strategy": "no"}, 0),
        ({"save_strategy": "steps", "save_steps": 100}, 3),  # 100, 200 and the last, 250
        ({"save_strategy": "steps", "save_steps": 125}, 2),
        ({"save_strategy": "steps", "save_steps": 0.1}, 10),
        ({"save_strategy": "epoch"}, 2),
        ({"save_strategy": "epoch", "max_steps": 126}, 2),
        ({"save_strategy": "epoch", "max_steps": 125}, 1),
        # At most: each evaluation may find a better model.
        ({"save_strategy": "best", "eval_strategy": "steps", "eval_steps": 50}, 5),
        ({"save_strategy": "best", "eval_strategy": "epoch"}, 2),
    ],
)
def test_checkpoints_are_counted_from_the_save_settings(training, checkpoints):
    assert schedule(**training).checkpoints == checkpoints


def test_what_has_a_fault_of_its_own_is_passed_over():
    assert Schedule.read({"train": {"deepspeed": BATCH}}, {"rows": {"train": 1}}, 1) is None
    assert Schedule.read({"train": {"deepspeed": BATCH, "training": {}}}, {"rows": {}}, 1) is None


def test_rows_that_ranks_can_not_share_make_no_schedule():
    block = {"train_batch_size": 32, "train_micro_batch_size_per_gpu": 48}
    values = {"train": {"deepspeed": block, "training": {"max_steps": 1}}}
    assert Schedule.read(values, {"rows": {"train": 9}}, 1) is None
