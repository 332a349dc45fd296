"""Values of parameters that cannot stand together."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

ANY = ()
_AT, _ZERO = "train.training.", "train.deepspeed.zero_optimization."
OFFLOADED = {"offload_optimizer": (1, 2, 3), "offload_param": (3,)}  # and ZeRO's stages that do
# What does nothing, with all below it, where another key has one of these values.
IDLE: tuple[tuple[str, str, tuple[Any, ...]], ...] = (
    *((f"train.{name}.", f"train.{name}.enable", (False,)) for name in ("lora", "ngrams")),
    ("train.averaging.", "train.averaging.enable", (False,)),
    (f"{_AT}eval_steps.", f"{_AT}eval_strategy", ("no", "epoch")),
    (f"{_AT}eval_delay.", f"{_AT}eval_strategy", ("no",)),
    (f"{_AT}save_steps.", f"{_AT}save_strategy", ("no", "epoch", "best")),
    (f"{_AT}save_total_limit.", f"{_AT}save_strategy", ("no",)),
    (f"{_AT}logging_steps.", f"{_AT}logging_strategy", ("no", "epoch")),
    (f"{_AT}warmup_ratio.", f"{_AT}warmup_steps", ANY),
    *(
        (f"{_AT}{name}.", f"{_AT}lr_scheduler_type", ("constant", "reduce_lr_on_plateau"))
        for name in ("warmup_ratio", "warmup_steps")
    ),
    *(
        (f"{_AT}{name}.", f"{_AT}optim", ("sgd", "adafactor", "rmsprop"))
        for name in ("adam_beta1", "adam_beta2", "adam_epsilon")
    ),
    *((f"{_ZERO}{name}.", f"{_ZERO}{name}.device", ("none",)) for name in OFFLOADED),
    (f"{_AT}gradient_checkpointing_kwargs.", f"{_AT}gradient_checkpointing", (False, None)),
    ("data.date_order.", "data.time_column", (None,)),
    ("data.max_rejected.", "data.on_error", ("fail",)),
)

Get = Callable[[str], Any]  # a dotted key's value; None where it is unset or faulty itself
Conflict = tuple[str, str]  # the key to change, and why


def conflicts(get: Get, sources: Mapping[str, str]) -> Iterator[Conflict]:
    """Yield each pair of values that can't stand together, as the key to change and the reason.

    Args:
        get: Returns a dotted key's value.
        sources: Where each key was set; one that the command line set has to do something.
    """
    yield from _data_conflicts(get)
    yield from _precision_conflicts(get)
    yield from _best_model_conflicts(get)
    yield from _search_conflicts(get)
    yield from _offload_conflicts(get)
    yield from _idle(get, sources)


def _data_conflicts(get: Get) -> Iterator[Conflict]:
    shares = [get(f"data.split.{part}") for part in ("train", "validation", "test")]
    if None not in shares and not math.isclose(sum(shares), 1.0, abs_tol=1e-6):
        total = f"{sum(shares):.6g}"
        yield "data.split.train", f"train, validation and test have to sum to 1, and sum to {total}"
    if get("data.label_column") in (get("data.text_columns") or []):
        yield "data.label_column", "is one of data.text_columns too: the text would hold its label"
    if get("data.supplier_column") and get("data.supplier_column") == get("data.label_column"):
        yield "data.supplier_column", "is data.label_column too: train knows every account"
    if get("data.time_column") and get("data.group_column"):
        yield (
            "data.group_column",
            "a group may have days of two splits, so it can't stand beside data.time_column: set "
            "one of them to null",
        )
    if get("data.time_column") and get("data.duplicates") == "keep":
        yield "data.duplicates", "repeats have days of two splits: with data.time_column set drop"


def _precision_conflicts(get: Get) -> Iterator[Conflict]:
    if get("train.training.bf16") and get("train.training.fp16"):
        yield (
            "train.training.fp16",
            "bf16 and fp16 can't both be true; set precision to one of them",
        )


def _best_model_conflicts(get: Get) -> Iterator[Conflict]:
    at = "train.training."
    metric, greater = get(f"{at}metric_for_best_model"), get(f"{at}greater_is_better")
    if metric is not None and greater is not None and greater != (not metric.endswith("loss")):
        better = "lower" if metric.endswith("loss") else "greater"
        yield f"{at}greater_is_better", f"a {better} {metric} is the better one"
    if get("train.averaging.enable") and get(f"{at}eval_strategy") == "no":
        reason = "train.averaging takes the weights at each evaluation; or set its enable to false"
        yield f"{at}eval_strategy", reason
    if not get(f"{at}load_best_model_at_end"):
        return
    if get(f"{at}save_only_model"):
        yield f"{at}save_only_model", "DeepSpeed can't load the best model back from such a save"
    evaluate, save = get(f"{at}eval_strategy"), get(f"{at}save_strategy")
    if evaluate == "no":
        yield f"{at}eval_strategy", "load_best_model_at_end needs evaluations to compare"
    elif evaluate and save and save not in (evaluate, "best"):
        yield f"{at}save_strategy", f"load_best_model_at_end needs eval_strategy's, {evaluate}"
    if evaluate == save == "steps":
        yield from _interval_conflicts(get(f"{at}eval_steps"), get(f"{at}save_steps"))


def _interval_conflicts(evaluate: float | None, save: float | None) -> Iterator[Conflict]:
    if evaluate is None or save is None:
        return
    times = save / evaluate
    if (evaluate < 1) != (save < 1) or not math.isclose(times, max(1, round(times)), rel_tol=1e-9):
        reason = f"load_best_model_at_end needs a multiple of eval_steps, {evaluate}"
        yield "train.training.save_steps", reason


def goal_of(get: Get) -> tuple[str, str]:
    """Return the metric that a search goes by, and whether to minimize or maximize it."""
    name = get("train.training.metric_for_best_model") or "f1"
    metric = get("tuning.metric") or f"eval/{name.removeprefix('eval_')}"
    return metric, "minimize" if metric == "eval/loss" else "maximize"


def _search_conflicts(get: Get) -> Iterator[Conflict]:
    metric, better = goal_of(get)
    if get("tuning.direction") not in (None, better):
        yield "tuning.direction", f"of {metric} the best is what is searched: {better}, or null"


def _offload_conflicts(get: Get) -> Iterator[Conflict]:
    for what, stages in OFFLOADED.items():
        stage, device = get(f"{_ZERO}stage"), get(f"{_ZERO}{what}.device")
        if stage is not None and device in ("cpu", "nvme") and stage not in stages:
            needed = " or ".join(map(str, stages))
            reason = f"works with ZeRO stage {needed} only, the stage is {stage}"
            yield f"{_ZERO}{what}.device", f"{reason}; set {_ZERO}{what} to null"


def _idle(get: Get, sources: Mapping[str, str]) -> Iterator[Conflict]:
    """Yield each key that the command line set and that another keeps from doing anything."""
    for key in (key for key, source in sources.items() if source.startswith("-")):
        for idle, switch, values in IDLE:
            now = get(switch)
            off = now in values or (values == ANY and now is not None)
            if key != switch and f"{key}.".startswith(idle) and off:
                shown = {None: "null", False: "false"}.get(now, now)
                place = f" ({sources[switch]})" if sources.get(switch) else ""
                yield key, f"does nothing where {switch} = {shown}{place}. Change or drop one"
