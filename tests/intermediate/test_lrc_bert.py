"""Numbers worked out by hand for two samples of one position and one matched layer.

With K = 1 the contrast of sample 1 is (2 - (G_12 - G_11)) / 2 + G_11.
"""

import json

import pytest
import torch
from torch import nn

from gkd_core.api import MethodError, ModelInfo, Models, Step
from gkd_core.objective.passes import run_passes
from gkd_core.testing import check_method
from gkd_methods_intermediate.lrc_bert import LRCBERT, cos_nce, sample_distances

AXES = torch.tensor([[[1.0, 0]], [[0, 1]]], dtype=torch.float64)
OPPOSITE = torch.tensor([[[1.0, 0]], [[-1, 0]]], dtype=torch.float64)
CONTRAST = {"perturbation": "none", "beta": 0, "gamma": 0}


def states(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


@pytest.fixture
def contrast(terms):
    """The contrast of `[B, S, D]` states of one student layer and one teacher layer."""

    def _contrast(student, teacher, layers=1, mask=None, projection=None, **options):
        learned, known = (
            {f"hidden[{n}]": states for n in range(1, layers + 1)} for states in (student, teacher)
        )
        if projection is None:
            projection = nn.Linear(student.shape[-1], teacher.shape[-1], bias=False).double()
            nn.init.eye_(projection.weight)
        method = LRCBERT(LRCBERT.Config(**CONTRAST | options))
        modules, depths = {"projection": projection}, (layers, layers)
        return terms(method, learned, known, modules, depths, mask)["contrast"].item()

    return _contrast


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        (AXES, AXES, 0.5),  # G = 0 on the diagonal, 1 beside it
        (OPPOSITE, OPPOSITE, 0),  # 0 and 2: the best
        (AXES, AXES.flip(0), 2.5),  # 1 and 0
        (OPPOSITE, OPPOSITE.flip(0), 4),  # 2 and 0: the worst
    ],
)
def test_the_own_teacher_attracts_and_the_others_repel(contrast, student, teacher, expected):
    assert contrast(student, teacher) == pytest.approx(expected, abs=1e-12)
    mask = torch.ones(2, 1, dtype=torch.bool)
    each = cos_nce(sample_distances(student, teacher, mask, mask), mask[:, 0], slice(0, 2))
    assert each.tolist() == pytest.approx([expected] * 2, abs=1e-12)


def test_only_directions_count(contrast):
    student, teacher = states(4, 3, 5), states(4, 3, 5, seed=1)
    lengths = torch.rand(4, 3, 1, dtype=torch.float64) + 0.1
    plain = contrast(student, teacher)
    assert contrast(lengths * student, 9 * teacher) == pytest.approx(plain, abs=1e-12)


def test_the_order_of_the_samples_means_nothing(contrast):
    student, teacher = states(4, 3, 5), states(4, 3, 5, seed=1)
    order = torch.tensor([2, 0, 3, 1])
    plain = contrast(student, teacher)
    assert contrast(student[order], teacher[order]) == pytest.approx(plain, abs=1e-12)
    assert contrast(student[order], teacher) != pytest.approx(plain, abs=1e-3)


def test_all_others_are_negatives():
    """Three samples, by the sum of the paper."""
    given = [[0.1, 1.2, 0.3], [1.9, 0.6, 0.4], [0.8, 0.7, 1.5]]
    expected = [
        sum(2 - (row[j] - row[i]) for j in range(3) if j != i) / 4 + row[i]
        for i, row in enumerate(given)
    ]
    distances, counts = torch.tensor(given, dtype=torch.float64), torch.ones(3, dtype=torch.bool)
    assert cos_nce(distances, counts, slice(0, 3)).tolist() == pytest.approx(expected, abs=1e-12)


def test_a_share_of_the_samples_has_the_same_negatives():
    """Samples 1 and 2 of four, on a rank that is not the first; the last one does not count."""
    distances = states(4, 4).abs()
    counts = torch.tensor([True, True, True, False])
    whole = cos_nce(distances[:3, :3], counts[:3], slice(0, 3))
    torch.testing.assert_close(cos_nce(distances[1:3], counts, slice(1, 3)), whole[1:])


