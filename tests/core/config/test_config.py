import importlib
import json
import subprocess
import sys

import pytest
from click.testing import CliRunner
from pydantic import Field

from gkd_core.cli.config import config as config_command
from gkd_core.config.render import complete, json_schema, to_toml
from gkd_core.config.resolve import resolve
from gkd_core.config.schema import TaskConfig, task_name
from gkd_core.contract.method import Method
from gkd_core.contract.schedule import Schedule
from gkd_core.contract.task import Task
from gkd_core.errors import ConfigError, MethodError, suggest
from gkd_core.optim.optimizers.adamw import AdamW
from gkd_core.optim.optimizers.muon import Muon
from gkd_core.plugins import registry as installed


class Soft(Method):
    """Soft labels."""

    name = "soft"
    paper = "none"

    class Config(Method.Config):
        temperature: Schedule = Field(Schedule.parse(4), description="T")
        scale: bool = Field(True, description="Scale.")


class Pkd(Method):
    """Hidden states."""

    name = "pkd"
    paper = "none"

    class Config(Method.Config):
        layers: str | list[tuple[int, int]] = Field("skip", description="Layers.")
        beta: float | Schedule = Field(100.0, description="Weight.")
        sizes: dict[str, int] = Field({}, description="Sizes by name.")


class Registry:
    """The members of the plugin registry that resolving uses."""

    def __init__(self, recipes=None):
        self.methods = {"pkd": Pkd, "soft": Soft}
        self.options = {name: method.Config for name, method in self.methods.items()}
        self.optimizers = {"adamw": AdamW, "muon": Muon}
        self.sinks = {}
        self.recipes = recipes or {}
        self.kinds = {"classification": None, "causal-lm": None}

    def optimizer(self, name):
        if name not in self.optimizers:
            raise ConfigError(f"unknown optimizer '{name}'.{suggest(name, self.optimizers)}")
        return self.optimizers[name]

    def sink(self, name):
        return self.sinks[name]

    def method(self, name):
        if name not in self.methods:
            raise MethodError(f"unknown method '{name}'.{suggest(name, self.methods)}")
        return self.methods[name]

    def recipe(self, name):
        if name not in self.recipes:
            raise ConfigError(f"unknown recipe '{name}'.")
        return self.recipes[name]

    def task(self, name):
        return Task


TASK_DEFAULTS = {
    "embedded": {"student": {"layers": 2}, "training": {"epochs": 9, "lr": 1e-3}},
    "files": {"training": {"epochs": 4}},
}


