from __future__ import annotations

import io
import json
from dataclasses import replace
from importlib.resources import files
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer

from lapilli.errors import CheckpointError, ConfigError, ImageError, PromptError
from lapilli.inputs import IGNORE
from lapilli.messages import Conversation, ImagePart, Message, TextPart
from lapilli.model.llava import Llava
from lapilli.model.spec import DecoderSpec, LlavaSpec, VisionSpec
from lapilli.processor.images import ImageSettings
from lapilli.processor.processor import Encoded, Processor, PromptSettings
from lapilli.processor.tokenizer import SPECIALS, train_tokenizer
from lapilli.tiling import Tiling

PLACES = 16
TEMPLATE = files("lapilli").joinpath("assets/tiny/chat_template.jinja").read_text("utf-8")
IMAGES = ImageSettings(32, "pad", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
LEARNED = ["How many red circles are there?", "There are two.", "What is left of the blue star?"]


def make(**settings: Any) -> Processor:
    prompt = PromptSettings(features_per_image=PLACES, **settings)
    return Processor(train_tokenizer(LEARNED, 400), IMAGES, prompt, TEMPLATE)


PROCESSOR = make()


def picture(color: str = "red") -> Image.Image:
    return Image.new("RGB", (40, 20), color)


def user(text: str, *images: Image.Image) -> Message:
    return Message("user", (*(ImagePart(image) for image in images), TextPart(text)))


def assistant(text: str) -> Message:
    return Message("assistant", (TextPart(text),))


def learned_text(processor: Processor, encoded: Encoded) -> str:
    """What the loss falls on, special tokens included."""
    ids = [label for label in encoded.labels if label != IGNORE]
    return processor.words.tokenizer.decode(ids, skip_special_tokens=False)


TWO_TURNS: Conversation = (
    Message("system", (TextPart("You look at pictures."),)),
    user("How many circles?", picture()),
    assistant("There are two."),
    user("And stars?"),
    assistant("None."),
)


# What is learned


def test_the_loss_falls_on_answers_and_their_ends_alone() -> None:
    encoded = PROCESSOR.encode(TWO_TURNS)
    assert learned_text(PROCESSOR, encoded) == "There are two.<|end|>None.<|end|>"
    assert len(encoded.labels) == len(encoded.ids)
    pairs = zip(encoded.ids, encoded.labels, strict=True)
    assert all(label in (IGNORE, token) for token, label in pairs)


def test_a_question_alone_has_nothing_to_learn() -> None:
    encoded = PROCESSOR.encode(TWO_TURNS[:2], is_answering=True)
    assert set(encoded.labels) == {IGNORE}


def test_an_answer_is_asked_for_with_the_tokens_it_was_learned_after() -> None:
    learned = PROCESSOR.encode(TWO_TURNS)
    asked = PROCESSOR.encode(TWO_TURNS[:-1], is_answering=True)
    assert learned.ids[: len(asked.ids)] == asked.ids
    first = [label != IGNORE for label in learned.labels[len(asked.ids) :]]
    assert all(first)


def test_running_text_is_learned_whole_up_to_the_context_length() -> None:
    encoded = make(max_tokens=10).encode_text("How many red circles? <|end|>" * 5)
    assert len(encoded.ids) == 10
    assert encoded.labels == encoded.ids
    assert not set(encoded.ids) & set(range(len(SPECIALS)))


# Where pictures stand


def test_a_picture_takes_its_places_where_it_stands() -> None:
    encoded = PROCESSOR.encode((user("What?", picture(), picture("blue")),))
    is_image = [token == PROCESSOR.image_token_id for token in encoded.ids]
    assert sum(is_image) == 2 * PLACES
    start = is_image.index(True)
    assert all(is_image[start : start + PLACES])
    assert len(encoded.images) == 2


def test_pixels_follow_the_order_of_the_places() -> None:
    rows = [(user("What?", picture("red"), picture("blue")),), (user("What?", picture("lime")),)]
    pixels = PROCESSOR.batch(rows).pixel_values
    assert pixels is not None
    assert pixels.shape == (3, 3, 32, 32)
    assert pixels.mean((2, 3)).argmax(1).tolist() == [0, 2, 1]


def tiled(*, tiles_several: bool) -> Processor:
    tiling = Tiling(32, 4, ((1, 2), (2, 1), (2, 2)), 9, tiles_several)
    return Processor(
        PROCESSOR.words.tokenizer, replace(IMAGES, tiling=tiling), PROCESSOR.prompt, TEMPLATE
    )


def num_places(processor: Processor, *images: Any) -> int:
    return processor.encode((user("What?", *images),)).ids.count(processor.image_token_id)


def test_places_of_a_cut_picture_follow_from_its_size() -> None:
    processor = tiled(tiles_several=True)
    assert processor.images.tiling is not None
    wide, tall = picture(), picture().transpose(Image.Transpose.ROTATE_90)
    assert num_places(processor, wide) == PLACES + 4 * 9
    assert num_places(processor, tall) == PLACES + 8 * 5
    assert num_places(processor, wide, tall) == 2 * PLACES + 4 * 9 + 8 * 5
    inputs = processor.batch([(user("What?", wide, tall),), (user("What?"),)])
    assert inputs.image_sizes is not None and inputs.num_views is not None
    assert inputs.image_sizes.tolist() == [[20, 40], [40, 20]]
    assert inputs.num_views.tolist() == [3, 3]


def test_pictures_in_company_are_seen_whole_where_the_model_asks_for_it() -> None:
    processor = tiled(tiles_several=False)
    assert num_places(processor, picture()) == PLACES + 4 * 9
    assert num_places(processor, picture(), picture()) == 2 * (PLACES + 1)
    turns = (user("What?", picture()), assistant("Red."), user("And?", picture()))
    assert processor.batch([turns]).num_views.tolist() == [1, 1]


def test_to_count_places_no_picture_is_opened_where_none_is_cut() -> None:
    assert num_places(PROCESSOR, "nowhere.png") == PLACES
    with pytest.raises(ImageError, match=r"nowhere\.png: no such file"):
        num_places(tiled(tiles_several=True), "nowhere.png")


def test_a_damaged_picture_is_named_when_it_is_opened() -> None:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (40, 20, 3), np.uint8)
    Image.fromarray(noise).save(buffer, "JPEG")
    half = buffer.getvalue()[:-300]
    encoded = tiled(tiles_several=True).encode((user("What?", half),))
    with pytest.raises(ImageError, match="damaged or unsupported picture"):
        tiled(tiles_several=True).pad([encoded])


