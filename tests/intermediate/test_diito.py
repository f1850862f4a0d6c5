"""What is interchanged, in tiny models in fp64, and what follows from it."""

import json
from dataclasses import replace

import pytest
import torch

from gkd_core.api import MethodError, ModelInfo, Models, Step
from gkd_core.contract.batch import Batch
from gkd_core.objective.passes import run_passes
from gkd_core.testing import check_method, tiny_batch
from gkd_methods_intermediate.diito import DIITO, aligned_blocks
from gkd_methods_intermediate.interchange import draw_moves, source_of, source_rows


@pytest.mark.parametrize(
    ("alignment", "expected"),
    [
        ("full", [(block, [2 * block - 1, 2 * block]) for block in range(1, 7)]),
        ("middle", [(4, [7])]),
        ("late", [(4, [10]), (5, [11])]),
    ],
)
def test_six_blocks_are_aligned_with_twelve_as_in_the_released_code(alignment, expected):
    found = aligned_blocks(alignment, 6, 12)
    assert [(student, list(teacher)) for student, teacher in found] == expected


def test_every_teacher_block_has_its_student_block_whatever_the_depths():
    assert [list(t) for _, t in aligned_blocks("full", 3, 5)] == [[1], [2, 3], [4, 5]]
    assert aligned_blocks("late", 2, 4) == [(1, [3])]
    assert [aligned_blocks("middle", n, n) for n in (1, 2, 3)] == [[(n, [n])] for n in (1, 2)] + [
        [(2, [2])]
    ]


def batch_of(*lengths, rows=None, labeled=()):
    """A batch with rows of these lengths; `labeled` are positions that are predicted."""
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    labels = torch.full(mask.shape, -100)
    for row, position in labeled:
        labels[row, position] = 5
    ids = torch.arange(mask.numel()).view(mask.shape) % 60 + 1
    return Batch(
        {"input_ids": ids * mask, "attention_mask": mask.long()},
        labels if labeled else torch.zeros(len(lengths), dtype=torch.long),
        torch.arange(len(lengths)) if rows is None else torch.tensor(rows),
    )


def sources(*rows, counted=None):
    counts = torch.arange(len(rows)) < (counted or len(rows))
    return source_rows(torch.tensor(rows), counts, int(counts.sum())).tolist()


def test_the_source_is_the_next_row_of_the_dataset_in_any_order():
    assert sources(7, 3, 5) == sources(3, 5, 7) == [1, 2, 0]
    assert sources(4) == [0]
    assert sources(7, 3, 5, 3, counted=3) == [1, 2, 0, 2]
    batch = batch_of(3, 2, rows=[9, 8])
    inputs = source_of(batch, Step(0, 1, 0, "test", torch.Generator()))
    assert inputs.keys() == batch.inputs.keys()
    assert all(torch.equal(inputs[name], value.flip(0)) for name, value in batch.inputs.items())


def moves(batch, row, *options):
    """Positions filled in a row, and those they are filled from."""
    source = source_of(batch, Step(0, 1, 0, "test", torch.Generator()))["attention_mask"]
    rows, filled, taken = draw_moves(batch, source.bool(), *options)
    return filled[rows == row].tolist(), taken[rows == row].tolist()


def test_runs_have_a_share_of_the_shorter_row_and_hold_no_padding():
    batch = batch_of(10, 7, 4)
    starts = set()
    for seed in range(200):
        for row, (own, source) in enumerate(((10, 7), (7, 4), (4, 10))):
            filled, taken = moves(batch, row, "consecutive", 0.5, seed)
            assert len(filled) == len(taken) == min(own, source) // 2
            for run, length in ((filled, own), (taken, source)):
                assert run == list(range(run[0], run[0] + len(run)))
                assert run[-1] < length
            if row == 0:
                starts.add((filled[0], taken[0]))
    # Every run of 3 in 10 positions with every run of 3 in 7: drawn apart from each other.
    assert len(starts) > 0.9 * 8 * 5