def test_layers_are_added_and_alpha_multiplies(contrast):
    assert contrast(AXES, AXES, layers=3) == pytest.approx(1.5, abs=1e-12)
    assert contrast(AXES, AXES, alpha=4) == pytest.approx(2, abs=1e-12)


def test_a_projection_meets_another_width(contrast):
    projection = nn.Linear(2, 3, bias=False).double()
    projection.weight.data = torch.tensor([[0.0, 1], [0, 0], [1, 0]]).double()
    teacher = torch.tensor([[[0.0, 0, 1]], [[1, 0, 0]]]).double()
    assert contrast(AXES, teacher, projection=projection) == pytest.approx(0.5, abs=1e-12)


def test_samples_are_compared_where_both_have_a_token(contrast):
    student, teacher = states(2, 3, 4), states(2, 3, 4, seed=1)
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])

    def cos(i, j, position):
        pair = student[i, position], teacher[j, position]
        return (pair[0] @ pair[1] / pair[0].norm() / pair[1].norm()).item()

    own = [1 - sum(cos(0, 0, p) for p in range(3)) / 3, 1 - cos(1, 1, 0)]
    other = [1 - cos(0, 1, 0), 1 - cos(1, 0, 0)]
    expected = sum(1 - (far - near) / 2 + near for near, far in zip(own, other, strict=True)) / 2
    assert contrast(student, teacher, mask=mask) == pytest.approx(expected, abs=1e-12)
    for tensor in (student, teacher):
        tensor[1, 1:] = 7
    assert contrast(student, teacher, mask=mask) == pytest.approx(expected, abs=1e-12)


def test_a_sample_alone_is_refused(contrast):
    with pytest.raises(MethodError, match=r"one row\. Raise training.batch_size"):
        contrast(AXES[:1], AXES[:1])


class Watching(LRCBERT):
    """Also reads the embedding that the pass that counts has."""

    def reads(self, models, step):
        yield from super().reads(models, step)
        yield "student.embedding"
        if self.config.perturbation != "none":
            yield "student@perturbed.embedding"


@pytest.fixture
def watched(trial):
    """The trial, the student's view, and the terms of one step: `watched(perturbation="token")`."""

    def _watched(kind="classification", **options):
        lrc = trial("lrc-bert", kind, **options)
        lrc.method.__class__ = Watching
        step = Step(0, 10, 0, "test", torch.Generator())
        plan = lrc.objective.plan(step)
        captured = run_passes(plan, lrc.student, [lrc.teacher], lrc.batch, step)
        found = lrc.objective.terms(captured, lrc.batch, step, plan)
        return lrc, captured.views(plan.requests["lrc-bert"][0])[0], found

    return _watched


@pytest.mark.parametrize("stage", [{}, {"beta": 0, "gamma": 0}], ids=["second", "first"])
@pytest.mark.parametrize(("perturbation", "over"), [("sample", (1, 2)), ("token", 2)])
@pytest.mark.parametrize("kind", ["classification", "causal-lm"])
def test_the_embedding_moves_up_the_gradient_of_the_loss(watched, kind, perturbation, over, stage):
    lrc, plain, found = watched(kind, perturbation="none", **stage)
    total = sum(term.mean() for term in found.values())
    (gradient,) = torch.autograd.grad(total, plain.embedding)
    expected = gradient / gradient.norm(dim=over, keepdim=True).clamp(min=1e-300)
    _, student, _ = watched(kind, perturbation=perturbation, **stage)
    moved = student.at("perturbed").embedding - student.embedding
    torch.testing.assert_close(moved, expected)
    assert torch.all(moved[~lrc.batch.mask] == 0)


