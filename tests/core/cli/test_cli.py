"""The command line as a person meets it: help, output, and the ways a command ends."""

import errno
import io
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console
from safetensors import SafetensorError
from tests import forked

from gkd_core.analysis import compare
from gkd_core.analysis.compare import COUNTED_SAMPLES
from gkd_core.contract.step import Step

FLAGS = {
    "analyze": "--output --json",
    "bench": "--batch --length --rounds --threads --output --json",
    "cache": "--set --method --teacher --data --output --dtype --form --k --temperature "
    "--cells --launcher --option --jobs --threads --shard --shards",
    "config": "--method --recipe --paper-values --teacher --student --student-layers --task --data "
    "--output --teacher-cache --track --probe --baseline --seed --nproc --set --schema --json",
    "clean": "--leftovers --yes",
    "doctor": "--json",
    "eval": "--task --data --against --samples --output --set --json --tasks --num-fewshot --limit "
    "--apply-chat-template --include-path",
    "explain": "--method --recipe --paper-values --teacher --student --student-layers --task "
    "--data --output --teacher-cache --track --probe --baseline --seed --nproc --set --json",
    "export": "--to --format --quantize --accept --rows --opset --license --push --json",
    "methods": "",
    "new-method": "--output",
    "new-run": "--teacher --data --output",
    "optimizers": "",
    "plugins": "--json",
    "prune": "--data --set --model --output --parameters --width --depth --blocks --even "
    "--multiple --rows",
    "recipes": "",
    "replay": "--rank",
    "run": "--method --recipe --paper-values --teacher --student --student-layers --task --data "
    "--output --teacher-cache --track --probe --baseline --seed --nproc --set --seeds --overwrite "
    "--resume --accept-changes --max-time",
    "search": "--teacher --student --student-layers --task --data --set --max-latency --max-size "
    "--max-weights --min-kept --time --method --recipe --seeds --threads --output --json",
}


