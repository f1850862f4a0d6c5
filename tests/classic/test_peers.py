"""Losses of other libraries where they compute the same thing: value and gradient are equal.

    pip install --no-deps -r requirements-peer.txt
    pytest -m peer

Without the libraries the tests are skipped.
"""

import pytest
import torch

from gkd_core.api import Batch
from gkd_core.losses import Relation, angles, mse, relation_mse
from gkd_methods_classic.annealing_kd import AnnealingKD
from gkd_methods_classic.distilbert import DistilBERT
from gkd_methods_classic.kd import KD
from gkd_methods_classic.minilm import MiniLM
from gkd_methods_classic.pd import PD
from gkd_methods_classic.pkd import PKD
from gkd_methods_classic.soft import Soft

pytestmark = pytest.mark.peer

LABELS = torch.tensor([2, 0, 1, 2])
TARGETS = torch.arange(4 * 5).view(4, 5) % 3
MASK = torch.arange(5) < torch.tensor([5, 3, 4, 1])[:, None]


@pytest.fixture
def textbrewer():
    """The losses of TextBrewer (Yang et al., ACL 2020 demonstrations)."""
    return pytest.importorskip("textbrewer.losses")


@pytest.fixture
def torchdistill():
    """The losses of torchdistill (Matsubara, 2021)."""
    return pytest.importorskip("torchdistill.losses.mid_level")


def pair(*shape):
    """Return random fp64 tensors for student, with gradient, and teacher."""
    generator = torch.Generator().manual_seed(0)
    draw = (torch.randn(*shape, dtype=torch.float64, generator=generator) for _ in range(2))
    student, teacher = draw
    return student.requires_grad_(), teacher


