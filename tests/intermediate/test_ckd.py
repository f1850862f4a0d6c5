"""Numbers worked out by hand, the formulae written out, and what relations do not depend on."""

import itertools
import json
import math

import pytest
import torch

from gkd_core.api import Items, MethodError, ModelInfo, Models
from gkd_core.testing import check_method
from gkd_methods_intermediate.ckd import CKD, layer_relations, word_relations

NAMES = ("word-pairs", "word-triples", "layer-pairs", "layer-triples")
PLAIN = {
    f"{name}_weight": 1.0 for name in ("word_pair", "word_triple", "layer_pair", "layer_triple")
}
MASK = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])


def states(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def tokens(mask=MASK):
    return Items.where("token", mask)


def some(rows):
    """States of one sample and the items of its tokens."""
    tensor = torch.tensor([rows], dtype=torch.float64)
    return tensor, tokens(torch.ones(tensor.shape[:2], dtype=torch.bool))


def cosine(a, b):
    return (a @ b / a.norm() / b.norm()).item()


def softmax_of_others(x):
    """The distribution of each vector over the others, by row."""
    rows = []
    for i in range(len(x)):
        powers = [math.exp(cosine(x[i], x[j])) for j in range(len(x)) if j != i]
        rows.append([power / sum(powers) for power in powers])
    return rows


def pair_loss(student, teacher):
    """KL of each row of N vectors, by the formula."""
    rows = zip(softmax_of_others(teacher), softmax_of_others(student), strict=True)
    return [sum(p * math.log(p / q) for p, q in zip(*row, strict=True)) for row in rows]


def triple_loss(student, teacher, reach):
    """Mean squared difference of the cosines at each vertex, by the formula."""
    found = []
    for j in range(len(student)):
        near = [i for i in range(len(student)) if i != j and abs(i - j) <= reach]
        pairs = list(itertools.permutations(near, 2))
        seen = [[cosine(x[i] - x[j], x[k] - x[j]) for i, k in pairs] for x in (student, teacher)]
        squares = [(a - b) ** 2 for a, b in zip(*seen, strict=True)]
        found.append(sum(squares) / len(squares) if squares else 0.0)
    return found


def test_a_word_is_likelier_to_go_with_one_like_it():
    """Tokens (1, 0), (1, 0) and (0, 1): the first has the cosines 1 and 0 to the others."""
    teacher, over = some([[1.0, 0], [1, 0], [0, 1]])
    student, _ = some([[1.0, 0], [0, 1], [-1, 0]])
    p = math.e / (math.e + 1)
    assert (p, 1 - p) == pytest.approx((0.731059, 0.268941), abs=1e-6)
    # The student's first token has the cosines 0 and -1, which differ by as much.
    pairs, _ = word_relations(student, teacher, over, 3)
    second = p * math.log(p / 0.5) + (1 - p) * math.log((1 - p) / 0.5)
    third = 0.5 * math.log(0.5 / (1 - p)) + 0.5 * math.log(0.5 / p)
    assert pairs.values[0].tolist() == pytest.approx([0, second, third], abs=1e-12)


def test_a_triple_is_the_angle_at_its_vertex():
    """Points (0, 0), (1, 0), (0, 1): cosines 0, 1 / sqrt 2, 1 / sqrt 2; on a line: -1, 1 and 1."""
    student, over = some([[0.0, 0], [1, 0], [0, 1]])
    teacher, _ = some([[0.0], [1], [-1]])
    _, triples = word_relations(student, teacher, over, 5)
    root = math.sqrt(0.5)
    assert root == pytest.approx(0.707107, abs=1e-6)
    expected = [1, (1 - root) ** 2, (1 - root) ** 2]
    assert triples.values[0].tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("window", [3, 5, 21])
def test_words_are_those_of_the_formula(window):
    student, teacher = states(2, 6, 4), states(2, 6, 3, seed=1)
    pairs, triples = word_relations(student, teacher, tokens(), window)
    for row, length in enumerate((6, 4)):
        learned, known = student[row, :length], teacher[row, :length]
        assert pairs.values[row, :length].tolist() == pytest.approx(pair_loss(learned, known))
        expected = triple_loss(learned, known, window // 2)
        assert triples.values[row, :length].tolist() == pytest.approx(expected)
        assert (pairs.values[row, length:] == 0).all()
        assert (triples.values[row, length:] == 0).all()


def test_layers_are_those_of_the_formula():
    student, teacher = ([states(2, 6, d, seed=s + d) for s in range(4)] for d in (4, 3))
    pairs, triples = layer_relations(student, teacher, tokens())
    for row, position in itertools.product(range(2), range(6)):
        learned, known = (torch.stack([x[row, position] for x in m]) for m in (student, teacher))
        counts = float(MASK[row, position])
        expected = sum(pair_loss(learned, known)) / 4 * counts
        assert pairs.values[row, position].item() == pytest.approx(expected)
        expected = sum(triple_loss(learned, known, 4)) / 4 * counts
        assert triples.values[row, position].item() == pytest.approx(expected)


@pytest.fixture
def ckd(terms):
    """Terms of states of the embedding and two layers, `[B, S, D]` each."""

    def _ckd(student, teacher, mask=MASK, **options):
        learned, known = (
            {f"hidden[{number}]": layer for number, layer in enumerate(side)}
            for side in (student, teacher)
        )
        method = CKD(CKD.Config(**PLAIN | options))
        found = terms(method, learned, known, layers=(2, 2), mask=mask.long())
        return [found[name] for name in NAMES]

    return _ckd


def three(width, seed):
    return [states(2, 6, width, seed=seed + layer) for layer in range(3)]


def test_layers_are_averaged_and_weights_multiply(ckd):
    student, teacher = three(4, 0), three(3, 10)
    plain = ckd(student, teacher)
    both = zip(student, teacher, strict=True)
    words = [[t.mean() for t in word_relations(s, k, tokens(), 21)] for s, k in both]
    expected = [sum(layer) / 3 for layer in zip(*words, strict=True)]
    expected += [term.mean() for term in layer_relations(student, teacher, tokens())]
    torch.testing.assert_close(plain, expected)
    default = ckd(student, teacher, **CKD.Config().model_dump(exclude={"layers", "window"}))
    torch.testing.assert_close(default, [w * t for w, t in zip((1, 10, 1, 10), plain, strict=True)])


def test_a_common_rotation_and_scale_change_nothing_and_triples_may_move(ckd):
    student, teacher = three(4, 0), three(3, 10)
    turn = 3 * torch.linalg.qr(states(4, 4, seed=20)).Q
    plain = ckd(student, teacher)
    torch.testing.assert_close(ckd([layer @ turn for layer in student], teacher), plain)
    moved = ckd([layer + 2 for layer in student], teacher)
    torch.testing.assert_close(moved[1::2], plain[1::2])
    assert all(abs(a - b) > 1e-3 for a, b in zip(moved[::2], plain[::2], strict=True))
    assert max(ckd(student, student)) < 1e-12


@pytest.mark.parametrize("length", [1, 2])
def test_short_texts_have_no_triples_and_finite_gradients(ckd, length):
    mask = (torch.arange(6) < length).expand(2, -1)
    student = [layer.requires_grad_() for layer in three(4, 0)]
    found = ckd(student, three(3, 10), mask)
    sum(found).backward()
    assert found[1].item() == 0
    assert found[0].item() == pytest.approx(0, abs=1e-12)  # one other word: certain
    assert found[2].item() > 0
    assert all(layer.grad.isfinite().all() for layer in student)


def test_the_gradient_is_exact(ckd, fast):
    teacher = three(3, 10)

    def total(*student):
        return sum(ckd(student, teacher, window=3))

    layers = [layer.requires_grad_() for layer in three(2, 0)]
    assert torch.autograd.gradcheck(total, layers, fast_mode=fast)


@pytest.mark.exhaustive
@pytest.mark.parametrize("options", [{"window": 3, "layers": "last"}, {"layers": [[1, 1], [2, 3]]}])
def test_other_options_keep_what_every_method_must(options, kinds):
    check_method(CKD, options, kinds)


def test_widths_may_differ_but_not_layers_that_are_missing():
    info = [ModelInfo(n, "bert", n, 32 * n, 4, 4, 8, 64, 100, 2, 64) for n in (2, 4)]
    CKD().check(Models(*info))
    with pytest.raises(MethodError, match="teacher block 5"):
        CKD(CKD.Config(layers=[[1, 5]])).check(Models(*info))


def test_a_window_without_a_middle_is_refused(invoke, settings):
    done = invoke("explain", "ckd", *settings, "--set", "ckd.window=20")
    assert done.code == 2
    assert "has no middle; use 21" in " ".join(done.err.split())


@pytest.mark.exhaustive
@pytest.mark.parametrize("family", ["teacher", "decoder"])
def test_the_recipe_runs_after_pre_training(invoke, settings, world, tmp_path, family):
    language_model = {"teacher": "lm-teacher", "decoder": "lm-decoder"}[family]
    done = invoke(
        *("run", "--recipe", "ckd", *settings[4:], "--teacher", world / family),
        *("--set", f"stages.pretrain.teacher.model={world / language_model}"),
        *("--set", "training.steps=2", "--output", tmp_path / "run"),
    )
    assert done.code == 0, done.err
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    logged = [json.loads(line) for line in lines]
    names = {n for e in logged if e["stage"] == "task" for n in e if n.startswith("loss/")}
    assert names == {"loss/total", "loss/hard", "loss/soft", *(f"loss/ckd.{n}" for n in NAMES)}
