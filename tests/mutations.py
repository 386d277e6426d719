"""Damage at random: bytes changed, cut out, repeated, moved, or made a huge number."""

from __future__ import annotations

import random

AIMED = 0.8  # share of the mutations that aim at the places that were named


def mutate(content: bytes, aims: list[range], rng: random.Random) -> bytes:
    """The content with a few changes, mostly in one of the ranges that `aims` names."""
    aim = rng.choice(aims) if rng.random() < AIMED else range(len(content))
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        at = rng.randrange(aim.start, min(aim.stop, max(aim.start + 1, len(changed))))
        other = rng.randrange(aim.start, min(aim.stop, max(aim.start + 1, len(changed))))
        length = rng.choice((1, 1, 2, 4, 8, 60, 1000))
        kind = rng.randrange(9)
        if kind == 0:
            changed[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            changed[at : at + length] = rng.randbytes(length)
        elif kind == 2:
            del changed[at : at + length]
        elif kind == 3:
            changed[at:at] = rng.randbytes(length)
        elif kind == 4:
            changed[at:at] = changed[other : other + length]
        elif kind == 5:
            changed[at : at + length] = changed[other : other + length]
        elif kind == 6:
            number = rng.choice((0, 2**31 - 1, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1))
            changed[at : at + 8] = rng.choice((number.to_bytes(8, "little"), str(number).encode()))
        elif kind == 7 and changed[at : at + 1]:
            changed[at] ^= 1 << rng.randrange(8)
        elif rng.random() < 0.3:
            del changed[at:]
    return bytes(changed)
