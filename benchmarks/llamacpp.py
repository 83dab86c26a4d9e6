"""llama.cpp through its own interface, and through the one that most programs use.

Needs the package llama-cpp-python, which builds llama.cpp when it is installed.
"""

from __future__ import annotations

import base64
import ctypes
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from llama_cpp import mtmd_cpp
from llama_cpp.llama_chat_format import MTMDChatHandler
from PIL import Image

from lapilli.messages import Conversation, Message, TextPart
from lapilli.processor.processor import Processor

_LONGEST_PIECE = 256
"""In bytes, of one token."""


@llama_cpp.llama_log_callback
def _silent(level: int, text: bytes, user_data: ctypes.c_void_p) -> None:
    """llama.cpp tells every step on stderr."""


@dataclass(frozen=True)
class Reply:
    """What became of a prompt.

    Attributes:
        prompt_ids: the ids of its words, without places of pictures.
        features: (N, P, D) fp32, what the pictures became; empty for none.
        logits: (V,) fp32, for the first token of the answer.
        text: the answer.
    """

    prompt_ids: list[int]
    features: np.ndarray
    logits: np.ndarray
    text: str


def quantize(source: Path, target: Path) -> None:
    """Write a GGUF file of f16 again as q4_0, as llama.cpp does it."""
    llama_cpp.llama_log_set(_silent, ctypes.c_void_p())
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0
    if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), settings):
        raise RuntimeError(f"{source}: llama.cpp does not quantize it")


def around_pictures(processor: Processor, conversation: Conversation) -> list[str]:
    """Return a prompt's words around its pictures, one part more than there are pictures."""
    parts = [""]
    for segment in processor.template.render(conversation, add_generation_prompt=True):
        if segment.kind == "image":
            parts.append("")
        else:
            parts[-1] += segment.text
    return parts


