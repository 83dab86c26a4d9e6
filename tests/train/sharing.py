"""What a process of a run does in the tests of `lapilli.train.parallel`; RANK and WORLD_SIZE say
which of how many it is, the first argument names a data folder, the second where results go."""

from __future__ import annotations

import itertools
import os
import sys
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import torch
from safetensors.torch import save_file

from lapilli.config import from_dict
from lapilli.data.conversations import Groups
from lapilli.data.records import Records
from lapilli.model.llava import Llava
from lapilli.model.spec import DecoderSpec, LlavaSpec, VisionSpec
from lapilli.processor.images import ImageSettings
from lapilli.processor.processor import Processor, PromptSettings
from lapilli.processor.tokenizer import train_tokenizer
from lapilli.train import loop, parallel
from lapilli.train.conversation import ConversationLearner
from lapilli.train.optimizers import orthogonalize
from lapilli.train.recipe import DataRecipe, OptimizerRecipe, Recipe, RunRecipe, SourceRecipe
from lapilli.train.recipe import StageRecipe as Stage
from lapilli.train.stages import initialize

RECIPE = Recipe(
    Stage("conversation", steps=3, batch=4, learn={"projector": 1e-2, "language_model": 1e-2}),
    # Rows with room for all conversations: which of them fit is left to chance.
    data=DataRecipe((SourceRecipe(Path("mixed.jsonl")),), row_tokens=2000),
    run=RunRecipe(dtype="fp32", save_every=2),
)


def learner(data: Path, rank: int, world_size: int, name: str) -> ConversationLearner:
    """A small model that learns from pictures and from scenes in words."""
    records = Records(data / "mixed.jsonl")
    words = (m.text for sample in records for m in sample.conversation)
    template = files("lapilli").joinpath("assets/tiny/chat_template.jinja").read_text()
    processor = Processor(
        train_tokenizer(itertools.islice(words, 100), 400),
        ImageSettings(32, "squash", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        PromptSettings(features_per_image=16),
        template,
    )
    vocab_size = processor.words.tokenizer.get_vocab_size()
    decoder = DecoderSpec(vocab_size, 32, 2, 2, 2, 16, 64, is_tied=True)
    torch.manual_seed(0)
    vision = VisionSpec(32, 8, 32, 2, 2, 64)
    model = Llava(LlavaSpec(vision, decoder, image_token_id=processor.image_token_id))
    initialize(model)
    recipe = replace(RECIPE, optimizer=from_dict(OptimizerRecipe, {"name": name}, "test"))
    return ConversationLearner(
        recipe, model, processor, [Groups(records)], [], rank=rank, world_size=world_size
    )


def main(data: Path, out: Path) -> None:
    rank, world_size = parallel.join()
    torch.set_num_threads(1)
    results = {}

    parallel.wait_for_all()
    results["total"] = torch.tensor(parallel.total(rank + 0.5))

    rows = torch.randn(5, 6, 8, generator=torch.Generator().manual_seed(1))
    results["shared_out"] = parallel.share_out(rows, orthogonalize).float()

    touched, untouched = torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(2))
    touched.grad = torch.full((3,), float(rank + 1))
    if rank == 0:
        untouched.grad = torch.tensor([4.0, 6.0])
    parallel.average_gradients([touched, untouched])
    results |= {"touched": touched.grad, "untouched": untouched.grad}

    for name in ("muon", "adamw"):
        one = learner(data, rank, world_size, name)
        results |= {f"first/{k}": v.detach().clone() for k, v in one.module.named_parameters()}
        loop.run(one, one.recipe, out / name)
        results |= {f"{name}/{k}": v.detach() for k, v in one.module.named_parameters()}
        results[f"{name}/weight"] = torch.tensor(
            [one.loss(one.batch(step))[1] for step in range(3)]
        )
    parallel.leave()
    saved = {k: v.clone().contiguous() for k, v in results.items()}
    save_file(saved, out / f"rank-{os.environ.get('RANK', 'alone')}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
