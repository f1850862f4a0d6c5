"""The formulae of each level written out, which points are salient, and what phrases are."""

import itertools
import json
import math

import pytest
import torch

from gkd_core.api import Batch, Items, MethodError, ModelInfo, Models
from gkd_core.losses import self_relation
from gkd_core.testing import check_method
from gkd_methods_intermediate.mgskd import MGSKD
from gkd_methods_intermediate.structure import (
    Phrases,
    point_structure,
    salient_neighbours,
    sample_structure,
)

MASK = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
WORDS = torch.tensor([[-1, 0, 0, 1, 2, -1], [-1, 0, 1, -1, -1, -1]])
PLAIN = {"sample_weight": 1, "token_weight": 1, "phrase_weight": 1}


def states(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def samples(rows):
    ids = torch.ones(rows, 1, dtype=torch.long)
    return Batch({"input_ids": ids, "attention_mask": ids}, None, torch.arange(rows))


def huber(difference):
    size = abs(difference)
    return size**2 / 2 if size < 1 else size - 0.5


def angle(x, i, j, k):
    a, b = x[i] - x[j], x[k] - x[j]
    return (a @ b / a.norm() / b.norm()).item()


def angle_loss(student, teacher, j, seen):
    """Mean over the ordered pairs of points seen from j."""
    pairs = list(itertools.permutations(seen, 2))
    losses = [huber(angle(student, i, j, k) - angle(teacher, i, j, k)) for i, k in pairs]
    return sum(losses) / len(losses) if losses else 0.0


def scores(x, heads):
    """Scaled dot products `[A, N, N]` of points `[N, D]`."""
    parts = x.view(len(x), heads, -1).transpose(0, 1)
    return parts @ parts.transpose(1, 2) / math.sqrt(parts.shape[-1])


def salient(teacher, heads, k1, k2):
    """Vertex -> the points it sees, by the teacher's softmax."""
    weights = scores(teacher, heads).softmax(-1).sum(0)
    vertices = weights.sum(0).argsort(descending=True)[:k1].tolist()
    others = {
        j: [i for i in weights[j].argsort(descending=True).tolist() if i != j] for j in vertices
    }
    return {j: seen[:k2] for j, seen in others.items()}


@pytest.mark.parametrize(("k1", "k2"), [(20, 20), (2, 3), (3, 2)])
def test_points_are_those_of_the_formula(k1, k2):
    student, teacher = states(2, 6, 4), states(2, 6, 8, seed=1)
    found = point_structure(student, teacher, Items.where("token", MASK), 2, k1, k2)
    for row, length in enumerate((6, 4)):
        learned, known = student[row, :length], teacher[row, :length]
        pairs = (scores(learned, 2) - scores(known, 2)).square().mean().item()
        seen = salient(known, 2, k1, k2)
        triples = [angle_loss(learned, known, j, others) for j, others in seen.items()]
        assert found[row].item() == pytest.approx(pairs + sum(triples) / len(triples))


def test_points_may_be_turned_within_each_head_but_neither_across_heads_nor_moved():
    student, teacher = states(2, 6, 8), states(2, 6, 8, seed=1)

    def loss(points):
        return point_structure(points, teacher, Items.where("token", MASK), 2, 20, 20)

    within = torch.block_diag(*(torch.linalg.qr(states(4, 4, seed=s)).Q for s in (2, 3)))
    across = torch.linalg.qr(states(8, 8, seed=4)).Q
    torch.testing.assert_close(loss(student @ within), loss(student))
    # Angles alone would not see where the points are; their products do.
    for other in (student @ across, student + 2, 2 * student):
        assert (loss(other) - loss(student)).abs().min() > 1e-3


def test_what_is_salient_is_the_teachers_choice():
    """Along a line the last point has the largest products with all: everyone looks at it."""
    line = torch.tensor([[[0.1], [0.2], [0.3], [3.0]]]).double()
    mask = torch.tensor([[True] * 4])
    around = salient_neighbours(self_relation(line, 1, mask), mask, 2, 2)
    assert around.tolist() == [[[-1, -1], [-1, -1], [3, 1], [2, 1]]]
    mask = torch.tensor([[True] * 3 + [False]])
    around = salient_neighbours(self_relation(line, 1, mask), mask, 20, 20)
    assert around[0, 3].tolist() == [-1] * 4
    assert sorted(around[0, 0].tolist()) == [-1, -1, 1, 2]


def test_samples_are_those_of_the_formula():
    student, teacher = states(4, 2, 4), states(4, 2, 6, seed=1)
    found = sample_structure(student, teacher, samples(4), heads=2)
    for j in range(4):
        expected = 0.0
        for layer, head in itertools.product(range(2), range(2)):
            learned = student[:, layer].view(4, 2, -1)[:, head]
            known = teacher[:, layer].view(4, 2, -1)[:, head]
            expected += angle_loss(learned, known, j, [i for i in range(4) if i != j]) / 2
        assert found[j].item() == pytest.approx(expected)


def test_a_phrase_is_some_words_in_a_row():
    words = torch.tensor(
        [
            [-1, 0, 0, 1, 2, 2, -1, 3, 4, -1],  # a pair: the second text begins a phrase
            [-1, 0, 1, 2, 3, 4, 5, -1, -1, -1],
            [-1, 0, -1, -1, -1, -1, -1, -1, -1, -1],
            [-1] * 10,
        ]
    )
    phrases = Phrases.of(words, 2)
    members = [[row.nonzero().flatten().tolist() for row in text] for text in phrases.share > 0]
    assert members[0] == [[1, 2, 3], [4, 5], [7, 8]]
    assert members[1] == [[1, 2], [3, 4], [5, 6]]
    assert members[2] == [[1], [], []]
    assert members[3] == [[], [], []]
    assert phrases.items.mask.sum(1).tolist() == [3, 3, 1, 0]
    tokens = states(4, 10, 3)
    torch.testing.assert_close(phrases.states(tokens)[0, 0], tokens[0, 1:4].mean(0))
    assert Phrases.of(words[3:], 2).items.mask.tolist() == [[False]]
    left = Phrases.of(words.flip(1).roll(0), 3)
    assert left.items.mask.sum(1).tolist() == [2, 2, 1, 0]


def test_one_word_phrases_of_one_token_are_the_tokens():
    words = torch.arange(6).expand(2, -1).masked_fill(~MASK, -1)
    phrases, student = Phrases.of(words, 1), states(2, 6, 4)
    assert phrases.items.mask.equal(MASK)
    torch.testing.assert_close(phrases.states(student)[MASK], student[MASK])


@pytest.fixture
def mgskd(terms):
    """Terms of states `[B, S, D]` of the embedding and two layers, all below or all above."""

    def _mgskd(student, teacher, level, mask=MASK, **options):
        reduce = "|mean" if level == "samples" else ""
        learned, known = (
            {f"hidden[{n}]{reduce}": layer for n, layer in enumerate(side)}
            for side in (student, teacher)
        )
        options = {"sample_from": 0 if reduce else 3, **PLAIN, **options}
        method = MGSKD(MGSKD.Config(**options))
        return terms(method, learned, known, layers=(2, 2), mask=mask.long(), words=WORDS)

    return _mgskd


def three(*shape, seed=0):
    return [states(*shape, seed=seed + layer) for layer in range(3)]


def test_layers_are_added_and_weights_multiply(mgskd):
    student, teacher = three(2, 6, 32), three(2, 6, 32, seed=10)
    found = mgskd(student, teacher, "texts")
    both = list(zip(student, teacher, strict=True))
    points, phrases = Items.where("token", MASK), Phrases.of(WORDS, 2)
    expected = sum(point_structure(s, t, points, 8, 20, 20).mean() for s, t in both)
    torch.testing.assert_close(found["tokens"], expected)
    means = [[phrases.states(x) for x in pair] for pair in both]
    spans = sum(point_structure(s, t, phrases.items, 8, 20, 20).mean() for s, t in means)
    torch.testing.assert_close(found["phrases"], spans)
    weighed = mgskd(student, teacher, "texts", token_weight=3, phrase_weight="linear(2 -> 0)")
    torch.testing.assert_close(list(weighed.values()), [3 * expected, 2 * spans])


def test_angles_do_not_depend_on_where_samples_are_turned_or_how_large(mgskd):
    student, teacher = three(4, 32), three(4, 32, seed=10)
    mask = torch.ones(4, 1, dtype=torch.bool)
    plain = mgskd(student, teacher, "samples", mask, heads=1)
    turn = 3 * torch.linalg.qr(states(32, 32, seed=20)).Q
    moved = [layer @ turn + 2 for layer in student]
    torch.testing.assert_close(mgskd(moved, teacher, "samples", mask, heads=1), plain)
    assert mgskd(student, student, "samples", mask)["samples"].item() == 0
    assert plain["samples"] > 0.01


def test_equal_models_have_nothing_to_learn(mgskd):
    student = three(2, 6, 32)
    assert [value.item() for value in mgskd(student, student, "texts").values()] == [0, 0]


@pytest.mark.parametrize("level", ["texts", "samples"])
def test_the_gradient_is_exact(mgskd, level, fast):
    shape, mask = ((2, 6, 4), MASK) if level == "texts" else ((4, 4), torch.ones(4, 1).bool())
    teacher = three(*shape, seed=10)

    def total(*student):
        return sum(mgskd(student, teacher, level, mask, heads=2, salient=3).values())

    layers = [layer.requires_grad_() for layer in three(*shape)]
    assert torch.autograd.gradcheck(total, layers, fast_mode=fast)


def test_lower_layers_are_read_whole_and_upper_ones_as_means(trial):
    student, teacher = trial("mgskd", layers=(4, 8)).captures()
    assert student == ["hidden[0]", "hidden[1]", *(f"hidden[{n}]|mean" for n in (2, 3, 4))]
    assert teacher == ["hidden[0]", "hidden[2]", *(f"hidden[{n}]|mean" for n in (4, 6, 8))]
    assert set(trial("mgskd", layers=(4, 8), sample_from=0).terms()) == {"samples"}
    assert set(trial("mgskd", layers=(4, 8), sample_from=9).terms()) == {"tokens", "phrases"}


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "options",
    [
        {"layers": "last", "heads": 4, "phrase_words": 1},
        {"sample_from": 0},
        {"sample_from": 3, "salient": 3, "neighbours": 2},
        {"sample_weight": "linear(0 -> 1)"},
    ],
)
def test_other_options_keep_what_every_method_must(options, kinds):
    check_method(MGSKD, options, kinds)


