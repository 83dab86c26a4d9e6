"""Weights of 8 and 4 bits: the numbers, the products, and a decoder that is made of them."""

from __future__ import annotations

import warnings
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from lapilli.errors import ConfigError
from lapilli.model import quantize as quantizing
from lapilli.model.cache import Span
from lapilli.model.decoder import Decoder
from lapilli.model.matrices import StepMatrices
from lapilli.model.quantize import (
    GROUP_INPUTS,
    Int4Packed,
    Int4Plain,
    Int8Packed,
    Int8Plain,
    has_packed_int8,
    int4_codes,
    int8_codes,
    quantize,
    quantized_layers,
)
from lapilli.model.small_cache import KEPT, make_cache
from lapilli.model.spec import DecoderSpec
from lapilli.model.step import Stepper

# B rows, I inputs, O outputs, T tokens

CPU = torch.device("cpu")
SPECS = {
    "grouped": DecoderSpec(50, 64, 3, 4, 2, 16, 96),
    "biased": DecoderSpec(50, 64, 3, 4, 1, 16, 96, has_qkv_bias=True, is_tied=True),
}
BITS = ["int8", "int4"]
needs_packed_int8 = pytest.mark.skipif(
    not has_packed_int8(), reason="this torch multiplies no packed weights of 8 bits"
)
KINDS = [
    pytest.param(Int8Packed, 3e-4, id="int8 packed", marks=needs_packed_int8),
    pytest.param(Int8Plain, 1e-6, id="int8 plain"),
    pytest.param(Int4Packed, 6e-3, id="int4 packed"),  # bf16 has 8 bits
    pytest.param(Int4Plain, 1e-6, id="int4 plain"),
]


def weights(outputs: int = 112, inputs: int = 160) -> Tensor:
    return 0.05 * torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(0))


