import copy

import pytest
import torch

from gkd_core.config.schema import StudentConfig
from gkd_core.contract.model_info import ModelInfo
from gkd_core.errors import ConfigError
from gkd_core.models.save import count_parameters
from gkd_core.models.sites import find_sites
from gkd_core.models.transfer import transfer
from gkd_core.plugins import registry
from gkd_core.students.build import build_student
from gkd_core.students.shape import student_config

KINDS = registry().kinds

ENCODERS = ["bert", "roberta", "distilbert", "electra", "modernbert"]
DECODERS = ["gpt2", "llama", "qwen3", "glm", "glm4", "mistral", "qwen2", "gpt_neox", "opt"]
FAMILIES = ENCODERS + DECODERS
ALL = [*FAMILIES, "mobilebert"]
"""With one whose width is not a matter of its hidden size alone."""
CLASSES = ("no", "yes")


def build(teacher, kind="classification", seed=0, **spec):
    classes = CLASSES if kind == "classification" else ()
    return build_student(StudentConfig(**spec), find_sites(teacher), KINDS[kind], classes, seed)


def shape(config):
    return ModelInfo.read("student", config, config.num_labels)


def weights(model):
    return dict(model.named_parameters())


def lm(family):
    return "causal-lm" if family in DECODERS else "masked-lm"


@pytest.mark.parametrize("family", ALL)
@pytest.mark.parametrize(
    ("init", "blocks"), [("first", [1, 2]), ("last", [2, 3]), ("spaced", [1, 3]), ([3, 1], [3, 1])]
)
def test_shallow_student_starts_bit_equal_to_the_chosen_blocks(build_model, family, init, blocks):
    teacher = build_model(family, "classification")
    student = build(teacher, layers=2, init=init).model
    teacher_blocks = find_sites(teacher).blocks
    student_blocks = find_sites(student).blocks
    assert len(student_blocks) == 2
    for block, number in zip(student_blocks, blocks, strict=True):
        source = weights(teacher_blocks[number - 1])
        # The first block of ModernBERT has no norm of its own, so that others bring one too many.
        for name, weight in weights(block).items():
            assert name not in source or torch.equal(weight, source[name]), name
    inside = {id(p) for block in student_blocks for p in block.parameters()}
    for name, weight in weights(student).items():
        assert id(weight) in inside or torch.equal(weight, weights(teacher)[name]), name


@pytest.mark.parametrize("family", ALL)
@pytest.mark.parametrize("task", ["classification", "lm"])
def test_student_as_deep_as_the_teacher_gives_its_logits(build_model, build_batch, family, task):
    kind = lm(family) if task == "lm" else task
    teacher = build_model(family, kind)
    student = build(teacher, kind).model.eval()
    with torch.no_grad():
        expected, got = teacher(**build_batch()).logits, student(**build_batch()).logits
    assert torch.equal(expected, got)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("task", ["classification", "lm"])
def test_narrow_student_keeps_the_first_entries_and_runs(build_model, build_batch, family, task):
    kind = lm(family) if task == "lm" else task
    teacher = build_model(family, kind)
    student = build(teacher, kind, hidden_size=16, layers=3)
    assert shape(student.model.config).head_size == shape(teacher.config).head_size == 8
    assert shape(student.model.config).heads == 2
    source = weights(teacher)
    for name, weight in weights(student.model).items():
        fused = ("c_attn", "gate_up_proj", "Wqkv", "Wi")
        if not any(part in name for part in fused):
            corner = source[name][tuple(slice(size) for size in weight.shape)]
            assert torch.equal(weight, corner), name
    assert torch.isfinite(student.model(**build_batch()).logits).all()


def test_fused_query_key_value_of_gpt2_is_cut_within_each(build_model):
    teacher = build_model("gpt2", "classification")
    student = build(teacher, hidden_size=16).model
    mine, theirs = (m.transformer.h[0].attn.c_attn for m in (student, teacher))
    for part in range(3):
        columns = theirs.weight[:16, 32 * part : 32 * part + 16]
        assert torch.equal(mine.weight[:, 16 * part : 16 * part + 16], columns)
        assert torch.equal(
            mine.bias[16 * part : 16 * part + 16], theirs.bias[32 * part : 32 * part + 16]
        )


def test_fused_gate_and_up_projection_of_glm_is_cut_within_each(build_model):
    teacher = build_model("glm", "classification")
    student = build(teacher, hidden_size=16).model
    mine, theirs = (m.model.layers[0].mlp.gate_up_proj.weight for m in (student, teacher))
    assert torch.equal(mine[:32], theirs[:32, :16])
    assert torch.equal(mine[32:], theirs[64:96, :16])


def test_gate_and_up_projections_of_experts_are_cut_within_each(build_model, build_batch):
    teacher = build_model("qwen3_moe", "causal-lm")
    config = {"moe_intermediate_size": 8}
    student = build(teacher, "causal-lm", hidden_size=16, config=config).model
    mine, theirs = (m.model.layers[0].mlp.experts for m in (student, teacher))
    assert torch.equal(mine.gate_up_proj[:, :8], theirs.gate_up_proj[:, :8, :16])
    assert torch.equal(mine.gate_up_proj[:, 8:], theirs.gate_up_proj[:, 16:24, :16])
    assert torch.equal(mine.down_proj, theirs.down_proj[:, :16, :8])
    assert torch.isfinite(student(**build_batch()).logits).all()


