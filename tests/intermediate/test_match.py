"""Every knowledge type against its formula, written out position by position."""

import math

import pytest
import torch

from gkd_methods_intermediate.matching.knowledge import PRESETS

SPACED = [(1, 2), (2, 4)]
KNOWLEDGE = [name for name in PRESETS if name != "custom"]
ENTROPIES = ("logits-ce", "attention-ce", "attention-ce-mean")


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def squared(student, teacher):
    return mean(((student - teacher) ** 2).flatten().tolist())


def cross_entropy(student, teacher):
    return -sum((teacher.softmax(-1) * student.log_softmax(-1)).tolist())


def kl(student, teacher):
    return cross_entropy(student, teacher) - cross_entropy(teacher, teacher)


def merged(heads, row):
    """Vectors `[S, A * Dh]` of a row of `[B, A, S, Dh]`."""
    return torch.cat(list(heads[row]), dim=-1)


def token_mean(scene, distance):
    """Mean over the positions that are not padding of `distance(row, position, length)`."""
    lengths = scene.mask.sum(1).tolist()
    return mean(distance(row, position, lengths[row]) for row, position in scene.tokens)


def assert_value(found, expected):
    assert found.item() == pytest.approx(expected, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("temperature", [1, 3])
def test_logits_ce_is_the_soft_cross_entropy(scene, temperature):
    world = scene()
    s, t = world.student.logits / temperature, world.teacher.logits / temperature
    expected = temperature**2 * mean(cross_entropy(s[row], t[row]) for row in range(3))
    assert_value(world.loss(knowledge="logits-ce", temperature=temperature), expected)


def test_logits_ce_of_a_language_model_counts_the_labeled_positions(scene):
    world = scene(causal_lm=True)
    s, t = world.student.logits, world.teacher.logits
    labeled = [(row, position) for row, position in world.tokens if position > 0]
    expected = mean(cross_entropy(s[at], t[at]) for at in labeled)
    assert_value(world.loss(knowledge="logits-ce"), expected)
    everywhere = mean(cross_entropy(s[at], t[at]) for at in world.tokens)
    assert_value(world.loss(knowledge="logits-ce", positions="tokens"), everywhere)


def test_logits_mse_is_the_mean_over_classes(scene):
    world = scene()
    expected = mean(squared(world.student.logits[r], world.teacher.logits[r]) for r in range(3))
    assert_value(world.loss(knowledge="logits-mse"), expected)


def test_attention_mse_is_the_mean_over_heads_and_visible_keys(scene):
    world = scene(head_size=(4, 6))

    def distance(s, t):
        s, t = world.student.scores(s), world.teacher.scores(t)
        return token_mean(world, lambda r, q, n: squared(s[r, :, q, :n], t[r, :, q, :n]))

    assert_value(world.loss(knowledge="attention-mse"), sum(distance(*p) for p in SPACED))


def test_attention_mse_sum_compares_sums_over_heads(scene):
    world = scene(heads=(2, 4))

    def distance(s, t):
        s, t = world.student.scores(s).sum(1), world.teacher.scores(t).sum(1)
        return token_mean(world, lambda r, q, n: squared(s[r, q, :n], t[r, q, :n]))

    assert_value(world.loss(knowledge="attention-mse-sum"), sum(distance(*p) for p in SPACED))


def test_attention_ce_is_the_mean_over_heads_of_the_rows_cross_entropy(scene):
    world = scene()

    def distance(s, t):
        s, t = world.student.scores(s), world.teacher.scores(t)
        return token_mean(
            world,
            lambda r, q, n: mean(cross_entropy(s[r, a, q, :n], t[r, a, q, :n]) for a in range(2)),
        )

    assert_value(world.loss(knowledge="attention-ce"), sum(distance(*p) for p in SPACED))


def test_attention_ce_mean_averages_the_scores_before_softmax(scene):
    world = scene(heads=(2, 4))

    def distance(s, t):
        s, t = world.student.scores(s).mean(1), world.teacher.scores(t).mean(1)
        return token_mean(world, lambda r, q, n: cross_entropy(s[r, q, :n], t[r, q, :n]))

    assert_value(world.loss(knowledge="attention-ce-mean"), sum(distance(*p) for p in SPACED))


def test_hidden_mse_is_the_sum_over_the_embedding_and_the_layers(scene):
    world = scene()

    def distance(s, t):
        s, t = world.student.hidden[s], world.teacher.hidden[t]
        return mean(squared(s[at], t[at]) for at in world.tokens)

    layers = sum(distance(*p) for p in SPACED)
    assert_value(world.loss(knowledge="hidden-mse"), distance(0, 0) + layers)
    assert_value(world.loss(knowledge="hidden-mse", embedding=False), layers)
    assert_value(world.loss(knowledge="hidden-mse", layers=[[2, 3]]), distance(2, 3))
    assert_value(world.loss(site="embedding", distance="mse"), distance(0, 0))


def test_hidden_mse_projects_the_student_where_widths_differ(scene):
    world = scene(head_size=(3, 4))
    found = world.loss(knowledge="hidden-mse")
    project = world.method.modules["hidden-mse"]
    assert (project.in_features, project.out_features) == (6, 8)

    def distance(s, t):
        s, t = world.student.hidden[s], world.teacher.hidden[t]
        return mean(squared(project.weight @ s[at] + project.bias, t[at]) for at in world.tokens)

    assert_value(found, sum(distance(*p) for p in [(0, 0), *SPACED]))


def test_hidden_cosine_is_one_minus_the_cosine(scene):
    world = scene()

    def distance(s, t):
        return 1 - (s @ t / (s.norm() * t.norm())).item()

    expected = sum(
        mean(
            distance(world.student.hidden[s][at], world.teacher.hidden[t][at])
            for at in world.tokens
        )
        for s, t in SPACED
    )
    assert_value(world.loss(knowledge="hidden-cosine"), expected)


def test_hidden_pkd_is_the_squared_distance_of_normalized_cls_states(scene):
    world = scene()

    def distance(s, t):
        return ((s / s.norm() - t / t.norm()) ** 2).sum().item()

    expected = sum(
        mean(
            distance(world.student.hidden[s][r, 0], world.teacher.hidden[t][r, 0]) for r in range(3)
        )
        for s, t in SPACED
    )
    assert_value(world.loss(knowledge="hidden-pkd"), expected)


@pytest.mark.parametrize("span", [0, 1])
def test_hidden_gram_is_the_mse_of_the_products_of_channels(scene, span):
    world = scene()
    pairs = [(0, 0), *SPACED]

    def distance(first, second):
        def products(side, row, lower, upper):
            n = world.mask[row].sum()
            return side.hidden[lower][row, :n].T @ side.hidden[upper][row, :n] / n

        return mean(
            squared(
                products(world.student, row, first[0], second[0]),
                products(world.teacher, row, first[1], second[1]),
            )
            for row in range(3)
        )

    expected = sum(distance(*p) for p in zip(pairs, pairs[span:], strict=False))
    assert_value(world.loss(knowledge="hidden-gram", span=span), expected)


@pytest.mark.parametrize("span", [0, 1])
def test_hidden_nst_is_the_mse_of_the_products_of_tokens(scene, span):
    world = scene(head_size=(4, 6))
    pairs = [(0, 0), *SPACED]

    def distance(first, second):
        def products(side, row, lower, upper):
            lower, upper = side.hidden[lower][row], side.hidden[upper][row]
            return lower @ upper.T / lower.shape[-1]

        def at(row, position, n):
            s = products(world.student, row, first[0], second[0])[position, :n]
            t = products(world.teacher, row, first[1], second[1])[position, :n]
            return squared(s, t)

        return token_mean(world, at)

    expected = sum(distance(*p) for p in zip(pairs, pairs[span:], strict=False))
    assert_value(world.loss(knowledge="hidden-nst", span=span), expected)


@pytest.mark.parametrize("site", ["query", "key", "value"])
def test_relations_are_the_kl_of_softmaxed_products_within_each_head(scene, site):
    world = scene(head_size=(4, 6))

    def distance(s, t):
        s, t = getattr(world.student, site)[s], getattr(world.teacher, site)[t]

        def at(row, position, n):
            def scores(x, head):
                x = x[row, head, :n]
                return x[position] @ x.T / math.sqrt(x.shape[-1])

            return mean(kl(scores(s, head), scores(t, head)) for head in range(2))

        return token_mean(world, at)

    found = world.loss(knowledge=f"{site}-relation")
    assert_value(found, sum(distance(*p) for p in SPACED))


@pytest.mark.parametrize(("heads", "parts"), [("auto", 1), ("merged", 1), (4, 4)])
def test_relations_merge_or_split_heads_whose_numbers_differ(scene, heads, parts):
    world = scene(heads=(2, 4))

    def distance(s, t):
        def at(row, position, n):
            def scores(heads, part):
                x = merged(heads, row)[:n].chunk(parts, dim=-1)[part]
                return x[position] @ x.T / math.sqrt(x.shape[-1])

            students, teachers = world.student.value[s], world.teacher.value[t]
            return mean(kl(scores(students, p), scores(teachers, p)) for p in range(parts))

        return token_mean(world, at)

    found = world.loss(knowledge="value-relation", heads=heads)
    assert_value(found, sum(distance(*p) for p in SPACED))


def test_key_relations_of_grouped_heads_are_merged(scene):
    world = scene(heads=(4, 4), kv_heads=(2, 4), layers=(1, 1))

    def at(row, position, n):
        def scores(heads):
            x = merged(heads, row)[:n]
            return x[position] @ x.T / math.sqrt(x.shape[-1])

        return kl(scores(world.student.key[1]), scores(world.teacher.key[1]))

    assert_value(world.loss(knowledge="key-relation"), token_mean(world, at))


def test_a_vector_for_each_sample_is_averaged_over_the_samples(scene):
    world = scene()
    s, t = world.student, world.teacher
    pooled = mean(squared(s.pooled[row], t.pooled[row]) for row in range(3))
    assert_value(world.loss(site="pooled", distance="mse"), pooled)
    found = world.loss(site="context", distance="mse", layers="top", positions="mean")
    lengths = enumerate(world.mask.sum(1))
    expected = [
        squared(s.context[2][r, :n].mean(0), t.context[4][r, :n].mean(0)) for r, n in lengths
    ]
    assert_value(found, mean(expected))


@pytest.mark.parametrize("site", ["normed", "ffn", "query"])
def test_other_sites_are_compared_at_every_position(scene, site):
    world = scene()

    def vectors(side, layer):
        if site == "query":
            return torch.stack([merged(side.query[layer], row) for row in range(3)])
        return side.normed if site == "normed" else side.ffn[layer]

    s, t = vectors(world.student, 2), vectors(world.teacher, 4)
    top = {} if site == "normed" else {"layers": "top"}
    found = world.loss(site=site, distance="mse", **top)
    assert_value(found, mean(squared(s[at], t[at]) for at in world.tokens))


@pytest.mark.parametrize("distance", ["huber", "cosine", "normalized"])
def test_rows_of_scores_take_every_distance_between_vectors(scene, distance):
    world = scene(layers=(1, 1))
    s, t = world.student.scores(1), world.teacher.scores(1)

    def at(row, position, n):
        x, y = s[row, :, position, :n].flatten(), t[row, :, position, :n].flatten()
        return {
            "huber": torch.nn.functional.huber_loss(x, y),
            "cosine": 1 - x @ y / (x.norm() * y.norm()),
            "normalized": (x / x.norm() - y / y.norm()).square().sum(),
        }[distance].item()

    assert_value(world.loss(site="attention", distance=distance), token_mean(world, at))


def test_positions_with_a_target_are_those_the_language_model_predicts_at(scene):
    world = scene(causal_lm=True, layers=(1, 1))
    labeled = [at for at in world.tokens if at[1] > 0]
    s, t = world.student.hidden[1], world.teacher.hidden[1]
    found = world.loss(site="hidden", distance="mse", positions="targets")
    assert_value(found, mean(squared(s[at], t[at]) for at in labeled))


@pytest.mark.parametrize("distance", ["kl", "cross-entropy", "reverse-kl", "js", "total-variation"])
@pytest.mark.parametrize("heads", ["each", "mean"])
def test_attention_takes_every_divergence(scene, distance, heads):
    world = scene(layers=(1, 1))
    s, t = world.student.scores(1), world.teacher.scores(1)
    if heads == "mean":
        s, t = s.mean(1, keepdim=True), t.mean(1, keepdim=True)

    def divergence(s, t):
        p, q = t.softmax(-1), s.softmax(-1)
        middle = (p + q) / 2
        return {
            "kl": kl(s, t),
            "cross-entropy": cross_entropy(s, t),
            "reverse-kl": kl(t, s),
            "js": sum((p * (p / middle).log() + q * (q / middle).log()).tolist()) / 2,
            "total-variation": sum((p - q).abs().tolist()) / 2,
        }[distance]

    def at(row, position, n):
        heads = range(s.shape[1])
        return mean(divergence(s[row, a, position, :n], t[row, a, position, :n]) for a in heads)

    found = world.loss(site="attention", distance=distance, heads=heads)
    assert_value(found, token_mean(world, at))


def equal(world):
    """Give the student the teacher's features."""
    for s, t in zip(world.student.tensors(), world.teacher.tensors(), strict=True):
        s.copy_(t)
    for tensor in world.student.tensors():
        tensor.requires_grad_()


@pytest.mark.parametrize("knowledge", KNOWLEDGE)
def test_a_student_that_equals_the_teacher_is_at_rest(scene, knowledge):
    world = scene(layers=(3, 3))
    equal(world)
    loss = world.loss(knowledge=knowledge)
    loss.backward()
    gradients = [t.grad for t in world.student.tensors() if t.grad is not None]
    assert gradients
    assert max(gradient.abs().max() for gradient in gradients) < 1e-8
    if knowledge not in ENTROPIES:
        assert loss.item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("layers", ["emd", "monotone"])
def test_equal_models_are_paired_block_by_block(scene, layers):
    world = scene(layers=(3, 3))
    equal(world)
    assert world.loss(knowledge="hidden-mse", layers=layers).item() == 0


@pytest.mark.parametrize("knowledge", KNOWLEDGE)
def test_padding_does_not_matter(scene, knowledge):
    world = scene()
    before = world.loss(knowledge=knowledge)
    for side in (world.student, world.teacher):
        for site in (side.hidden, side.query, side.key, side.value):
            for tensor in site:
                padded = (
                    ~world.mask
                    if tensor.dim() == 3
                    else ~world.mask[:, None].expand(tensor.shape[:3])
                )
                tensor[padded] = 1e3
    assert_value(world.again().popitem()[1], before.item())


def test_a_batch_without_items_gives_zero(scene):
    world = scene(causal_lm=True)
    world.batch.labels.fill_(-100)
    for description in (
        {"knowledge": "logits-ce"},
        {"knowledge": "attention-mse", "positions": "targets"},
        {"knowledge": "query-relation", "positions": "targets", "layers": "emd"},
    ):
        assert world.loss(**description).item() == 0


@pytest.mark.parametrize("knowledge", ["hidden-pkd", "hidden-cosine"])
def test_directions_do_not_change_under_positive_scaling(scene, knowledge):
    world = scene()
    before = world.loss(knowledge=knowledge)
    for hidden in world.student.hidden:
        hidden *= 7
    assert_value(world.again()[knowledge], before.item())


def rotation(width):
    return torch.linalg.qr(torch.randn(width, width, dtype=torch.float64)).Q


def test_products_of_tokens_do_not_change_under_rotation_but_vectors_do(scene):
    world = scene()
    names = ("hidden-nst", "hidden-mse")
    before = world.terms(*({"knowledge": name} for name in names))
    for layer, hidden in enumerate(world.student.hidden):
        world.student.hidden[layer] = hidden @ rotation(8)
    after = world.again()
    assert_value(after["hidden-nst"], before["hidden-nst"].item())
    assert abs(after["hidden-mse"] - before["hidden-mse"]) > 1e-3


def test_relations_do_not_change_under_a_rotation_within_each_head(scene):
    world = scene()
    before = world.loss(knowledge="query-relation")
    for layer, query in enumerate(world.student.query):
        world.student.query[layer] = query @ rotation(4)
    assert_value(world.again()["query-relation"], before.item())


def test_merged_relations_do_not_depend_on_the_number_of_heads(scene):
    world = scene(heads=(2, 2))
    before = world.loss(knowledge="value-relation", heads="merged")
    regrouped = scene(heads=(4, 4), head_size=(2, 2))
    for side, own in ((regrouped.student, world.student), (regrouped.teacher, world.teacher)):
        for layer, value in enumerate(own.value):
            vectors = value.transpose(1, 2).flatten(2)
            side.value[layer] = vectors.unflatten(-1, (4, 2)).transpose(1, 2)
    assert_value(regrouped.loss(knowledge="value-relation", heads="merged"), before.item())


def test_permuting_heads_on_both_sides_changes_nothing_on_one_side_something(scene):
    world = scene()
    before = world.loss(knowledge="attention-mse")
    for sites in (world.student.query, world.student.key):
        sites[:] = [tensor.flip(1) for tensor in sites]
    assert abs(world.again()["attention-mse"] - before) > 1e-3
    for sites in (world.teacher.query, world.teacher.key):
        sites[:] = [tensor.flip(1) for tensor in sites]
    assert_value(world.again()["attention-mse"], before.item())


@pytest.mark.parametrize("knowledge", [name for name in KNOWLEDGE if not name.startswith("logits")])
def test_strategies_agree_where_depths_are_equal(scene, knowledge):
    world = scene(layers=(3, 3))
    first, last, spaced = (
        world.loss(knowledge=knowledge, layers=layers).item()
        for layers in ("first", "last", "spaced")
    )
    assert first == last == spaced


def test_weights_and_temperatures_follow_their_schedules(scene):
    world = scene()
    description = {
        "knowledge": "logits-ce",
        "weight": "linear(1 -> 0)",
        "temperature": "linear(1 -> 3)",
    }
    world.terms(description)
    half = world.again(index=5)["logits-ce"]
    assert_value(half, 0.5 * world.loss(knowledge="logits-ce", temperature=2).item())
    world.terms(description)
    assert world.again(index=10)["logits-ce"].item() == 0


@pytest.mark.parametrize("layers", ["emd", "monotone"])
def test_assigned_layers_cost_no_more_than_any_fixed_ones(scene, layers):
    world = scene(layers=(2, 5))
    fixed = [
        world.loss(knowledge="hidden-mse", embedding=False, layers=name).item()
        for name in ("first", "last", "spaced", [[1, 1], [2, 5]])
    ]
    found = world.loss(knowledge="hidden-mse", embedding=False, layers=layers).item()
    # The flow of `emd` sums to 1, and cannot leave a teacher layer out.
    assert found <= min(fixed) + 1e-12 if layers == "monotone" else 0 < found < max(fixed)


def test_emd_is_the_cost_of_a_flow_with_uniform_marginals(scene):
    world = scene(layers=(2, 2))

    def cost(s, t):
        return world.loss(knowledge="value-relation", layers=[[s, t]]).item()

    straight, crossed = cost(1, 1) + cost(2, 2), cost(1, 2) + cost(2, 1)
    found = world.loss(knowledge="value-relation", layers="emd")
    assert_value(found, min(straight, crossed) / 2)
    assert_value(world.loss(knowledge="value-relation", layers="monotone"), straight)


@pytest.mark.parametrize("layers", ["emd", "monotone"])
def test_no_gradient_flows_through_the_assignment(scene, layers):
    world = scene(layers=(2, 3))
    for hidden in world.student.hidden:
        hidden.requires_grad_()
    description = {"knowledge": "hidden-mse", "embedding": False}
    world.loss(**description, layers=layers).backward()
    found = [h.grad.clone() for h in world.student.hidden[1:]]
    from gkd_methods_intermediate.match import ASSIGNMENTS

    pairs = [(s, t) for s in (1, 2) for t in (1, 2, 3)]
    costs = [world.loss(**description, layers=[list(p)]).detach() for p in pairs]
    flow = ASSIGNMENTS[layers](torch.stack(costs).view(2, 3))
    for hidden in world.student.hidden:
        hidden.grad = None
    sum(w * world.loss(**description, layers=[list(p)]) for p, w in flow.items()).backward()
    for gradient, hidden in zip(found, world.student.hidden[1:], strict=True):
        assert torch.allclose(gradient, hidden.grad, atol=1e-12)


def test_the_embedding_pair_is_added_to_assigned_layers(scene):
    world = scene()
    without = world.loss(knowledge="hidden-mse", layers="emd", embedding=False).item()
    pair = world.loss(site="embedding", distance="mse").item()
    assert_value(world.loss(knowledge="hidden-mse", layers="emd"), without + pair)


def test_terms_of_one_kind_are_numbered(scene):
    world = scene()
    found = world.terms({"knowledge": "hidden-mse"}, {"knowledge": "hidden-mse", "weight": 2})
    assert_value(found["hidden-mse-2"], 2 * found["hidden-mse"].item())
