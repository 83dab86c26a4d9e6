"""llama.cpp through its own interface, one picture and one prompt at a time.

Needs the package llama-cpp-python, which builds llama.cpp when it is installed.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import llama_cpp
import numpy as np
from llama_cpp import mtmd_cpp
from PIL import Image

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


class LlamaCpp:
    """The two files of a model, loaded; always greedy.

    Args:
        model, mmproj: what `lapilli convert --to gguf` wrote.
        context: in tokens.
    """

    def __init__(self, model: Path, mmproj: Path, context: int = 2048) -> None:
        off = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.llama = llama_cpp.Llama(
            str(model), n_ctx=context, n_batch=context, n_ubatch=context, n_threads=1,
            n_threads_batch=1, verbose=False, flash_attn=False,
        )  # fmt: skip
        self.context = self.llama.ctx
        self.vocab = llama_cpp.llama_model_get_vocab(self.llama.model)
        self.vocab_size = self.llama.n_vocab()
        self.width = self.llama.n_embd()
        mtmd_cpp.mtmd_helper_log_set(_silent, ctypes.c_void_p())
        settings = mtmd_cpp.mtmd_context_params_default()
        settings.use_gpu, settings.n_threads, settings.print_timings = False, 1, False
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
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        with self._chunks(prompt, pictures) as chunks:
            ids, features = self._read(chunks)
            end = llama_cpp.llama_pos(0)
            failed = mtmd_cpp.mtmd_helper_eval_chunks(
                self.vision, self.context, chunks, 0, 0, 2048, True, ctypes.byref(end)
            )
        if failed:
            raise RuntimeError(f"llama.cpp could not read the prompt: {failed}")
        logits, pieces = self._logits(), b""
        next_logits = logits
        for _ in range(max_new_tokens):
            token = int(next_logits.argmax())
            if llama_cpp.llama_vocab_is_eog(self.vocab, token):
                break
            pieces += self._piece(token)
            one = (llama_cpp.llama_token * 1)(token)
            if llama_cpp.llama_decode(self.context, llama_cpp.llama_batch_get_one(one, 1)):
                raise RuntimeError("llama.cpp could not go on")
            next_logits = self._logits()
        return Reply(ids, features, logits, pieces.decode("utf-8", "replace"))

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
