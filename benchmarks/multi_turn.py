"""How soon each turn of a chat about a picture is answered, beside others on the same weights.

    python benchmarks/multi_turn.py                     # the embedded model
    python benchmarks/multi_turn.py --random 0.5b       # Qwen2-0.5B's sizes behind CLIP-L's

What the numbers mean: milliseconds from a question to the first token of its answer, on the CPU,
by turn. Everyone is given the whole chat each time; its answers are ours, of `--tokens` tokens.
Our engine starts each chat without memory and makes the rest of every answer, untimed. In turn it
keeps what it has read; `transformers` reads all anew (a program may hand it a cache of its own) and
is given tensors; llama-cpp-python is asked as its users ask and keeps what it will. In fp32
`transformers` must make the same first tokens as we, or the benchmark fails. The last line is JSON.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

from contestants import (
    Subject,
    answers,
    check_tokens,
    is_exact,
    llama_cpp_chats,
    parser,
    picture,
    question,
    result,
    subject,
    table,
    tokens_of_ours,
    transformers_peers,
)
from timing import Spread, in_turns, seconds

from lapilli.engine.engine import Engine
from lapilli.messages import Conversation, Message, Request, Sampling, TextPart


def main() -> None:
    """Measure, print a table and a line of JSON."""
    options = parse_options()
    asked = subject(options)
    turns = chat(asked, options.turns, options.tokens)
    with ExitStack() as stack:
        engine = Engine(asked.model, asked.processor)
        contestants: dict[tuple[str, int], Callable[[], float]] = {
            (asked.ours, turn): partial(our_seconds, engine, turns[turn - 1], options.tokens)
            for turn in range(1, options.turns + 1)
        }
        for kind, peer in stack.enter_context(transformers_peers(asked)).items():
            ready = [peer.prepare([said]) for said in turns]
            if is_exact(asked, kind):
                wanted = [tokens_of_ours(asked, [said], [1])[0] for said in turns]
                check_tokens([peer.generate(one, 1).ids[0] for one in ready], wanted)
            for turn, one in enumerate(ready, start=1):
                ask = partial(peer.generate, one, 1)
                contestants[f"transformers {kind}", turn] = partial(seconds, ask)
        for name, llama in stack.enter_context(llama_cpp_chats(asked, options)).items():
            for turn, said in enumerate(turns, start=1):
                ask = partial(llama.first_token, [said])
                contestants[name, turn] = partial(seconds, ask)
        found = in_turns(contestants, options.repeats)
    rows: dict[str, dict[str, Spread]] = {}
    for (name, turn), values in found.items():
        rows.setdefault(name, {})[str(turn)] = Spread.of(values).times(1000)
    by_turn = {
        f"turn {turn}": {name: row[str(turn)] for name, row in rows.items()}
        for turn in range(1, options.turns + 1)
    }
    table("ms to the first token", by_turn, 1)
    growth = {
        name: round(row[str(options.turns)].median / row["2"].median, 2)
        for name, row in rows.items()
    }
    for name, ratio in growth.items():
        print(f"{name}: turn {options.turns} takes {ratio} times as long as turn 2")
    print(result("multi_turn", asked, options, rows, tokens=options.tokens, growth=growth))


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    reading = parser(__doc__)
    reading.add_argument("--tokens", type=int, default=16, help="new tokens of an answer")
    reading.add_argument("--turns", type=int, default=8, help="of the chat")
    options = reading.parse_args()
    if options.turns < 2 or options.tokens < 1:
        reading.error("--turns needs 2 or more, --tokens 1 or more")
    return options


def chat(asked: Subject, num_turns: int, count: int) -> list[Conversation]:
    """Return what is said up to each question of a chat with our model."""
    engine = Engine(asked.model, asked.processor)
    turns: list[Conversation] = [(question("What do you see here?", picture(0)),)]
    while len(turns) < num_turns:
        (answer,) = answers(engine, [turns[-1]], [count])
        more = question(f"And what is there beside it? That is question {len(turns) + 1}.")
        turns.append((*turns[-1], Message("assistant", (TextPart(answer),)), more))
    return turns


def our_seconds(engine: Engine, said: Conversation, count: int) -> float:
    """Return the seconds to our first token; the answer is then made whole."""
    if len(said) == 1:
        engine.forget()
    start = time.perf_counter()
    stream = engine.submit(Request(said, Sampling(count)))
    next(stream)
    first = time.perf_counter() - start
    for _ in stream:
        pass
    return first


if __name__ == "__main__":
    warnings.filterwarnings("ignore", module="transformers")
    main()