def test_the_share_is_rounded_down():
    assert len(moves(batch_of(9, 9), 0, "consecutive", 0.3, 1)[0]) == 2
    assert moves(batch_of(9, 9), 0, "random", 0, 1) == ([], [])
    assert moves(batch_of(9, 9), 0, "consecutive", 1, 1) == (list(range(9)), list(range(9)))


def test_random_positions_are_scattered_over_the_tokens():
    batch, seen = batch_of(10, 6), set()
    for seed in range(100):
        filled, taken = moves(batch, 0, "random", 0.5, seed)
        assert len(set(filled)) == len(set(taken)) == 3
        assert max(filled) < 10
        assert max(taken) < 6
        seen.add(filled[2] - filled[0] > 2)
    assert seen == {True, False}


def test_masked_positions_are_all_filled_from_any_token_of_the_source():
    batch = batch_of(8, 6, 2, labeled=[(0, 1), (0, 5), (1, 0), (1, 2), (1, 4), (2, 1)])
    for seed in range(20):
        filled, taken = moves(batch, 0, "masked", 0.3, seed)
        assert filled == [1, 5]
        assert len(set(taken)) == 2
        assert max(taken) < 6
        # The source of row 1 has two tokens only.
        assert set(moves(batch, 1, "masked", 0.3, seed)[0]) < {0, 2, 4}


def test_moves_belong_to_the_row_and_not_to_its_place_in_the_batch():
    batch = batch_of(9, 9, 9, rows=[4, 6, 5])
    turned = batch_of(9, 9, 9, rows=[5, 4, 6])
    for place, row in ((0, 1), (1, 2), (2, 0)):
        assert moves(batch, place, "random", 0.5, 3) == moves(turned, row, "random", 0.5, 3)


class Watching(DIITO):
    """Also reads the states of the first blocks."""

    def reads(self, models, step):
        yield from super().reads(models, step)
        for side in ("student", "teacher"):
            for run in ("main", "source", "swapped"):
                yield f"{side}@{run}.hidden[*]"


@pytest.fixture
def step(trial):
    """Views of both models, and the terms, of a step: `step(batch, share=1)`."""

    def _step(batch=None, kind="classification", index=0, last=False, **options):
        diito = trial("diito", kind, **options)
        diito.method.__class__ = Watching
        where = Step(index, 10, 0, "test", torch.Generator())
        plan = diito.objective.plan(where)
        while last and "student@swapped.hidden[2]" not in blocks(plan):
            plan = diito.objective.plan(where)
        batch = batch or diito.batch
        captured = run_passes(plan, diito.student, [diito.teacher], batch, where)
        found = diito.objective.terms(captured, batch, where, plan)
        views = captured.views(plan.requests["diito"][0])
        return diito, views, {name.partition(".")[2]: term for name, term in found.items()}

    return _step


def blocks(plan):
    """Places that are written in a step."""
    return {write.operation.site for write in plan.requests["diito"][0].writes}


@pytest.mark.parametrize("kind", ["classification", "causal-lm"])
def test_without_positions_the_causal_loss_is_plain_distillation(step, kind):
    _, _, terms = step(kind=kind, share=0)
    assert torch.equal(terms["causal"].values, terms["soft"].values)
    _, _, terms = step(kind=kind)
    assert not torch.allclose(terms["causal"].values, terms["soft"].values)


def test_a_row_that_is_its_own_source_is_unchanged(step):
    _, views, _ = step(batch_of(8), share=1)
    for view in views:
        torch.testing.assert_close(view.at("swapped").logits, view.logits)


@pytest.mark.parametrize("kind", ["classification", "causal-lm"])
def test_the_whole_last_block_gives_the_logits_of_the_source(step, kind):
    batch = replace(tiny_batch(kind, rows=2), rows=torch.tensor([3, 8]))
    inputs = {name: value.clone() for name, value in batch.inputs.items()}
    inputs["attention_mask"].fill_(1)
    _, views, _ = step(replace(batch, inputs=inputs), kind, last=True, share=1)
    for view in views:
        torch.testing.assert_close(view.at("swapped").logits, view.logits.flip(0))


