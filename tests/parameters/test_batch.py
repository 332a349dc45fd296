import pytest

from account_tax.parameters.batch import batch_faults, cpu_ranks, share_batch

KEYS = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")


def block(*sizes):
    return dict(zip(KEYS, sizes, strict=True))


@pytest.mark.parametrize(
    ("sizes", "ranks", "shared"),
    [
        ((None, 8, 4), 3, (8, 4)),
        ((None, 8, None), 3, (8, 1)),
        ((32, None, None), 1, (32, 1)),
        ((32, None, None), 2, (16, 1)),
        ((32, None, 4), 2, (4, 4)),
        ((32, 8, None), 2, (8, 2)),
        ((64, 8, 4), 2, (8, 4)),
    ],
)
def test_sizes_that_are_left_out_follow_from_the_others(sizes, ranks, shared):
    assert share_batch(block(*sizes), ranks) == shared
    assert batch_faults(block(*sizes), ranks) == []


@pytest.mark.parametrize(
    ("sizes", "ranks", "words"),
    [
        ((64, 8, 4), 4, "train.deepspeed.train_batch_size = 64: can't be shared by 8 (train_mic"),
        ((64, 8, 4), 4, " x 4 (gradient_accumulation_steps) x 4 (ranks, num_gpus). Expected 128,"),
        ((32, None, None), 3, "can't be shared by 3 (ranks, num_gpus). Expected 30 or 33, or othe"),
        ((32, None, None), 64, "can't be shared by 64 (ranks, num_gpus). Expected 64, or other"),
        ((32, 5, None), 1, "by 5 (train_micro_batch_size_per_gpu, --it) x 1 (ranks, num_gpus). Ex"),
        ((32, 48, None), 1, "Expected 48, or other factors."),
        ((None, None, 4), 1, "train_micro_batch_size_per_gpu = null: null, and train_batch_size"),
    ],
)
def test_sizes_that_contradict_each_other_or_the_ranks_are_refused(sizes, ranks, words):
    sources = {"train.deepspeed.train_micro_batch_size_per_gpu": "--it"} if sizes[2] is None else {}
    (line,) = batch_faults(block(*sizes), ranks, sources)
    assert words in line


@pytest.mark.parametrize(
    ("sizes", "cores", "ranks"),
    [
        ((32, None, None), 1, 1),
        ((32, None, None), 2, 2),
        ((32, None, None), 64, 2),  # 16 rows each; the other cores help as threads
        ((96, None, None), 5, 4),  # five don't share 96
        ((24, None, None), 8, 1),
        ((64, None, 2), 8, 2),  # micro-batches of 32
        ((64, 32, None), 8, 1),  # a size for one rank is given
        ((None, 32, 1), 8, 1),  # each rank would add to the rows of a step
    ],
)
def test_cores_get_a_rank_each_where_that_leaves_them_rows_enough(sizes, cores, ranks):
    assert cpu_ranks(block(*sizes), cores) == ranks


def test_a_section_with_a_fault_of_its_own_gets_no_second_one():
    assert (batch_faults(None, 2), cpu_ranks(None, 2)) == ([], 1)
