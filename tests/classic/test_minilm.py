"""Numbers worked out by hand for attention rows (.9, .1) of the teacher and (.5, .5)."""

from math import exp, log, sqrt

import pytest
import torch

from gkd_core.api import MethodError, Models, Step
from gkd_core.losses import Relation
from gkd_methods_classic.minilm import MiniLM

MASK = torch.ones(1, 2, dtype=torch.long)


def attend(*scores, keys=2):
    """Return a relation with one head and these scores in each of two rows."""
    query = torch.tensor(scores, dtype=torch.float64).expand(1, 1, keys, len(scores))
    key = torch.eye(keys, len(scores), dtype=torch.float64)[None, None]
    return Relation(query, key, None, False, 1.0)


def random(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


@pytest.fixture
def minilm(terms):
    def _minilm(attention=None, value=None, known=None, target=None, mask=MASK, **options):
        some = attend(0.0, 0.0, keys=mask.shape[1]) if attention is None else attention
        values = random(1, 1, mask.shape[1], 2) if value is None else value
        layer = options.get("teacher_layer", -1)
        return terms(
            MiniLM(MiniLM.Config(**options)),
            {"attention[last]": some, "value[last]": values},
            {
                f"attention[{layer}]": some if known is None else known,
                f"value[{layer}]": values if target is None else target,
            },
            mask=mask,
        )

    return _minilm


def test_attention_is_compared_once_softmaxed(minilm):
    # 0.9 ln 1.8 + 0.1 ln 0.2; a second softmax over the distributions would make it 0.074026.
    found = minilm(attend(0.0, 0.0), known=attend(log(9), 0.0))
    assert found["attention"].item() == pytest.approx(0.9 * log(1.8) + 0.1 * log(0.2), abs=1e-12)
    assert found["attention"].item() == pytest.approx(0.368064, abs=1e-6)
    assert found["value"].item() == pytest.approx(0, abs=1e-12)


def test_value_relations_are_scaled_by_the_head_size(minilm):
    # Rows of V V^T / sqrt 2 are (1 / sqrt 2, 0); the student's values are all 0.
    target = torch.eye(2, dtype=torch.float64)[None, None]
    p = exp(1 / sqrt(2)) / (1 + exp(1 / sqrt(2)))
    found = minilm(value=torch.zeros_like(target), target=target)["value"].item()
    assert found == pytest.approx(p * log(2 * p) + (1 - p) * log(2 * (1 - p)), abs=1e-12)


def test_values_may_be_turned_and_of_another_width(minilm):
    target = random(1, 1, 2, 3)
    turned, _ = torch.linalg.qr(random(3, 3, seed=1))
    assert minilm(value=target @ turned, target=target)["value"].item() < 1e-12
    wider = torch.cat([target, torch.zeros(1, 1, 2, 9)], dim=-1) * sqrt(2)
    assert minilm(value=wider, target=target)["value"].item() < 1e-12


def test_heads_are_averaged_and_told_apart(minilm):
    both = Relation(random(1, 2, 2, 3), random(1, 2, 2, 3, seed=1), None, False, 1.0)
    swapped = Relation(both.query.flip(1), both.key.flip(1), None, False, 1.0)
    assert minilm(both)["attention"].item() == pytest.approx(0, abs=1e-12)
    assert minilm(both, known=swapped)["attention"].item() > 0.01


@pytest.mark.parametrize("name", ["attention", "value"])
def test_padding_is_neither_asked_nor_attended_to(minilm, name):
    mask = torch.tensor([[1, 1, 0]])

    def value(padding):
        def padded(tensor):
            return torch.cat([tensor, torch.full_like(tensor[:, :, :1], padding)], dim=2)

        def relation(seed):
            query, key = (padded(random(1, 1, 2, 4, seed=seed + s)) for s in (0, 1))
            return Relation(query, key, mask.bool()[:, None, None], False, 0.5)

        learned, target = padded(random(1, 1, 2, 4, seed=5)), padded(random(1, 1, 2, 4, seed=6))
        found = minilm(relation(0), learned, relation(2), target, mask=mask)
        return found[name].item()

    assert value(0.0) == value(1.5) > 0


def test_terms_have_weights(minilm):
    parts = {"attention": attend(0.0, 0.0), "known": attend(log(9), 0.0)}
    found = minilm(**parts, target=random(1, 1, 2, 2, seed=1))
    weighed = minilm(**parts, target=random(1, 1, 2, 2, seed=1), attention_weight=3, value_weight=0)
    assert weighed["attention"].item() == pytest.approx(3 * found["attention"].item())
    assert (found["value"].item() > 0, weighed["value"].item()) == (True, 0)


def test_the_student_imitates_the_last_layer_or_another_one(info):
    models = Models(info("student", 6), info("teacher", 12))
    step = Step(0, 1, 0, "", torch.Generator())
    assert set(MiniLM().reads(models, step)) == {
        "student.attention[last]",
        "student.value[last]",
        "teacher.attention[-1]",
        "teacher.value[-1]",
    }
    method = MiniLM(MiniLM.Config(teacher_layer=9))
    assert {"teacher.attention[9]", "teacher.value[9]"} < set(method.reads(models, step))


@pytest.mark.parametrize(
    ("heads", "kv_heads", "message"),
    [
        (6, 6, "student has 6 attention heads and the teacher 'base' 12"),
        (12, 4, "student has 4 value heads and the teacher 'base' 12"),
    ],
)
def test_models_with_other_heads_are_refused(info, heads, kv_heads, message):
    student = info("student", hidden_size=384, heads=heads, kv_heads=kv_heads)
    with pytest.raises(MethodError, match=message):
        MiniLM().check(Models(student, info("base")))
    MiniLM().check(Models(info("student", hidden_size=384), info("base")))
