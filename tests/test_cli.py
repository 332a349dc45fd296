"""The commands as a shell starts them: refused words, help, completion."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from account_tax.cli import cli
from account_tax.parameters.options import asks_for_all
from tests.test_mlproject import REPOSITORY

KEDRO = Path(sys.executable).with_name("kedro")
HEAVY = {
    *("torch", "transformers", "datasets", "deepspeed", "peft", "evaluate", "sklearn"),
    *(
        "matplotlib",
        "optuna",
        "sqlalchemy",
        "mlflow.transformers",
        "mlflow.pytorch",
        "mlflow.sklearn",
    ),
}
# What MLflow and Kedro's own commands import by themselves: 2,360 modules, up to 5 s of CPU. What
# is imported is the same on any machine, how long it takes is not.
MODULES = 2500
# A command in a fork of what has imported these, which each of them does in any case. It takes an
# order a line, and says how the command ended.
TEMPLATE = """
import atexit, json, os, sys
import mlflow
from kedro.framework.cli import main

for line in sys.stdin:
    order = json.loads(line)
    if not (command := os.fork()):
        for number, place in enumerate(order["streams"]):
            os.dup2(os.open(place, os.O_RDWR), number)
        os.environ.update(order["environment"])
        sys.argv = ["kedro", *order["words"]]
        atexit.register(lambda: print(json.dumps(sorted(sys.modules))))
        main()
    print(os.waitstatus_to_exitcode(os.waitpid(command, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def template():
    """A process that runs commands which have imported no more than they need."""
    inherited = {k: v for k, v in os.environ.items() if k != "MLFLOW_RUN_ID"}
    with subprocess.Popen(
        [sys.executable, "-c", TEMPLATE],
        cwd=REPOSITORY,
        env=inherited,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def kedro(template, tmp_path_factory):
    """Run `kedro WORDS` with these variables set: status, output, errors, imported modules."""

    def run(*words, **environment):
        streams = [tmp_path_factory.mktemp("streams") / name for name in ("in", "out", "err")]
        for each in streams:
            each.touch()
        order = {"words": words, "environment": environment, "streams": [*map(str, streams)]}
        template.stdin.write(f"{json.dumps(order)}\n")
        template.stdin.flush()
        status = int(template.stdout.readline())
        out, err = (each.read_text(encoding="utf-8") for each in streams[1:])
        *lines, modules = out.splitlines()
        return SimpleNamespace(
            status=status, out="\n".join(lines), err=err, modules={*json.loads(modules)}
        )

    return run


# --- threads --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("given", "found"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_openmp_is_told_how_to_wait_before_it_is_loaded(given, found):
    code = "import sys, os, account_tax.cli; print('torch' in sys.modules, os.environ[sys.argv[1]])"
    name = "OMP_WAIT_POLICY"
    environment = {key: value for key, value in os.environ.items() if key != name}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    said = subprocess.run(
        [sys.executable, "-c", code, name],
        env=environment | ({name: given} if given else {}),
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.splitlines()[-1] == f"False {found}"


# --- the end --------------------------------------------------------------------------------------

ENDS = """
import atexit, sys
from account_tax.backends import runs
from kedro.framework.cli import main

class Torn:
    def __del__(self):
        print("taken apart")

def show_runs(project, words):
    sys.modules["torn"] = Torn()
    atexit.register(print, "left tidy")
    sys.stdout.write("said, and ")
    return 7

runs.show_runs = show_runs
sys.argv = ["kedro", "runs"]
try:
    exec(sys.stdin.read())
finally:
    print("after it")
"""


@pytest.mark.parametrize(
    ("called", "said"),
    [
        ("main()", "said, and left tidy\n"),
        (
            "from account_tax.cli import cli; cli.main(['runs'])",
            "said, and after it\nleft tidy\ntaken apart\n",
        ),
    ],
    ids=["typed", "called by a program"],
)
def test_a_typed_command_ends_tidily_and_does_not_take_its_libraries_apart(called, said):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", ENDS],
        input=called,
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (7, said), done.stderr


# --- refused words --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["train", "--lora_r", "abc", "--lorra_alpha=1"],
            "2 problems in the parameters\n"
            "  train.lora.r = abc (--lora_r): expected a whole number of at least 1.\n"
            "  lorra_alpha (--lorra_alpha): unknown parameter. Did you mean lora_alpha?\n",
        ),
        (
            ["review", "--decision", "nonsense"],
            "decision = nonsense (--decision): expected one of approve, reject, retire, rollback",
        ),
        (
            ["predict", "--top_k", "abc"],
            "top_k = abc (--top_k): expected a whole number of at least 1.",
        ),
        (
            ["reproduce", "--seeds", "abc"],
            "seeds = abc (--seeds): expected a whole number of at least 0.",
        ),
        (["export"], "1 problem in the options\n  output: missing; expected a path.\n"),
        (["register", "--run", "xyz"], "run = xyz (--run): expected the id of a run, 32 hex"),
        (
            ["review", "--decision=approve", "--reviewer=Kim", "--reason=it", "--expires=soon"],
            "expires = soon (--expires): expected a date such as",
        ),
        (["export", "--output=new", "--verify_key=no.pem"], "verify_key = no.pem: can't be read"),
        (
            ["tune", "--trials=0", "--tuning.smapler=tpe"],
            "2 problems in the parameters\n"
            "  tuning.trials = 0 (--trials): expected a whole number from 1 to 5000.\n"
            "  tuning.smapler (--tuning.smapler): unknown parameter. Did you mean tuning.sampler?",
        ),
        (["export", "--otput=x"], "otput (--otput): unknown parameter. Did you mean output?"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_refusal_costs_no_torch_and_leaves_no_run(kedro, tmp_path, words, said):
    done = kedro(*words, MLFLOW_TRACKING_URI=f"sqlite:///{tmp_path}/mlflow.db")
    assert done.status == 2, done.err
    assert said in done.err
    assert "Traceback" not in done.err
    assert HEAVY & done.modules == set()
    assert len(done.modules) < MODULES
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [["--history"], ["--version=7"]], ids=" ".join)
def test_what_needs_no_model_brings_no_torch(kedro, tmp_path, words):
    done = kedro("review", *words, MLFLOW_TRACKING_URI=f"sqlite:///{tmp_path}/mlflow.db")
    assert "account-tax" in done.err
    assert {"torch", "transformers"} & done.modules == set()


# --- help -----------------------------------------------------------------------------------------


def help_of(command):
    return " ".join(cli.commands[command].get_help(cli.commands[command].make_context(
        command, [], resilient_parsing=True)).split())  # fmt: skip


def test_help_shows_type_choices_default_and_what_is_required():
    said = help_of("predict")
    for part in (
        "--model TEXT models:/NAME/VERSION or models:/NAME@ALIAS. [required]",
        "--top_k INTEGER Labels a row, likeliest first. A whole number of at least 1. [default: 1]",
        "--on_error [fail|skip] skip: rows that can't be read are no failure. [default: fail]",
        "--overwrite [true|false] Replace an output that is there. [default: false]",
    ):
        assert part in said
    said = help_of("review")
    assert "--decision [approve|reject|retire|rollback] What to decide." in said
    assert "as in --registry.gates.min_f1 0.9." in said


def test_trains_help_has_the_short_names_with_the_comments_of_the_yaml_files(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    said = help_of("train")
    for part in (
        "--lora_r INTEGER train.lora.r: rank: trained parameters grow with it. A whole number of "
        "at least 1. [default: 8, training.yml]",
        "--learning_rate NUMBER train.training.learning_rate: peak, after warm-up. A number above "
        "0. [default: 0.002, recipes/starter.yml]",
        "--precision [fp32|bf16|fp16] Of the weights in training; sets train.training.bf16 and "
        "fp16. [default: bf16, training.yml]",
        "--num_gpus [auto|INTEGER]",
        "[default: auto]",
        "Any other key of conf/base/parameters/ goes by its dotted name",
    ):
        assert part in said
    assert "--train.lora.bias [" not in said  # dotted keys are hundreds


@pytest.mark.parametrize("command", ["train", "review", "reproduce", "export", "predict", "runs"])
def test_each_command_says_in_whole_sentences_what_it_does(command, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    said = cli.commands[command]
    assert said.help.split("\n\n")[0].endswith(".")
    assert "\b" not in said.help
    context = said.make_context(command, [], resilient_parsing=True)
    shown = [
        record for each in said.get_params(context) if (record := each.get_help_record(context))
    ]
    for name, text in shown:
        assert text.split(" [")[0].endswith(".") or "--help" in name, name


def test_the_list_of_commands_has_whole_sentences(kedro):
    said = " ".join(kedro("--help").out.split())
    own = said.partition("from account-tax Commands:")[2].partition(" Project specific")[0]
    assert "train Train and register, as `mlflow run . -e train` does." in own
    assert "..." not in own.replace("run Run the pipeline.", "")


def test_every_command_can_show_what_libraries_say():
    for name, command in cli.commands.items():
        context = command.make_context(name, [], resilient_parsing=True)
        assert "verbose" in [each.name for each in command.get_params(context)] or name == "run"


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("-v", True),
        ("--verbose", True),
        ("--verbose true", True),
        ("--verbose=yes", True),
        ("--verbose --lora_r 8", True),
        ("--verbose false", False),
        ("--verbose maybe", False),
        ("", False),
    ],
)
def test_words_ask_for_what_libraries_say(words, wanted):
    assert asks_for_all(words.split()) is wanted


@pytest.mark.parametrize("end", ["| true", ">&-", "2>&1 | true"])
@pytest.mark.parametrize("words", ["runs", "train --dry-run=maybe"])
def test_a_command_outlives_its_reader(tmp_path, words, end):
    shell = ["bash", "-c", f"{sys.executable} -m kedro {words} {end}; echo ${{PIPESTATUS[0]}}"]
    environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    done = subprocess.run(
        shell, capture_output=True, text=True, env=environment, cwd=REPOSITORY, check=False
    )
    assert done.stdout.strip() == ("2" if "maybe" in words else "0"), done.stderr
    assert "Pipe" not in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("by_mlflow", "status"), [({}, 1), ({"MLFLOW_RUN_ID": ""}, 0)])
def test_output_that_can_not_be_written_is_said_and_ends_nothing(tmp_path, by_mlflow, status):
    environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "kedro", "runs"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=environment | by_mlflow,
            cwd=REPOSITORY,
            check=False,
        )
    assert done.stderr == "standard output: No space left on device; what followed is lost\n"
    assert done.returncode == status


def test_libraries_are_heard_with_v_alone():
    heard = "INFO account_tax.ledger.reading"
    look = partial(subprocess.run, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert heard in look([KEDRO, "look", "-v"]).stdout
    quiet = look([KEDRO, "look"])
    assert heard not in quiet.stdout
    assert quiet.stderr == ""


# --- completion -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("kedro tra", {"train"}),
        ("kedro train --lora_", {"--lora_r", "--lora_alpha", "--lora_dropout",
                                 "--lora_target_modules"}),
        ("kedro train --train.lora.b", {"--train.lora.bias"}),
        ("kedro train --lora_r 8 --recipe ", {"bert-base", "english", "klue-roberta",
                                              "multilingual", "starter",
                                              "xlm-roberta-large-zero3"}),
        ("kedro train --train.lora.bias ", {"none", "all", "lora_only"}),
        ("kedro train --register ", {"true", "false", "evaluate"}),
        ("kedro review --decision r", {"reject", "retire", "rollback"}),
    ],
)  # fmt: skip
def test_a_shell_is_offered_names_and_values(kedro, typed, offered):
    place = len(typed.split(" ")) - 1
    completion = {"_KEDRO_COMPLETE": "bash_complete", "COMP_WORDS": typed, "COMP_CWORD": str(place)}
    lines = kedro(**completion).out.splitlines()
    assert {line.removeprefix("plain,") for line in lines} == offered