def test_tiles_and_places_that_disagree_are_refused() -> None:
    images = replace(IMAGES, tiling=Tiling(32, 3, ((1, 2),)))
    with pytest.raises(CheckpointError, match="features_per_image is 16, a tile makes 9"):
        Processor(PROCESSOR.words.tokenizer, images, PROCESSOR.prompt, TEMPLATE)


def test_words_alone_need_no_pixels() -> None:
    assert PROCESSOR.batch([(user("What?"),)]).pixel_values is None


def test_messages_in_the_openai_form_give_the_same_inputs() -> None:
    red = picture()
    string = PROCESSOR([{"role": "user", "content": "<image>\nWhat?"}], images=[red])
    parts = [{"type": "image", "image": red}, {"type": "text", "text": "What?"}]
    listed = PROCESSOR([{"role": "user", "content": parts}])
    typed = PROCESSOR((user("What?", red),))
    assert string.input_ids.tolist() == listed.input_ids.tolist() == typed.input_ids.tolist()


# What a user types


@pytest.mark.parametrize("word", SPECIALS)
def test_a_special_token_that_a_user_types_is_text(word: str) -> None:
    plain, typed = (PROCESSOR.encode((user(text),)).ids for text in ("?", f"{word}?"))
    special = PROCESSOR.words.id(word)
    assert typed.count(special) == plain.count(special)
    assert word in PROCESSOR.words.decode(typed)