def task_defaults(name, kind):
    """Return the defaults of a task; language modeling takes fewer epochs."""
    return {"training": {"epochs": 2}} if kind == "lm" else TASK_DEFAULTS[name]


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a file in the working directory and return its name."""
    monkeypatch.chdir(tmp_path)

    def write_file(name, text):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return name

    return write_file


@pytest.fixture
def recipe(tmp_path):
    """Make a registry with one recipe, `paper`."""

    def make(text):
        path = tmp_path / "paper.toml"
        path.write_text(text)
        return Registry({"paper": path})

    return make


def refused(*args, registry=None, **sources):
    with pytest.raises(ConfigError) as error:
        resolve(registry or Registry(), *args, **sources)
    return str(error.value)


def from_set(*settings, **sources):
    return resolve(Registry(), settings=settings, **sources)


# Defaults and precedence


def test_nothing_given_is_the_schema_with_one_stage():
    resolved = resolve(Registry())
    assert resolved.config.method == "soft"
    assert [stage.name for stage in resolved.stages] == ["distil"]
    assert resolved.stages[0].config == resolved.config
    assert resolved.config.options == {"soft": Soft.Config()}
    assert resolved.origin("training.lr") == "default"


def test_each_level_wins_over_those_below(write, recipe):
    registry = recipe("[training]\nlr = 0.2\nclip = 0.2\nwarmup = 0.2\neps = 0.2\n")
    first = write("first.toml", "[training]\nclip = 0.3\nwarmup = 0.3\neps = 0.3")
    second = write("second.toml", "[training]\nwarmup = 0.4\neps = 0.4")
    resolved = resolve(
        registry,
        files=[first, second],
        recipe="paper",
        settings=["training.eps=0.5"],
        task_defaults=lambda name, kind: {"training": dict.fromkeys(["beta1", "lr", "clip"], 0.1)},
    )
    found = {
        name: (getattr(resolved.config.training, name), resolved.origin(f"training.{name}"))
        for name in ("beta2", "beta1", "lr", "clip", "warmup", "eps")
    }
    assert found == {
        "beta2": (0.999, "default"),
        "beta1": (0.1, "task embedded"),
        "lr": (0.2, "recipe paper"),
        "clip": (0.3, "first.toml:2"),
        "warmup": (0.4, "second.toml:2"),
        "eps": (0.5, "--set"),
    }


def test_later_set_wins():
    assert from_set("seed=2", "seed=3").config.seed == 3


def test_flag_has_its_name_as_origin_and_none_is_not_given():
    flags = {"student.init": ((1, 3), "--student-init"), "seed": (None, "--seed")}
    resolved = resolve(Registry(), flags=flags)
    assert resolved.config.student.init == [1, 3]
    assert resolved.origin("student.init") == "--student-init"
    assert resolved.origin("seed") == "default"


def test_flag_and_set_for_one_key_are_refused():
    message = refused(settings=["method=pkd"], flags={"method": ("soft", "--method")})
    assert "given twice, by --method and by --set" in message


def test_recipe_is_named_by_file_and_kept_apart(write, recipe):
    registry = recipe('title = "A paper"\npaper = "X 2020"\ndescription = "Y"\nseed = 5\n')
    resolved = resolve(registry, files=[write("run.toml", 'recipe = "paper"')])
    assert (resolved.recipe, resolved.title, resolved.config.seed) == ("paper", "A paper", 5)
    assert resolved.about["paper"] == "X 2020"
    assert resolved.config.recipe is None


def test_recipe_argument_wins_over_file(write, recipe):
    registry = recipe("seed = 5")
    resolved = resolve(registry, files=[write("run.toml", 'recipe = "other"')], recipe="paper")
    assert resolved.config.seed == 5


def test_unknown_recipe_is_refused():
    assert refused(recipe="no") == "recipe (--recipe): unknown recipe 'no'."
    assert refused(settings=["recipe=no"]) == "recipe (--set): unknown recipe 'no'."


def test_recipe_of_a_recipe_is_refused(recipe):
    assert "itself names a recipe" in refused(registry=recipe('recipe = "x"'), recipe="paper")


# Formats


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("run.toml", "[training]\nlr = 1e-5\nclip = 2"),
        ("run.yaml", "training:\n  lr: 1e-5\n  clip: 2"),
        ("run.yml", "training: {lr: 1E-05, clip: 2.}"),
        ("run.json", '{"training": {\n\t"lr":1e-5, "clip": 2}}'),
    ],
)
def test_numbers_are_numbers_in_every_format(write, name, text):
    training = resolve(Registry(), files=[write(name, text)]).config.training
    assert (training.lr, training.clip) == (1e-5, 2.0)


TOML = """\
# comment
method = "pkd"

student = { layers = 3, init = "last" }
training.epochs = 2

[task]
train = \"\"\"
a
b = 3\"\"\"
max_length = 12

[[teachers]]
name = "a"
[[teachers]]
model = "x"

