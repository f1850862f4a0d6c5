import json
from dataclasses import replace

import pytest

from gkd_core.analysis.sizes import parse_size
from gkd_core.api import Method, hookimpl
from gkd_core.errors import MethodError
from gkd_core.planning.choice import LayoutChoice, all_choices
from gkd_core.planning.simulation import simulate

BIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 32000,
    "hidden_size": 8192,
    "intermediate_size": 22016,
    "num_hidden_layers": 2,
    "num_attention_heads": 64,
}


@pytest.fixture
def shape(tmp_path):
    """A folder with nothing but the configuration of a model of 1.8 billion weights."""
    folder = tmp_path / "big"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(BIG))
    return folder


@pytest.fixture
def plan(invoke, shape, world):
    """Plan a run of the big model on a few tokens; return what was printed as JSON."""

    def _plan(*arguments):
        done = invoke(
            *("plan", "--json", "--teacher", shape, "--student-layers", 1, "--method", "soft"),
            *("--data", world / "corpus.txt", "--set", "task.max_length=16"),
            *("--set", "training.batch_size=4", *arguments),
        )
        assert done.code == 0, done.err
        return json.loads(done.out)[0]

    return _plan


def test_plan_needs_no_weights_and_counts_what_is_known_exactly(plan):
    found = plan()
    block = 4 * 8192**2 + 3 * 8192 * 22016 + 2 * 8192
    student, teacher = (blocks * block + 2 * 32000 * 8192 + 8192 for blocks in (1, 2))
    assert found["parameters"] == {"student": student, "teacher": teacher}
    assert found["memory"]["teacher weights"] == pytest.approx(4 * teacher, rel=1e-3)
    assert found["memory"]["student weights"] == pytest.approx(4 * student, rel=1e-3)
    # Moments of AdamW; their step counts and the like are no more than that.
    assert found["memory"]["optimizer"] == pytest.approx(8 * student, rel=1e-3)
    assert found["peak"] == sum(found["memory"].values()) > 4 * teacher + 16 * student
    # Every weight of a matrix costs 2 operations a token forward, 4 backward in the student.
    # The last token of a row has no target, so that it needs no logits.
    head = 32000 * 8192
    blocks = 4 * 16 * (2 * (teacher - 2 * head) + 6 * (student - 2 * head))
    assert found["flops"] == pytest.approx(blocks + 4 * 15 * (2 + 6) * head, rel=0.01)
    assert (found["sent"], found["host"]) == ({}, 0)


@pytest.mark.exhaustive
def test_a_measurement_of_probes_has_arithmetic_of_its_own(plan):
    without, one = plan(), plan("--probe", "hidden[1]", "--set", "probe.layers=first")
    assert (without["probe_flops"], one["flops"]) == (0, without["flops"])
    block = 4 * 8192**2 + 3 * 8192 * 22016
    # A block of each model for 4 rows of 16 tokens, and the three products of the alignment.
    computed = 2 * 2 * block * 4 * 16 + 3 * 2 * 8192**2 * 4 * 16
    assert one["probe_flops"] == pytest.approx(computed, rel=0.01)
    both = plan("--probe", "hidden[1]", "--set", "probe.layers=last")
    assert both["probe_flops"] - one["probe_flops"] == pytest.approx(2 * block * 64, rel=0.01)


@pytest.mark.exhaustive
def test_teacher_in_host_memory_leaves_the_gpu(plan):
    held, waiting = plan(), plan("--set", "teacher.placement=offload")
    assert waiting["host"] == pytest.approx(held["memory"]["teacher weights"], rel=1e-3)
    assert waiting["memory"].get("teacher weights", 0) < 2**20
    assert waiting["peak"] < held["peak"]


@pytest.mark.exhaustive
def test_every_rank_has_its_share_of_the_rows_and_sends_its_gradient(plan):
    one, two = plan(), plan("--nproc", 2)
    assert two["flops"] == pytest.approx(one["flops"] / 2, rel=0.01)
    gradient = 4 * one["parameters"]["student"]
    # A ring over 2 ranks sends each of them once all there is.
    assert two["sent"]["allreduce_"] == pytest.approx(gradient, rel=1e-3)


@pytest.mark.parametrize(
    ("zero", "weights", "optimizer"), [(1, 4, 12 / 2), (2, 4, 12 / 2), (3, 4 / 2, 12 / 2)]
)
def test_zero_divides_what_it_says(plan, zero, weights, optimizer):
    found = plan("--nproc", 2, "--set", f"parallel.zero={zero}")
    student = found["parameters"]["student"]
    assert found["memory"]["student weights"] == pytest.approx(weights * student, rel=1e-3)
    assert found["memory"]["optimizer"] == pytest.approx(optimizer * student, rel=1e-3)


