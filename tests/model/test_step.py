from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from lapilli.model import matrices
from lapilli.model.cache import KVCache, Span, Stretch
from lapilli.model.decoder import Decoder
from lapilli.model.matrices import HalvedMatrix, OwnMatrix, StepMatrices, can_halve
from lapilli.model.quantize import quantize
from lapilli.model.spec import DecoderSpec
from lapilli.model.step import Stepper

# B rows, T tokens, V vocabulary

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


PLACES: list[list[Stretch]] = [[(0, 16)], [(20, 23), (40, 53)], [(60, 76)]]


def read(decoder: Decoder, texts: Sequence[Tensor]) -> KVCache:
    """A cache that holds texts, each (T,)."""
    cache = KVCache(decoder.spec, 80, torch.device("cpu"), torch.float32)
    for ids, stretches in zip(texts, PLACES, strict=False):
        view = cache.read([Span(stretches, 0, len(ids))])
        decoder(decoder.embed_tokens(ids[None]), torch.arange(len(ids))[None], None, view)
    return cache


def step(
    decoder: Decoder, cache: KVCache, tokens: Tensor, lengths: list[int], rows: list[int]
) -> Tensor:
    """The (B, V) logits behind one more token of each of `rows`."""
    spans = [Span(PLACES[row], lengths[row], 1) for row in rows]
    positions = torch.tensor([lengths[row] for row in rows])
    return Stepper(StepMatrices(decoder), 16)(tokens, positions, cache.step(spans))


def plain(decoder: Decoder, ids: Tensor) -> Tensor:
    """The (T, V) logits of a text that is read at once."""
    return decoder.lm_head(decoder(decoder.embed_tokens(ids[None]), torch.arange(len(ids))[None]))[
        0
    ]


@torch.inference_mode()
def test_steps_equal_the_plain_decoder_over_the_whole_text(decoder: Decoder) -> None:
    texts, lengths = torch.randint(50, (3, 12)), [6, 3, 8]
    whole = [plain(decoder, ids) for ids in texts]
    cache = read(decoder, [ids[:n] for ids, n in zip(texts, lengths, strict=True)])
    for _ in range(4):
        tokens = torch.stack([ids[n] for ids, n in zip(texts, lengths, strict=True)])
        made = step(decoder, cache, tokens, lengths, [0, 1, 2])
        for row, length in enumerate(lengths):
            torch.testing.assert_close(made[row], whole[row][length], atol=1e-4, rtol=0)
        lengths = [n + 1 for n in lengths]


@torch.inference_mode()
def test_rows_come_and_go_without_a_trace(decoder: Decoder) -> None:
    texts, lengths = torch.randint(50, (3, 12)), [6, 3, 8]
    whole = [plain(decoder, ids) for ids in texts]
    cache = read(decoder, [ids[:n] for ids, n in zip(texts, lengths, strict=True)])
    for rows in ([0, 1, 2], [2, 0], [1], [0, 2, 1]):
        tokens = torch.stack([texts[row][lengths[row]] for row in rows])
        made = step(decoder, cache, tokens, lengths, rows)
        for place, row in enumerate(rows):
            torch.testing.assert_close(made[place], whole[row][lengths[row]], atol=1e-4, rtol=0)
            lengths[row] += 1


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
    text = torch.zeros(3, dtype=torch.long)

    @torch.inference_mode()
    def after_a_step() -> Tensor:
        return step(decoder, read(decoder, [text[:2]]), text[2:], [2], [0])[0]

    before = after_a_step()
    decoder(decoder.embed_tokens(text[None]), torch.arange(3)[None]).sum().backward()
    torch.optim.SGD(decoder.parameters(), lr=0.1).step()
    after = after_a_step()
    assert (after - before).abs().max() > 1e-3
    with torch.inference_mode():
        torch.testing.assert_close(after, plain(decoder, text)[-1], atol=1e-4, rtol=0)


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
    # Its head alone is another matter.
    monkeypatch.setattr(matrices, "MAX_HALVED_BYTES", 0)
    quantize(decoder, "int8", torch.device("cpu"))
    assert isinstance(StepMatrices(decoder).head, HalvedMatrix)
    monkeypatch.setattr(matrices, "MAX_HALVED_HEAD_BYTES", decoder.lm_head.weight.nbytes - 1)
    assert isinstance(StepMatrices(decoder).head, OwnMatrix)


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