def test_heads_that_do_not_divide_a_width_are_refused():
    info = [ModelInfo(n, "bert", 2, n, 4, 4, 8, 64, 100, 2, 64) for n in (96, 128)]
    MGSKD().check(Models(*info))
    with pytest.raises(
        MethodError, match=r"'96' has hidden size 96\. Set mgskd.heads to a divisor of 32"
    ):
        MGSKD(MGSKD.Config(heads=64)).check(Models(*info))


@pytest.mark.parametrize(
    ("given", "advice"),
    [
        (
            {"batch_size": 2},
            "training.batch_size=2 (--set) in 1 micro-batch (training.accumulation) leaves 2",
        ),
        (
            {"batch_size": 8, "accumulation": 4},
            "in 4 micro-batches (training.accumulation) leaves 2",
        ),
        ({"batch_size": 19}, "has 1 of 96 rows (in 1 micro-batch). Set task.rows=95"),
    ],
)
def test_micro_batches_of_two_rows_are_refused_before_anything_is_loaded(
    invoke, settings, given, advice
):
    changes = [x for k, v in given.items() for x in ("--set", f"training.{k}={v}")]
    done = invoke("explain", "mgskd", *settings, *changes)
    assert done.code == 2
    assert advice in " ".join(done.err.split())


@pytest.mark.exhaustive
def test_the_recipe_goes_from_layers_to_structure_to_predictions(invoke, settings, world, tmp_path):
    done = invoke(
        *("run", "--recipe", "mgskd", *settings[4:], "--teacher", world / "teacher"),
        *("--set", f"stages.general.teacher.model={world / 'lm-teacher'}"),
        *("--set", "training.steps=2", "--output", tmp_path / "run"),
    )
    assert done.code == 0, done.err
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    logged = [json.loads(line) for line in lines]
    names = {
        stage: {n for e in logged if e["stage"] == stage for n in e if n.startswith("loss/")}
        for stage in ("general", "structure", "prediction")
    }
    assert "loss/tinybert.hidden" in names["general"]
    parts = ("samples", "tokens", "phrases")
    assert names["structure"] == {"loss/total", *(f"loss/mgskd.{part}" for part in parts)}
    assert names["prediction"] == {"loss/total", "loss/soft"}