def test_the_first_pass_only_gives_the_direction(watched):
    lrc, student, found = watched()
    parameters = list(lrc.student.model.parameters())
    assert all(parameter.grad is None for parameter in parameters)
    moved = (student.at("perturbed").embedding - student.embedding).detach()
    sum(term.mean() for term in found.values()).backward()
    gradient = [p.grad.clone() for p in parameters if p.grad is not None]
    lrc.student.model.zero_grad()
    # The same pass by hand: the embedding plus a constant, nothing else.
    block = lrc.student.model.bert.encoder.layer[0]
    handle = block.register_forward_pre_hook(lambda module, args: (args[0] + moved, *args[1:]))
    lrc.method.config = LRCBERT.Config(perturbation="none")
    sum(lrc.terms().values()).backward()
    handle.remove()
    again = [p.grad for p in parameters if p.grad is not None]
    for one, other in zip(gradient, again, strict=True):
        torch.testing.assert_close(one, other)


def test_the_first_stage_reads_no_logits_and_the_second_all(trial):
    first, second = trial("lrc-bert", beta=0, gamma=0), trial("lrc-bert")
    assert set(first.terms()) == {"contrast"}
    assert set(second.terms()) == {"contrast", "soft", "hard"}
    assert first.captures() == (
        ["hidden[0]", "hidden[1]", "hidden[2]"],
        ["hidden[2]", "hidden[4]"],
    )
    assert all("logits" in side for side in second.captures())


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "options",
    [
        {"perturbation": "token", "layers": "last"},
        {"perturbation": "none"},
        {"beta": 0, "gamma": 0, "layers": [[1, 3]]},
        {"alpha": "linear(0 -> 1)", "temperature": "linear(4 -> 1)"},
    ],
)
def test_other_options_keep_what_every_method_must(options, kinds):
    check_method(LRCBERT, options, kinds)


def test_layers_that_are_not_there_are_refused():
    info = [ModelInfo(n, "bert", n, 32, 4, 4, 8, 64, 100, 2, 64) for n in (2, 4)]
    with pytest.raises(MethodError, match="teacher block 5"):
        LRCBERT(LRCBERT.Config(layers=[[1, 5]])).check(Models(*info))


def run(invoke, output, *arguments):
    done = invoke("run", *arguments, "--set", "training.steps=2", "--output", output)
    assert done.code == 0, done.err
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.exhaustive
@pytest.mark.parametrize("family", ["teacher", "decoder"])
def test_the_recipe_runs_its_two_stages_after_pre_training(
    invoke, settings, world, tmp_path, family
):
    language_model = {"teacher": "lm-teacher", "decoder": "lm-decoder"}[family]
    given = [*settings[4:], "--teacher", world / family]
    given += ["--set", f"stages.pretrain.teacher.model={world / language_model}"]
    logged = run(invoke, tmp_path / "run", "--recipe", "lrc-bert", *given)
    names = {
        stage: {n for e in logged if e["stage"] == stage for n in e if n.startswith("loss/")}
        for stage in ("contrast", "task")
    }
    assert len(names["contrast"]) == 2  # the contrast and the total
    parts = ("contrast", "soft", "hard")
    assert names["task"] == {"loss/total", *(f"loss/lrc-bert.{part}" for part in parts)}


@pytest.mark.exhaustive
def test_checkpointed_blocks_give_the_same_losses(invoke, settings, tmp_path):
    found = []
    for on in ("false", "true"):
        given = [*settings, "--set", "training.eps=1e-4"]
        given += ["--set", f"training.gradient_checkpointing={on}"]
        logged = run(invoke, tmp_path / on, "--method", "lrc-bert+soft", *given)
        found.append([entry["loss/total"] for entry in logged if "loss/total" in entry])
    assert len(found[0]) > 0
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_micro_batches_of_one_row_end_the_run_with_advice(invoke, settings, tmp_path):
    single = ("--set", "training.batch_size=1", "--output", tmp_path / "run")
    done = invoke("run", "--method", "lrc-bert", *settings, *single)
    assert done.code == 2
    assert "Raise training.batch_size" in " ".join(done.err.split())


def test_explain_shows_both_passes(invoke, settings):
    done = invoke("explain", "lrc-bert", *settings)
    assert done.code == 0, done.err
    assert "student in lrc-bert@perturbed" in done.out
    assert "add to student@perturbed.embedding" in done.out