def test_both_models_are_changed_at_the_same_positions_of_aligned_blocks(step):
    diito, views, _ = step(alignment="middle", share=0.5)
    places = []
    for view, block in zip(views, (2, 3), strict=True):
        plain, source, swapped = (
            view.at(run).hidden[block] for run in ("main", "source", "swapped")
        )
        changed = (plain != swapped).any(-1)
        places.append(changed)
        for row in range(len(diito.batch)):
            given = swapped[row][changed[row]]
            taken = (given[:, None] == source[row]).all(-1)
            assert torch.all(taken.sum(1) == 1)
        # Below, nothing is changed.
        assert torch.equal(view.hidden[block - 1], view.at("swapped").hidden[block - 1])
    assert torch.equal(*places)
    assert places[0].sum(1).tolist() == [4, 3, 2, 2]  # rows of 10, 8, 6, 4 tokens and their sources
    assert not places[0][~diito.batch.mask].any()


def test_full_alignment_changes_every_block_that_the_student_block_stands_for(step):
    _, (_, teacher), _ = step(last=True, share=0.5)
    for block in (3, 4):
        changed = teacher.hidden[block] != teacher.at("swapped").hidden[block]
        assert changed.any()
    assert torch.equal(teacher.hidden[2], teacher.at("swapped").hidden[2])


def test_blocks_and_positions_are_drawn_anew_in_every_step(trial):
    diito = trial("diito", layers=(4, 8))
    seen, seeds = set(), set()
    for index in range(40):
        plan = diito.objective.plan(Step(index, 40, 0, "test", torch.Generator()))
        seen.add(frozenset(blocks(plan)))
        seeds.add(diito.method._seed)
    assert len(seen) == 4
    assert len(seeds) == 40
    one = {"student@swapped.hidden[2]", "teacher@swapped.hidden[3]", "teacher@swapped.hidden[4]"}
    assert one in seen


def test_the_gradient_reaches_the_states_that_were_put_in(step):
    batch = batch_of(6, 6)
    diito, _, terms = step(batch, last=True, share=1)
    terms["causal"].mean().backward()
    first, last = (next(b.parameters()).grad for b in diito.student.model.bert.encoder.layer)
    # The base's own states do not reach the output: both gradients come through the source.
    assert first.abs().sum() > 0
    assert last.abs().sum() > 0
    assert all(parameter.grad is None for parameter in diito.teacher.model.parameters())


def test_terms_have_the_papers_weights(step):
    _, _, found = step()
    assert set(found) == {"soft", "hard", "causal", "cosine"}
    ones = dict.fromkeys(("alpha_ce", "alpha_mlm", "alpha_cos", "alpha_causal_ce"), 1)
    _, _, whole = step(**ones, alpha_causal_cos=1)
    assert set(whole) == {*found, "causal-cosine"}
    for name, term in found.items():
        torch.testing.assert_close(term.values, 0.25 * whole[name].values)


def test_the_cosines_are_of_the_last_states_of_each_pass(step):
    diito, views, found = step(alpha_causal_cos=1, alpha_cos=1)
    for name, run in (("cosine", "main"), ("causal-cosine", "swapped")):
        learned, known = (view.at(run).hidden[-1] for view in views)
        expected = 1 - torch.cosine_similarity(learned, known, dim=-1)[diito.batch.mask]
        assert found[name].mean().item() == pytest.approx(expected.mean().item(), abs=1e-12)


