"""Which blocks of the cache belong to whom, and which of them hold what may be asked for again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from lapilli.errors import EngineError

BLOCK_TOKENS = 16
"""Tokens of a block; a beginning that two prompts share is used again in whole blocks."""

Key = bytes
"""Stands for all tokens from a sequence's first to a block's last, pictures included."""


class BlockPool:
    """Blocks that sequences hold together or alone.

    A block that nobody holds keeps what it has as long as its memory is not needed: the block that
    was let go the longest time ago is used anew first.

    Args:
        num_blocks: numbered from 0.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._holders = [0] * num_blocks
        self._empty = set(range(num_blocks))  # nobody holds them, and nothing is known of them
        self._idle: OrderedDict[int, None] = OrderedDict()  # nobody holds them; oldest first
        self._by_key: dict[Key, int] = {}
        self._keys: dict[int, Key] = {}

    @property
    def num_free(self) -> int:
        """Blocks that `take` can give."""
        return len(self._empty) + len(self._idle)

    @property
    def num_known(self) -> int:
        """Blocks whose content may be found by its key."""
        return len(self._keys)

    def find(self, keys: Sequence[Key]) -> list[int]:
        """Return the blocks that hold the longest known beginning; nobody holds them more."""
        found = []
        for key in keys:
            if key not in self._by_key:
                break
            found.append(self._by_key[key])
        return found

    def hold(self, blocks: Sequence[int]) -> None:
        """Hold blocks that were found, one time more."""
        for block in blocks:
            self._holders[block] += 1
            self._idle.pop(block, None)

    def take(self, count: int, after: int | None = None) -> list[int]:
        """Return blocks for new content, held once, in as few stretches as can be had.

        Args:
            after: a block; those that follow it are preferred.

        Raises:
            EngineError: fewer are free.
        """
        if count > self.num_free:
            raise EngineError(f"{count} blocks are wanted, {self.num_free} are free")
        while len(self._empty) < count:
            oldest, _ = self._idle.popitem(last=False)
            del self._by_key[self._keys.pop(oldest)]
            self._empty.add(oldest)
        chosen = _together(sorted(self._empty), count, after)
        self._empty.difference_update(chosen)
        for block in chosen:
            self._holders[block] = 1
        return chosen

    def name(self, block: int, key: Key) -> None:
        """Make a block's content known, unless another block is known for the same."""
        if key not in self._by_key:
            self._by_key[key] = block
            self._keys[block] = key

    def let_go(self, blocks: Sequence[int]) -> None:
        """Hold blocks one time less."""
        # Ends go before beginnings: without its beginning, an end is of no use.
        for block in reversed(blocks):
            self._holders[block] -= 1
            if self._holders[block] == 0:
                if block in self._keys:
                    self._idle[block] = None
                else:
                    self._empty.add(block)

    def forget(self) -> None:
        """Let nothing be found again."""
        self._by_key.clear()
        self._keys.clear()
        self._empty.update(self._idle)
        self._idle.clear()


def _together(free: list[int], count: int, after: int | None) -> list[int]:
    """Choose blocks that lie together: behind `after`, or in the first stretch that is long enough,
    or in the longest ones."""
    stretches: list[list[int]] = []
    for block in free:
        if stretches and stretches[-1][-1] == block - 1:
            stretches[-1].append(block)
        else:
            stretches.append([block])

    def preference(stretch: list[int]) -> tuple[bool, bool, int]:
        is_behind, is_enough = stretch[0] - 1 == after, len(stretch) >= count
        return not is_behind, not is_enough, -min(len(stretch), count)

    stretches.sort(key=preference)
    return [block for part in stretches for block in part][:count]
