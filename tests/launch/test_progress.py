import json
import math

from account_tax.launch.progress import BAR_WIDTH, describe_progress

HALFWAY = {
    "step": 50,
    "max_steps": 100,
    "loss": 0.51239,
    "tokens_per_sec": 12345.6,
    "eta_seconds": 61.4,
}


def line_of(folder, progress, stage="train"):
    file = folder / "progress.json"
    file.write_text(json.dumps(progress))
    return describe_progress(stage, file)


def test_the_line_has_step_loss_speed_and_time_left(tmp_path):
    bar = "█" * (BAR_WIDTH // 2) + "·" * (BAR_WIDTH // 2)
    expected = f"train {bar} 50/100  loss 0.5124  12,346 tokens/s  0:01:01 left"
    assert line_of(tmp_path, HALFWAY) == expected


def test_what_is_not_known_yet_is_left_out(tmp_path):
    start = {"step": 0, "loss": math.nan, "tokens_per_sec": 0, "eta_seconds": math.nan}
    assert line_of(tmp_path, HALFWAY | start) == f"train {'·' * BAR_WIDTH} 0/100"


def test_another_stage_tells_the_node_it_is_at(tmp_path):
    progress = {"step": 1, "max_steps": 2, "doing": "register model"}
    bar = "█" * (BAR_WIDTH // 2) + "·" * (BAR_WIDTH // 2)
    assert line_of(tmp_path, progress, "register") == f"register {bar} 1/2  register model"


def test_nothing_is_said_before_a_stage_writes(tmp_path):
    assert describe_progress("train", tmp_path / "progress.json") == ""