def test_the_soft_labels_of_a_language_model_are_those_of_all_tokens(step):
    diito, _, found = step(kind="causal-lm")
    assert found["causal"].over.count == found["soft"].over.count == diito.batch.mask.sum()
    assert found["hard"].over.count == diito.batch.targets.count < diito.batch.mask.sum()


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("options", "kinds"),
    [
        ({"alignment": "middle", "positions": "random"}, ["classification", "causal-lm"]),
        ({"alignment": "late", "alpha_causal_cos": 1}, ["classification", "causal-lm"]),
        ({"positions": "masked", "alpha_cos": 0}, ["causal-lm"]),
        ({"share": 1, "temperature": "linear(4 -> 1)"}, ["classification", "causal-lm"]),
    ],
)
def test_other_options_keep_what_every_method_must(options, kinds):
    check_method(DIITO, options, kinds)


@pytest.mark.parametrize(
    ("options", "student", "message"),
    [
        ({}, (2, 16), "hidden size 16 and the teacher 'teacher' 32"),
        ({}, (6, 32), "student has 6 blocks and the teacher 4"),
        ({"alignment": "late"}, (1, 32), "a model has one block"),
        ({"positions": "masked"}, (2, 32), "the task predicts classes"),
    ],
)
def test_models_that_do_not_suit_are_refused(options, student, message):
    def info(name, layers, width):
        return ModelInfo(name, "bert", layers, width, 4, 4, 8, 64, 100, 2, 64)

    models = Models(info("student", *student), info("teacher", 4, 32))
    with pytest.raises(MethodError, match=message):
        DIITO(DIITO.Config(**options)).check(models)
    narrow = Models(info("student", 2, 16), info("teacher", 4, 32))
    DIITO(DIITO.Config(alpha_cos=0)).check(narrow)


def run(invoke, output, *arguments):
    done = invoke("run", *arguments, "--set", "training.steps=2", "--output", output)
    assert done.code == 0, done.err
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("classifier", "language_model"), [("teacher", "lm-teacher"), ("decoder", "lm-decoder")]
)
def test_the_recipe_distils_a_language_model_and_fine_tunes_it(
    invoke, settings, world, tmp_path, classifier, language_model
):
    given = [*settings[4:], "--teacher", world / classifier]
    given += ["--set", f"stages.pretrain.teacher.model={world / language_model}"]
    logged = run(invoke, tmp_path / "run", "--recipe", "diito", *given)
    first = next(entry for entry in logged if entry["stage"] == "pretrain")
    for term in ("soft", "hard", "cosine", "causal"):
        assert first[f"loss/diito.{term}"] > 0
    assert any("loss/hard" in entry for entry in logged if entry["stage"] == "task")


@pytest.mark.exhaustive
def test_masked_positions_work_where_tokens_are_masked(invoke, settings, world, tmp_path):
    text = ("--set", "task.kind=lm", "--teacher", world / "lm-teacher")
    given = [*settings[2:], *text, "--set", "diito.positions=masked"]
    assert run(invoke, tmp_path / "run", "--method", "diito", *given)
    done = invoke("run", "--method", "diito", *settings, "--set", "diito.positions=masked")
    assert done.code == 2
    assert "the task predicts classes" in " ".join(done.err.split())


@pytest.mark.exhaustive
def test_checkpointed_blocks_give_the_same_losses(invoke, settings, tmp_path):
    found = []
    for on in ("false", "true"):
        given = [*settings, "--set", "training.eps=1e-4"]
        given += ["--set", f"training.gradient_checkpointing={on}"]
        logged = run(invoke, tmp_path / on, "--method", "diito+soft", *given)
        found.append([entry["loss/total"] for entry in logged if "loss/total" in entry])
    assert len(found[0]) > 0
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_explain_shows_what_is_interchanged(invoke, settings):
    done = invoke("explain", "diito", *settings, "--set", "diito.alignment=middle")
    assert done.code == 0, done.err
    shown = " ".join(done.out.split())
    assert "teacher in diito@source: up to block 3 of 4" in shown
    for side, block in (("student", 2), ("teacher", 3)):
        place = f"hidden[{block}]"
        assert f"interchange {side}@swapped.{place} with {side}@source.{place} by diito" in shown
