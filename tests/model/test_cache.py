"""What is read in pieces, from wherever it lies, gives what is read at once."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from lapilli.model.cache import GatheredView, KVCache, SingleView, Span, Stretch, StretchedView
from lapilli.model.decoder import Cache, Decoder
from lapilli.model.masks import packed_mask
from lapilli.model.spec import DecoderSpec

# B rows, T tokens, V vocabulary

VOCAB, LENGTH, CAPACITY = 50, 12, 64
SPECS = {
    "llama": DecoderSpec(VOCAB, 32, 3, 4, 4, 8, 48),
    "grouped": DecoderSpec(VOCAB, 32, 3, 4, 2, 8, 48, is_tied=True),
    "biased": DecoderSpec(VOCAB, 32, 3, 4, 1, 16, 48, has_qkv_bias=True),
    "windowed": DecoderSpec(VOCAB, 32, 3, 4, 2, 8, 48, sliding_window=5),
}
TOGETHER: list[Stretch] = [(20, 20 + LENGTH)]
SCATTERED: list[Stretch] = [(40, 44), (8, 9), (0, 5), (60, 64)]


@pytest.fixture(params=SPECS)
def decoder(request: pytest.FixtureRequest) -> Decoder:
    torch.manual_seed(0)
    made = Decoder(SPECS[request.param]).eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.2)
    return made


def empty_cache(decoder: Decoder) -> KVCache:
    cache = KVCache(decoder.spec, CAPACITY, torch.device("cpu"), torch.float32)
    for memory in (cache.keys, cache.values):
        memory.fill_(torch.nan)  # what is read before it was written shows
    return cache


def logits(
    decoder: Decoder,
    ids: Tensor,
    positions: Tensor,
    mask: Tensor | None = None,
    cache: Cache | None = None,
) -> Tensor:
    return decoder.lm_head(decoder(decoder.embed_tokens(ids), positions, mask, cache))


@pytest.mark.parametrize("stretches", [TOGETHER, SCATTERED], ids=["together", "scattered"])
@pytest.mark.parametrize(
    "edges",
    [[*range(LENGTH + 1)], [0, 7, 8, 9, 10, 11, LENGTH], [0, 4, 9, LENGTH]],
    ids=["token by token", "a prompt, then token by token", "in pieces"],
)
@torch.inference_mode()
def test_logits_in_pieces_equal_those_of_the_whole(
    decoder: Decoder, edges: list[int], stretches: list[Stretch]
) -> None:
    ids = torch.randint(VOCAB, (1, LENGTH))
    positions = torch.arange(LENGTH)[None]
    whole = logits(decoder, ids, positions)
    cache = empty_cache(decoder)
    for begin, end in pairwise(edges):
        view = cache.read([Span(stretches, begin, end - begin)])
        piece = logits(decoder, ids[:, begin:end], positions[:, begin:end], None, view)
        torch.testing.assert_close(piece, whole[:, begin:end], atol=1e-5, rtol=0)


@torch.inference_mode()
def test_sequences_side_by_side_give_the_logits_they_give_alone(decoder: Decoder) -> None:
    texts = [torch.randint(VOCAB, (1, length)) for length in (9, 4, LENGTH)]
    places: list[list[Stretch]] = [[(0, 10)], [(30, 34)], [(50, 55), (12, 20)]]
    seen = [3, 0, 7]
    cache = empty_cache(decoder)
    whole = [logits(decoder, ids, torch.arange(ids.shape[1])[None]) for ids in texts]
    for ids, stretches, count in zip(texts, places, seen, strict=True):
        if count:
            view = cache.read([Span(stretches, 0, count)])
            logits(decoder, ids[:, :count], torch.arange(count)[None], None, view)
    rest = [ids[:, count:] for ids, count in zip(texts, seen, strict=True)]
    positions = [torch.arange(n, ids.shape[1]) for ids, n in zip(texts, seen, strict=True)]
    spans = [
        Span(stretches, count, part.shape[1])
        for stretches, count, part in zip(places, seen, rest, strict=True)
    ]
    both = logits(decoder, torch.cat(rest, 1), torch.cat(positions)[None], None, cache.read(spans))
    expected = torch.cat([part[:, n:] for part, n in zip(whole, seen, strict=True)], 1)
    torch.testing.assert_close(both, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("stretches", [TOGETHER, SCATTERED], ids=["together", "scattered"])
@torch.inference_mode()
def test_a_sequence_alone_sees_what_it_sees_among_others(
    decoder: Decoder, stretches: list[Stretch]
) -> None:
    spec, cache = decoder.spec, empty_cache(decoder)
    cache.keys.normal_()
    cache.values.normal_()
    span = Span(stretches, 8, 1)
    query = torch.randn(1, spec.num_heads, spec.head_dim)
    key, value = torch.randn(2, spec.num_kv_heads, 1, spec.head_dim)
    alone, among = torch.empty_like(query), torch.empty_like(query)
    SingleView(cache, span).attend(1, query, key, value, alone)
    kept = cache.keys.clone()
    StretchedView(cache, [span]).attend(1, query, key, value, among)
    torch.testing.assert_close(alone, among, atol=0, rtol=0)
    torch.testing.assert_close(cache.keys, kept, atol=0, rtol=0)


@torch.inference_mode()
def test_both_views_of_a_step_see_the_same(decoder: Decoder) -> None:
    spec, cache = decoder.spec, empty_cache(decoder)
    cache.keys.normal_()
    cache.values.normal_()
    spans = [Span(TOGETHER, 6, 1), Span(SCATTERED, 10, 1), Span([(0, 3)], 0, 1)]
    query = torch.randn(3, spec.num_heads, spec.head_dim)
    key, value = torch.randn(2, spec.num_kv_heads, 3, spec.head_dim)
    mixed = []
    for kind in (StretchedView, GatheredView):
        out = torch.empty_like(query)
        kind(cache, spans).attend(1, query, key, value, out)
        mixed.append(out)
    torch.testing.assert_close(*mixed, atol=1e-5, rtol=0)


def test_a_span_knows_where_its_tokens_lie() -> None:
    span = Span(SCATTERED, 3, 4)
    assert span.held() == [(40, 44), (8, 9), (0, 2)]
    assert span.new() == [(43, 44), (8, 9), (0, 2)]
    assert span.last(4) == [(43, 44), (8, 9), (0, 2)]
    assert span.last(100) == span.last(None) == span.held()


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
