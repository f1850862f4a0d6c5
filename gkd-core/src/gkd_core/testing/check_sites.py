"""`check_sites`: checks that sites describe the models of an architecture."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from gkd_core.config.schema import StudentConfig
from gkd_core.contract.model_info import ModelInfo
from gkd_core.distributed.groups import setup
from gkd_core.distributed.layout import Layout
from gkd_core.hooks.extraction import Extractor
from gkd_core.hooks.features import Features
from gkd_core.hooks.paths import LOGITS, POOLED, Capture
from gkd_core.models.architectures import register_architectures
from gkd_core.models.sites import Sites
from gkd_core.models.slicing.select import Kept, sliced_copy
from gkd_core.models.slicing.widths import Widths
from gkd_core.plugins import registry
from gkd_core.students.build import build_student
from gkd_core.testing.ranks import on_ranks

CLOSE = 1e-9
"""Largest difference of equal values in fp64, relative to the largest value."""


def check_sites(
    sites: type[Sites],
    config: PretrainedConfig,
    kinds: Sequence[str] = ("classification",),
    ranks: int = 1,
) -> None:
    """Check sites, and an adapter's statements about its architecture, on a random fp64 model.

    Capturing changes nothing, the blocks run in order and end in what the base model returns,
    attention and neurons have the shapes and relations that their names promise, and a shallower
    student starts from the right blocks. If the adapter has `outputs`, the model computes the same
    with its heads and neurons in another order.

    Args:
        sites: The subclass of `Sites`.
        config: A small configuration of the architecture, with at least two blocks.
        kinds: Kinds of task whose heads are checked.
        ranks: Number of processes. With 2, logits and gradients are checked under tensor
            parallelism, too; the class stands at the top of a module.

    Raises:
        AssertionError: Something is not as described; the message says what.
        MethodError: The sites cannot be found.
    """
    register_architectures([sites], registry().kinds)
    for kind in kinds:
        _Trial(sites, config, kind).check()
        if ranks > 1:
            on_ranks(ranks, _check_shared, sites, config, kind)


class _Trial:
    """A random model and its captures."""

    def __init__(self, adapter: type[Sites], config: PretrainedConfig, kind: str) -> None:
        self.adapter, self.kind = adapter, kind
        self.model = _build(config, kind)
        self.sites = adapter(self.model)
        self.info = ModelInfo.read("model", config, config.num_labels)
        self.inputs = _inputs(self.info)
        self.name = type(self.model).__name__

    def check(self) -> None:
        """Check everything."""
        with torch.no_grad():
            stock = self.model(**self.inputs)
            last = self.model.base_model(**self.inputs)[0]
            self._check_blocks()
            found = self._capture()
            self._same(found[LOGITS], stock.logits, "capturing changes the logits")
            self._check_states(found, last)
            self._check_attention()
            self._check_head(found, stock.logits)
            self._check_student()
            if self.adapter.outputs:
                self._check_order(stock.logits)

    def _capture(self, *more: Capture) -> Features:
        states = [Capture("hidden", layer) for layer in range(self.info.layers + 1)]
        wanted = {*states, Capture("hidden", self.info.layers, normed=True), LOGITS, *more}
        extractor = Extractor(self.model, self.sites)
        found = extractor.run(frozenset(wanted), self.inputs)
        for capture in wanted:
            found[capture]
        extractor.remove()
        return found

    def _check_blocks(self) -> None:
        ran: list[int] = []
        handles = [
            block.register_forward_hook(lambda *_, number=number: ran.append(number))
            for number, block in enumerate(self.sites.blocks, 1)
        ]
        self.model(**self.inputs)
        for handle in handles:
            handle.remove()
        expected = list(range(1, len(self.sites.blocks) + 1))
        assert ran == expected, f"{self.name}: the blocks of find_blocks run in the order {ran}"

    def _check_states(self, found: Features, last: Tensor) -> None:
        info = self.info
        rows = self.inputs["input_ids"].shape
        for layer in range(info.layers + 1):
            state = found[Capture("hidden", layer)]
            self._shape(state, (*rows, info.hidden_size), f"hidden[{layer}]")
        normed = found[Capture("hidden", info.layers, normed=True)]
        self._same(normed, last, "hidden[last].normed is not what the base model returns")
        embedding = self.model.get_input_embeddings()
        self._shape(embedding.weight, (info.vocab_size, info.hidden_size), "the embedding")

    def _check_attention(self) -> None:
        if self.sites.obstacle is not None:
            return
        info, (rows, length) = self.info, self.inputs["input_ids"].shape
        for layer in range(1, info.layers + 1):
            names = ("query", "key", "value", "probs", "context")
            captures = {name: Capture(name, layer) for name in names}
            found = self._capture(*captures.values())
            own = {name: found[capture] for name, capture in captures.items()}
            for name, heads in (("query", info.heads), ("key", info.kv_heads)):
                self._shape(own[name], (rows, heads, length, info.head_size), f"{name}[{layer}]")
            value = own["value"].repeat_interleave(info.heads // info.kv_heads, 1)
            context = (own["probs"].to(value.dtype) @ value).transpose(1, 2).flatten(2)
            mask = self.inputs["attention_mask"].bool()
            message = f"context[{layer}] is not the values weighted by the attention"
            self._same(own["context"][mask], context[mask], message, 1e-5)

    def _check_head(self, found: Features, logits: Tensor) -> None:
        info = self.info
        if self.sites.ffns:
            neurons = self._capture(Capture("neurons", 1))[Capture("neurons", 1)]
            assert neurons.shape[-1] == info.ffn_size, (
                f"{self.name}: ModelInfo has ffn_size {info.ffn_size}, but the feed-forward part "
                f"has {neurons.shape[-1]} neurons"
            )
        if self.sites.classifier is not None:
            pooled = self._capture(POOLED)[POOLED]
            message = "the classifier of find_classifier does not give the logits"
            self._same(self.sites.classifier(pooled), logits, message)

    def _check_student(self) -> None:
        spec = StudentConfig(init=[self.info.layers])
        kind = registry().kind(self.kind)
        names = [f"class {n}" for n in range(self.model.config.num_labels)]
        classes = names if kind.has_classes else []
        student = build_student(spec, self.sites, kind, classes, 0, [self.adapter]).model
        blocks = self.adapter(student).blocks
        assert len(blocks) == 1, f"{self.name}: a student of one block has {len(blocks)}"
        theirs = self.sites.blocks[-1].state_dict()
        for name, weight in blocks[0].state_dict().items():
            message = f"the block of a student does not start from the last one: {name}"
            self._same(weight.double(), theirs[name], message, 1e-6)

    def _check_order(self, logits: Tensor) -> None:
        widths = Widths.read(self.model.config)
        turned = Kept(
            [range(heads)[::-1] for heads in widths.heads],
            [range(neurons)[::-1] for neurons in widths.neurons],
        )
        other = sliced_copy(self.model, turned)(**self.inputs).logits
        self._same(other, logits, "with heads and neurons in another order, the logits change")
        kept = Kept([range(1)] * len(widths.heads), [range(1)] * len(widths.neurons))
        narrow = sliced_copy(self.model, kept)
        assert narrow(**self.inputs).logits.isfinite().all(), f"{self.name}: a slice does not run"

    def _shape(self, found: Tensor, expected: tuple[int, ...], what: str) -> None:
        assert found.shape == expected, (
            f"{self.name}: {what} has shape {tuple(found.shape)}, but by ModelInfo {expected}"
        )

    def _same(self, found: Tensor, expected: Tensor, message: str, close: float = CLOSE) -> None:
        assert found.shape == expected.shape, (
            f"{self.name}: {message} (shapes {tuple(found.shape)} and {tuple(expected.shape)})"
        )
        apart = (found - expected).abs().max() / expected.abs().max().clamp(min=1e-12)
        assert apart < close, f"{self.name}: {message} (relative difference {apart.item():.2g})"


def _check_shared(adapter: type[Sites], config: PretrainedConfig, kind: str) -> None:
    """Check on this rank that a model shared by all ranks computes what a whole one does."""
    from gkd_core.parallel.sharding import shard_model

    register_architectures([adapter], registry().kinds)
    ranks = dist.get_world_size()
    group = setup(Layout(world=ranks, tensor=ranks)).tensor
    whole, shared = _build(config, kind), shard_model(_build(config, kind), group)
    adapter(shared)
    inputs = _inputs(ModelInfo.read("model", config, config.num_labels))
    logits = [model(**inputs).logits for model in (whole, shared)]
    for each in logits:
        each.square().mean().backward()
    found = {name: weight.grad for name, weight in shared.named_parameters()}
    pairs = [("the logits", logits[1].detach(), logits[0].detach())]
    pairs += [
        (f"the gradient of {name}", found[name], shared.sharding.shard(name, weight.grad))
        for name, weight in whole.named_parameters()
        if weight.grad is not None
    ]
    # Some gradients, such as that of a bias of the keys, are zero but for rounding.
    scale = max(theirs.abs().max() for _, _, theirs in pairs[1:])
    for what, ours, theirs in pairs:
        assert ours is not None, f"{what} is missing on {ranks} ranks"
        apart = (ours - theirs).abs().max() / scale
        assert apart < CLOSE, (
            f"{type(whole).__name__}: on {ranks} ranks, {what} differs "
            f"(relative difference {apart.item():.2g}); see `tensor_plan` and `counts`"
        )


def _build(config: PretrainedConfig, kind: str) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = registry().kind(kind).auto.from_config(config)
        for weight in model.parameters():
            if weight.dim() < 2:
                torch.nn.init.normal_(weight, mean=1.0, std=0.2)
    return model.double().eval()


def _inputs(info: ModelInfo) -> dict[str, Tensor]:
    """Return three rows, the last of which is padded."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, info.vocab_size, (3, 7), generator=generator)
    mask = torch.ones_like(tokens)
    mask[2, 5:] = 0
    return {"input_ids": tokens, "attention_mask": mask}
