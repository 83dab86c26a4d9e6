from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lapilli.model import matrices
from lapilli.model.decoder import Decoder, KVCache
from lapilli.model.masks import packed_mask
from lapilli.model.matrices import HalvedMatrix, OwnMatrix, StepMatrices, can_halve
from lapilli.model.spec import DecoderSpec
from lapilli.model.step import Stepper

# B rows, T tokens of the prompt, D width, V vocabulary

SPECS = {
    "llama": DecoderSpec(50, 32, 3, 4, 4, 8, 48, is_tied=True),
    "grouped": DecoderSpec(50, 32, 3, 4, 2, 8, 48),
    "biased": DecoderSpec(50, 32, 3, 4, 1, 16, 48, has_qkv_bias=True),
    "windowed": DecoderSpec(50, 32, 3, 4, 4, 8, 48, sliding_window=4),
}


@pytest.fixture(params=[(spec, came_as) for spec in SPECS for came_as in ("fp32", "bf16")])
def decoder(request: pytest.FixtureRequest) -> Decoder:
    """In fp32; weights that came as bf16 can be halved without loss."""
    spec, came_as = request.param
    torch.manual_seed(0)
    made = Decoder(SPECS[spec]).eval()
    for name, parameter in made.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return made if came_as == "fp32" else made.bfloat16().float()


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
    stepper = Stepper(StepMatrices(decoder), cache, positions, None)
    for place in range(6, 10):
        torch.testing.assert_close(stepper(ids[:, place]), whole[:, place], atol=1e-4, rtol=0)


@torch.inference_mode()
def test_padding_changes_nothing(decoder: Decoder) -> None:
    ids = torch.randint(50, (2, 8))
    groups = torch.zeros(2, 6, dtype=torch.long)
    groups[1, :4] = -1
    cache, positions = prompt(decoder, ids[:, :6], groups)
    padded = Stepper(StepMatrices(decoder), cache, positions, groups >= 0)
    cache, positions = prompt(decoder, ids[1:, 4:6], groups[1:, 4:])
    alone = Stepper(StepMatrices(decoder), cache, positions, None)
    for place in (6, 7):
        both = padded(ids[:, place])
        torch.testing.assert_close(both[1:], alone(ids[1:, place]), atol=1e-4, rtol=0)


@torch.inference_mode()
def test_rows_that_are_kept_go_on_as_before(decoder: Decoder) -> None:
    ids = torch.randint(50, (3, 8))
    groups = torch.zeros(3, 6, dtype=torch.long)
    groups[2, :3] = -1
    cache, positions = prompt(decoder, ids[:, :6], groups)
    stepper = Stepper(StepMatrices(decoder), cache, positions, groups >= 0)
    stepper(ids[:, 6])
    expected = stepper(ids[:, 7])[[0, 2]]
    cache.length -= 1
    stepper.positions -= 1
    stepper.keep(torch.tensor([0, 2]))
    torch.testing.assert_close(stepper(ids[[0, 2], 7]), expected, atol=1e-4, rtol=0)


def test_joined_weights_stay_those_of_the_decoder(decoder: Decoder) -> None:
    before = {name: value.clone() for name, value in decoder.state_dict().items()}
    num_bytes = sum(p.untyped_storage().nbytes() for p in set(decoder.parameters()))
    first, second = StepMatrices(decoder), StepMatrices(decoder)
    for name, value in decoder.state_dict().items():
        torch.testing.assert_close(value, before[name], atol=0, rtol=0)
    if isinstance(first.layers[0].qkv, OwnMatrix) and isinstance(second.layers[0].qkv, OwnMatrix):
        assert first.layers[0].qkv.weight.data_ptr() == second.layers[0].qkv.weight.data_ptr()
    storages = {p.untyped_storage().data_ptr(): p.untyped_storage() for p in decoder.parameters()}
    assert sum(storage.nbytes() for storage in storages.values()) == num_bytes


def test_training_after_a_step_reaches_matrices_made_anew(decoder: Decoder) -> None:
    ids, groups = torch.zeros(1, 2, dtype=torch.long), torch.zeros(1, 2, dtype=torch.long)
    with torch.inference_mode():
        cache, positions = prompt(decoder, ids, groups)
        stepper = Stepper(StepMatrices(decoder), cache, positions, None)
        before = stepper(ids[:, 0])
    decoder(decoder.embed_tokens(ids), torch.arange(2)[None]).sum().backward()
    torch.optim.SGD(decoder.parameters(), lr=0.1).step()
    with torch.inference_mode():
        cache, positions = prompt(decoder, ids, groups)
        after = Stepper(StepMatrices(decoder), cache, positions, None)(ids[:, 0])
        embeds = decoder.embed_tokens(ids[:, :1].expand(1, 3))
        plain = decoder.lm_head(decoder(embeds, torch.arange(3)[None]))[:, -1]
    assert (after - before).abs().max() > 1e-3
    torch.testing.assert_close(after, plain, atol=1e-4, rtol=0)


needs_halves = pytest.mark.skipif(
    "fbgemm" not in torch.backends.quantized.supported_engines,
    reason="this torch cannot multiply fp32 by fp16 on a CPU",
)


@needs_halves
def test_weights_that_came_as_bf16_are_halved_and_others_are_not() -> None:
    decoder = Decoder(SPECS["biased"])
    assert not can_halve(decoder)
    decoder.bfloat16().float()
    assert can_halve(decoder)
    assert isinstance(StepMatrices(decoder).head, HalvedMatrix)
    assert not can_halve(decoder.bfloat16())


@needs_halves
def test_a_large_decoder_keeps_to_its_own_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = Decoder(SPECS["llama"]).bfloat16().float()
    num_bytes = sum(p.nbytes for p in decoder.parameters() if p.ndim == 2)
    monkeypatch.setattr(matrices, "MAX_HALVED_BYTES", num_bytes)
    assert can_halve(decoder)
    monkeypatch.setattr(matrices, "MAX_HALVED_BYTES", num_bytes - 1)
    assert not can_halve(decoder)


@needs_halves
@pytest.mark.parametrize("has_bias", [False, True])
def test_halved_products_are_as_exact_as_fp32(has_bias: bool) -> None:
    torch.manual_seed(0)
    weight = (0.05 * torch.randn(300, 200)).bfloat16().float()
    bias = torch.randn(300) if has_bias else None
    x = torch.randn(5, 200)
    exact = x.double() @ weight.double().t() + (0 if bias is None else bias.double())
    out = torch.ones(5, 300)
    matrix = HalvedMatrix(weight, bias)
    matrix.write(x, out)
    torch.testing.assert_close(out.double(), exact, atol=1e-5, rtol=0)
    matrix.add(x, out)
    torch.testing.assert_close(out.double(), 2 * exact, atol=2e-5, rtol=0)
    one = torch.empty(1, 300)
    matrix.write(x[3:4], one)
    exact_row = torch.empty(5, 300)
    matrix.write(x, exact_row)
    assert torch.equal(one, exact_row[3:4])