def same(ours, theirs, student):
    """Compare two losses and their gradients with respect to a tensor of the student."""
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-12)
    mine, other = (torch.autograd.grad(loss, student)[0] for loss in (ours, theirs))
    assert torch.allclose(mine, other, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("temperature", [1, 8])
@pytest.mark.parametrize(("shape", "labels"), [((4, 3), LABELS), ((4, 5, 3), TARGETS)])
def test_soft_is_kd_ce_loss(terms, textbrewer, shape, labels, temperature):
    student, teacher = pair(*shape)
    options = {"divergence": "soft-cross-entropy", "scale_t2": False, "temperature": temperature}
    ours = terms(Soft(Soft.Config(**options)), {"logits": student}, {"logits": teacher}, labels)
    same(ours["soft"], textbrewer.kd_ce_loss(student, teacher, temperature), student)


def test_pd_is_kd_ce_loss_without_temperature(terms, textbrewer):
    student, teacher = pair(4, 3)
    ours = terms(PD(), {"logits": student}, {"logits": teacher}, LABELS)["pd"]
    same(ours, textbrewer.kd_ce_loss(student, teacher), student)


def test_annealing_kd_ends_as_kd_mse_loss(terms, textbrewer):
    student, teacher = pair(4, 3)
    method = AnnealingKD(AnnealingKD.Config(reduction="mean"))
    logits = {"logits": student}, {"logits": teacher}
    ours = terms(method, *logits, LABELS, index=9)["annealing-kd"]
    same(ours, textbrewer.kd_mse_loss(student, teacher), student)


def test_distilbert_is_cos_loss_where_there_is_no_padding(terms, textbrewer):
    student, teacher = pair(4, 5, 8)
    logits = torch.zeros(4, 5, 3)
    ours = terms(
        DistilBERT(),
        {"logits": logits, "hidden[last].normed": student},
        {"logits": logits, "hidden[last].normed": teacher},
        TARGETS,
        mask=MASK,
    )["cosine"]
    same(ours, textbrewer.cos_loss(student, teacher, MASK), student)


def test_pkd_is_pkd_loss(terms, textbrewer):
    student, teacher = pair(4, 8)
    method = PKD(PKD.Config(beta=1, reduction="sum", layers=[[1, 2]]))
    found = terms(method, {"hidden[1]|cls": student}, {"hidden[2]|cls": teacher})
    same(found["pkd"], textbrewer.pkd_loss(student, teacher), student)


def test_mse_is_hid_mse_loss(textbrewer):
    student, teacher = pair(4, 5, 8)
    batch = Batch({"attention_mask": MASK.long()}, None, torch.arange(4))
    ours = mse(student, teacher, batch.tokens).mean()
    same(ours, textbrewer.hid_mse_loss(student, teacher, MASK), student)


def test_minilm_is_att_ce_loss_minus_the_teachers_entropy(terms, textbrewer):
    """It takes scores; with those of padded keys masked its own mask changes nothing more."""
    student, teacher = pair(4, 2, 5, 5)
    keys = torch.eye(5, dtype=torch.float64).expand(4, 2, 5, 5)
    seen = MASK[:, None, None]
    learned, known = (Relation(query, keys, seen, False, 1.0) for query in (student, teacher))
    values = torch.zeros(4, 2, 5, 3)
    ours = terms(
        MiniLM(),
        {"attention[last]": learned, "value[last]": values},
        {"attention[last]": known, "value[last]": values},
        mask=MASK,
    )["attention"]
    probs = known.probs()
    entropy = -(probs * probs.clamp(min=1e-300).log()).sum(-1).mean(1)[MASK].mean()
    scores = (x.masked_fill(~seen, -1e4) for x in (student, teacher))
    same(ours, textbrewer.att_ce_loss(*scores, MASK) - entropy, student)


def test_relation_mse_is_att_mse_loss_where_rows_have_one_length(textbrewer):
    """With several lengths it weighs a query by the length of its row; here they are alike."""
    student, teacher = pair(4, 2, 5, 5)
    keys = torch.eye(5, dtype=torch.float64).expand(4, 2, 5, 5)
    mask = (torch.arange(5) < 3).expand(4, 5)
    batch = Batch({"attention_mask": mask.long()}, None, torch.arange(4))
    relations = (Relation(x, keys, mask[:, None, None], False, 1.0) for x in (student, teacher))
    ours = relation_mse(*relations, batch.tokens).mean()
    same(ours, textbrewer.att_mse_loss(student, teacher, mask), student)


def test_angles_are_those_of_rkdloss(torchdistill):
    """It averages over all triples of N points, also those that form no triangle."""
    student, teacher = pair(4, 8)
    batch = Batch({}, None, torch.arange(4))
    ours = angles(student[None], teacher[None], batch.samples).mean()
    theirs = torchdistill.RKDLoss("s", "t", dist_factor=0, angle_factor=1, reduction="mean")
    found = theirs({"s": {"output": student}}, {"t": {"output": teacher}})
    same(ours, found * 4**3 / (4 * 3 * 2), student)


def test_kd_is_kdloss_with_the_weights_swapped(terms, torchdistill):
    student, teacher = pair(4, 3)
    options = {"temperature": 4, "alpha": 0.7}
    ours = terms(KD(KD.Config(**options)), {"logits": student}, {"logits": teacher}, LABELS)
    theirs = torchdistill.KDLoss("s", "output", "t", "output", temperature=4, alpha=0.3)
    outputs = {"s": {"output": student}}, {"t": {"output": teacher}}
    same(sum(ours.values()), theirs(*outputs, LABELS), student)


def test_soft_is_kdloss_without_labels(terms, torchdistill):
    student, teacher = pair(4, 3)
    method = Soft(Soft.Config(temperature=4, scale_t2=False))
    ours = terms(method, {"logits": student}, {"logits": teacher}, LABELS)["soft"]
    theirs = torchdistill.KDLoss("s", "output", "t", "output", temperature=4, beta=1)
    same(ours, theirs({"s": {"output": student}}, {"t": {"output": teacher}}), student)