class LlamaCpp:
    """The two files of a model, loaded; always greedy.

    Args:
        model, mmproj: what `lapilli convert --to gguf` wrote.
        context: in tokens.
        threads: that it may use.
    """

    def __init__(self, model: Path, mmproj: Path, context: int = 2048, threads: int = 1) -> None:
        off = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.llama = llama_cpp.Llama(
            str(model), n_ctx=context, n_batch=context, n_ubatch=context, n_threads=threads,
            n_threads_batch=threads, verbose=False, flash_attn=False,
        )  # fmt: skip
        self.context = self.llama.ctx
        self.vocab = llama_cpp.llama_model_get_vocab(self.llama.model)
        self.vocab_size = self.llama.n_vocab()
        self.width = self.llama.n_embd()
        mtmd_cpp.mtmd_helper_log_set(_silent, ctypes.c_void_p())
        settings = mtmd_cpp.mtmd_context_params_default()
        settings.use_gpu, settings.n_threads, settings.print_timings = False, threads, False
        settings.flash_attn_type, settings.warmup = off, False
        self.vision = mtmd_cpp.mtmd_init_from_file(str(mmproj).encode(), self.llama.model, settings)
        if self.vision is None:
            raise RuntimeError(f"{mmproj}: llama.cpp does not load it")

    def close(self) -> None:
        """Give the memory back."""
        mtmd_cpp.mtmd_free(self.vision)
        self.llama.close()

    def ask(
        self, prompt: Sequence[str], pictures: Sequence[Image.Image], max_new_tokens: int
    ) -> Reply:
        """Answer a prompt, in which special tokens' words are special.

        Args:
            prompt: its words around the pictures, one more than there are pictures.
        """
        with self._chunks(prompt, pictures) as chunks:
            ids, features = self._read(chunks)
            logits = self._eval(chunks)
        next_logits, pieces = logits, b""
        for _ in range(max_new_tokens):
            token = int(next_logits.argmax())
            if llama_cpp.llama_vocab_is_eog(self.vocab, token):
                break
            pieces += self._piece(token)
            next_logits = self._step(token)
        return Reply(ids, features, logits, pieces.decode("utf-8", "replace"))

    def seconds(
        self, prompt: Sequence[str], pictures: Sequence[Image.Image], count: int
    ) -> tuple[float, float]:
        """Return how long the first token takes, and all of an answer of `count` tokens."""
        start = time.perf_counter()
        with self._chunks(prompt, pictures) as chunks:
            token = int(self._eval(chunks).argmax())
        first = time.perf_counter() - start
        for _ in range(count - 1):
            token = int(self._step(token).argmax())
        return first, time.perf_counter() - start

    def _eval(self, chunks: mtmd_cpp.mtmd_input_chunks_p) -> np.ndarray:
        """Read a prompt from its beginning; the logits of what follows, (V,)."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        end = llama_cpp.llama_pos(0)
        failed = mtmd_cpp.mtmd_helper_eval_chunks(
            self.vision, self.context, chunks, 0, 0, 2048, True, ctypes.byref(end)
        )
        if failed:
            raise RuntimeError(f"llama.cpp could not read the prompt: {failed}")
        return self._logits()

    def _step(self, token: int) -> np.ndarray:
        """Read one token more; the logits of what follows, (V,)."""
        one = (llama_cpp.llama_token * 1)(token)
        if llama_cpp.llama_decode(self.context, llama_cpp.llama_batch_get_one(one, 1)):
            raise RuntimeError("llama.cpp could not go on")
        return self._logits()

    @contextmanager
    def _chunks(
        self, prompt: Sequence[str], pictures: Sequence[Image.Image]
    ) -> Iterator[mtmd_cpp.mtmd_input_chunks_p]:
        """Words and pictures, taken apart."""
        text = mtmd_cpp.mtmd_default_marker().join(part.encode() for part in prompt)
        words = mtmd_cpp.mtmd_input_text()
        words.text, words.text_len = text, len(text)
        words.add_special, words.parse_special = True, True
        bitmaps = [self._bitmap(picture) for picture in pictures]
        chunks = mtmd_cpp.mtmd_input_chunks_init()
        try:
            array = (mtmd_cpp.mtmd_bitmap_p_ctypes * len(bitmaps))(*bitmaps)
            failed = mtmd_cpp.mtmd_tokenize(
                self.vision, chunks, ctypes.byref(words), array, len(bitmaps)
            )
            if failed:
                raise RuntimeError(f"llama.cpp could not take the prompt apart: {failed}")
            yield chunks
        finally:
            mtmd_cpp.mtmd_input_chunks_free(chunks)
            for bitmap in bitmaps:
                mtmd_cpp.mtmd_bitmap_free(bitmap)

    def _bitmap(self, picture: Image.Image) -> mtmd_cpp.mtmd_bitmap_p:
        pixels = picture.convert("RGB").tobytes()
        data = (ctypes.c_uint8 * len(pixels)).from_buffer_copy(pixels)
        return mtmd_cpp.mtmd_bitmap_init(picture.width, picture.height, data)

    def _read(self, chunks: mtmd_cpp.mtmd_input_chunks_p) -> tuple[list[int], np.ndarray]:
        """The ids and the features of what was taken apart."""
        ids: list[int] = []
        features = []
        for index in range(mtmd_cpp.mtmd_input_chunks_size(chunks)):
            chunk = mtmd_cpp.mtmd_input_chunks_get(chunks, index)
            if mtmd_cpp.mtmd_input_chunk_get_type(chunk) == mtmd_cpp.MTMD_INPUT_CHUNK_TYPE_TEXT:
                count = ctypes.c_size_t()
                found = mtmd_cpp.mtmd_input_chunk_get_tokens_text(chunk, ctypes.byref(count))
                ids += found[: count.value]
                continue
            if mtmd_cpp.mtmd_encode_chunk(self.vision, chunk):
                raise RuntimeError("llama.cpp could not look at the picture")
            size = mtmd_cpp.mtmd_input_chunk_get_n_tokens(chunk), self.width
            made = mtmd_cpp.mtmd_get_output_embd(self.vision)
            features.append(np.ctypeslib.as_array(made, size).copy())
        return ids, np.array(features)

    def _logits(self) -> np.ndarray:
        found = llama_cpp.llama_get_logits_ith(self.context, -1)
        return np.ctypeslib.as_array(found, (self.vocab_size,)).copy()

    def _piece(self, token: int) -> bytes:
        room = ctypes.create_string_buffer(_LONGEST_PIECE)
        count = llama_cpp.llama_token_to_piece(self.vocab, token, room, len(room), 0, False)
        return room.raw[:count]


class LlamaCppChat:
    """llama-cpp-python as its users have it: messages in, text out, prompts kept as it keeps them.

    Args:
        model, mmproj: GGUF files.
        threads: that it may use.
    """

    def __init__(self, model: Path, mmproj: Path, threads: int) -> None:
        mtmd_cpp.mtmd_helper_log_set(_silent, ctypes.c_void_p())
        self.llama = llama_cpp.Llama(
            str(model), n_ctx=2048, n_threads=threads, n_threads_batch=threads, verbose=False,
            chat_handler=MTMDChatHandler(str(mmproj), verbose=False, use_gpu=False),
        )  # fmt: skip

    def first_token(self, ask: Sequence[Conversation]) -> None:
        """Make one token for one conversation."""
        (conversation,) = ask
        messages = [_openai(message) for message in conversation]
        self.llama.create_chat_completion(messages, max_tokens=1, temperature=0)


def _openai(message: Message) -> Any:
    """A message in the OpenAI form, its pictures as data URLs."""
    if message.role == "assistant":
        return {"role": "assistant", "content": message.text}
    content: list[dict[str, Any]] = []
    for part in message.parts:
        if isinstance(part, TextPart):
            content.append({"type": "text", "text": part.text})
        else:
            assert isinstance(part.source, bytes)
            url = "data:image/png;base64," + base64.b64encode(part.source).decode()
            content.append({"type": "image_url", "image_url": {"url": url}})
    return {"role": message.role, "content": content}