@pytest.fixture(scope="session")
def finished(world, tmp_path_factory):
    """A run with its baseline, made in a process of its own; do not change it."""
    folder = tmp_path_factory.mktemp("finished")
    arguments = ["--teacher", world / "teacher", "--data", world / "train.jsonl", "--baseline"]
    arguments += ["--method", "pkd+soft"]
    (folder / "quick.toml").write_text(
        "student.layers = 2\n"
        f"[task]\nvalidation = '{world}/validation.jsonl'\ntest = '{world}/test.jsonl'\n"
        "max_length = 32\n[training]\nbatch_size = 16\nepochs = 1\nlr = 1e-3\n"
    )
    done = forked.run(forked.GKD, "run", "quick.toml", *arguments, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    (folder / "printed.txt").write_text(done.stdout)
    return folder


@pytest.fixture
def copied(finished, tmp_path):
    """The finished run where `invoke` works: `runs/pkd+soft-1`."""
    shutil.copytree(finished / "runs", tmp_path / "runs")
    return "runs/pkd+soft-1"


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Help


def options_of(command):
    import click

    given = [p for p in command.params if isinstance(p, click.Option)]
    return [option.opts[0] for option in given]


@pytest.mark.parametrize("command", FLAGS)
def test_flags_are_frozen_and_help_lists_all(invoke, command):
    from gkd_core.cli import gkd

    found = options_of(gkd.get_command(None, command))
    assert sorted(found) == sorted(FLAGS[command].split())
    done = invoke(command, "--help")
    assert done.code == 0
    assert [flag for flag in found if flag not in done.out] == []
    assert max(map(len, done.out.splitlines())) <= 80


def test_help_names_every_command_and_fits_80_columns(invoke):
    done = invoke("--help")
    assert [name for name in FLAGS if f"\n  {name} " not in done.out] == []
    assert "\n  gkd run --teacher DIR --data FILE  " in done.out
    assert "..." not in done.out.partition("Commands:")[2]
    assert max(map(len, done.out.splitlines())) <= 80


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["eval", "--help"]])
def test_help_imports_no_torch_and_is_quick(arguments):
    code = (
        "import resource, sys\n"
        "from gkd_core.cli import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "except SystemExit as stopped:\n    assert not stopped.code\n"
        "heavy = {'torch', 'transformers', 'numpy', 'pydantic'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "spent = resource.getrusage(resource.RUSAGE_SELF)\n"
        "assert spent.ru_utime < 0.8, spent.ru_utime\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_shells_complete_commands(invoke, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gkd"])
    for name, value in (("_GKD_COMPLETE", "bash_complete"), ("COMP_WORDS", "gkd doc")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("COMP_CWORD", "1")
    assert invoke().out == "plain,doctor\n"


# Output


def test_methods_are_listed_in_80_columns(invoke):
    from gkd_core.plugins import registry

    done = invoke("methods")
    assert max(map(len, done.out.splitlines())) <= 80
    assert [name for name in registry().methods if f"\n  {name} " not in done.out] == []
    assert "gkd-methods-classic 0.2.0\n" in done.out
    assert "Match the normalized [CLS] states of intermediate layers." in done.out
    assert "Sun et al. 2019; reads hidden|cls of student and teacher" in done.out
    assert "Hinton et al. 2015; reads logits of student " in done.out


def test_method_is_shown_with_paper_reads_and_options(invoke):
    done = invoke("methods", "pkd")
    assert max(map(len, done.out.splitlines())) <= 80
    for words in (
        "Sun, Cheng, Gan, Liu, EMNLP 2019, arXiv:1908.09355",
        "student.hidden[1,2,3,4,5]|cls",
        "teacher.hidden[2,4,6,8,10]|cls",
        "pkd.layers = skip",
        "pkd.beta = 100.0",
        "[student, teacher] pairs",
    ):
        assert words in done.out


def test_every_method_can_be_shown(invoke):
    from gkd_core.plugins import registry

    for name, method in registry().methods.items():
        done = invoke("methods", name)
        assert method.paper.split(",")[0] in done.out
        assert [o for o in method.Config.model_fields if f"{name}.{o} = " not in done.out] == []


def test_optimizers_are_listed_and_shown_with_their_options(invoke):
    listed = invoke("optimizers").out
    assert max(map(len, listed.splitlines())) <= 80
    assert "\n  muon       Momentum whose singular values" in listed
    shown = invoke("optimizers", "muon").out
    assert max(map(len, shown.splitlines())) <= 80
    for words in ("muon  (gkd-core 0.2.0)", "optim.muon.momentum = 0.95", "ZeRO  0 to 2"):
        assert words in shown
    assert "It has no options." in invoke("optimizers", "adamw").out
    assert "unknown optimizer 'moun'. Did you mean 'muon'?" in invoke("optimizers", "moun").err


def test_recipes_and_procedures_are_listed_with_what_they_need(invoke):
    listed = invoke("recipes").out
    assert max(map(len, listed.splitlines())) <= 80
    text = " ".join(listed.split())
    for words in (
        "gkd-methods-multiteacher 0.2.0",
        "distilbert, then hard; needs a language model as teacher of pretrain, labels",
        "2 models of the task as teachers, labels",
        "takd Distill into an assistant, from it into the next",
    ):
        assert words in text


def test_a_recipe_is_shown_with_its_stages_and_its_procedure(invoke):
    shown = " ".join(invoke("recipes", "distilbert").out.split())
    for words in (
        "distilbert (gkd-methods-classic 0.2.0)",
        "stage pretrain: distilbert; task: language modeling",
        "run gkd run --recipe distilbert",
    ):
        assert words in shown
    assert "procedure.assistants = 1" in invoke("recipes", "takd").out
    assert "unknown recipe 'takt'. Did you mean 'takd'?" in invoke("recipes", "takt").err


def test_every_recipe_can_be_read():
    from gkd_core.analysis.recipes import read_recipe
    from gkd_core.plugins import registry

    for name in registry().recipes:
        recipe = read_recipe(name, registry())
        assert recipe.about.keys() == {"title", "paper", "description"}
        assert recipe.needs, name


def test_plugins_tell_distribution_version_hooks_and_methods(invoke):
    lines = invoke("plugins").out.splitlines()
    start = lines.index("classic  gkd-methods-classic 0.2.0")
    assert lines[start + 1].split() == ["hooks", "gkd_register_methods,", "gkd_register_recipes"]
    assert "pkd" in " ".join(lines[start + 2 : start + 5])
    assert max(map(len, lines)) <= 80


def test_config_tells_values_and_origins(invoke):
    done = invoke("config", "--data", "x.jsonl", "--seed", 3, "--set", "training.lr=1e-5")
    assert done.code == 0
    assert "lr = 1e-05  # --set\n" in done.out
    assert "seed = 3  # --seed\n" in done.out
    assert "epochs = 3  # default\n" in done.out


def test_run_ends_with_a_line_per_model_and_the_paths(finished):
    printed = (finished / "printed.txt").read_text().splitlines()
    start = printed.index(next(line for line in printed if line.startswith("model ")))
    assert max(map(len, printed[start:])) <= 80
    rows = [line.split("  ")[0] for line in printed[start + 2 : start + 5]]
    assert rows == ["teacher", "student, labels only", "student, pkd+soft"]
    paths = dict(line.split() for line in printed[-3:])
    assert paths.keys() == {"student", "report", "log"}
    assert all((finished / path).exists() for path in paths.values())


def test_progress_bar_is_whole_in_80_columns():
    from gkd_core.tracking.display import ProgressBar

    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    bar = ProgressBar(console)
    bar.start_stage("distil", 5400, 0)
    losses = {"loss/total": 0.197, "loss/pkd": 0.183, "loss/soft": 0.0143}
    bar.log_step(
        Step(557, 5400, 3, "distil", torch.Generator()), losses | {"samples_per_second": 779.4}
    )
    bar.end_stage()
    for words in ("distil", "558/5400", "779 samples/s", "eta", "total 0.197  pkd 0.183"):
        assert words in console.file.getvalue()


def test_the_bar_of_several_stages_shows_when_all_end():
    from gkd_core.tracking.display import ProgressBar

    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    bar = ProgressBar(console)
    bar.start_run({"teacher": 1.0, "distil": 2.0})
    bar.start_stage("teacher", 100, 0)
    values = {"loss/total": 0.197, "samples_per_second": 779.4}
    bar.log_step(Step(49, 100, 3, "teacher", torch.Generator()), values)
    bar.end_stage()
    for words in ("teacher 1/2", "50/100", "eta", "of all 0:00:0"):
        assert words in console.file.getvalue()


@pytest.mark.parametrize("where", [{"force_terminal": True}, {"force_jupyter": True}, {}])
def test_the_bar_is_shown_in_terminals_and_notebooks(where):
    from gkd_core.tracking.display import PlainLines, ProgressBar, display

    shown = display(Console(file=io.StringIO(), width=80, **where))
    assert type(shown) is (ProgressBar if where else PlainLines)


@pytest.mark.parametrize(("folder", "row"), [("student", 2), ("baseline", 1)])
def test_eval_gives_the_figures_of_the_run(invoke, copied, finished, folder, row):
    results = json.loads((finished / copied / "results.json").read_text())
    done = invoke("eval", f"{copied}/{folder}", f"{copied}/config.toml", "--json")
    found = json.loads(done.out)
    assert (found["split"], found["samples"]) == ("test", 40)
    for figure in ("metrics", "parameters", "bytes"):
        assert found["rows"][0][figure] == results["rows"][row][figure]


def test_eval_of_a_run_gives_its_table_again(invoke, copied, finished, tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "COUNTED_SAMPLES", COUNTED_SAMPLES)
    results = json.loads((finished / copied / "results.json").read_text())
    before = contents(tmp_path)
    found = json.loads(invoke("eval", copied, "--json").out)
    assert contents(tmp_path) == before
    for row in (*found["rows"], *results["rows"]):
        del row["milliseconds"], row["seconds"]
    assert found == results


@pytest.mark.parametrize(("name", "row"), [("student", 2), ("baseline", 1), ("teacher", 0)])
def test_eval_takes_the_rows_of_the_run_that_a_model_is_of(invoke, copied, finished, name, row):
    results = json.loads((finished / copied / "results.json").read_text())
    found = json.loads(invoke("eval", f"{copied}/{name}", "--json").out)
    assert found["samples"] == 40
    assert [one["metrics"] for one in found["rows"]] == [results["rows"][row]["metrics"]]


@pytest.mark.exhaustive
def test_eval_sets_a_run_against_another_model(invoke, copied, finished, world, tmp_path):
    results = json.loads((finished / copied / "results.json").read_text())
    teacher, _, student = (row["metrics"]["accuracy"] for row in results["rows"])
    flags = ["--against", world / "teacher", "--output", "rows"]
    found = json.loads(invoke("eval", copied, *flags, "--json").out)
    pair = found["against"]
    assert pair["agreement"] == results["rows"][2]["agreement"]
    assert pair["difference"]["value"] == pytest.approx(student - teacher)
    test = pair["mcnemar"]
    assert (test["only_first"] - test["only_second"]) / 40 == pytest.approx(student - teacher)
    assert pair["kl"] > 0
    assert set(pair["calibration"]) == {f"{copied}/student", str(world / "teacher")}
    written = {path.name for path in (tmp_path / "rows").iterdir()}
    assert written == {"rows.parquet", "student.parquet", "teacher.parquet"}
    for name in written:
        kept = pq.read_table(tmp_path / copied / "predictions" / name)
        assert pq.read_table(tmp_path / "rows" / name).equals(kept)
    shown = invoke("eval", copied, "--against", f"{copied}/teacher").out
    assert "McNemar's test" in shown
    assert "kept: share of the first model's quality" in " ".join(shown.split())
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.exhaustive
def test_eval_sets_a_run_against_kept_predictions(invoke, copied, world, tmp_path):
    live = json.loads(invoke("eval", copied, "--against", f"{copied}/teacher", "--json").out)
    kept = f"{copied}/predictions/teacher.parquet"
    pair = json.loads(invoke("eval", copied, "--against", kept, "--json").out)["against"]
    assert pair["unpaired"] == [0, 0]
    assert pair["against"] == f"teacher ({kept})"
    for figure in ("rows", "difference", "agreement", "kl", "mcnemar"):
        assert pair[figure] == live["against"][figure], figure
    calibrations = [list(found["calibration"].values()) for found in (pair, live["against"])]
    assert calibrations[0] == calibrations[1]
    # A part of the rows, in another order.
    rows = (world / "test.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "part.jsonl").write_text("".join(rows[:29:-1]))
    folder = ["--data", "part.jsonl", "--against", f"{copied}/predictions"]
    said = " ".join(invoke("eval", copied, *folder).out.split())
    assert "same answer 100.0%" in said
    assert "the rows of both; the model has 0 others, the predictions have 30" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["runs/pkd+soft-1/other"], "has no model 'other'; it has teacher, baseline, student"),
        (["runs/pkd+soft-1", "--samples", 2], "--samples needs a model that continues texts"),
        (
            ["runs/pkd+soft-1", "--output", "runs"],
            "runs already exists; name a new directory",
        ),
        (
            ["runs/pkd+soft-1", "--against", "runs/pkd+soft-1/predictions/rows.parquet"],
            "rows.parquet has the rows, not the predictions of a model",
        ),
    ],
)
def test_eval_refuses_what_there_is_not(invoke, copied, arguments, message):
    done = invoke("eval", *arguments)
    assert done.code == 2
    assert message in " ".join(done.err.split())


