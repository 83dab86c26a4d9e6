"""How long 32 requests take, with pictures and without, beside `transformers` on the same weights.

    python benchmarks/throughput.py                     # the embedded model
    python benchmarks/throughput.py --random 0.5b       # Qwen2-0.5B's sizes behind CLIP-L's

What the numbers mean: seconds on the CPU until the last of `--requests` answers is whole. Questions
are of mixed length, every fourth about a picture of its own; answers are 16 to 64 tokens long. Our
engine, which remembers nothing when they come, takes all at once. `transformers` takes them in
their order in batches of `--batch`, padded on the left; the longest answer of a batch decides when
the batch ends. It is given tensors and returns ids, ours opens the pictures and writes text in that
time. Its best of a dynamic and a static cache counts. In fp32 it must make the same tokens as we,
or the benchmark fails. The last line is JSON.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

from contestants import (
    CACHES,
    Transformers,
    answers,
    check_tokens,
    is_exact,
    mixed,
    parser,
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

LENGTHS = (16, 48, 32, 64, 24)
"""Tokens of answers, in turn."""


def main() -> None:
    """Measure, print a table and a line of JSON."""
    options = parse_options()
    asked = subject(options)
    conversations = mixed(options.requests)
    counts = [LENGTHS[index % len(LENGTHS)] for index in range(options.requests)]
    engine = Engine(asked.model, asked.processor)
    contestants: dict[str, Callable[[], object]] = {
        asked.ours: partial(answer_anew, engine, conversations, counts)
    }
    with transformers_peers(asked) as peers:
        for kind, peer in peers.items():
            batches = [
                (peer.prepare(conversations[start:end]), max(counts[start:end]))
                for start in range(0, options.requests, options.batch)
                for end in [start + options.batch]
            ]
            for name, cache in CACHES.items():
                run = partial(generate, peer, batches, cache)
                if is_exact(asked, kind):
                    check_tokens(run(), tokens_of_ours(asked, conversations, counts))
                contestants[f"transformers {kind} {name}"] = run
        seconds = interleaved(contestants, options.repeats)
    rows = {name: {"seconds": spread} for name, spread in seconds.items()}
    table(f"{options.requests} requests, {sum(counts)} tokens", rows, 2)
    found = ratios(asked, seconds, is_time=True)
    tell(found)
    more = {"requests": options.requests, "batch": options.batch, "tokens": sum(counts)}
    print(result("throughput", asked, options, rows, **more, ratios=found))


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    reading = parser(__doc__)
    reading.add_argument("--requests", type=int, default=32, help="how many are asked")
    reading.add_argument("--batch", type=int, default=8, help="of transformers")
    options = reading.parse_args()
    if min(options.requests, options.batch) < 1:
        reading.error("--requests and --batch need 1 or more")
    return options


def answer_anew(engine: Engine, conversations: list[Conversation], counts: list[int]) -> None:
    """Answer all without what was read before."""
    engine.forget()
    answers(engine, conversations, counts)


def generate(
    peer: Transformers, batches: list[tuple[dict[str, Any], int]], cache: str | None
) -> list[list[int]]:
    """Return the ids of all answers, batch after batch."""
    return [ids for ready, count in batches for ids in peer.generate(ready, count, cache).ids]


if __name__ == "__main__":
    warnings.filterwarnings("ignore", module="transformers")
    main()