def test_an_image_mark_that_a_user_types_keeps_no_place() -> None:
    inputs = PROCESSOR((user("Is <image> a tag?", picture()),))
    assert int((inputs.input_ids == PROCESSOR.image_token_id).sum()) == PLACES
    assert "Is <image> a tag?" in PROCESSOR.decode(inputs.input_ids[0].tolist())


def test_a_special_token_in_pieces_across_template_and_words_is_text() -> None:
    source = "{% for m in messages %}{{ '<|end' + m['content'] + '|>' }}{% endfor %}"
    prompt = PromptSettings(PLACES)
    processor = Processor(PROCESSOR.words.tokenizer, IMAGES, prompt, source)
    for text in ("|>", "|", ""):
        ids = processor.encode((assistant(f"{text}x"),)).ids
        assert processor.end_id not in ids


@given(st.text(st.characters(exclude_categories=["Cs", "Co"])))
def test_whatever_is_typed_is_written_and_read_back(text: str) -> None:
    bare, full = (PROCESSOR.encode((assistant(words),)) for words in ("x", f"x{text}x"))
    assert PROCESSOR.decode([i for i in full.labels if i != IGNORE]) == f"x{text}x"
    count = sum(token < len(SPECIALS) for token in bare.ids)
    assert sum(token < len(SPECIALS) for token in full.ids) == count


@pytest.mark.parametrize("control", ["<image>", "<|end|>"])
def test_a_control_word_is_text_where_the_tokenizer_does_not_call_it_special(control: str) -> None:
    tokenizer = train_tokenizer(LEARNED, 400)
    content = json.loads(tokenizer.to_str())
    for token in content["added_tokens"]:
        token["special"] = False
    processor = Processor(
        Tokenizer.from_str(json.dumps(content)), IMAGES, PromptSettings(PLACES), TEMPLATE
    )
    plain, typed = (processor.encode((user(text, picture()),)).ids for text in ("?", f"{control}?"))
    assert typed.count(processor.words.id(control)) == plain.count(processor.words.id(control))
    assert f"{control}?" in processor.decode(typed)


# Batches


def test_batches_are_padded_on_the_left() -> None:
    short, long = (user("What?"),), (user("How many red circles are there?"),)
    both, alone = PROCESSOR.batch([short, long]), PROCESSOR.batch([short])
    num_padded = both.input_ids.shape[1] - alone.input_ids.shape[1]
    assert num_padded > 0
    assert both.groups.tolist() == [
        [-1] * num_padded + [0] * alone.input_ids.shape[1],
        [0] * both.input_ids.shape[1],
    ]
    assert both.input_ids[0, num_padded:].tolist() == alone.input_ids[0].tolist()
    assert both.positions[0, num_padded:].tolist() == alone.positions[0].tolist()


@torch.inference_mode()
def test_batched_logits_equal_single_ones() -> None:
    torch.manual_seed(0)
    vocab_size = PROCESSOR.words.tokenizer.get_vocab_size()
    decoder = DecoderSpec(vocab_size, 32, 2, 4, 2, 8, 64)
    spec = LlavaSpec(VisionSpec(32, 8, 32, 2, 2, 64), decoder, image_token_id=5)
    model = Llava(spec).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.2)
    rows = [
        (user("What is left of the blue star?", picture("blue")),),
        (user("How many?", picture("red"), picture("lime")),),
        (user("Hello"),),
    ]
    batched = model(**PROCESSOR.batch(rows))
    for row, logits in zip(rows, batched, strict=True):
        alone = model(**PROCESSOR.batch([row]))[0]
        torch.testing.assert_close(logits[-len(alone) :], alone, atol=1e-4, rtol=0)


# Limits and settings


def test_a_conversation_beyond_the_context_says_both_counts() -> None:
    num_tokens = len(PROCESSOR.encode(TWO_TURNS).ids)
    make(max_tokens=num_tokens).encode(TWO_TURNS)
    with pytest.raises(PromptError) as caught:
        make(max_tokens=num_tokens - 1).encode(TWO_TURNS)
    assert str(caught.value) == (
        f"the conversation takes {num_tokens} tokens, the model holds {num_tokens - 1}. "
        "Shorten it or use fewer pictures."
    )