@pytest.mark.parametrize("file", [[], ["config.toml"]])
def test_eval_on_a_file_takes_all_its_rows(invoke, copied, finished, world, file):
    results = json.loads((finished / copied / "results.json").read_text())
    more = [f"{copied}/{name}" for name in file]
    rows = ["--data", world / "test.jsonl", "--set", "task.max_length=32"]
    found = json.loads(invoke("eval", f"{copied}/student", *more, *rows, "--json").out)
    assert found["samples"] == 40
    assert found["rows"][0]["metrics"] == results["rows"][2]["metrics"]
    more = [*more, "--data", world / "validation.jsonl", "--set", "task.max_length=32"]
    other = json.loads(invoke("eval", f"{copied}/student", *more, "--json").out)
    assert other["rows"][0]["metrics"] != found["rows"][0]["metrics"]


def test_eval_on_a_file_needs_no_rows_that_the_run_was_trained_on(invoke, copied, world):
    config = Path(copied, "config.toml")
    text = config.read_text()
    rows = ["--data", world / "test.jsonl", "--json"]
    found = json.loads(invoke("eval", f"{copied}/student", *rows).out)
    config.write_text(text.replace(str(world / "train.jsonl"), "gone/train.jsonl"))
    assert "gone" in config.read_text()
    assert "gone/train.jsonl" in invoke("eval", f"{copied}/student").err
    moved = json.loads(invoke("eval", f"{copied}/student", *rows).out)
    assert moved["rows"][0]["metrics"] == found["rows"][0]["metrics"]


