"""Methods have the same terms and gradients whichever way student and teacher are divided."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.distributed as dist

from gkd_core.api import Batch, ModelInfo, Models, Schedule, Step
from gkd_core.hooks import feature_offload
from gkd_core.hooks.extraction import Extractor
from gkd_core.losses import LinearLogits
from gkd_core.models.sites import find_sites
from gkd_core.plugins import registry

KINDS = registry().kinds

MATCH = [
    {"knowledge": "value-relation"},
    {"knowledge": "attention-mse-sum"},
    {"site": "query", "distance": "cosine", "layers": "top"},
    {"site": "context", "distance": "mse", "positions": "mean"},
    {"knowledge": "logits-mse"},
]
MAIN = {
    "soft": ("soft", {}),
    "reverse": ("soft", {"divergence": "reverse-kl"}),
    "js": ("soft", {"divergence": "js"}),
    "kd": ("kd", {}),
    "pkd": ("pkd", {}),
    "distilbert": ("distilbert", {}),
    "annealing-kd": ("annealing-kd", {}),
    "minilm": ("minilm", {}),
    "minilmv2": ("minilmv2", {}),
    "minilmv2-1": ("minilmv2", {"relation_heads": 1}),
    "tinybert": ("tinybert", {}),
    "match": ("match", {"terms": MATCH}),
}
"""Names of cases, with the method and options of each."""

OTHERS = ("alp-kd", "ckd", "continuation-kd", "diito", "glmd", "hard", "lrc-bert", "mgskd")
OTHERS += ("mobilebert", "pd", "rail-kd", "sid", "theseus", "universal-kd")
METHODS = MAIN | {name: (name, {}) for name in OTHERS}
FEW = ("js", "distilbert", "minilm", "minilmv2", "tinybert")
LM_OTHERS = ("continuation-kd", "diito", "hard", "lrc-bert", "theseus")

TOLERANCE = 1e-12
TEACHER = {"num_hidden_layers": 4, "initializer_range": 0.3}


def batch(kind):
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(4, 99, (3, 12), generator=generator)
    mask = torch.ones_like(tokens)
    mask[1, 8:] = mask[2, 10:] = 0
    labels = torch.tensor([0, 1, 1])
    if kind == "causal-lm":
        labels = torch.where(mask.bool(), tokens, -100).roll(-1, 1)
        labels[:, -1] = -100
    inputs = {"input_ids": tokens.masked_fill(mask == 0, 1), "attention_mask": mask}
    words = torch.arange(12).masked_fill(mask == 0, -1)
    return Batch(inputs, labels, torch.arange(3), words=words)


def groups(backend=None):
    """This rank's group of each size."""
    world = dist.group.WORLD if backend is None else dist.new_group(backend=backend)
    found = {dist.get_world_size(): world}
    for size in (1, 2):
        if size not in found:
            found[size], _ = dist.new_subgroups(size)
    return found


def normalize(module, hidden):
    """What an RMSNorm does, in the precision of its input: transformers rounds to fp32."""
    mean = hidden.square().mean(-1, keepdim=True)
    return module.weight * hidden * (mean + module.variance_epsilon).rsqrt()


def extractor(path, kind, group=None, dtype=torch.float64, device="cpu"):
    from gkd_core.parallel.sharding import shard_model

    model = KINDS[kind].auto.from_pretrained(path).eval().to(device, dtype)
    for module in model.modules():
        if dtype == torch.float64 and type(module).__name__.endswith("RMSNorm"):
            module.forward = partial(normalize, module)
    model = model if group is None else shard_model(model, group)
    return Extractor(model, find_sites(model))