def test_offloaded_optimizer_is_in_host_memory(plan):
    found = plan(
        "--nproc", 2, *("--set", "parallel.zero=2"), "--set", "parallel.offload_optimizer=cpu"
    )
    student = found["parameters"]["student"]
    assert "optimizer" not in found["memory"]
    # Weights, moments, gradient and a copy on its way back, a half of each.
    assert found["host"] == pytest.approx(20 / 2 * student, rel=1e-3)


def test_gradients_beside_an_offloaded_optimizer_are_in_host_memory_too(plan):
    offloaded = ("--set", "parallel.offload_optimizer=cpu", "--set", "parallel.offload_params=cpu")
    found = plan("--nproc", 2, "--set", "parallel.zero=3", *offloaded)
    student = found["parameters"]["student"]
    # Weights as they are sent and as they are updated, moments, gradients as they are summed and
    # as the optimizer reads them: a half of each.
    assert found["host"] == pytest.approx(24 / 2 * student, rel=1e-3)


@pytest.mark.exhaustive
def test_checkpointing_trades_activations_for_arithmetic(invoke, settings):
    def planned(*arguments):
        done = invoke("plan", "--json", *settings, *arguments)
        assert done.code == 0, done.err
        return json.loads(done.out)[0]

    settings = [*settings, "--student-layers", 4, "--set", "training.batch_size=64"]
    plain = planned()
    less = planned("--set", "training.gradient_checkpointing=true")
    assert less["memory"]["activations"] < 0.6 * plain["memory"]["activations"]
    assert 1.1 < less["flops"] / plain["flops"] < 1.5


def test_table_shows_every_stage(invoke, settings, tmp_path):
    stages = tmp_path / "stages.toml"
    stages.write_text('[[stages]]\nname = "layers"\nmethod = "pkd"\n[[stages]]\nname = "answers"\n')
    done = invoke("plan", *settings, stages, "--figure", tmp_path / "memory.png")
    assert done.code == 0, done.err
    for line in ("layers", "answers", "captured features", "TFLOP a step"):
        assert line in done.out
    assert (tmp_path / "memory.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "runs").exists()


class Undecided(Method):
    """Learns from those logits alone that are positive."""

    name = "undecided"
    paper = "none"

    def reads(self, models, step):
        """Read logits."""
        return ["student.logits", "teacher.logits"]

    def loss(self, student, teacher, batch, step):
        """Select by content."""
        return {"undecided": student.logits[teacher.logits > 0].sum()}


class Plugin:
    """Brings it."""

    @hookimpl
    def gkd_register_methods(self):
        """Return the method."""
        return [Undecided]


def test_method_that_decides_by_content_is_refused_by_name(prepare_run, registry_with):
    registry = registry_with(Plugin())
    run = prepare_run("method=soft+undecided", registry=registry)
    with pytest.raises(MethodError, match=r"^undecided cannot be simulated: .* Plan with another"):
        simulate(run.last, registry)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "method",
    ["diito", *(pytest.param(m, marks=pytest.mark.exhaustive) for m in ("lrc-bert", "mgskd"))],
)
def test_methods_may_look_at_the_batch_and_count_its_samples_over_ranks(invoke, settings, method):
    two = ("--nproc", 2, "--set", "parallel.zero=2")
    done = invoke("plan", "--json", *settings, "--method", method, *two)
    assert done.code == 0, done.err


def test_method_that_measures_before_the_first_step_is_refused(invoke, settings):
    done = invoke("plan", *settings, "--method", "autodisc")
    assert (done.code, "autodisc cannot be simulated" in done.err) == (2, True)


@pytest.fixture
def look(invoke, shape, world):
    """Look for a layout for the big model; return what was printed, as JSON if it is asked for."""

    def _look(*arguments):
        done = invoke(
            *("plan", "--teacher", shape, "--student-layers", 1, "--method", "soft"),
            *("--data", world / "corpus.txt", "--set", "task.max_length=16"),
            *("--set", "training.batch_size=4", *arguments),
        )
        assert done.code == 0, done.err
        return json.loads(done.out) if "--json" in arguments else done.out

    return _look


def test_search_takes_the_first_layout_that_fits_and_simulates_few(look):
    (found,) = look("--gpus", 4, "--memory", "24GiB", "--json")
    *refused, last = found["trials"]
    assert found["recommended"] == last["settings"]
    assert last["fits"]
    assert last["peak"] <= 24 * 2**30 < min(trial["peak"] for trial in refused)
    # The optimizer state alone is too large without ZeRO: there is nothing to simulate.
    assert refused[0]["settings"] == ["parallel.tensor=1", "parallel.zero=0"]
    assert refused[0]["estimate"] is None
    assert "parallel.tensor=1" in last["settings"]
    assert sum(trial["estimate"] is not None for trial in found["trials"]) <= 2