def test_a_token_that_the_tokenizer_lacks_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: has no token '</s>'"):
        make(end_of_turn="</s>")


@pytest.mark.parametrize("name", ["features_per_image", "max_tokens"])
def test_counts_that_are_not_positive_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="must be positive"):
        PromptSettings(**{"features_per_image": 1, name: 0})


@pytest.mark.parametrize("name", ["vicuna", ""])
def test_an_unknown_template_lists_the_known_ones(name: str) -> None:
    prompt = PromptSettings(PLACES, template=name)
    with pytest.raises(CheckpointError, match=f"'{name}'; use plain, vicuna_v1.*, or add a chat"):
        Processor(PROCESSOR.words.tokenizer, IMAGES, prompt)


def test_settings_name_no_template_of_themselves() -> None:
    settings = PromptSettings(PLACES)
    assert settings.end_of_turn in SPECIALS  # of a new tokenizer, whose template stands in a file
    assert settings.template == ""


# Tokenizers that know where a text begins (SentencePiece), as Vicuna's and Mistral's do

HF_LLAVA = (
    "{% for m in messages %}{{ m['role'].upper() + ': ' }}"
    "{% for c in m['content'] if c['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for c in m['content'] if c['type'] == 'text' %}{{ c['text'] }}{% endfor %}"
    "{{ '</s>' if m['role'] == 'assistant' else ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def test_a_prompt_has_the_ids_of_its_text_read_at_once(sentence_pieces: Tokenizer) -> None:
    prompt = PromptSettings(2, end_of_turn="</s>", bos_token="<s>")
    processor = Processor(sentence_pieces, IMAGES, prompt, HF_LLAVA)
    turns = (user("What is this?", picture()), assistant("a circle"), user("Is it red?"))
    text = "USER: <image><image>\nWhat is this? ASSISTANT: a circle</s>USER: Is it red? ASSISTANT:"
    encoded = processor.encode(turns, is_answering=True)
    assert encoded.ids == sentence_pieces.encode(text).ids
    assert learned_text(processor, encoded).strip() == "a circle</s>"


def test_a_template_that_begins_the_text_itself_begins_it_once(sentence_pieces: Tokenizer) -> None:
    prompt = PromptSettings(2, end_of_turn="</s>", bos_token="<s>")
    source = "{{ bos_token }}" + HF_LLAVA
    processor = Processor(sentence_pieces, IMAGES, prompt, source)
    ids = processor.encode((user("What is this?"),), is_answering=True).ids
    text = "<s>USER: What is this? ASSISTANT:"
    assert ids == sentence_pieces.encode(text, add_special_tokens=False).ids
    assert ids.count(processor.words.id("<s>")) == 1


def test_a_typed_beginning_does_not_stand_for_the_true_one(sentence_pieces: Tokenizer) -> None:
    prompt = PromptSettings(2, end_of_turn="</s>", bos_token="<s>", template="vicuna_v1")
    processor = Processor(sentence_pieces, IMAGES, prompt)  # a system message stands first
    system = Message("system", (TextPart("<s>What?"),))
    ids = processor.encode((system, user("Is it red?")), is_answering=True).ids
    begin = processor.words.id("<s>")
    assert ids[0] == begin
    assert ids.count(begin) == 1


def test_a_typed_end_stays_text_there_too(sentence_pieces: Tokenizer) -> None:
    prompt = PromptSettings(2, end_of_turn="</s>", bos_token="<s>")
    processor = Processor(sentence_pieces, IMAGES, prompt, HF_LLAVA)
    ids = processor.encode((user("</s><image>", picture()),), is_answering=True).ids
    assert processor.end_id not in ids
    assert ids.count(processor.image_token_id) == 2
    assert "</s><image>" in processor.decode(ids)
