"""A cache of fewer bits reads back what was written, rounded."""

from __future__ import annotations

import pytest
import torch

from lapilli.model.cache import GatheredView, KVCache, Span, Stretch, places
from lapilli.model.small_cache import (
    KEPT,
    Bf16Cache,
    Int8Cache,
    Kept,
    WidenedView,
    bytes_per_token,
    make_cache,
)  # fmt: skip
from lapilli.model.spec import DecoderSpec

CPU = torch.device("cpu")
SPEC = DecoderSpec(50, 32, 3, 4, 2, 16, 48)
STRETCHES: list[Stretch] = [(40, 44), (8, 9), (0, 5)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kept", KEPT)
def test_what_is_read_is_what_was_written_rounded(kept: Kept, dtype: torch.dtype) -> None:
    cache = make_cache(SPEC, 64, CPU, dtype, kept)
    key, value = torch.randn(2, 2, 9, 16).to(dtype)
    key[0, 3] *= 100  # a loud head of one token
    key[1, 4] = 0
    cache.write(1, places(Span(STRETCHES, 0, 9).new(), torch.device("cpu")), key, value)
    index = torch.tensor([[*range(40, 44), 8, *range(5)[:4]]])
    for found, gathered, wanted in zip(
        cache.held(1, STRETCHES), cache.gathered(1, index), (key, value), strict=True
    ):
        assert found.dtype == dtype
        largest = wanted.float().abs().amax(-1, keepdim=True)
        # Half a step of 8 bits; bf16 rounds to 8 bits of each number, and steps once more.
        off = (found[0, :, :9].float() - wanted.float()).abs()
        assert (off <= largest * (0.5 / 127 + 2**-8)).all()
        assert torch.equal(gathered[0], found[0, :, :9])


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("window", [None, 4])
def test_both_views_of_a_step_see_the_same(kept: Kept, window: int | None) -> None:
    spec = DecoderSpec(50, 32, 3, 4, 2, 16, 48, sliding_window=window)
    cache = make_cache(spec, 64, CPU, torch.float32, kept)
    whole = KVCache(spec, 64, CPU, torch.float32)
    spans = [Span(STRETCHES, 8, 1), Span([(20, 30)], 3, 1), Span([(50, 52)], 0, 1)]
    for held in (cache, whole):
        torch.manual_seed(0)
        every = torch.arange(64)
        held.write(1, every, torch.randn(2, 64, 16), torch.randn(2, 64, 16))
    query, key, value = torch.randn(3, 4, 16), torch.randn(2, 3, 16), torch.randn(2, 3, 16)
    mixed = []
    for made in (WidenedView(cache, spans), GatheredView(cache, spans), whole.step(spans)):
        out = torch.empty_like(query)
        made.attend(1, query, key, value, out)
        mixed.append(out)
    torch.testing.assert_close(mixed[0], mixed[1], atol=1e-5, rtol=0)
    torch.testing.assert_close(mixed[0], mixed[2], atol=0.05, rtol=0)


def test_a_cache_is_what_was_asked_for() -> None:
    assert type(make_cache(SPEC, 8, CPU, torch.float32)) is KVCache
    assert type(make_cache(SPEC, 8, CPU, torch.bfloat16, "bf16")) is KVCache
    assert type(make_cache(SPEC, 8, CPU, torch.float32, "bf16")) is Bf16Cache
    assert type(make_cache(SPEC, 8, CPU, torch.bfloat16, "int8")) is Int8Cache


@pytest.mark.parametrize(
    ("kept", "num_bytes"), [(None, 4 * 16), ("bf16", 2 * 16), ("int8", 16 + 4)]
)
def test_a_token_takes_that_many_bytes(kept: Kept | None, num_bytes: int) -> None:
    heads = 2 * SPEC.num_layers * SPEC.num_kv_heads
    assert bytes_per_token(SPEC, torch.float32, kept) == heads * num_bytes
    assert make_cache(SPEC, 64, CPU, torch.float32, kept).num_bytes == 64 * heads * num_bytes