def test_search_goes_from_zero_to_tensor_to_host():
    choices = [c for c in all_choices(4) if not c.checkpointing]
    assert [choice.label for choice in choices] == [
        "tensor 1, ZeRO 0",
        "tensor 1, ZeRO 1",
        "tensor 1, ZeRO 2",
        "tensor 1, ZeRO 2, teacher zero3",
        "tensor 1, ZeRO 3, teacher zero3",
        "tensor 2, ZeRO 0",
        "tensor 2, ZeRO 1",
        "tensor 2, ZeRO 2",
        "tensor 2, ZeRO 2, teacher zero3",
        "tensor 2, ZeRO 3, teacher zero3",
        "tensor 4, ZeRO 0",
        "tensor 1, ZeRO 2, teacher zero3, optimizer on host",
        "tensor 2, ZeRO 2, teacher zero3, optimizer on host",
        "tensor 4, ZeRO 2, optimizer on host",
        "tensor 4, ZeRO 0, teacher on host",
        "tensor 2, ZeRO 2, teacher on host",
        "tensor 1, ZeRO 2, teacher on host",
        "tensor 4, ZeRO 3, teacher on host, student on host",
        "tensor 2, ZeRO 3, teacher on host, student on host",
        "tensor 1, ZeRO 3, teacher on host, student on host",
    ]


def test_what_zero_3_gathers_does_not_count_against_a_layout_that_gathers_less():
    gathers = LayoutChoice(2, 3, "zero3", "none", "none", False)
    offloads = replace(gathers, zero=2, optimizer="cpu")
    plain = LayoutChoice(2, 0, "replicated", "none", "none", False)
    assert not offloads.takes_like(gathers)
    assert offloads.takes_like(plain)
    assert offloads.takes_like(replace(gathers, zero=2))
    assert not offloads.takes_like(replace(plain, checkpointing=True))
    assert not plain.takes_like(replace(plain, teacher="offload"))


def test_search_takes_no_more_host_memory_than_there_is(look):
    size = ("--gpus", 2, "--memory", "8.5GiB", "--json")
    (found,) = look(*size)
    *_, last = found["trials"]
    assert "parallel.offload_optimizer=cpu" in found["recommended"]
    (found,) = look(*size, "--host-memory", last["host"] // 2)
    refused = next(t for t in found["trials"] if t["settings"] == last["settings"])
    assert not refused["fits"]
    assert last["host"] / 2 < refused["host"] <= last["host"]


@pytest.mark.exhaustive
def test_largest_teacher_fits_and_the_next_does_not(look, shape):
    def search(blocks):
        (shape / "config.json").write_text(json.dumps(BIG | {"num_hidden_layers": blocks}))
        (found,) = look("--gpus", 2, "--memory", "16GiB", "--host-memory", "1GiB", "--json")
        return found

    largest = search(9)["largest_teacher"]
    assert search(largest["blocks"])["recommended"]
    assert search(largest["blocks"] + 1)["largest_teacher"] == largest


def test_search_recommends_for_all_stages_at_once(invoke, settings, tmp_path):
    stages = tmp_path / "stages.toml"
    stages.write_text('[[stages]]\nname = "layers"\nmethod = "pkd"\n[[stages]]\nname = "answers"\n')
    size = ("--gpus", 2, "--memory", "1GiB", "--figure", tmp_path / "memory.png")
    done = invoke("plan", *settings, stages, *size, "--set", "student.scale=0.5")
    assert done.code == 0, done.err
    assert "stages.layers.student.scale = 0.5 keeps the parts" in done.err
    *_, last = done.out.splitlines()
    assert last == (
        "Recommended: --nproc 2 --set stages.layers.parallel.tensor=1 "
        "--set stages.layers.parallel.zero=0 --set stages.answers.parallel.tensor=1 "
        "--set stages.answers.parallel.zero=0"
    )
    assert (tmp_path / "memory.png").read_bytes().startswith(b"\x89PNG")


def test_search_leaves_out_what_a_stage_does_not_go_with(invoke, settings):
    """A student of uneven blocks is not divided, a teacher whose blocks are borrowed stays."""
    size = ("--gpus", 2, "--memory", "1KiB", "--json", "--set", "student.scale=0.5")
    done = invoke("plan", *settings, *size, "--method", "theseus")
    (found,) = json.loads(done.out)
    tried = [setting for trial in found["trials"] for setting in trial["settings"]]
    assert "parallel.zero=3" not in tried
    assert "parallel.tensor=2" not in tried
    assert "teacher.placement=zero3" not in tried
    assert "parallel.zero=2" in tried


def test_search_says_when_nothing_fits(look):
    said = " ".join(look("--gpus", 1, "--memory", "500MiB").split())
    assert "No layout fits into 1 x 500.0 MiB. Not even a teacher with one block would fit" in said


@pytest.mark.parametrize(
    ("text", "size"), [("40GiB", 40 * 2**30), ("1.5 GB", 1500000000), ("512mib", 2**29), ("7", 7)]
)
def test_sizes_are_read_with_their_unit(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["much", "9" * 400, "\u0664GiB"])
def test_a_size_without_meaning_is_refused(invoke, text):
    done = invoke("plan", "--memory", text)
    assert (done.code, "write it like 40GiB" in done.err) == (2, True)
