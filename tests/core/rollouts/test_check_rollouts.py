"""`check_rollouts` passes engines that keep the contract, and names what others break."""

from __future__ import annotations

import pytest
import torch

from gkd_core.api import PluginError, RolloutEngine, Written, most_likely
from gkd_core.rollouts.engines.generate import Generate
from gkd_core.testing import check_rollouts


class Constant(RolloutEngine):
    """Writes the same token twice."""

    name = "constant"

    def write(self, prompts, writer):
        return Written([self.text(prompt) for prompt in prompts.rows])

    def text(self, prompt):
        return [5, 5]


class Nothing(RolloutEngine):
    """Returns nothing."""

    name = "nothing"

    def write(self, prompts, writer):
        return None


class Short(Constant):
    """Loses a row."""

    def write(self, prompts, writer):
        return Written(super().write(prompts, writer).tokens[:-1])


class Foreign(Constant):
    """Writes what is no token."""

    def text(self, prompt):
        return [1000]


class Endless(Constant):
    """Writes too much."""

    def text(self, prompt):
        return [5] * 9


class Trains(Constant):
    """Leaves the model in training mode, with another weight."""

    def write(self, prompts, writer):
        next(writer.model.parameters()).mul_(2)
        return super().write(prompts, writer)


class Draws(Constant):
    """Draws all rows from one generator, and does not say so."""

    def text(self, prompt):
        return torch.randint(1, 60, (4,)).tolist()


class Coupled(Draws):
    """Draws all rows from one generator."""

    batch_coupled = True


class Remembers(Constant):
    """Counts its texts, and forgets the count."""

    def __init__(self, config=None):
        super().__init__(config)
        self.count = 0

    def write(self, prompts, writer):
        self.count += 1
        return Written([[self.count] for _ in prompts.rows])


class Stops(RolloutEngine):
    """Stops when its own rows have ended, whatever other ranks do."""

    name = "stops"

    def write(self, prompts, writer):
        texts = [[] for _ in prompts.rows]
        decoding = writer.start(prompts)
        for _ in range(len(prompts.rows)):
            tokens = most_likely(decoding.logits)
            for text, token in zip(texts, tokens.tolist(), strict=True):
                text.append(token)
            decoding.append(tokens)
        return Written(texts)


class Flatters(Generate):
    """Says that its tokens were likelier than they were."""

    name = "flatters"

    def write(self, prompts, writer):
        written = super().write(prompts, writer)
        return Written(written.tokens, [[0.0] * len(text) for text in written.tokens])


class StopsCoupled(Stops):
    batch_coupled = True


class Generates(RolloutEngine):
    """Leaves decoding to transformers."""

    name = "generates"

    def write(self, prompts, writer):
        inputs = prompts.padded()
        found = writer.model.generate(
            **inputs,
            max_new_tokens=prompts.max_new_tokens,
            do_sample=False,
            eos_token_id=list(prompts.end_ids) or None,
            pad_token_id=prompts.pad_id,
            synced_gpus=torch.distributed.is_initialized(),
        )
        return Written(found[:, inputs["input_ids"].shape[1] :].tolist())


class Local(RolloutEngine):
    """Chooses among this rank's columns of the vocabulary only."""

    name = "local"

    def write(self, prompts, writer):
        logits = writer.start(prompts).logits
        own = logits.hidden @ logits.weight.T
        return Written(own.argmax(-1, keepdim=True).tolist())


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        pytest.param("greedy", {}, marks=pytest.mark.exhaustive),
        ("sampling", {"cooling": 0.5}),
    ],
)
def test_engines_that_keep_the_contract_pass(plugin, name, options):
    (engine,) = plugin(name).gkd_register_rollouts()
    check_rollouts(engine, options)


@pytest.mark.parametrize(
    ("engine", "error", "message"),
    [
        (Nothing, PluginError, "Nothing.write returned None; return a `Written`"),
        (Short, PluginError, "wrote 3 texts for 4 prompts"),
        (Foreign, PluginError, r"wrote \[1000\].*from 0 to 63"),
        (Endless, PluginError, "at most rollout.max_new_tokens = 8"),
        (Trains, AssertionError, "the weights change"),
        (Draws, AssertionError, "micro-batches change the text; declare `batch_coupled`"),
        (Flatters, PluginError, "'flatters' drew the student's tokens with log-probabilities that"),
        (Remembers, AssertionError, "after a resume the text differs"),
    ],
)
def test_what_an_engine_breaks_alone_is_named(engine, error, message):
    with pytest.raises(error, match=message):
        check_rollouts(engine)


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "message"),
    [
        (StopsCoupled, "all must run it equally often"),
        (Local, "with a sharded model the text differs"),
    ],
)
def test_what_an_engine_breaks_on_ranks_is_named(engine, message):
    with pytest.raises(AssertionError, match=message):
        check_rollouts(engine)


@pytest.mark.slow
@pytest.mark.parametrize("engine", [pytest.param(Coupled, marks=pytest.mark.exhaustive), Generates])
def test_an_engine_may_couple_its_rows_or_leave_decoding_to_transformers(engine):
    check_rollouts(engine)
