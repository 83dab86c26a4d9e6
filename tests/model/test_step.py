from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lapilli.model.decoder import Decoder, KVCache
from lapilli.model.masks import packed_mask
from lapilli.model.spec import DecoderSpec
from lapilli.model.step import Stepper

# B rows, T tokens of the prompt, D width, V vocabulary

SPECS = {
    "llama": DecoderSpec(50, 32, 3, 4, 4, 8, 48, is_tied=True),
    "grouped": DecoderSpec(50, 32, 3, 4, 2, 8, 48),
    "biased": DecoderSpec(50, 32, 3, 4, 1, 16, 48, has_qkv_bias=True),
    "windowed": DecoderSpec(50, 32, 3, 4, 4, 8, 48, sliding_window=4),
}


@pytest.fixture(params=SPECS)
def decoder(request: pytest.FixtureRequest) -> Decoder:
    torch.manual_seed(0)
    made = Decoder(SPECS[request.param]).eval()
    for name, parameter in made.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return made


def prompt(decoder: Decoder, ids: Tensor, groups: Tensor) -> tuple[KVCache, Tensor]:
    """A cache that holds the prompt, and each row's next position."""
    positions = (groups >= 0).cumsum(-1).sub(1).clamp(min=0)
    cache = KVCache(decoder.spec, len(ids), 16, ids.device, torch.float32)
    decoder(decoder.embed_tokens(ids), positions, packed_mask(groups), cache)
    return cache, positions[:, -1] + 1


@torch.inference_mode()
def test_steps_equal_the_plain_decoder_over_the_whole_text(decoder: Decoder) -> None:
    ids = torch.randint(50, (2, 10))
    whole = decoder.lm_head(decoder(decoder.embed_tokens(ids), torch.arange(10).expand(2, -1)))
    cache, positions = prompt(decoder, ids[:, :6], torch.zeros(2, 6, dtype=torch.long))
    stepper = Stepper(decoder, cache, positions, None)
    for place in range(6, 10):
        torch.testing.assert_close(stepper(ids[:, place]), whole[:, place], atol=1e-4, rtol=0)


@torch.inference_mode()
def test_padding_changes_nothing(decoder: Decoder) -> None:
    ids = torch.randint(50, (2, 8))
    groups = torch.zeros(2, 6, dtype=torch.long)
    groups[1, :4] = -1
    cache, positions = prompt(decoder, ids[:, :6], groups)
    padded = Stepper(decoder, cache, positions, groups >= 0)
    cache, positions = prompt(decoder, ids[1:, 4:6], groups[1:, 4:])
    alone = Stepper(decoder, cache, positions, None)
    for place in (6, 7):
        both = padded(ids[:, place])
        torch.testing.assert_close(both[1:], alone(ids[1:, place]), atol=1e-4, rtol=0)


@torch.inference_mode()
def test_rows_that_are_kept_go_on_as_before(decoder: Decoder) -> None:
    ids = torch.randint(50, (3, 8))
    groups = torch.zeros(3, 6, dtype=torch.long)
    groups[2, :3] = -1
    cache, positions = prompt(decoder, ids[:, :6], groups)
    stepper = Stepper(decoder, cache, positions, groups >= 0)
    stepper(ids[:, 6])
    expected = stepper(ids[:, 7])[[0, 2]]
    cache.length -= 1
    stepper.positions -= 1
    stepper.keep(torch.tensor([0, 2]))
    torch.testing.assert_close(stepper(ids[[0, 2], 7]), expected, atol=1e-4, rtol=0)


def test_joined_weights_stay_those_of_the_decoder(decoder: Decoder) -> None:
    before = {name: value.clone() for name, value in decoder.state_dict().items()}
    num_bytes = sum(p.untyped_storage().nbytes() for p in set(decoder.parameters()))
    cache, positions = prompt(
        decoder, torch.zeros(1, 2, dtype=torch.long), torch.zeros(1, 2, dtype=torch.long)
    )
    first, second = (Stepper(decoder, cache, positions, None) for _ in range(2))
    for name, value in decoder.state_dict().items():
        torch.testing.assert_close(value, before[name], atol=0, rtol=0)
    assert first.matrices[0].qkv.data_ptr() == second.matrices[0].qkv.data_ptr()
    storages = {p.untyped_storage().data_ptr(): p.untyped_storage() for p in decoder.parameters()}
    assert sum(storage.nbytes() for storage in storages.values()) == num_bytes


def test_training_after_a_step_reaches_the_joined_weights(decoder: Decoder) -> None:
    ids, groups = torch.zeros(1, 2, dtype=torch.long), torch.zeros(1, 2, dtype=torch.long)
    with torch.inference_mode():
        cache, positions = prompt(decoder, ids, groups)
        stepper = Stepper(decoder, cache, positions, None)
        before = stepper(ids[:, 0])
    decoder(decoder.embed_tokens(ids), torch.arange(2)[None]).sum().backward()
    torch.optim.SGD(decoder.parameters(), lr=0.1).step()
    with torch.inference_mode():
        cache, positions = prompt(decoder, ids, groups)
        after = Stepper(decoder, cache, positions, None)(ids[:, 0])
        embeds = decoder.embed_tokens(ids[:, :1].expand(1, 3))
        plain = decoder.lm_head(decoder(embeds, torch.arange(3)[None]))[:, -1]
    assert (after - before).abs().max() > 1e-3
    torch.testing.assert_close(after, plain, atol=1e-4, rtol=0)