def distance(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


@pytest.fixture(scope="module")
def torchao() -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("torchao.quantization.quant_primitives")


@pytest.mark.slow  # to import torchao takes seconds
def test_int8_codes_and_steps_equal_those_of_torchao(torchao: object) -> None:
    from torchao.quantization.granularity import PerRow
    from torchao.quantization.quantize_.workflows import Int8Tensor

    weight = weights()
    theirs = Int8Tensor.from_hp(weight, PerRow())
    codes, scale = int8_codes(weight)
    assert torch.equal(codes, theirs.qdata)
    assert torch.equal(scale, theirs.scale)


@pytest.mark.slow
def test_int4_steps_and_zeros_equal_those_of_torchao_rounded_to_bf16(torchao: object) -> None:
    weight = weights()
    block, unsigned = [1, GROUP_INPUTS], torch.int32
    scale, zero = torchao._choose_qparams_affine_tinygemm(  # type: ignore[attr-defined]
        weight,
        torchao.MappingType.ASYMMETRIC,
        block,
        unsigned,
        0,
        15,
        1e-6,
        None,
        torch.float32,  # type: ignore[attr-defined]
    )
    codes = torchao._quantize_affine_tinygemm(weight, block, scale, zero, unsigned, 0, 15)  # type: ignore[attr-defined]
    ours, our_scale, our_zero = int4_codes(weight)
    assert torch.equal(our_scale[..., 0], scale.bfloat16())
    assert torch.equal(our_zero[..., 0], zero.bfloat16())
    # Steps a little longer or shorter: some weights are nearer to the next code.
    apart = (ours.flatten(1).int() - codes.view_as(weight)).abs()
    assert apart.max() <= 1
    assert apart.float().mean() < 0.05


@pytest.mark.parametrize(("kind", "bound"), [("int8", 0.5), ("int4", 0.52)])
def test_no_weight_is_further_from_its_code_than_half_a_step(kind: str, bound: float) -> None:
    weight = weights()
    weight[3] = 0
    weight[5] = 7.0
    if kind == "int8":
        codes, scale = int8_codes(weight)
        off = (codes * scale - weight).abs() / scale
    else:
        # Rounded to bf16, 15 steps may fall short of the outermost weight.
        made, scale, zero = int4_codes(weight)
        groups = weight.unflatten(1, (-1, GROUP_INPUTS))
        off = ((made.float() - 8) * scale.float() + zero.float() - groups).abs() / scale.float()
        off = off[[row for row in range(len(off)) if row not in (3, 5)]]
        assert (Int4Plain(weight).widened(torch.float32)[5] - 7).abs().max() < 0.02
    assert off.max() <= bound + 1e-4


@pytest.mark.parametrize(("kind", "bound"), KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_a_product_rounds_weights_and_little_else(
    kind: type[Int8Packed], bound: float, dtype: torch.dtype
) -> None:
    # Numbers of few bits fall between two digits often.
    weight, x = (
        weights(),
        torch.randn(200, 160, generator=torch.Generator().manual_seed(1)).to(dtype),
    )
    plain = Int8Plain if kind in (Int8Packed, Int8Plain) else Int4Plain
    widened = plain(weight).widened(torch.float32)
    exact = x.double() @ widened.double().t()
    # A plain product computes in the type of what comes.
    bound = max(bound, 6e-3) if kind is plain and dtype == torch.bfloat16 else bound
    made = kind.product(x, [kind(weight)])
    assert max(map(distance, made, exact)) < 1.5 * bound  # the worst of 200 rows
    assert distance(widened, weight) < (0.01 if plain is Int8Plain else 0.1)


@pytest.mark.parametrize("kind", [pytest.param(Int8Packed, marks=needs_packed_int8), Int4Packed])
@pytest.mark.parametrize("rows", [2, 3, 16, 70])
def test_a_row_of_a_batch_gives_the_bits_it_gives_alone(kind: type[Int8Packed], rows: int) -> None:
    held, x = kind(weights()), torch.randn(rows, 160)
    x[1] *= 1000  # a loud neighbor
    together = kind.product(x, [held])
    for row in range(rows):
        assert torch.equal(together[row : row + 1], kind.product(x[row : row + 1], [held]))


@needs_packed_int8
def test_rows_of_nothing_and_of_no_numbers_stay_such() -> None:
    held, x = Int8Packed(weights()), torch.randn(4, 160)
    x[0], x[1, 3], x[2, 5] = 0, torch.nan, torch.inf
    made = Int8Packed.product(x, [held])
    assert torch.equal(made[0], torch.zeros(112))
    assert not made[1:3].isfinite().any()
    assert made[3].isfinite().all()


@needs_packed_int8
def test_the_largest_sums_do_not_overflow() -> None:
    signs = torch.tensor([[1.0], [-1.0]])
    made = Int8Packed.product(signs.expand(2, 4864), [Int8Packed(signs.expand(2, 4864))])
    # The largest weight is half a step from its code.
    torch.testing.assert_close(made, 4864 * signs @ signs.t(), rtol=0.5 / 127, atol=0)


@pytest.fixture(params=SPECS)
def decoder(request: pytest.FixtureRequest) -> Decoder:
    torch.manual_seed(0)
    return Decoder(SPECS[request.param]).eval()


def logits(decoder: Decoder, ids: Tensor) -> Tensor:
    positions = torch.arange(ids.shape[1])[None].expand_as(ids)
    return decoder.lm_head(decoder(decoder.embed_tokens(ids), positions))


@pytest.mark.parametrize(("bits", "bound"), [("int8", 0.02), ("int4", 0.2)])
@torch.inference_mode()
def test_logits_are_near_those_of_whole_weights(decoder: Decoder, bits: str, bound: float) -> None:
    # Weights are off by 0.6 % and 8 %; three layers add up about as many errors as they shrink.
    ids = torch.randint(50, (2, 12))
    whole = logits(decoder, ids)
    quantize(decoder, bits, CPU)
    apart = distance(logits(decoder, ids), whole)
    assert 1e-4 < apart < bound


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("kept", [None, *KEPT])
@torch.inference_mode()
def test_steps_equal_the_decoder_that_reads_all_at_once(
    decoder: Decoder, bits: str, kept: str | None
) -> None:
    quantize(decoder, bits, CPU)
    texts, lengths = torch.randint(50, (3, 12)), [6, 3, 8]
    places = [[(0, 16)], [(20, 23), (40, 53)], [(60, 76)]]
    cache = make_cache(decoder.spec, 80, CPU, torch.float32, kept)  # type: ignore[arg-type]
    for ids, n, at in zip(texts, lengths, places, strict=True):
        view = cache.read([Span(at, 0, n)])
        decoder(decoder.embed_tokens(ids[None, :n]), torch.arange(n)[None], None, view)
    tokens = torch.stack([ids[n] for ids, n in zip(texts, lengths, strict=True)])
    spans = [Span(at, n, 1) for at, n in zip(places, lengths, strict=True)]
    stepper = Stepper(StepMatrices(decoder), 16)
    made = stepper(tokens, torch.tensor(lengths), cache.step(spans))
    for row, n in enumerate(lengths):
        # int4's product rounds activations to bf16, a cache its numbers.
        bound = 1e-3 if bits == "int8" and kept is None else 0.02
        assert distance(made[row], logits(decoder, texts[row : row + 1])[0, n]) < bound


@pytest.mark.parametrize(("bits", "share"), [("int8", 0.28), ("int4", 0.16)])
def test_layers_take_that_share_of_their_fp32_bytes(
    decoder: Decoder, bits: str, share: float
) -> None:
    others = {name: p for name, p in decoder.named_parameters() if "layers" not in name}
    before = sum(m.weight.nbytes for m in decoder.layers.modules() if isinstance(m, nn.Linear))
    quantize(decoder, bits, CPU)
    assert sum(layer.weight.num_bytes for layer in quantized_layers(decoder)) <= share * before
    assert not any(p.ndim == 2 for p in decoder.layers.parameters())
    assert others == {n: p for n, p in decoder.named_parameters() if "layers" not in n}


@needs_packed_int8
def test_packed_bytes_are_what_is_held(decoder: Decoder) -> None:
    quantize(decoder, "int8", CPU)
    for layer in quantized_layers(decoder):
        assert isinstance(layer.weight, Int8Packed)
        held, _ = torch.ops.quantized.linear_unpack(layer.weight.packed)
        codes, scales = held.int_repr(), held.q_per_channel_scales().float()
        assert layer.weight.num_bytes == codes.nbytes + scales.nbytes


@pytest.mark.parametrize("bits", BITS)
@torch.inference_mode()
def test_every_device_can_hold_them_plain(
    decoder: Decoder, bits: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = torch.randint(50, (2, 12))
    packed = deepcopy(decoder)
    quantize(packed, bits, CPU)
    plain = Int8Plain if bits == "int8" else Int4Plain
    monkeypatch.setattr(quantizing, "_kind", lambda bits, device: plain)
    quantize(decoder, bits, CPU)
    assert all(isinstance(layer.weight, plain) for layer in quantized_layers(decoder))
    assert distance(logits(packed, ids), logits(decoder, ids)) < 0.01


@pytest.mark.parametrize("bits", BITS)
@torch.inference_mode()
def test_casting_the_decoder_leaves_quantized_weights_as_they_are(
    decoder: Decoder, bits: str
) -> None:
    quantize(decoder, bits, CPU)
    ids = torch.randint(50, (1, 12))
    before = logits(decoder, ids)
    decoder.bfloat16()
    after = logits(decoder, ids)
    assert after.dtype == torch.bfloat16
    assert distance(after, before) < 0.03


def test_an_unknown_kind_is_refused(decoder: Decoder) -> None:
    with pytest.raises(ConfigError, match="quantize is 'int2'; give int8 or int4"):
        quantize(decoder, "int2", CPU)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (DecoderSpec(50, 48, 1, 4, 4, 16, 96), "takes 48 to 64; inputs must come in groups of 32"),
        (DecoderSpec(50, 64, 1, 4, 1, 8, 96), "takes 64 to 8; inputs .* outputs of 16"),
    ],
)
def test_widths_that_int4_cannot_hold_are_refused_before_anything_is_changed(
    spec: DecoderSpec, said: str
) -> None:
    made = Decoder(spec)
    with pytest.raises(ConfigError, match=said):
        quantize(made, "int4", CPU)
    assert not list(quantized_layers(made))
    quantize(made, "int8", CPU)