def test_eval_shows_a_table_and_writes_nothing(invoke, copied, world, tmp_path):
    before = contents(tmp_path)
    done = invoke(
        *("eval", f"{copied}/student", "--data", world / "train.jsonl"),
        *("--set", f"task.test={world}/test.jsonl", "--set", "task.max_length=32"),
    )
    assert done.out.startswith("accuracy on 40 test rows")
    assert f"\n{copied}/student " in done.out
    assert "kept" not in done.out
    assert contents(tmp_path) == before


def test_eval_takes_a_model_whose_classes_stand_in_another_order(invoke, world, tmp_path):
    shutil.copytree(world / "teacher", tmp_path / "swapped")
    config = json.loads((tmp_path / "swapped/config.json").read_text())
    config |= {"id2label": {"0": "pos", "1": "neg"}, "label2id": {"pos": 0, "neg": 1}}
    (tmp_path / "swapped/config.json").write_text(json.dumps(config))
    data = ["--data", world / "train.jsonl", "--set", "task.max_length=32", "--json"]
    accuracy = [
        json.loads(invoke("eval", model, *data).out)["rows"][0]["metrics"]["accuracy"]
        for model in (world / "teacher", "swapped")
    ]
    assert sum(accuracy) == pytest.approx(1)


# Resuming


