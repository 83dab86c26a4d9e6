"""What is read in pieces gives what is read at once."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from lapilli.model.decoder import Decoder, KVCache
from lapilli.model.masks import packed_mask
from lapilli.model.spec import DecoderSpec

# B rows, T tokens, V vocabulary

VOCAB, LENGTH = 50, 12
SPECS = {
    "llama": DecoderSpec(VOCAB, 32, 3, 4, 4, 8, 48),
    "grouped": DecoderSpec(VOCAB, 32, 3, 4, 2, 8, 48, is_tied=True),
    "biased": DecoderSpec(VOCAB, 32, 3, 4, 1, 16, 48, has_qkv_bias=True),
    "windowed": DecoderSpec(VOCAB, 32, 3, 4, 2, 8, 48, sliding_window=5),
}


@pytest.fixture(params=SPECS)
def decoder(request: pytest.FixtureRequest) -> Decoder:
    torch.manual_seed(0)
    made = Decoder(SPECS[request.param]).eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.2)
    return made


def logits(
    decoder: Decoder,
    ids: Tensor,
    positions: Tensor,
    mask: Tensor | None = None,
    cache: KVCache | None = None,
) -> Tensor:
    return decoder.lm_head(decoder(decoder.embed_tokens(ids), positions, mask, cache))


@pytest.mark.parametrize(
    "edges",
    [[0, *range(1, LENGTH + 1)], [0, 7, 8, 9, 10, 11, LENGTH], [0, 4, 9, LENGTH]],
    ids=["token by token", "a prompt, then token by token", "in pieces"],
)
@torch.inference_mode()
def test_logits_in_pieces_equal_those_of_the_whole(decoder: Decoder, edges: list[int]) -> None:
    ids = torch.randint(VOCAB, (2, LENGTH))
    positions = torch.arange(LENGTH).expand(2, -1)
    whole = logits(decoder, ids, positions)
    cache = KVCache(decoder.spec, 2, LENGTH, ids.device, torch.float32)
    for begin, end in pairwise(edges):
        piece = logits(decoder, ids[:, begin:end], positions[:, begin:end], None, cache)
        torch.testing.assert_close(piece, whole[:, begin:end], atol=1e-5, rtol=0)
    assert cache.length == LENGTH


@torch.inference_mode()
def test_a_padded_row_gives_the_logits_it_gives_alone(decoder: Decoder) -> None:
    ids = torch.randint(VOCAB, (2, LENGTH))
    groups = torch.zeros(2, LENGTH, dtype=torch.long)
    groups[1, :3] = -1
    positions = (groups >= 0).cumsum(-1).sub(1).clamp(min=0)
    both = logits(decoder, ids, positions, packed_mask(groups))
    alone = logits(decoder, ids[1:, 3:], positions[1:, 3:])
    torch.testing.assert_close(both[1:, 3:], alone, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_branches_give_the_logits_of_separate_texts(decoder: Decoder) -> None:
    trunk, left, right = (torch.randint(VOCAB, (1, length)) for length in (5, 4, 3))
    branches = torch.tensor([[0] * 5 + [1] * 4 + [2] * 3])
    positions = torch.tensor([[*range(5), *range(5, 9), *range(5, 8)]])
    mask = packed_mask(torch.zeros_like(branches), branches)
    packed = logits(decoder, torch.cat([trunk, left, right], 1), positions, mask)
    for branch, place in ((left, slice(5, 9)), (right, slice(9, 12))):
        text = torch.cat([trunk, branch], 1)
        alone = logits(decoder, text, torch.arange(text.shape[1])[None])
        torch.testing.assert_close(packed[:, place], alone[:, 5:], atol=1e-5, rtol=0)


@torch.inference_mode()
def test_rows_that_are_kept_go_on_as_before(decoder: Decoder) -> None:
    ids = torch.randint(VOCAB, (3, LENGTH))
    positions = torch.arange(LENGTH).expand(3, -1)
    whole = logits(decoder, ids, positions)
    cache = KVCache(decoder.spec, 3, LENGTH, ids.device, torch.float32)
    logits(decoder, ids[:, :8], positions[:, :8], None, cache)
    cache.keep(torch.tensor([2, 0]))
    rest = logits(decoder, ids[[2, 0], 8:], positions[[2, 0], 8:], None, cache)
    torch.testing.assert_close(rest, whole[[2, 0], 8:], atol=1e-5, rtol=0)