@pytest.mark.parametrize(
    ("family", "base", "query"),
    [("bert", "bert", "query"), ("deberta-v2", "deberta", "query_proj")],
)
def test_narrower_heads_keep_the_first_channels_of_each(build_model, family, base, query):
    teacher = build_model(family, "classification")
    student = build(teacher, hidden_size=16, heads=4).model
    mine, theirs = (getattr(m, base).encoder.layer[0].attention for m in (student, teacher))
    for head in range(4):
        rows = getattr(theirs.self, query).weight[8 * head : 8 * head + 4, :16]
        assert torch.equal(getattr(mine.self, query).weight[4 * head : 4 * head + 4], rows)
        columns = theirs.output.dense.weight[:16, 8 * head : 8 * head + 4]
        assert torch.equal(mine.output.dense.weight[:, 4 * head : 4 * head + 4], columns)


def test_fewer_heads_of_free_size_keep_the_groups_of_the_teacher(build_model, build_batch):
    teacher = build_model("qwen3", "causal-lm")
    student = build(teacher, "causal-lm", heads=2).model
    mine, theirs = (m.model.layers[0].self_attn for m in (student, teacher))
    assert shape(student.config).kv_heads == 1
    assert torch.equal(mine.q_proj.weight, theirs.q_proj.weight[:16])
    assert torch.equal(mine.k_proj.weight, theirs.k_proj.weight[:8])
    assert torch.equal(mine.o_proj.weight, theirs.o_proj.weight[:, :16])
    assert torch.isfinite(student(**build_batch()).logits).all()


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_tied_weights_stay_tied(build_model, family):
    kind = lm(family)
    teacher = build_model(family, kind, tie_word_embeddings=True)
    student = build(teacher, kind, hidden_size=16).model
    assert student.get_output_embeddings().weight is student.get_input_embeddings().weight


def test_settings_per_layer_follow_the_blocks(build_model):
    teacher = build_model("qwen2", "causal-lm")
    assert teacher.config.layer_types == [
        "full_attention",
        "sliding_attention",
        "sliding_attention",
    ]
    config = student_config(StudentConfig(init=[3, 1]), teacher.config, KINDS["causal-lm"], ())
    assert config.layer_types == ["sliding_attention", "full_attention"]


def test_config_is_changed_through_the_names_of_each_family(build_model):
    for family in FAMILIES:
        teacher = build_model(family, "classification").config
        before = copy.deepcopy(teacher.to_dict())
        spec = StudentConfig(layers=2, hidden_size=16, heads=2, ffn_size=24)
        config = student_config(spec, teacher, KINDS["classification"], CLASSES)
        info = shape(config)
        assert (info.layers, info.hidden_size, info.heads, info.head_size) == (2, 16, 2, 8)
        assert 24 in config.to_dict().values(), family
        assert config.id2label == {0: "no", 1: "yes"}
        assert teacher.to_dict() == before


def test_ffn_scales_with_the_hidden_size(build_model):
    for family in ("bert", "distilbert", "gpt2", "llama"):
        teacher = build_model(family, "classification").config
        config = student_config(StudentConfig(hidden_size=16), teacher, KINDS["regression"], ())
        assert shape(config).ffn_size == 32
        assert config.num_labels == 1


@pytest.mark.parametrize(
    ("family", "spec", "message"),
    [
        ("bert", {"hidden_size": 20}, r"student.hidden_size = 20 is not a whole number of heads"),
        ("bert", {"heads": 3}, r"student.heads = 3 does not divide the hidden size 32"),
        ("llama", {"heads": 3}, r"student.heads = 3 must be a multiple of 2"),
        ("bert", {"layers": 4}, r"student.layers is 4 and the teacher has 3"),
        ("bert", {"init": [1, 4]}, r"student.init names teacher block 4"),
        ("bert", {"hidden_size": 64}, r"hidden size 64 .* than the teacher's 32.*'random'"),
        ("bert", {"heads": 2}, r"head size 16 .* than the teacher's 8.*'random'"),
        ("qwen3_moe", {"ffn_size": 32}, r"have experts, whose width is .*moe_intermediate_size"),
        ("bert", {"ffn_size": 100}, r"feed-forward width 100 .* than the teacher's 64.*'random'"),
    ],
)
def test_impossible_shapes_are_refused(build_model, family, spec, message):
    teacher = build_model(family, "classification").config
    with pytest.raises(ConfigError, match=message):
        student_config(StudentConfig(**spec), teacher, KINDS["classification"], CLASSES)


def test_wider_student_cannot_be_filled(build_model):
    teacher = build_model("bert", "classification")
    student = build_model("bert", "classification", intermediate_size=128)
    with pytest.raises(ConfigError, match=r"intermediate.dense.weight is \(128, 32\).*'random'"):
        transfer(find_sites(student), find_sites(teacher), [1, 2, 3])