def solve(name, options, kind, student, teacher, waits=None):
    """Values of the terms and, of their sum, gradients of the student and of the modules."""
    from gkd_core.distributed.teacher_batches import TeacherBatches, degree
    from gkd_core.objective.objective import Objective
    from gkd_core.objective.passes import run_passes
    from gkd_core.objective.step_plan import ActiveMethod
    from gkd_core.plugins import registry

    cls = registry().method(name)
    method = cls(cls.Config(**options))
    labels = 99 if kind == "causal-lm" else 2
    learned, known = (
        ModelInfo.read(side, side_of.model.config, labels, is_lm=kind == "causal-lm")
        for side, side_of in (("student", student), ("teacher", teacher))
    )
    models = Models(learned, known)
    method.check(models)
    generator = torch.Generator().manual_seed(0)
    member = ActiveMethod(name, Schedule.parse(1.0), (method,), (models,), generator)
    objective = Objective([member])
    objective.build_modules(seed=0)
    device = student.model.device
    objective.modules.to(device, student.model.dtype)
    step, rows = Step(0, 10, 0, "test", generator), batch(kind).to(device)
    plan = objective.plan(step)
    # Ranks that share a teacher but not the student have the same rows here, too.
    teacher_batches = TeacherBatches(
        [rows] * max(1, degree(teacher.model) // degree(student.model))
    )
    captured = run_passes(plan, student, [teacher], rows, step, teacher_batches, waits)
    terms = objective.terms(captured, rows, step, plan)
    values = {key: term.mean() for key, term in terms.items()}
    student.model.zero_grad()
    sum(values.values()).backward()
    found = {key: value.detach() for key, value in values.items()}
    found |= {f"modules {key}": p.grad for key, p in objective.modules.named_parameters()}
    return found | {
        key: parameter.grad.clone()
        for key, parameter in student.model.named_parameters()
        if parameter.grad is not None
    }


def apart(found, expected, sharding):
    """How far what a rank found is from its share of what one process did."""
    assert found.keys() == expected.keys()
    most = {}
    for key, whole in expected.items():
        share = whole if sharding is None else sharding.shard(key, whole)
        scale = max(whole.abs().max().item(), 1.0)
        most[key] = (share - found[key]).abs().max().item() / scale
    return most


def compare(comparisons, device="cpu", backend=None):
    """What is further apart than the tolerance, of everything; and how much was compared."""
    LinearLogits.dense = pytest.fail  # No method needs the logits of a language model as a whole.
    feature_offload.LEAST = 0
    # As if there were other teachers, on a GPU.
    waits = feature_offload.FeatureOffload(torch.device(device))
    by_size, wrong, compared = groups(backend), {}, 0
    make = partial(extractor, device=device)
    for family, kind, paths, cases in comparisons:
        whole = [make(path, kind) for path in paths]
        students, teachers = (
            {size: make(path, kind, by_size[size]) for size in sorted({d[n] for d in cases})}
            for n, path in enumerate(paths)
        )
        for case in sorted({case for names in cases.values() for case in names}):
            expected = solve(*METHODS[case], kind, *whole)
            for (one, other), names in cases.items():
                if case in names:
                    found = solve(*METHODS[case], kind, students[one], teachers[other], waits)
                    sharding = getattr(students[one].model, "sharding", None)
                    distances = apart(found, expected, sharding)
                    where = family, (one, other), case
                    wrong |= {(*where, k): d for k, d in distances.items() if not d <= TOLERANCE}
                    compared += 1
    return wrong, compared


def compare_on_gpus(comparisons):
    torch.cuda.set_device(dist.get_rank())
    return compare(comparisons, "cuda", "nccl")


def check(on_ranks, checkpoint, ranks, *comparisons, by=compare):
    given = [
        (family, kind, (checkpoint(family, kind), checkpoint(family, kind, **TEACHER)), cases)
        for family, kind, cases in comparisons
    ]
    wanted = sum(len(names) for *_, cases in comparisons for names in cases.values())
    for wrong, compared in on_ranks(ranks, by, given):
        assert not wrong
        assert compared == wanted


PAIRS = ((2, 2), (2, 1), (1, 2))
"""Ranks that share the student, and the teacher."""


def test_every_method_has_the_terms_and_gradients_of_one_process(on_ranks, checkpoint):
    cases = {degrees: tuple(METHODS) for degrees in PAIRS}
    check(on_ranks, checkpoint, 2, ("bert", "classification", cases))


@pytest.mark.exhaustive
def test_methods_of_language_models_have_those_of_one_process(on_ranks, checkpoint):
    cases = {degrees: tuple(MAIN) for degrees in PAIRS}
    cases[2, 2] += LM_OTHERS
    check(on_ranks, checkpoint, 2, ("llama", "causal-lm", cases))


@pytest.mark.exhaustive
def test_four_ranks_and_more_families(on_ranks, checkpoint):
    """Qwen3 has fewer key heads than there are ranks, and norms of its heads."""
    check(
        on_ranks,
        checkpoint,
        4,
        ("bert", "classification", {(4, 4): FEW}),
        ("gpt2", "causal-lm", {(4, 2): FEW, (2, 4): FEW}),
        ("qwen3", "causal-lm", {(4, 4): FEW, (4, 1): FEW, (1, 4): FEW}),
    )


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_terms_and_gradients_over_nccl_are_those_of_one_gpu(on_ranks, checkpoint):
    cases = dict.fromkeys(PAIRS, FEW)
    models = ("bert", "classification", cases), ("llama", "causal-lm", cases)
    check(on_ranks, checkpoint, 2, *models, by=compare_on_gpus)


def mixed(paths, kind):
    """How far the gradients under bf16 autocast are from those in fp32, whole and divided."""
    whole = [extractor(path, kind, None, torch.float32) for path in paths]
    divided = [extractor(path, kind, dist.group.WORLD, torch.float32) for path in paths]
    exact = solve("distilbert", {}, kind, *whole)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = solve("distilbert", {}, kind, *whole)
        ours = solve("distilbert", {}, kind, *divided)
    shard = divided[0].model.sharding.shard
    names = [name for name, gradient in exact.items() if gradient.dim() == 2]
    errors = [
        sum((shard(name, exact[name]) - found[name]).square().sum().item() for name in names)
        for found in ({name: shard(name, low[name]) for name in names}, ours)
    ]
    size = sum(shard(name, exact[name]).square().sum().item() for name in names)
    return [(error / size) ** 0.5 for error in errors]


def test_bf16_autocast_comes_as_close_as_in_one_process(on_ranks, checkpoint):
    paths = checkpoint("llama", "causal-lm"), checkpoint("llama", "causal-lm", **TEACHER)
    for alone, ours in on_ranks(2, mixed, paths, "causal-lm"):
        assert 0 < ours < max(2 * alone, 0.02)
