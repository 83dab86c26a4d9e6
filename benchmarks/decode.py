"""How fast answers are made, one alone and many at once, beside others on the same weights.

    python benchmarks/decode.py                         # the embedded model
    python benchmarks/decode.py --random                # the same architecture, random weights
    python benchmarks/decode.py --random 0.5b           # Qwen2-0.5B's sizes behind CLIP-L's

What the numbers mean: greedy, on the CPU; every answer has exactly `--tokens` tokens, and all sides
may use the same number of threads. "answer" is new tokens by seconds from the question to the last
token; ours opens the picture, reads it anew each time and writes the text in that time, while
`transformers` is given tensors and returns ids. "after the first" is new tokens by seconds since
every answer had its first token. "1 answer" is about a picture; of "N answers", of mixed length,
every fourth is about one, and `transformers` pads them on the left. `transformers` runs with its
dynamic and its static cache, in our type and in bf16, and its best counts; in fp32 it must make the
same tokens as we, or the benchmark fails. llama.cpp makes one answer at a time, through the calls
of its library, from files that we wrote. "overhead" is the share of a step, while N answers are
made, that is spent outside the model. The last line is JSON.
"""

from __future__ import annotations

import argparse
import io
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import torch
from contestants import (
    CACHES,
    Subject,
    Transformers,
    check_tokens,
    gguf_files,
    is_exact,
    mixed,
    parser,
    picture,
    question,
    ratios,
    result,
    subject,
    table,
    tell,
    tokens_of_ours,
    transformers_peers,
)
from PIL import Image
from timing import Spread, in_turns

from lapilli.engine.engine import Engine, EngineSettings
from lapilli.messages import Conversation, Request, Sampling


class Rates(NamedTuple):
    """New tokens by second: of whole answers, and since all had begun."""

    answer: float
    after_first: float


def main() -> None:
    """Measure, print tables and a line of JSON."""
    options = parse_options()
    asked = subject(options)
    rows: dict[str, dict[str, Spread]] = {}
    found_ratios: dict[str, dict[str, float]] = {}
    with ExitStack() as stack:
        peers = stack.enter_context(transformers_peers(asked))
        for count in dict.fromkeys([1, options.batch]):
            conversations = one_conversation() if count == 1 else mixed(count)
            contestants = contestants_for(asked, peers, conversations, options)
            if count == 1:
                contestants |= stack.enter_context(
                    llama_cpp_rates(asked, conversations[0], options)
                )
            found = in_turns(contestants, options.repeats)
            for measure in Rates._fields:
                column = f"{measure} {count}"
                spreads = {
                    name: Spread.of([getattr(rates, measure) for rates in values])
                    for name, values in found.items()
                }
                for name, spread in spreads.items():
                    rows.setdefault(name, {})[column] = spread
                found_ratios[column] = ratios(asked, spreads, is_time=False)
            one_table = {name: dict(list(rows[name].items())[-2:]) for name in contestants}
            table(f"tokens/s, {count} at once", one_table, 1)
        overhead = share_outside(asked, mixed(options.batch), options.tokens)
    print(f"overhead of a step of {options.batch} answers: {overhead:.1%}")
    for column, each in found_ratios.items():
        print(f"{column}:")
        tell(each)
    more = {"tokens": options.tokens, "batch": options.batch}
    more |= {"ratios": found_ratios, "overhead": round(overhead, 4)}
    print(result("decode", asked, options, rows, **more))


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    reading = parser(__doc__)
    reading.add_argument("--tokens", type=int, default=64, help="new tokens of an answer")
    reading.add_argument("--batch", type=int, default=16, help="answers at once")
    options = reading.parse_args()
    if options.tokens < 2 or options.batch < 1:
        reading.error("--tokens needs 2 or more, --batch 1 or more")
    return options


def one_conversation() -> list[Conversation]:
    """A question about a drawn picture."""
    return [(question("Describe the picture in detail.", picture(0)),)]


