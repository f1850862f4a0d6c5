"""`rl-kd`: what the policy chooses, and how it learns."""

import json

import pytest
import torch
from torch.nn import functional

from gkd_core.errors import MethodError
from gkd_core.losses import Term
from gkd_methods_multiteacher.rl_kd import RLKD

LABELS = torch.tensor([0, 1, 0, 1])
STUDENT = torch.tensor([[1.0, 0], [0, 0], [0, 2], [0, 1]], dtype=torch.float64)


def _teacher(seed):
    generator = torch.Generator().manual_seed(seed)
    draw = {"generator": generator, "dtype": torch.float64}
    return {"logits": torch.randn(4, 2, **draw), "hidden[last]|cls": torch.randn(4, 3, **draw)}


TEACHERS = [_teacher(1), _teacher(2)]


@pytest.fixture
def build(case):
    """Make a combiner that chooses from the first step on."""

    def _build(**options):
        layers = (4, 4)
        options = {"warmup": 0.0, **options}
        return case(RLKD, options, {"logits": STUDENT}, TEACHERS, LABELS, layers)

    return _build


def _states(number):
    logits = TEACHERS[number]["logits"]
    loss = functional.cross_entropy(logits, LABELS, reduction="none").unsqueeze(1)
    one = torch.ones(4, 1, dtype=torch.float64)
    return torch.cat([TEACHERS[number]["hidden[last]|cls"], logits.softmax(-1), loss, one], 1)


def _run(found, index, terms=None):
    """Do one step; return the teachers' weights and the policy's gradient."""
    weights = found.weights(index)
    policies = found.combiner.modules["policies"]
    policies.zero_grad()
    step = found.step(index)
    found.combiner.loss(found.student, terms or {}, found.batch, step)["policy"].backward()
    return weights, [policy.weight.grad.squeeze(0).clone() for policy in policies]


def _set(found, value):
    for policy in found.combiner.modules["policies"]:
        torch.nn.init.constant_(policy.weight, value)


@pytest.mark.exhaustive
def test_policy_starts_at_even_odds(build):
    found = build()
    chosen = torch.stack([torch.stack(_run(found, index)[0]) for index in range(500)]) * 2
    assert set(chosen.flatten().tolist()) == {0, 1}
    assert chosen.mean().item() == pytest.approx(0.5, abs=0.03)


def test_all_teachers_teach_alike_in_the_warm_up(build):
    found = build(warmup=0.5)
    assert found.weights(4) == [0.5, 0.5]
    assert isinstance(found.weights(5)[0], torch.Tensor)


def test_a_sure_policy_takes_every_teacher_and_averages_them(build):
    found = build()
    for policy in found.combiner.modules["policies"]:
        policy.weight.data[0, -1] = 99.0
    assert all(torch.equal(weight, torch.full((4,), 0.5)) for weight in found.weights())


def test_gradient_is_the_advantage_times_that_of_log_pi(build):
    """Choices of step 0 are rewarded in step 1 and learnt from in step 2."""
    found = build(baseline=1.0)
    _set(found, 0.2)
    weights, gradients = _run(found, 0)
    assert all(gradient.eq(0).all() for gradient in gradients)
    assert all(gradient.eq(0).all() for gradient in _run(found, 1)[1])
    _, gradients = _run(found, 2)
    reward = -functional.cross_entropy(STUDENT, LABELS)
    for number, gradient in enumerate(gradients):
        policy = torch.full((7,), 0.2, dtype=torch.float64, requires_grad=True)
        chosen, logit = 2 * weights[number], _states(number) @ policy
        log_pi = torch.where(
            chosen == 1, functional.logsigmoid(logit), functional.logsigmoid(-logit)
        )
        (-reward * log_pi.mean()).backward()
        torch.testing.assert_close(gradient, policy.grad)


def test_reward_equal_to_the_baseline_teaches_nothing(build):
    found = build(baseline=0.9)
    found_gradients = [_run(found, index)[1] for index in range(4)]
    assert all(torch.allclose(g, torch.zeros(7).double()) for step in found_gradients for g in step)


@pytest.mark.parametrize(
    ("options", "more"),
    [
        ({"reward": "r1"}, 0.0),
        ({"reward": "r2"}, -0.25),
        ({"reward": "r3"}, -0.25 + 0.5),
        ({"reward": "r3", "gamma": 2.0}, -0.25 + 1.0),
    ],
)
def test_rewards(build, options, more):
    """The student is right about two of four; its losses to the teachers are 0.25 on average."""
    found = build(**options)
    values = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    terms = {"soft": Term(values, found.batch.samples)}
    rewards = found.combiner._rewards(found.student, terms, found.batch)
    on_labels = -functional.cross_entropy(STUDENT, LABELS).item()
    assert rewards.mean().item() == pytest.approx(on_labels + more)


def test_state_survives_json_and_goes_on_as_before(build):
    whole, broken = build(baseline=0.5), build(baseline=0.5)
    noise = {"soft": Term(torch.arange(4.0).double(), whole.batch.samples)}
    for index in range(3):
        _run(whole, index, noise)
        _run(broken, index, noise)
        state = json.loads(json.dumps(broken.combiner.state_dict()))
        broken = build(baseline=0.5)
        broken.combiner.load_state_dict(state)
    for one, other in zip(_run(whole, 3)[1], _run(broken, 3)[1], strict=True):
        assert torch.equal(one, other)


def test_language_model_is_refused(case):
    wide = {"logits": torch.zeros(2, 100)}
    teacher = wide | {"hidden[last]|cls": torch.zeros(2, 3)}
    with pytest.raises(MethodError, match="which a language model does not have"):
        case(RLKD, {}, wide, [teacher] * 2).combiner.check()
