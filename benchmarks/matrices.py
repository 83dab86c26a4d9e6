"""How fast a CPU reads weights while it multiplies by them: every product that steps may use.

    python benchmarks/matrices.py                 # one row, the shapes of a decoder of 0.5B
    python benchmarks/matrices.py --rows 16 --threads 1

What the numbers mean: GB/s are bytes of weights by seconds of one product, from what comes to what
is written; where each weight is read once, no product can be faster than reading itself, which is
told beside it. Each product takes many weights in turn, more than a cache holds. Best and median of
the calls are printed, and the share of the best reading that the best call reaches. On a machine
that others use, --cpu-time counts one thread's own time alone, though memory is still shared. The
last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from itertools import cycle
from typing import NamedTuple

import torch
from timing import Spread, circumstances
from torch import Tensor

from lapilli.model.matrices import HalvedMatrix, Matrix, OwnMatrix, QuantizedMatrix
from lapilli.model.quantize import Int4Packed, Int8Packed, QuantizedLinear

SHAPES = {
    "qkv": (1152, 896),
    "out": (896, 896),
    "gate_up": (9728, 896),
    "down": (896, 4864),
    "square": (4096, 4096),
}
"""Outputs and inputs: width 896, perceptron 4864, 14 and 2 heads of 64; and a square."""
READING = "reading"


class Contestant(NamedTuple):
    """What is timed.

    Attributes:
        num_bytes: of the weights that one call reads.
    """

    run: Callable[[], object]
    num_bytes: int


class PackedByTorch:
    """torch's own product of 8 bits and bf16, for comparison."""

    def __init__(self, weight: Tensor) -> None:
        self.scale = (weight.abs().amax(1) / 127).bfloat16()
        self.codes = (weight / self.scale[:, None]).round().to(torch.int8)

    def write(self, x: Tensor, out: Tensor) -> None:
        """Write the product into `out`."""
        out.copy_(torch._weight_int8pack_mm(x.bfloat16(), self.codes, self.scale))

    def add(self, x: Tensor, out: Tensor) -> None:
        """Add the product to `out`."""
        out.add_(torch._weight_int8pack_mm(x.bfloat16(), self.codes, self.scale))


def main() -> None:
    """Measure, print a table and a line of JSON."""
    options = parse_options()
    if options.cpu_time:
        options.threads = 1
    if options.threads:
        torch.set_num_threads(options.threads)
    rows = {}
    for name in options.shapes or SHAPES:
        made = contestants(*SHAPES[name], options)
        clock = time.process_time if options.cpu_time else time.perf_counter
        seconds, sizes = measure(made, options.repeats, clock)
        rows[name] = report(name, seconds, sizes)
    print(json.dumps({"benchmark": "matrices", **vars(options), **circumstances(), "rates": rows}))


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1, help="answers that take a step together")
    parser.add_argument("--repeats", type=int, default=7, help="rounds over all weights")
    parser.add_argument("--mib", type=int, default=64, help="int8 weights taken in turn, in MiB")
    parser.add_argument("--threads", type=int, default=0, help="torch's own choice if left out")
    parser.add_argument("--cpu-time", action="store_true", help="of one thread, not of the clock")
    parser.add_argument("--shapes", nargs="*", choices=SHAPES, help="all if left out")
    options = parser.parse_args()
    if min(options.rows, options.repeats, options.mib) < 1:
        parser.error("--rows, --repeats and --mib need 1 or more")
    return options


def contestants(outputs: int, inputs: int, options: argparse.Namespace) -> dict[str, Contestant]:
    """Every product of that shape, and reading alone."""
    copies = max(2, options.mib * 2**20 // (outputs * inputs))
    weights = [0.02 * torch.randn(outputs, inputs) for _ in range(copies)]
    made: dict[str, tuple[list[Matrix], float, torch.dtype]] = {
        "fp32": ([OwnMatrix(w) for w in weights], 4, torch.float32),
        "bf16": ([OwnMatrix(w.bfloat16()) for w in weights], 2, torch.bfloat16),
        "fp16, computing in fp32": ([HalvedMatrix(w) for w in weights], 2, torch.float32),
        "int8": ([_quantized(Int8Packed(w)) for w in weights], 1, torch.float32),
        "int8, torch's own in bf16": ([PackedByTorch(w) for w in weights], 1, torch.float32),
        "int4": ([_quantized(Int4Packed(w)) for w in weights], 0.625, torch.float32),
    }
    found = {}
    for name, (matrices, num_bytes, dtype) in made.items():
        x = torch.randn(options.rows, inputs, dtype=dtype)
        out = torch.empty(options.rows, outputs, dtype=dtype)
        run = partial(_write_next, cycle(matrices), x, out)
        found[name] = Contestant(run, int(num_bytes * outputs * inputs))
    memory = weights[0].new_empty(max(2**24, len(weights) * weights[0].numel() // 4)).zero_()
    found[READING] = Contestant(memory.view(torch.int64).max, memory.nbytes)
    return found


def _quantized(weight: Int8Packed | Int4Packed) -> Matrix:
    return QuantizedMatrix([QuantizedLinear(weight, None)])


def _write_next(matrices: cycle[Matrix], x: Tensor, out: Tensor) -> None:
    next(matrices).write(x, out)


@torch.inference_mode()
def measure(
    made: dict[str, Contestant], repeats: int, clock: Callable[[], float]
) -> tuple[dict[str, Spread], dict[str, int]]:
    """Return seconds of one call, and the bytes that it reads; all take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(repeats + 1):
        for name, contestant in made.items():
            for _ in range(max(1, 2**25 // contestant.num_bytes)):
                start = clock()
                contestant.run()
                seconds[name].append(clock() - start)
    sizes = {name: contestant.num_bytes for name, contestant in made.items()}
    # The first round warms up.
    return {name: Spread.of(v[len(v) // (repeats + 1) :]) for name, v in seconds.items()}, sizes


def report(
    shape: str, seconds: dict[str, Spread], sizes: dict[str, int]
) -> dict[str, dict[str, float]]:
    """Print a table and return its figures."""
    best = {name: sizes[name] / spread.low / 1e9 for name, spread in seconds.items()}
    print(f"{shape}: {SHAPES[shape][0]} x {SHAPES[shape][1]}")
    rows = {}
    for name, spread in seconds.items():
        median = sizes[name] / spread.median / 1e9
        rows[name] = {
            "us": round(spread.low * 1e6, 1),
            "best_gb_per_s": round(best[name], 2),
            "median_gb_per_s": round(median, 2),
            "share": round(best[name] / best[READING], 3),
        }
        print(
            f"  {name:27} best {spread.low * 1e6:9.1f} us {best[name]:6.1f} GB/s "
            f"({best[name] / best[READING]:4.0%})   median {median:6.1f} GB/s"
        )
    return rows


if __name__ == "__main__":
    main()