def test_random_student_may_be_larger_and_depends_on_the_seed_only(build_model):
    teacher = build_model("llama", "classification")
    spec = {"layers": 5, "hidden_size": 64, "heads": 8, "init": "random"}
    torch.manual_seed(1)
    first = build(teacher, seed=3, **spec).model
    state = torch.get_rng_state()
    second, other = build(teacher, seed=3, **spec).model, build(teacher, seed=4, **spec).model
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.score.weight, second.score.weight)
    assert not torch.equal(first.score.weight, other.score.weight)
    assert count_parameters(first) > count_parameters(teacher)


def test_transfer_counts_what_it_did(build_model):
    teacher = build_model("bert", "classification")
    config = student_config(
        StudentConfig(hidden_size=16, layers=1), teacher.config, KINDS["classification"], CLASSES
    )
    student = type(teacher)(config)
    done = transfer(find_sites(student), find_sites(teacher), [3])
    assert done.blocks == (3,)
    assert done.parameters == count_parameters(student)
    assert done.copied == 1  # the bias of the classifier
    assert done.copied + done.sliced == len(weights(student))
    assert done.initialized == ()


def test_tensors_the_teacher_lacks_are_named(build_model):
    teacher, student = build_model("bert", "base"), build_model("bert", "base")
    student.register_parameter("gate", torch.nn.Parameter(torch.ones(3)))
    assert transfer(find_sites(student), find_sites(teacher), [1, 2, 3]).initialized == ("gate",)
    assert torch.equal(student.gate, torch.ones(3))


def test_student_is_trainable_though_the_teacher_is_frozen(build_model):
    teacher = build_model("bert", "classification").requires_grad_(False)
    student = build(teacher, layers=1).model
    assert student.training
    assert all(parameter.requires_grad for parameter in student.parameters())
    with torch.no_grad():
        student.classifier.bias.add_(1)
    assert not torch.equal(student.classifier.bias, teacher.classifier.bias)


def test_summary_tells_sizes_and_what_was_copied(build_model):
    student = build(build_model("llama", "classification"), layers=2)
    rows = dict(student.summary)
    assert "2 blocks" in rows["shape"]
    assert "4 (2 key/value) heads of 8" in rows["shape"]
    assert f"{count_parameters(student.model):,}" in rows["parameters"]
    assert "teacher blocks 1, 3" in rows["start"]


@pytest.mark.parametrize("family", ["bert", "llama", "mobilebert"])
def test_fresh_blocks_between_the_embedding_and_the_head_of_the_teacher(build_model, family):
    teacher = build_model(family, lm(family))
    student = build(teacher, lm(family), layers=2, init="none")
    inside = {id(p) for block in find_sites(student.model).blocks for p in block.parameters()}
    source = weights(teacher)
    for name, weight in weights(student.model).items():
        fresh = id(weight) in inside and weight.std() > 0  # not biases and norms
        assert torch.equal(weight, source[name]) != fresh, name
    start = dict(student.summary)["start"]
    assert start.startswith("the teacher's embedding and head: ")


def test_fresh_blocks_may_be_wider_inside_than_the_teachers(build_model):
    student = build(build_model("bert", "classification"), init="none", ffn_size=128).model
    assert student.config.intermediate_size == 128
    with pytest.raises(ConfigError, match=r"hidden size 64 .* is larger than the teacher's 32"):
        build(build_model("bert", "classification"), init="none", hidden_size=64)


BOTTLENECK = {"intra_bottleneck_size": 8, "num_feedforward_networks": 4}


@pytest.mark.parametrize("init", ["none", "first"])
def test_settings_of_an_architecture_that_have_no_name_of_their_own(build_model, build_batch, init):
    teacher = build_model("mobilebert", "masked-lm")
    model = build(teacher, "masked-lm", init=init, config=BOTTLENECK).model.eval()
    assert (shape(model.config).head_size, shape(teacher.config).head_size) == (2, 4)
    block = find_sites(model).blocks[0]
    assert block.attention.self.query.weight.shape == (8, 8)
    assert len(block.ffn) == 3
    assert model(**build_batch()).logits.isfinite().all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"intra_botleneck_size": 8}, "not a setting of models of type 'mobilebert'. Did you mean"),
        ({"true_hidden_size": 8}, "student.config.true_hidden_size is not a setting"),
        ({"hidden_size": 16}, "student.config.hidden_size is not for .*; set student.hidden_size"),
        ({"intermediate_size": 16}, "set student.ffn_size"),
        ({"vocab_size": 16}, "set student.vocabulary"),
        ({"intra_bottleneck_size": "big"}, "does not suit mobilebert.*expected int, got str"),
        ({"intra_bottleneck_size": 64}, "head size 16 .* is larger than the teacher's 4"),
    ],
)
def test_settings_that_make_no_student_are_refused(build_model, settings, message):
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        build(build_model("mobilebert", "masked-lm"), "masked-lm", config=settings)
