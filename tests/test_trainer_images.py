"""Prompts with images: what works on token ids alone is refused before anything is trained, whatever brings them."""

import pytest
from datasets import Dataset
from tiny_model import digits, prompts, trainer
from transformers import ProcessorMixin

from entrl.controllers.clip_cov import ClipCov
from entrl.trainers.refusals.images import image_problems, images_from

SCORED_BY_TRL = {"steps_per_generation": 2, "gradient_accumulation_steps": 1}


def aware(completions, token_entropies, **_):
    return [0.0] * len(completions)


def with_images() -> Dataset:
    return prompts(16).add_column("images", [None] * 16)


class Processor(ProcessorMixin):
    """No more than its class: what TRL takes for a model that may be shown images."""

    def __init__(self) -> None:
        pass


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"rewards": aware}, "the pass that scores a rollout where TRL runs none"),
        ({"rewards": aware, "mask_truncated_completions": True, **SCORED_BY_TRL}, "scores truncated rows again"),
        ({"controllers": [ClipCov(scope="exact")], **SCORED_BY_TRL}, "a controller with scope: exact"),
        ({"probe_every": 1}, "probe_every"),
        ({"log_windows": [0]}, "log_windows"),
        ({"branch_roots": 2}, "branch_roots"),
        ({"filter_on": "reward"}, "filter_on"),
    ],
)  # fmt: skip
def test_what_does_not_see_images_is_refused_at_start(tmp_path, given, words):
    options = dict(given)
    rewards, controllers = options.pop("rewards", digits), options.pop("controllers", ())
    with pytest.raises(ValueError, match=rf"the data set has the column 'images', and .*{words}"):
        trainer(tmp_path, rewards, controllers=controllers, train_dataset=with_images(), **options)
    trainer(tmp_path, rewards, controllers=controllers, train_dataset=prompts(16), **options)


def test_what_trl_scores_itself_is_let_through(tmp_path):
    """TRL's pass has the images, and a controller that selects in the micro-batch reads what the loss computes."""
    trainer(tmp_path, aware, train_dataset=with_images(), **SCORED_BY_TRL)
    trainer(tmp_path, controllers=[ClipCov(scope="micro_batch")], train_dataset=with_images(), **SCORED_BY_TRL)
    trainer(tmp_path, digits, train_dataset=with_images())


@pytest.mark.parametrize(
    ("rows", "processor", "words"),
    [
        (with_images(), None, "column 'images'"),
        (prompts(2).add_column("image", [None] * 2), None, "column 'image'"),
        (
            [{"prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}]}],
            None,
            "parts of type 'image'",
        ),
        (prompts(2), Processor(), "processing_class is a processor"),
        (None, Processor(), "processing_class is a processor"),
    ],
)
def test_where_images_come_from(rows, processor, words):
    source = images_from(rows, processor)
    assert source is not None
    assert words in source
    assert image_problems(source, {"probe_every": True, "log_windows": False}) == [
        f"{source}, and probe_every does not see images, so it would score or write another text; leave that out, or "
        "train on text (processing_class: the tokenizer)"
    ]


@pytest.mark.parametrize("rows", [None, prompts(2), prompts(2, conversational=True), [{"prompt": "plain"}], []])
def test_text_alone_has_no_source_of_images(rows):
    assert images_from(rows, object()) is None