def test_resume_of_a_finished_run_changes_no_weight(invoke, copied, tmp_path):
    student = tmp_path / copied / "student"
    before = contents(student)
    done = invoke("run", "--resume", "--output", copied)
    assert done.code == 0
    assert "stage distil is finished already" in done.out
    assert contents(student) == before


def test_resume_with_other_settings_is_refused(invoke, copied, tmp_path):
    before = contents(tmp_path)
    done = invoke("run", "--resume", "--output", copied, "--seed", 5, "--set", "training.epochs=9")
    assert done.code == 2
    assert done.err.count("Error: ") == 1
    assert "these settings differ: seed, training.epochs" in done.err
    assert "start a new run" in done.err
    assert contents(tmp_path) == before


# The ways a command ends


OFTEN = ["--output", "my run", "--set", "training.checkpoint_every=2"]


@pytest.mark.exhaustive
def test_interrupted_run_says_how_to_go_on_and_does(invoke, settings, fail_at):
    fail_at(4, KeyboardInterrupt())
    done = invoke("run", *settings, *OFTEN)
    assert done.code == 75
    assert "Traceback" not in done.err
    message, _, command = done.err.partition(" Continue with: ")
    assert message == "Error: interrupted."
    program, *arguments = shlex.split(command)
    done = invoke(*arguments)
    assert program == "gkd"
    assert done.code == 0
    assert "stage distil: steps 3 to 6" in done.out


