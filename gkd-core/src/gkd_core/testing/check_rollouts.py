"""`check_rollouts`: checks of the properties that every rollout engine must have."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from gkd_core.config.schema import RolloutConfig
from gkd_core.contract.batch import Batch
from gkd_core.contract.rollout import RolloutEngine, TokenSampling
from gkd_core.contract.schedule import ALWAYS_1
from gkd_core.contract.step import Step
from gkd_core.distributed.groups import arrange
from gkd_core.distributed.layout import Layout
from gkd_core.distributed.ranks import rank, world_size
from gkd_core.hooks.extraction import Extractor
from gkd_core.models.sites import find_sites
from gkd_core.rollouts.decoding import CoWriter
from gkd_core.rollouts.rollouts import Rollouts
from gkd_core.rollouts.rows import RowWriter
from gkd_core.rollouts.writer import Writer
from gkd_core.testing.ranks import on_ranks
from gkd_core.testing.tiny import PAD, VOCABULARY, tiny_batch, tiny_model

NEW = 8
LONGEST_PROMPT = 20
"""More than the tokens of any row: prompts then are of different length."""

ROUNDING = 1e-5
"""Largest mean difference between log-probabilities that are equal but for rounding to fp32."""

Texts: TypeAlias = Mapping[int, Sequence[int]]
"""The written tokens of each row, by its number."""


def check_rollouts(engine: type[RolloutEngine], options: Mapping[str, Any] | None = None) -> None:
    """Check a rollout engine on a tiny decoder, in fp64.

    It writes valid text, the same each time; if it `mixes`, also together with a second model. If
    it says that it draws from the model's distribution as it is (`sampling`), the log-probabilities
    that it returns are the model's. The model, its mode and the random generators of training stay
    as they were, and an engine that restores its saved state continues as if never interrupted.
    Neither padding nor the other rows matter, unless it declares `batch_coupled`. With two
    processes that have different rows, and with two that share the model, the text is the same, and
    each runs the model equally often.

    Args:
        engine: The class, at the top of a module.
        options: Options that differ from their defaults.

    Raises:
        AssertionError: A property does not hold; the message says which.
        PluginError: The engine returns something other than text, or other log-probabilities.
        RuntimeError: The processes wait for each other forever.
    """
    _check(_RolloutTrial(engine, dict(options or {}), ()))
    if engine.mixes:
        _check(_RolloutTrial(engine, dict(options or {}), (), mixture=0.5))


def _check(trial: _RolloutTrial) -> None:
    texts = _texts(trial.rollouts().apply([tiny_batch("causal-lm")], _step(0)))
    # With a token that occurs as the end token, rows differ in the length of their text.
    middle = [text[len(text) // 2] for text in texts.values() if text]
    trial = replace(trial, end_ids=tuple(middle[:1]))
    _check_alone(trial)
    if not trial.engine.batch_coupled:
        _check_independence(trial)
    _check_resume(trial)
    _check_ranks(trial)


@dataclass(frozen=True)
class _RolloutTrial:
    """An engine that lets a tiny student write every row.

    Attributes:
        engine: Its class.
        options: Options that differ from their defaults.
        end_ids: Tokens that end a text.
        mixture: The share of a second model in each token.
    """

    engine: type[RolloutEngine]
    options: Mapping[str, Any]
    end_ids: tuple[int, ...]
    mixture: float = 0.0

    def models(self) -> list[PreTrainedModel]:
        """Return the models that write: a student and, if it takes part, a teacher."""
        count = 2 if self.mixture else 1
        return [tiny_model("causal-lm", layers=2, seed=1 + number) for number in range(count)]

    def rollouts(self, models: Sequence[PreTrainedModel] = ()) -> Rollouts:
        """Return a new engine at work, with models or new ones."""
        engine = self.engine(self.engine.Config(**self.options))
        own, *others = [Extractor(model, find_sites(model)) for model in models or self.models()]
        co_writer = CoWriter(others[0], self.mixture) if others else None
        config = RolloutConfig(
            engine=self.engine.name,
            student=ALWAYS_1,
            prompt_tokens=LONGEST_PROMPT,
            max_new_tokens=NEW,
            mixture=self.mixture,
            **self.options,
        )
        return Rollouts(
            engine=engine,
            config=config,
            writers={
                "student": Writer("student", own, torch.device("cpu"), nullcontext, co_writer)
            },
            rows=RowWriter(_tokenizer(), PAD),
            end_ids=self.end_ids,
            seed=0,
            limit=ROUNDING if engine.sampling() == TokenSampling() and not others else None,
        )

    def write(self, batches: Sequence[Batch]) -> Texts:
        """Return the text that a new engine writes."""
        return _texts(self.rollouts().apply(batches, _step(0)))


def _tokenizer() -> PreTrainedTokenizerFast:
    words = {f"w{index}": index for index in range(VOCABULARY)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="w1")), pad_token=f"w{PAD}"
    )


def _step(index: int) -> Step:
    return Step(index, 2, 0, "check", torch.default_generator)


def _texts(batches: Sequence[Batch]) -> Texts:
    """Return the text of each row that counts."""
    return {
        int(row): ids[written].tolist()
        for batch in batches
        for row, ids, written in zip(
            batch.rows, batch.inputs["input_ids"], batch.tokens.mask, strict=True
        )
        if batch.counted
    }


def _rows(rows: Sequence[int], padding: int = 0) -> Batch:
    """Return some of the rows of the tiny batch, padded on the right."""
    batch = tiny_batch("causal-lm")
    inputs = {
        name: functional.pad(value[list(rows)], (0, padding))
        for name, value in batch.inputs.items()
    }
    return Batch(inputs, None, batch.rows[list(rows)])


def _check_alone(trial: _RolloutTrial) -> None:
    """Check that writing is reproducible, and leaves everything as it was."""
    name, batch = trial.engine.name, tiny_batch("causal-lm")
    model, *others = trial.models()
    model.train()
    before = {key: weight.clone() for key, weight in model.state_dict().items()}
    state = torch.get_rng_state()
    texts = _texts(trial.rollouts([model, *others]).apply([batch], _step(0)))
    assert torch.equal(torch.get_rng_state(), state), f"{name}: training's generator advances"
    assert all(m.training for m in model.modules()), f"{name}: the model changes its mode"
    for key, weight in model.state_dict().items():
        assert torch.equal(weight, before[key]), f"{name}: the weights change"
    assert trial.write([batch]) == texts, f"{name}: the same step is written differently"


def _check_independence(trial: _RolloutTrial) -> None:
    """Check that the text of a row does not depend on padding or on other rows."""
    batch = tiny_batch("causal-lm")
    texts = trial.write([batch])
    advice = "declare `batch_coupled` if it must"
    found = trial.write([_rows([2]), _rows([3, 0, 1])])
    assert found == texts, f"{trial.engine.name}: micro-batches change the text; {advice}"
    for row, text in texts.items():
        message = f"{trial.engine.name}: the text of a row depends on other rows; {advice}"
        assert trial.write([_rows([row], padding=3)])[row] == text, message


def _check_resume(trial: _RolloutTrial) -> None:
    batch = tiny_batch("causal-lm")
    first = trial.rollouts()
    first.apply([batch], _step(0))
    state = json.loads(json.dumps(first.engine.state_dict()))
    uninterrupted = _texts(first.apply([batch], _step(1)))
    resumed = trial.rollouts()
    resumed.engine.load_state_dict(state)
    message = (
        f"{trial.engine.name}: after a resume the text differs; return what it needs in "
        "`state_dict`"
    )
    assert _texts(resumed.apply([batch], _step(1))) == uninterrupted, message


def _check_ranks(trial: _RolloutTrial) -> None:
    """Check two processes with other rows each, one of which then has none, and a shared model."""
    found = on_ranks(2, _write_in_all_ways, trial)
    for way, rows in enumerate(([0, 1, 2], [0, 2])):
        _check_shares(trial, [own[way] for own, _ in found], rows)
    expected = trial.write([tiny_batch("causal-lm")])
    for _, texts in found:
        message = f"{trial.engine.name}: with a sharded model the text differs"
        assert texts == expected, message


def _check_shares(
    trial: _RolloutTrial, found: Sequence[tuple[Texts, int]], rows: Sequence[int]
) -> None:
    """Check what two processes have written of some rows, and how often they ran the model."""
    name = trial.engine.name
    message = f"{name}: ranks run the model {[calls for _, calls in found]} times; all must "
    message += "run it equally often (`writer.any_rank`)"
    assert len({calls for _, calls in found}) == 1, message
    texts = {row: text for shared, _ in found for row, text in shared.items()}
    expected = trial.write([_rows(rows)])
    same = texts.keys() == expected.keys() if trial.engine.batch_coupled else texts == expected
    assert same, f"{name}: two processes write other text than one"


def _write_in_all_ways(trial: _RolloutTrial) -> tuple[list[tuple[Texts, int]], Texts]:
    """Write shares of the rows, without and with an idle rank, and all with a shared model."""
    shares = [_write_share(trial, idle) for idle in (False, True)]
    return shares, _write_with_shards(trial)


def _write_share(trial: _RolloutTrial, idle: bool) -> tuple[Texts, int]:
    """Write this rank's share of three rows; return it, and how often the model ran."""
    batch = _rows(range(rank(), 3, world_size()))
    if idle and rank() > 0:
        batch = replace(batch, counted=False)
    models = trial.models()
    calls: list[int] = []
    for model in models:
        model.register_forward_hook(lambda *_: calls.append(1))
    found = _texts(trial.rollouts(models).apply([batch], _step(0)))
    return found, len(calls)


def _write_with_shards(trial: _RolloutTrial) -> Texts:
    """Write all rows with a model that the ranks share."""
    from gkd_core.parallel.sharding import shard_model

    groups = arrange(Layout(world_size(), world_size(), {}))
    assert groups is not None, "the model is shared"
    models = trial.models()
    for model in models:
        shard_model(model, groups.tensor)
    return _texts(trial.rollouts(models).apply([tiny_batch("causal-lm")], _step(0)))
