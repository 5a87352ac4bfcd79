"""Messages as nobody meant them: mutations of real ones, the same again for the same seed."""

import random
from collections.abc import Sequence

_INTERESTING = (0, 1, 0x0C, 0x29, 0x3F, 0x40, 0x41, 0x7F, 0x80, 0xC0, 0xFE, 0xFF)


class Mutator:
    """Picks messages and changes them a few times each."""

    def __init__(self, seed: int, messages: Sequence[bytes], *, at_most: int = 2000) -> None:
        """Messages longer than `at_most` are picked rarely: they take long to read and are all alike."""
        self._random = random.Random(seed)
        self._short = [message for message in messages if len(message) <= at_most]
        self._all = messages

    def next(self) -> bytes:
        """One mutated message."""
        rng = self._random
        message = bytearray(rng.choice(self._all if rng.random() < 0.01 else self._short))
        for _ in range(rng.choice((1, 1, 2, 3, 8))):
            self._mutate(message)
        return bytes(message[:65535])

    def pieces(self, octets: bytes) -> list[bytes]:
        """The same octets, cut anywhere."""
        cuts = sorted(self._random.choices(range(len(octets) + 1), k=self._random.randrange(6)))
        return [octets[a:b] for a, b in zip([0, *cuts], [*cuts, len(octets)], strict=True) if a < b]

    def _mutate(self, message: bytearray) -> None:
        rng = self._random
        at = rng.randrange(len(message) + 1)
        end = min(len(message), at + rng.choice((1, 2, 4, 16)))
        match rng.randrange(9):
            case 0:
                message[at:end] = rng.randbytes(end - at)
            case 1:
                message[at:end] = bytes(rng.choice(_INTERESTING) for _ in range(end - at))
            case 2 if end > at:
                message[at] ^= 1 << rng.randrange(8)
            case 3:
                del message[at:end]
            case 4:
                del message[at:]
            case 5:
                message[at:at] = rng.randbytes(rng.choice((1, 2, 11, 40)))
            case 6:
                message[at:at] = message[at:end] * rng.choice((1, 2, 30))
            case 7:  # counts, types, lengths
                message[at : at + 2] = rng.choice((0, 1, 2, 5, 250, 0xC00C, 0xFFFF)).to_bytes(2, "big")
            case 8:  # the tail of another message
                other = rng.choice(self._short)
                message[at:] = other[min(at, len(other)) :]