def test_run_interrupted_before_a_checkpoint_is_to_be_started_again(invoke, settings, fail_at):
    fail_at(1, KeyboardInterrupt())
    done = invoke("run", *settings, *OFTEN)
    assert done.code == 130
    assert "start again, with --overwrite --output 'my run'" in done.err


def test_student_is_named_a_copy_of_the_teacher_unless_its_size_is_given(invoke, world):
    run = ["--method", "soft", "--teacher", world / "teacher", "--data", world / "train.jsonl"]
    copied = "warning: the student is a copy of the teacher, as large and as slow"
    assert copied in " ".join(invoke("explain", *run).out.split())
    half = invoke("explain", *run, "--student-layers", "half")
    assert copied not in " ".join(half.out.split())
    assert half.code == 0
    assert 'layers = "half"' in invoke("config", *run, "--student-layers", "half").out
    assert copied not in " ".join(invoke("explain", *run, "--student-layers", "all").out.split())
    wrong = invoke("explain", *run, "--student-layers", "some")
    assert wrong.code == 2
    assert "'some' is not a valid integer; name a number, half or all" in wrong.err


def test_interrupt_elsewhere_is_one_line(invoke, settings, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("gkd_core.runs.run.prepare_run", interrupt)
    done = invoke("explain", "soft", *settings)
    assert done.code == 130
    assert done.err.strip() == "Error: interrupted"


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9 bytes."),
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
    ids=["cuda", "cpu", "python", "system"],
)
def test_lack_of_memory_is_one_message_with_advice(invoke, settings, fail_at, error):
    fail_at(1, error)
    done = invoke("run", *settings)
    assert done.code == 2
    assert done.err.startswith("Error: out of memory: ")
    assert "training.accumulation" in done.err
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "my run/log.txt"),
        SafetensorError("I/O error: No space left on device (os error 28)"),
    ],
    ids=["system", "safetensors"],
)
def test_full_disk_is_one_message_that_says_how_to_go_on(invoke, settings, fail_at, error):
    fail_at(4, error)
    done = invoke("run", *settings, *OFTEN)
    assert done.code == 1
    assert done.err.startswith("Error: the disk is full: ")
    assert done.err.endswith("Continue with: gkd run --resume --output 'my run'\n")
    assert done.err.count("\n") == 1


def test_bug_keeps_its_traceback(invoke, settings, fail_at):
    fail_at(1, RuntimeError("boom"))
    with pytest.raises(RuntimeError, match="boom"):
        invoke("run", *settings)


def test_traceback_of_a_mistake_is_shown_on_request(invoke, monkeypatch):
    monkeypatch.setenv("GKD_TRACEBACK", "1")
    done = invoke("methods", "sfot")
    assert done.code == 2
    assert done.err.startswith("Traceback")
    assert done.err.splitlines()[-1].startswith("Error: unknown method 'sfot'")


def test_warnings_of_settings_are_a_line_each(invoke):
    done = invoke("config", "--data", "x.jsonl", "--method", "soft", "--set", "pkd.beta=1")
    assert done.code == 0
    assert done.err == "Warning: [pkd] is set (--set), but no stage uses pkd\n"


def test_skipped_plugin_is_one_line(gkd, tmp_path):
    info = tmp_path / "installed/broken-3.1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 3.1\n")
    (info / "entry_points.txt").write_text("[gkd]\nmine = not_there_at_all\n")
    done = gkd("--help", PYTHONPATH=str(info.parent))
    assert done.returncode == 0
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("Warning: plugin 'mine' (broken 3.1) was skipped: ")
