"""Adapters on a small model: what they change, and when."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import peft
import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from lapilli.checkpoints.hf_names import to_ours
from lapilli.errors import ConfigError
from lapilli.inputs import Inputs
from lapilli.model import lora, matrices
from lapilli.model.cache import KVCache, Span, Stretch
from lapilli.model.llava import Llava
from lapilli.model.lora import LoraSettings, add_lora, decoder_linears
from lapilli.model.matrices import StepMatrices
from lapilli.model.spec import DecoderSpec, LlavaSpec, VisionSpec
from lapilli.model.step import Stepper

VOCAB, NUM_PLACES = 50, 4
SPEC = LlavaSpec(
    VisionSpec(16, 8, 32, 2, 2, 48), DecoderSpec(VOCAB, 32, 3, 4, 2, 8, 48), image_token_id=5
)
SETTINGS = LoraSettings(
    rank=4, alpha=6, ranks={"language_model.layers.1.mlp.up_proj": 2},
    alphas={"language_model.layers.0.attention.q_proj": 3},
)  # fmt: skip


@pytest.fixture
def model() -> Llava:
    torch.manual_seed(0)
    return Llava(SPEC).eval()


def learn(model: Llava) -> None:
    """Give the adapter something that it could have learned."""
    torch.manual_seed(1)
    for value in lora.lora_parameters(model).values():
        torch.nn.init.normal_(value, 0, 0.2)


def inputs() -> Inputs:
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(6, VOCAB, (2, 9), generator=generator)
    ids[:, 2 : 2 + NUM_PLACES] = SPEC.image_token_id
    return Inputs(
        ids,
        torch.arange(9).expand(2, -1),
        torch.zeros(2, 9, dtype=torch.long),
        pixel_values=torch.randn(2, 3, 16, 16, generator=generator),
    )


@torch.inference_mode()
def logits(model: Llava) -> Tensor:
    return model(**inputs())


def test_a_new_adapter_changes_nothing(model: Llava) -> None:
    before = logits(model)
    add_lora(model, decoder_linears(model), SETTINGS)
    assert torch.equal(logits(model), before)


def test_an_adapter_goes_on_every_linear_layer_of_the_decoder_alone(model: Llava) -> None:
    add_lora(model, decoder_linears(model), SETTINGS)
    names = lora.lora_layers(model)
    assert len(names) == 3 * 7
    assert all(name.startswith("language_model.layers.") for name in names)


def test_only_the_adapter_learns(model: Llava) -> None:
    add_lora(model, decoder_linears(model), SETTINGS)
    learning = {name for name, value in model.named_parameters() if value.requires_grad}
    assert learning == lora.lora_parameters(model).keys()
    assert len(learning) == 2 * 3 * 7
    model(**inputs()).sum().backward()
    assert all(value.grad is not None for value in lora.lora_parameters(model).values())


def test_single_layers_have_their_own_rank_and_alpha(model: Llava) -> None:
    add_lora(model, decoder_linears(model), SETTINGS)
    layers = lora.lora_layers(model)
    up, query = (
        layers["language_model.layers.1.mlp.up_proj"],
        layers["language_model.layers.0.attention.q_proj"],
    )
    assert {
        name: layer.r["default"] for name, layer in layers.items() if layer.r["default"] != 4
    } == {"language_model.layers.1.mlp.up_proj": 2}
    assert (up.scaling["default"], query.scaling["default"]) == (3.0, 0.75)
    for name, layer in layers.items():
        assert layer.scaling["default"] == SETTINGS.scale_of(name)


@pytest.mark.parametrize("is_rank_stabilized", [False, True])
def test_merged_and_apart_give_equal_logits(model: Llava, is_rank_stabilized: bool) -> None:
    plain = logits(model)
    names = [*decoder_linears(model), "projector.linear_1", "vision_tower.layers.0.fc1"]
    add_lora(model, names, replace(SETTINGS, is_rank_stabilized=is_rank_stabilized))
    learn(model)
    apart = logits(model)
    assert (apart - plain).abs().max() > 0.1
    before = {name: value.clone() for name, value in model.state_dict().items()}

    lora.merge(model)
    torch.testing.assert_close(logits(model), apart, atol=1e-5, rtol=0)
    lora.unmerge(model)
    torch.testing.assert_close(logits(model), apart, atol=1e-5, rtol=0)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], atol=1e-6, rtol=0)

    lora.merge_and_unload(model)
    torch.testing.assert_close(logits(model), apart, atol=1e-5, rtol=0)


@pytest.mark.parametrize("is_merged", [False, True])
def test_an_unloaded_model_is_as_one_that_never_had_an_adapter(
    model: Llava, is_merged: bool
) -> None:
    names = model.state_dict().keys()
    add_lora(model, decoder_linears(model), SETTINGS)
    learn(model)
    if is_merged:
        lora.merge(model)
    lora.merge_and_unload(model)
    assert model.state_dict().keys() == names
    assert not lora.lora_layers(model)
    add_lora(model, decoder_linears(model), SETTINGS)


def test_bf16_weights_are_merged_through_fp32(model: Llava) -> None:
    model = model.bfloat16()
    name = "language_model.layers.0.mlp.down_proj"
    weight = model.get_submodule(name).weight.detach().clone()
    add_lora(model, [name], LoraSettings(rank=4, alpha=1.7))
    learn(model)
    a, b = (value.detach().double() for value in lora.lora_parameters(model).values())
    lora.merge_and_unload(model)
    wanted = (weight.double() + 1.7 / 4 * (b @ a)).bfloat16()
    assert torch.equal(model.get_submodule(name).weight, wanted)


def test_inputs_are_dropped_in_training_alone(model: Llava) -> None:
    add_lora(model, decoder_linears(model), replace(SETTINGS, dropout=0.5))
    learn(model)
    assert torch.equal(logits(model.eval()), logits(model))
    model.train()
    assert not torch.equal(logits(model), logits(model))


@pytest.mark.parametrize("came_as", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_one_token_steps_know_the_adapter(came_as: torch.dtype) -> None:
    torch.manual_seed(0)
    spec = replace(SPEC, decoder=replace(SPEC.decoder, has_qkv_bias=True))
    model = Llava(spec).eval().to(came_as).float()
    names = [name for name in decoder_linears(model) if "k_proj" not in name]
    add_lora(model, [*names, "language_model.lm_head"], SETTINGS)
    learn(model)
    decoder = model.language_model
    ids = torch.randint(VOCAB, (2, 10))
    with torch.inference_mode():
        wanted = decoder.lm_head(decoder(decoder.embed_tokens(ids), torch.arange(10).expand(2, -1)))

    kept = StepMatrices(decoder)
    is_halved = isinstance(kept.head.matrix, matrices.HalvedMatrix)
    assert is_halved == (came_as == torch.bfloat16 and matrices.can_halve(decoder))
    assert_steps_give(kept, ids, wanted)
    lora.merge(model)
    assert_steps_give(StepMatrices(decoder), ids, wanted)
    lora.unmerge(model)
    lora.merge_and_unload(model)
    assert_steps_give(StepMatrices(decoder), ids, wanted)


@torch.inference_mode()
def assert_steps_give(made: StepMatrices, ids: Tensor, wanted: Tensor) -> None:
    decoder = made.decoder
    cache = KVCache(decoder.spec, 32, ids.device, torch.float32)
    places: list[list[Stretch]] = [[(0, 16)], [(16, 32)]]
    read = cache.read([Span(stretches, 0, 6) for stretches in places])
    embeds = decoder.embed_tokens(ids[:, :6].reshape(1, -1))
    decoder(embeds, torch.arange(6).repeat(2)[None], None, read)
    stepper = Stepper(made, 16)
    for place in range(6, ids.shape[1]):
        view = cache.step([Span(stretches, place, 1) for stretches in places])
        logits = stepper(ids[:, place], torch.full((2,), place), view)
        torch.testing.assert_close(logits, wanted[:, place], atol=1e-4, rtol=0)


# Against PEFT on a model of `transformers`


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")  # PEFT asks for the old name
@torch.inference_mode()
def test_logits_equal_those_of_peft_on_transformers(model: Llava) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, rms_norm_eps=1e-5,
    )  # fmt: skip
    theirs = LlamaForCausalLM(config).eval()
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    adapted = peft.get_peft_model(
        theirs, peft.LoraConfig(r=3, lora_alpha=5, target_modules=targets, use_rslora=True)
    ).eval()
    for name, value in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(value, 0, 0.2)
    ids = torch.randint(VOCAB, (2, 11))
    wanted = adapted(input_ids=ids).logits

    add_lora(model, decoder_linears(model), LoraSettings(3, 5, is_rank_stabilized=True))
    ours = {
        to_ours("language_model." + name.removeprefix("base_model.model.")): value
        for name, value in adapted.state_dict().items()
    }
    unknown = model.load_state_dict(ours, strict=False)
    assert not unknown.unexpected_keys
    assert all(not name.startswith("language_model") for name in unknown.missing_keys)
    decoder = model.language_model
    made = decoder.lm_head(decoder(decoder.embed_tokens(ids), torch.arange(11).expand(2, -1)))
    torch.testing.assert_close(made, wanted, atol=1e-5, rtol=0)


# What is refused


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["language_model.layers.9.mlp.up_proj"], "layers.9.mlp.up_proj"),
        (["language_model.embed_tokens"], "embed_tokens"),
        (["vision_tower.patch_embedding"], "patch_embedding"),
        ([], "nothing"),
    ],
)
def test_what_is_no_linear_layer_is_refused(model: Llava, names: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=f"can be put on .*{said}"):
        add_lora(model, names, SETTINGS)
    assert not lora.lora_layers(model)


def test_a_head_that_is_the_embeddings_is_refused() -> None:
    model = Llava(replace(SPEC, decoder=replace(SPEC.decoder, is_tied=True)))
    with pytest.raises(ConfigError, match="lm_head"):
        add_lora(model, ["language_model.lm_head"], SETTINGS)


def test_a_second_adapter_is_refused(model: Llava) -> None:
    add_lora(model, decoder_linears(model), SETTINGS)
    with pytest.raises(ConfigError, match="has an adapter"):
        add_lora(model, decoder_linears(model), SETTINGS)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"rank": 0}, "rank of an adapter is 0"),
        ({"ranks": {"a": -1}}, "rank of an adapter is -1"),
        ({"alpha": float("nan")}, "alpha of an adapter is nan"),
        ({"alphas": {"a": 0}}, "alpha of an adapter is 0"),
        ({"dropout": 1.0}, "dropout of an adapter is 1.0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(values: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        LoraSettings(**values)  # type: ignore[arg-type]


def test_without_peft_its_installation_is_named(
    model: Llava, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"pip install 'lapilli\[train\]'"):
        add_lora(model, decoder_linears(model), SETTINGS)


def test_a_model_without_an_adapter_imports_no_peft() -> None:
    code = "import sys, lapilli.model.lora, lapilli.model.matrices; print('peft' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