def contestants_for(
    asked: Subject,
    peers: dict[str, Transformers],
    conversations: list[Conversation],
    options: argparse.Namespace,
) -> dict[str, Callable[[], Rates]]:
    """Return what answers conversations together, once their tokens are known to agree."""
    settings = EngineSettings(max_batch=options.batch, reuses=False, picture_bytes=0)
    engine = Engine(asked.model, asked.processor, settings=settings)
    counts = [options.tokens] * len(conversations)
    made: dict[str, Callable[[], Rates]] = {
        asked.ours: partial(our_rates, engine, conversations, options.tokens)
    }
    for kind, peer in peers.items():
        ready = peer.prepare(conversations)
        for name, cache in CACHES.items():
            if is_exact(asked, kind):
                theirs = peer.generate(ready, options.tokens, cache).ids
                check_tokens(theirs, tokens_of_ours(asked, conversations, counts))
            made[f"transformers {kind} {name}"] = partial(
                their_rates, peer, ready, options.tokens, cache
            )
    return made


def our_rates(engine: Engine, conversations: list[Conversation], count: int) -> Rates:
    """Return the rates of our engine."""
    begun: set[int] = set()
    num_after, moment = 0, 0.0
    start = time.perf_counter()
    for piece in engine.respond(conversations, Sampling(count)):
        if moment:
            num_after += piece.num_tokens
            continue
        begun.add(piece.index)
        if len(begun) == len(conversations):
            moment = time.perf_counter()
    end = time.perf_counter()
    return Rates(count * len(conversations) / (end - start), num_after / (end - moment))


def their_rates(peer: Transformers, ready: dict[str, Any], count: int, cache: str | None) -> Rates:
    """Return the rates of `transformers`."""
    made = peer.generate(ready, count, cache)
    num_answers = len(made.ids)
    after = num_answers * (count - 1) / (made.whole - made.first)
    return Rates(num_answers * count / made.whole, after)


@contextmanager
def llama_cpp_rates(
    asked: Subject, conversation: Conversation, options: argparse.Namespace
) -> Iterator[dict[str, Callable[[], Rates]]]:
    """Give what answers a conversation with llama.cpp, by name."""
    shown = [Image.open(io.BytesIO(source)) for source in conversation[0].images]
    made: dict[str, Callable[[], Rates]] = {}
    with gguf_files(asked, options.gguf) as files:
        for kind, pair in files.items():
            from llamacpp import LlamaCpp, around_pictures

            words = around_pictures(asked.own, conversation)
            peer = LlamaCpp(*pair, threads=torch.get_num_threads())

            def rates(peer: LlamaCpp = peer, words: list[str] = words) -> Rates:
                first, whole = peer.seconds(words, shown, options.tokens)
                return Rates(options.tokens / whole, (options.tokens - 1) / (whole - first))

            made[f"llama.cpp {kind}"] = rates
        yield made


def share_outside(asked: Subject, conversations: list[Conversation], count: int) -> float:
    """Return the share of our engine's steps that is spent outside the model: the median of steps
    that make a token of every answer and read no prompt."""
    engine = Engine(asked.model, asked.processor, max_batch=len(conversations))
    runner = engine._runner
    spent: list[float] = []

    def timed(work: Callable[..., Any], *arguments: Any) -> Any:
        start = time.perf_counter()
        try:
            return work(*arguments)
        finally:
            spent.append(time.perf_counter() - start)

    runner.read, runner.step = partial(timed, runner.read), partial(timed, runner.step)
    streams = [engine.submit(Request(part, Sampling(count))) for part in conversations]
    shares = []
    is_going_on = True
    while is_going_on:
        spent.clear()
        start = time.perf_counter()
        is_going_on = engine.step()
        whole = time.perf_counter() - start
        has_read = any(answer.num_new <= 1 for stream in streams for answer in stream._answers)
        if is_going_on and not has_read:
            shares.append(1 - sum(spent) / whole)
    return median(shares)


if __name__ == "__main__":
    warnings.filterwarnings("ignore", module="transformers")
    main()
