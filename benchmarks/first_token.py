"""How soon a second question about the same picture is answered, beside others on the same weights.

    python benchmarks/first_token.py                    # the embedded model
    python benchmarks/first_token.py --random 0.5b      # Qwen2-0.5B's sizes behind CLIP-L's

What the numbers mean: milliseconds from the question to an answer of one token, on the CPU. The
picture was asked about before, the question is new each time. Our engine keeps what it has read;
"anew" is our engine after it was told to forget. `transformers` reads all anew and is given
tensors, with the picture opened and scaled already; its static cache cannot help one token.
llama-cpp-python is asked as its users ask, with the same PNG file, and keeps what it will. In fp32
`transformers` must make the same token as we, or the benchmark fails. The last line is JSON.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TypeVar

from contestants import (
    answers,
    check_tokens,
    is_exact,
    llama_cpp_chats,
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
from timing import interleaved

from lapilli.engine.engine import Engine
from lapilli.messages import Conversation

T = TypeVar("T")


def main() -> None:
    """Measure, print a table and a line of JSON."""
    options = parser(__doc__).parse_args()
    asked = subject(options)
    # One to warm up, and one for each repeat.
    asks = [
        [(question(f"Number {index}: what is this?", picture(0)),)]
        for index in range(options.repeats + 1)
    ]
    with ExitStack() as stack:
        kept, anew = Engine(asked.model, asked.processor), Engine(asked.model, asked.processor)
        contestants = {
            asked.ours: in_order(lambda ask: answers(kept, ask, [1]), asks),
            f"{asked.ours} anew": in_order(lambda ask: answer_anew(anew, ask), asks),
        }
        for kind, peer in stack.enter_context(transformers_peers(asked)).items():
            ready = [peer.prepare(ask) for ask in asks]
            if is_exact(asked, kind):
                wanted = [tokens_of_ours(asked, ask, [1])[0] for ask in asks]
                check_tokens([peer.generate(one, 1).ids[0] for one in ready], wanted)
            contestants[f"transformers {kind}"] = in_order(partial(peer.generate, count=1), ready)
        for name, llama in stack.enter_context(llama_cpp_chats(asked, options)).items():
            contestants[name] = in_order(llama.first_token, asks)
        seconds = interleaved(contestants, options.repeats)
    rows = {name: {"ms": spread.times(1000)} for name, spread in seconds.items()}
    table("second question", rows, 1)
    found = ratios(asked, seconds, is_time=True)
    tell(found)
    print(result("first_token", asked, options, rows, ratios=found))


def in_order(ask: Callable[[T], object], items: Sequence[T]) -> Callable[[], object]:
    """Return what asks the next one each time."""
    turns = iter(items)
    return lambda: ask(next(turns))


def answer_anew(engine: Engine, ask: list[Conversation]) -> None:
    """Answer without what was read before."""
    engine.forget()
    answers(engine, ask, [1])


if __name__ == "__main__":
    warnings.filterwarnings("ignore", module="transformers")
    main()