[pkd]
layers = [
    [1, 2],  # first
    [2, 4],
]
beta = 3
"""


def test_toml_origins_have_lines(write):
    resolved = resolve(Registry(), files=[write("run.toml", TOML)])
    expected = {
        "method": 2,
        "student.layers": 4,
        "training.epochs": 5,
        "task.train": 8,
        "task.max_length": 11,
        "teachers.0.name": 14,
        "teachers.1.model": 16,
        "pkd.layers": 19,
        "pkd.beta": 23,
    }
    found = {key: str(origin) for key, origin in resolved.origins.items() if key in expected}
    assert found == {key: f"run.toml:{line}" for key, line in expected.items()}


def test_toml_lines_survive_windows_line_ends(write, tmp_path):
    (tmp_path / "run.toml").write_bytes(TOML.replace("\n", "\r\n").encode())
    assert resolve(Registry(), files=["run.toml"]).origin("pkd.beta") == "run.toml:23"


def test_lists_of_tables_in_stages_have_lines(write):
    text = '[[stages]]\nname = "a"\n[[stages.teachers]]\nmodel = "x"\n[[stages]]\nname = "b"\n'
    text += '[[stages.teachers]]\nmodel = "y"\n[stages.training]\nlr = 2.0\n'
    resolved = resolve(Registry(), files=[write("run.toml", text)])
    assert resolved.origin("stages.a.teachers.0.model") == "run.toml:4"
    assert resolved.origin("stages.b.teachers.0.model") == "run.toml:8"
    assert resolved.origin("stages.b.training.lr") == "run.toml:10"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("run.yaml", "# x\ntraining:\n\n  lr: 1.0\npkd:\n  layers:\n   - [1, 2]\n"),
        ("run.json", '{\n"training": {\n\n"lr": 1.0},\n"pkd":\n{"layers": [\n[1,2]]}}'),
    ],
)
def test_yaml_and_json_origins_have_lines(write, name, text):
    resolved = resolve(Registry(), files=[write(name, text)])
    assert resolved.origin("training.lr") == f"{name}:4"
    assert resolved.origin("pkd.layers") == f"{name}:6"
    assert resolved.config.options["pkd"].layers == [(1, 2)]


@pytest.mark.parametrize(
    ("name", "text", "start"),
    [
        ("run.toml", "seed = 1\nlr = = 2\n", "run.toml:2: not valid TOML"),
        ("run.toml", "seed = [1,\n", "run.toml:"),
        ("run.toml", "seed = 1\nseed = 2\n", "run.toml:2: not valid TOML"),
        ("run.yaml", "seed: 1\ntraining: [1\n", "run.yaml:3: not valid YAML"),
        ("run.yaml", "seed: 1\nx: !!python/object:os.system {}\n", "run.yaml:2: not valid YAML"),
        ("run.yaml", "? [seed]\n: 1\n", "run.yaml:1: a key is a list or a table"),
        ("run.yaml", "seed: !!bool x\n", "run.yaml: not valid YAML: a value is not what its tag"),
        ("run.yaml", "seed: 1\nseed: 2\n", "run.yaml:2: `seed` is set twice, first in line 1"),
        ("run.yaml", "seed: 1\nx: &x\n  y: *x\n", "run.yaml:3: `x.y` is an alias of a node that"),
        ("run.json", '{"seed": 1,\n}', "run.json:"),
        ("run.json", '{"seed": 1,\n"seed": 2}', "run.json:2: `seed` is set twice"),
        ("run.toml", b"\xff\xfe".decode("latin-1"), "run.toml:1: not valid TOML"),
        ("run.yaml", "- 1\n", "run.yaml: a configuration file must hold settings, got [1]"),
        ("run.ini", "", "run.ini: unknown kind of configuration file '.ini'"),
    ],
)
def test_file_that_cannot_be_parsed_is_refused_with_its_line(write, name, text, start):
    assert refused(files=[write(name, text)]).startswith(start)


def test_file_that_cannot_be_read_is_refused(tmp_path):
    assert "No such file" in refused(files=[tmp_path / "no.toml"])
    (tmp_path / "dir.toml").mkdir()
    assert "cannot read" in refused(files=[tmp_path / "dir.toml"])
    (tmp_path / "latin.toml").write_bytes(b"a = '\xe9'")
    assert "UTF-8" in refused(files=[tmp_path / "latin.toml"])


def test_empty_files_say_nothing(write):
    files = [write("a.toml", ""), write("b.yaml", "# nothing\n"), write("c.json", "{}")]
    assert resolve(Registry(), files=files) == resolve(Registry())


@pytest.mark.parametrize("word", ["no", "off", "yes", "on"])
def test_yaml_truth_values_for_texts_are_explained(write, word):
    message = refused(files=[write("run.yaml", f"task:\n  label: {word}\n")])
    assert message.startswith("task.label must be a string, got ")
    assert "(run.yaml:2). YAML reads an unquoted yes, no, on or off" in message
    quoted = resolve(Registry(), files=[write("run.yaml", f"task:\n  label: '{word}'\n")])
    assert quoted.config.task.label == word


def test_yaml_keys_are_texts(write):
    message = refused(files=[write("run.yaml", "training:\n  no: 1\n  1e3: 2\n")])
    assert "`training.no` (run.yaml:2)" in message
    assert "`training.1e3` (run.yaml:3)" in message


def test_yaml_merge_keys_work(write):
    text = "training: &base {lr: 1.0}\nstages:\n- name: a\n  training: {<<: *base, clip: 2.0}\n"
    training = resolve(Registry(), files=[write("run.yaml", text)]).stages[0].config.training
    assert (training.lr, training.clip) == (1.0, 2.0)


# --set


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("method=2*pkd+soft", lambda config: config.method == "2*pkd+soft"),
        ("method = pkd", lambda config: config.method == "pkd"),
        ("student.init=[1,3]", lambda config: config.student.init == [1, 3]),
        ("training.lr=1e-5", lambda config: config.training.lr == 1e-5),
        ("task.label='7'", lambda config: config.task.label == "7"),
        ("task.train=a=b.csv", lambda config: config.task.train == "a=b.csv"),
        ("baseline=true", lambda config: config.baseline is True),
        ("teacher=DIR", lambda config: config.teachers[0].model == "DIR"),
        ("teacher.model=DIR", lambda config: config.teachers[0].model == "DIR"),
        ("teachers.0.model=DIR", lambda config: config.teachers[0].model == "DIR"),
        ("teachers=[{name='a'},{name='b'}]", lambda config: config.teachers[1].name == "b"),
        ("student=DIR", lambda config: config.student.model == "DIR"),
        ("student={layers=2}", lambda config: config.student.layers == 2),
        ("soft.temperature=2", lambda config: config.options["soft"].temperature.start == 2),
        ("pkd.layers=[[1,2],[2,4]]", lambda c: c.options["pkd"].layers == [(1, 2), (2, 4)]),
        ("pkd.sizes.a=3", lambda config: config.options["pkd"].sizes == {"a": 3}),
    ],
)
def test_set_reads_toml_values_and_bare_texts(text, read):
    assert read(from_set(text).config)


@pytest.mark.parametrize("text", ["method", "=3", "training.=3", ""])
def test_set_without_key_and_value_is_refused(text):
    assert "expected key=value" in refused(settings=[text])


def test_set_cannot_smuggle_a_second_key():
    assert from_set("task.label=1\nseed = 9").config.task.label == "1\nseed = 9"


def test_set_changes_one_entry_of_a_list_by_index_or_name(write):
    file = write("run.toml", '[[teachers]]\nname = "a"\n[[teachers]]\nname = "b"\nmodel = "x"')
    settings = ["teachers.0.model=y", "teachers.b.trust_remote_code=true"]
    teachers = resolve(Registry(), files=[file], settings=settings).config.teachers
    assert [(t.name, t.model, t.trust_remote_code) for t in teachers] == [
        ("a", "y", False),
        ("b", "x", True),
    ]


def test_entry_that_does_not_exist_is_refused(write):
    file = write("run.toml", '[[teachers]]\nname = "small"')
    message = refused(files=[file], settings=["teachers.smal.model=y"])
    assert "`teachers` has no entry 'smal', only small. Did you mean 'small'?" in message
    assert "has no entry '7'" in refused(settings=["teachers.7.model=y"])


def test_list_of_a_higher_source_replaces_that_of_a_lower(write, recipe):
    registry = recipe('[[teachers]]\nname = "a"\nmodel = "x"\n[[teachers]]\nname = "b"')
    file = write("run.toml", '[[teachers]]\nname = "c"')
    teachers = resolve(registry, recipe="paper", files=[file]).config.teachers
    assert [(teacher.name, teacher.model) for teacher in teachers] == [("c", None)]


def test_one_teacher_over_several_is_refused(recipe):
    registry = recipe('[[teachers]]\nname = "a"\n[[teachers]]\nname = "b"')
    message = refused(registry=registry, recipe="paper", flags={"teacher": ("D", "--teacher")})
    assert "`teacher` (--teacher) refers to a single teacher" in message
    assert "(recipe paper) has several" in message


def test_null_cannot_undo_a_lower_value(write, recipe):
    file = write("run.yaml", "student:\n  layers: null\ntask:\n  label:\n")
    assert resolve(Registry(), files=[file]).config.student.layers is None
    message = refused(registry=recipe("student.layers = 3"), recipe="paper", files=[file])
    assert "`student.layers` (run.yaml:2) has no value" in message
    assert "from recipe paper" in message


# Mistakes


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("training.lr=ten", "training.lr must be a number greater than 0, got 'ten' (--set)"),
        ("training.lr=inf", "training.lr must be a number greater than 0, got inf (--set)"),
        ("training.lr=0", "training.lr must be a number greater than 0, got 0 (--set)"),
        ("training.epochs=1.5", "training.epochs must be a whole number greater than 0, got 1.5"),
        ("training.epochs=true", "must be a whole number greater than 0, got true (--set)"),
        ("training.epochs='3'", "training.epochs must be a whole number greater than 0, got '3'"),
        ("training.warmup=2", "must be a number of at least 0 and of at most 1, got 2 (--set)"),
        ("training.keep_best=1", "training.keep_best must be true or false, got 1 (--set)"),
        (
            "training.precision=fp8",
            "training.precision must be 'fp32', 'bf16' or 'fp16', got 'fp8'",
        ),
        ("training=5", "training must be a table, got 5 (--set)"),
        ("task.label=5", "task.label must be a string, got 5 (--set). Strings must be quoted"),
        ("student.init=middle", "'last', 'spaced', 'none', 'random' or a list (each entry"),
        ("student.init=[0,1]", "a whole number greater than 0), got [0, 1] (--set)"),
        ("teachers=[]", "teachers must be a list of at least 1 (each entry a table), got []"),
        ("teacher.name=A b", "teacher.name must be a string that matches ^[a-z]"),
        ("method=3", "method must be a string, got 3 (--set)"),
        ("seed=-1", "seed must be a whole number of at least 0, got -1 (--set)"),
        ("soft.temperature=hot", "soft.temperature: 'hot' is neither a number nor a schedule"),
        ("pkd.beta=[1]", "pkd.beta: must be a number or a schedule, got [1]"),
        ("soft=3", "soft must be a table, got 3 (--set)"),
        ("training.lrr=1", "`training.lrr` (--set) is not a setting. Did you mean 'training.lr'?"),
        ("training.layers=1", "`training.layers` (--set) is not a setting. Did you mean 'student."),
        ("training.x.y=1", "`training.x` (--set) is not a setting. Known here: accumulation,"),
        ("trainig.lr=1", "`trainig` (--set) is neither a setting nor a method. Did you mean 'tr"),
        ("sofd.temperature=1", "(--set) is neither a setting nor a method. Did you mean 'soft'?"),
        ("lr=1", "is neither a setting nor a method. Did you mean 'training.lr'?"),
        ("options.soft.scale=true", "`options` (--set) is neither a setting nor a method"),
        (
            "soft.temprature=1",
            "`soft.temprature` (--set) is not a setting. Did you mean 'soft.tem",
        ),
        ("title=x", "`title` (--set) is neither a setting nor a method"),
        ("stages=3", "`stages` must be a list of tables, written [[stages]] in a TOML file, got 3"),
        ("stages.a.seed=3", "`stages` has no entry 'a', being empty."),
        ("stages=[{seed=1}]", "every stage needs a name; one has none (--set)"),
        ("stages=[{}]", "every stage needs a name; one has none"),
        ("stages=[{name='a'},{name='a'}]", "every stage needs a unique name, got ['a', 'a']"),
        ("stages=[{name='a',output.dir='x'}]", "`stages.a.output.dir` (--set) cannot differ"),
        ("stages=[{name='a',stages=[]}]", "`stages.a.stages` (--set) cannot differ"),
        ("method=pkd+sfot", "method 'pkd+sfot' (--set): unknown method 'sfot'. Did you mean"),
        ("method=pkd+", "method expression (--set): a method name is missing\n    pkd+"),
        (
            "training.accumulation=3",
            "must divide training.batch_size, but 32 is not a multiple of 3",
        ),
    ],
)
def test_mistake_is_told_in_a_sentence(setting, message):
    found = refused(settings=[setting])
    assert message in found
    assert "settings are wrong" not in found


def test_every_mistake_is_told_once(write):
    text = 'method = "pkd+nix"\n[training]\nlr = "x"\nepoch = 1\n[student]\nlayrs = 2\n'
    text += '[soft]\nscale = 3\n[[stages]]\nname = "a"\ntraining.lr = 0\n[[stages]]\nname = "b"'
    lines = refused(files=[write("run.toml", text)]).splitlines()
    lines = [line for line in lines if not line.startswith(" ")]  # the place in the expression
    assert lines[0] == f"{len(lines) - 1} settings are wrong:"
    starts = [
        "`student.layrs` (run.toml:6) is not",
        "training.lr must be a number greater than 0, got 'x' (run.toml:3)",
        "`training.epoch` (run.toml:4) is not",
        "soft.scale must be true or false, got 3 (run.toml:8)",
        "stages.a.training.lr must be a number greater than 0, got 0 (run.toml:11)",
        "method 'pkd+nix' (run.toml:1): unknown method 'nix'",
    ]
    assert len(lines) == 1 + len(starts)
    assert all(any(line.startswith(start) for line in lines) for start in starts)


def test_checkpoint_and_shape_from_one_source_are_refused(write):
    message = refused(files=[write("run.toml", 'student = { model = "x", layers = 2 }')])
    assert message.startswith("student: `model` starts the student from its own checkpoint")
    assert message.endswith("(run.toml:1)")


def test_checkpoint_from_higher_up_wins_over_a_shape_and_says_so(write):
    file = write("run.toml", "student.layers = 2\n")
    resolved = from_set("student=DIR", files=[file], task_defaults=task_defaults)
    assert (resolved.config.student.model, resolved.config.student.layers) == ("DIR", None)
    assert resolved.warnings == (
        "student.layers (run.toml:1) is ignored: student (--set) starts the student from its "
        "own checkpoint",
    )


# Methods


def test_options_hold_methods_of_expression_and_tables(write):
    file = write("run.toml", 'method = "soft"\n[soft]\ntemperature = "linear(4 -> 1)"\n[pkd]\n')
    resolved = resolve(Registry(), files=[file])
    assert resolved.config.options == {
        "soft": Soft.Config(temperature="linear(4 -> 1)"),
        "pkd": Pkd.Config(),
    }
    assert resolved.warnings == ("[pkd] is set (run.toml:4), but no stage uses pkd",)


def test_unused_table_of_a_stage_is_warned_of():
    stage = "stages=[{name='a',method='soft',pkd={beta=1}},{name='b',method='pkd'}]"
    assert from_set(stage).warnings == ("[pkd] is set (--set), but stage a does not use pkd",)


def test_table_that_some_stage_uses_is_not_warned_of():
    stages = "stages=[{name='a',method='soft'},{name='b',method='pkd'}]"
    assert from_set(stages, "pkd.beta=1").warnings == ()


def test_run_method_may_be_unknown_if_no_stage_uses_it():
    resolved = from_set("method=later", "stages=[{name='a',method='soft'}]")
    assert list(resolved.stages[0].config.options) == ["soft"]


# Tasks


def test_task_defaults_follow_the_task():
    assert from_set(task_defaults=task_defaults).config.training.epochs == 9
    resolved = from_set("task.train=x.csv", task_defaults=task_defaults)
    assert (resolved.config.training.epochs, resolved.config.student.layers) == (4, None)
    assert resolved.origin("training.epochs") == "task files"


def test_stage_has_the_defaults_of_its_own_task():
    stages = "stages=[{name='a'},{name='b',task={train='x.csv'}}]"
    resolved = from_set(stages, task_defaults=task_defaults)
    assert [stage.config.training.epochs for stage in resolved.stages] == [9, 4]


def test_stage_has_the_defaults_of_its_own_kind():
    resolved = from_set(
        "stages=[{name='a',task={kind='lm'}},{name='b'}]", task_defaults=task_defaults
    )
    assert [stage.config.training.epochs for stage in resolved.stages] == [2, 9]
    assert [stage.config.student.layers for stage in resolved.stages] == [None, 2]


def test_unknown_task_is_refused_with_its_origin():
    def unknown(name, kind):
        raise ConfigError(f"unknown task '{name}'.")

    message = refused(settings=["task.name=x"], task_defaults=unknown)
    assert message == "task.name (--set): unknown task 'x'."


def test_task_name_follows_the_data():
    assert task_name(TaskConfig()) == "embedded"
    assert task_name(TaskConfig(train="x.csv")) == "files"
    assert task_name(TaskConfig(name="own", train="x.csv")) == "own"


# Stages

STAGES = """\
[training]
epochs = 5
lr = 1.0
[[stages]]
name = "match"
method = "pkd"
training.epochs = 6
[[stages]]
name = "finetune"
soft.temperature = 7
[stages.training]
lr = 2.0
"""


def epochs(resolved):
    return {stage.name: stage.config.training.epochs for stage in resolved.stages}


def test_stages_are_complete_and_differ_where_they_say(write):
    resolved = resolve(Registry(), files=[write("run.toml", STAGES)])
    match, finetune = resolved.stages
    assert (match.config.method, finetune.config.method) == ("pkd", "soft")
    assert (match.config.training.lr, finetune.config.training.lr) == (1.0, 2.0)
    assert list(match.config.options) == ["pkd"]
    assert finetune.config.options["soft"].temperature == Schedule.parse(7)
    assert epochs(resolved) == {"match": 6, "finetune": 5}
    assert match.config.stages == finetune.config.stages == []
    assert [stage.name for stage in resolved.config.stages] == ["match", "finetune"]
    assert resolved.origin("stages.match.training.epochs") == "run.toml:7"
    assert resolved.origin("stages.finetune.training.epochs") == "run.toml:2"


def test_higher_source_of_the_run_beats_a_stage_of_a_lower(write, recipe):
    registry = recipe(STAGES)
    assert epochs(resolve(registry, recipe="paper", settings=["training.epochs=1"])) == {
        "match": 1,
        "finetune": 1,
    }
    file = write("run.toml", "[training]\nepochs = 2")
    assert epochs(resolve(registry, recipe="paper", files=[file])) == {"match": 2, "finetune": 2}


@pytest.mark.parametrize("key", ["stages.match.training.epochs", "stages.0.training.epochs"])
def test_set_reaches_one_stage_by_name_or_index(recipe, key):
    settings = [f"{key}=1", "training.epochs=3"]
    resolved = resolve(recipe(STAGES), recipe="paper", settings=settings)
    assert epochs(resolved) == {"match": 1, "finetune": 3}


def test_file_changes_one_stage_of_a_recipe_by_name(write, recipe):
    file = write("run.toml", "[stages.finetune.training]\nepochs = 8\n")
    resolved = resolve(recipe(STAGES), recipe="paper", files=[file])
    assert epochs(resolved) == {"match": 6, "finetune": 8}


def test_stages_of_a_file_replace_those_of_a_recipe(write, recipe):
    file = write("run.toml", '[[stages]]\nname = "only"\n')
    assert epochs(resolve(recipe(STAGES), recipe="paper", files=[file])) == {"only": 5}


def test_stage_with_default_teachers_leaves_those_of_the_run():
    stages = "stages=[{name='a',teacher='X'},{name='b'}]"
    resolved = from_set(stages, "teachers=[{model='Y'}]")
    models = [[teacher.model for teacher in stage.config.teachers] for stage in resolved.stages]
    assert models == [["X"], ["Y"]]


def test_stage_with_a_teacher_of_its_own_asks_it_and_not_the_source_of_the_run():
    source = ("teacher.source.name=cache", "teacher.source.path=c", "teacher.model=Y")

    def teachers(stages):
        resolved = resolve(installed(), settings=[stages, *source])
        return [stage.config.teachers[0] for stage in resolved.stages]

    own, of_run = teachers("stages=[{name='a',teacher='X'},{name='b'}]")
    assert (own.model, own.source) == ("X", None)
    assert (of_run.model, of_run.source.name) == ("Y", "cache")
    table = "{model='X',source={name='cache',path='d'}}"
    both = teachers(f"stages=[{{name='a',teacher={table}}},{{name='b'}}]")
    assert [each.source.model_extra for each in both] == [{"path": "d"}, {"path": "c"}]


def test_stage_with_rows_of_its_own_leaves_what_the_run_says_of_its_rows(write):
    file = write("run.toml", '[task]\nname = "files"\nvalidation = "v.csv"\nrows = 7\n')
    settings = ["task.train=x.csv", "task.label=y", "stages.a.task.train=corpus.txt"]
    stages = ["stages=[{name='a',task={test='t.txt'}},{name='b'}]"]
    first, second = from_set(*stages, *settings, files=[file]).stages
    assert first.config.task == TaskConfig(name="files", train="corpus.txt", test="t.txt", rows=7)
    assert second.config.task == TaskConfig(
        name="files", train="x.csv", validation="v.csv", label="y", rows=7
    )
    assert first.origin("task.validation") == "default"


def test_higher_source_of_the_run_describes_the_rows_of_a_stage_of_a_lower(write):
    file = write("run.toml", "[[stages]]\nname = 'a'\ntask.train = 'x.csv'\ntask.test = 't.csv'\n")
    (stage,) = from_set("task.test=other.csv", files=[file]).stages
    assert (stage.config.task.train, stage.config.task.test) == ("x.csv", "other.csv")


def test_unknown_key_of_a_stage_names_the_stage(write):
    file = write("run.toml", STAGES.replace("lr = 2.0", "lrr = 2.0"))
    assert refused(files=[file]).startswith("`stages.finetune.training.lrr` (run.toml:12) is not")


def test_differences_name_what_changed(recipe):
    registry = recipe(STAGES)
    before = resolve(registry, recipe="paper")
    settings = ["stages.match.training.lr=3.0", "output.dir=x", "seed=2"]
    after = resolve(registry, recipe="paper", settings=settings)
    assert before.differences(after, ignore=("output.dir",)) == [
        "stages.finetune.seed",
        "stages.match.seed",
        "stages.match.training.lr",
    ]
    assert before.differences(before) == []


def test_stored_run_does_not_differ_by_the_defaults_of_a_task(write):
    stages = "stages=[{name='a',task={kind='lm'}},{name='b'}]"
    stored = write("stored.toml", to_toml(from_set(stages, task_defaults=task_defaults)))
    before = resolve(Registry(), files=[stored])
    again = resolve(Registry(), files=[stored], task_defaults=task_defaults)
    assert before.differences(again) == []
    changed = resolve(Registry(), files=[stored], settings=["stages.b.training.epochs=1"])
    assert before.differences(changed) == ["stages.b.training.epochs"]


def test_differences_see_values_that_one_run_has_not():
    assert from_set("method=pkd", "student.layers=2").differences(
        from_set("method=pkd", "pkd.sizes.a=1")
    ) == [
        "pkd.sizes",
        "pkd.sizes.a",
        "student.layers",
    ]


# Writing back

RICH = """\
title = "Mine"
recipe = "paper"
teacher = "some/model"
[pkd]
layers = [[1, 2], [2, 4]]
[pkd.sizes]
"a b" = 3
"ü" = 4
[output]
dir = "with \\"quotes\\" and \\\\"
"""


@pytest.mark.parametrize("recipe_text", ["seed = 3\nstudent.layers = 3", STAGES])
@pytest.mark.parametrize(
    "settings",
    [
        [],
        ["training.lr=1e-5", "training.epochs=2", "soft.temperature=linear(4 -> 1, over=33%)"],
        ["student=DIR", "baseline=false"],
        ["task.train=x.csv", "student.init=[1,3]", "method=2*pkd+linear(0 -> 1)*soft"],
    ],
)
def test_written_file_makes_the_same_configuration(write, recipe, recipe_text, settings):
    file = write("run.toml", RICH)
    defaults = {"task_defaults": task_defaults}
    before = resolve(recipe(recipe_text), files=[file], settings=settings, **defaults)
    again = write("again.toml", to_toml(before))
    after = resolve(Registry(), files=[again], **defaults)
    assert after.config == before.config
    assert [(s.name, s.config) for s in after.stages] == [(s.name, s.config) for s in before.stages]
    assert after.about == before.about
    as_json = write("again.json", json.dumps(complete(before)))
    assert resolve(Registry(), files=[as_json], **defaults).config == before.config


def test_written_file_needs_no_task_defaults(write):
    before = from_set(
        "stages=[{name='a'},{name='b',task={train='x.csv'}}]", task_defaults=task_defaults
    )
    after = resolve(Registry(), files=[write("again.toml", to_toml(before))])
    assert [stage.config for stage in after.stages] == [stage.config for stage in before.stages]


def test_stage_with_a_checkpoint_is_written_so_that_it_wins(write):
    stages = "stages=[{name='a'},{name='b',student='DIR'}]"
    before = from_set(stages, files=[write("run.toml", "student.layers = 2")])
    after = resolve(Registry(), files=[write("again.toml", to_toml(before))])
    assert [stage.config.student.layers for stage in after.stages] == [2, None]
    assert [stage.config for stage in after.stages] == [stage.config for stage in before.stages]


def test_written_file_holds_every_setting_and_its_origin(write):
    text = to_toml(resolve(Registry(), files=[write("run.toml", STAGES)], settings=["seed=4"]))
    assert "lr = 1.0  # run.toml:3\n" in text
    assert "epochs = 6  # run.toml:7\n" in text
    assert "seed = 4  # --set\n" in text
    assert "weight_decay = 0.01  # default\n" in text
    assert "\n[stages.soft]\ntemperature = 7.0  # run.toml:10\nscale = true  # default\n" in text


def test_json_schema_covers_settings_and_methods():
    schema = json_schema(Registry())
    properties = schema["properties"]
    assert properties["soft"]["properties"]["temperature"]["default"] == 4.0
    assert {"training", "stages", "teacher", "pkd", "title"} < properties.keys()
    assert "options" not in properties
    assert schema["additionalProperties"] is False
    assert json.loads(json.dumps(schema)) == schema


# The command


@pytest.fixture
def run_command(monkeypatch):
    """Call `gkd config` with the small registry."""
    # Modules that are imported while it stands in for the installed one would keep it.
    for module in ("distillation.conduct", "distillation.run", "runs.resolved"):
        importlib.import_module(f"gkd_core.{module}")
    monkeypatch.setattr("gkd_core.plugins.registry", Registry)
    return lambda *arguments: CliRunner().invoke(config_command, arguments)


def test_command_prints_a_run_file(write, run_command):
    result = run_command(write("run.toml", "seed = 4\n"), "--set", "training.lr=1e-5")
    assert result.exit_code == 0
    assert "seed = 4  # run.toml:1\n" in result.output
    assert "lr = 1e-05  # --set\n" in result.output


def test_command_prints_json_and_schema(run_command):
    assert json.loads(run_command("--json", "--set", "seed=4").output)["seed"] == 4
    assert "soft" in json.loads(run_command("--schema").output)["properties"]


def test_command_warns(run_command):
    result = run_command("--set", "method=soft", "--set", "pkd.beta=1")
    assert result.stderr == "Warning: [pkd] is set (--set), but no stage uses pkd\n"


def test_command_leaves_mistakes_to_the_caller(run_command):
    assert isinstance(run_command("--set", "seed=x").exception, ConfigError)


def test_config_imports_no_torch():
    code = (
        "import sys, gkd_core.config.render, gkd_core.cli.config\n"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
