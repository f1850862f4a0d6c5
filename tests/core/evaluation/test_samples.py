"""What a language model writes to be looked at."""

from __future__ import annotations

import pytest
from transformers import AutoModelForCausalLM

from gkd_core.evaluation.samples import Sampling, write_samples


@pytest.fixture
def written(prepare_run, world):
    """Let a model write after the first validation texts."""
    text = [f"task.{name}={world / 'corpus.txt'}" for name in ("train", "validation", "test")]
    given = ("task.kind=causal-lm", "method=soft", *text)
    spec = prepare_run(*given, teachers=("lm-decoder",)).last
    rows = spec.encode(spec.data.validation, spec.tokenizer)

    def _written(**settings):
        model = AutoModelForCausalLM.from_pretrained(world / "lm-decoder").eval()
        for name, value in settings.items():
            setattr(model.generation_config, name, value)
        found = write_samples(model, spec.tokenizer, rows, Sampling(4, 8))["generated"][:4]
        assert model.generation_config.to_dict().items() >= settings.items()
        return found, spec.tokenizer

    return _written


def test_the_likeliest_text_is_written_whatever_a_model_would_rather(written):
    plain, _ = written()
    assert written(repetition_penalty=5.0, no_repeat_ngram_size=1)[0] == plain


def test_a_text_ends_where_the_model_says_and_has_only_its_words(written):
    plain, tokenizer = written()
    first = tokenizer.encode(plain[0], add_special_tokens=False)[0]
    assert len(written(eos_token_id=first)[0][0].split()) == 1
    assert plain[0].split()[0] not in written(suppress_tokens=[first])[0][0].split()
