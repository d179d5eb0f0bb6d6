"""Random damage, each from its own seed, of the kinds that disks, networks and attackers do to files and command lines."""

from __future__ import annotations

import copy
import random
from typing import Any

_MAGIC = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1]
_WORDS = [
    "",
    "0",
    "-1",
    "1e309",
    "nan",
    "inf",
    "-0",
    "9" * 40,
    "true",
    "null",
    "\x00",
    "é" * 9,
    "../..",
    "%s",
    "[" * 3000,
]
_WORDS += ["🙂", "\ud800", "0x10", "1_000", " ", "\n", "--", "-", "=", "{}", "/dev/zero", "x" * 5000]
_VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    1,
    2**63,
    10**30,
    1.5,
    float("nan"),
    float("inf"),
    "",
    "x",
    [],
    {},
    [1],
    [[]],
    {"a": 1},
]


def word(chance: random.Random) -> str:
    return chance.choice(_WORDS)


def _place(raw: bytearray, chance: random.Random) -> int:
    """Damage the ends more often, because headers and tables of contents are there."""
    end = len(raw)
    where = chance.random()
    if where < 0.4:
        return chance.randrange(min(end, 256))
    if where < 0.55:
        return chance.randrange(max(0, end - 256), end)
    return chance.randrange(end)


def damage(raw: bytes, chance: random.Random) -> bytes:
    """One to four faults: flipped bits, magic numbers, blocks lost, repeated, moved, zeroed, an end cut off."""
    data = bytearray(raw)
    for _ in range(chance.randint(1, 4)):
        if not data:
            break
        at, length = _place(data, chance), min(chance.choice([1, 2, 4, 8, 64, 1000]), len(data))
        match chance.randrange(8):
            case 0 | 1:
                data[at] ^= 1 << chance.randrange(8)
            case 2:
                size = chance.choice([1, 2, 4, 8])
                number = chance.choice(_MAGIC) % 2 ** (8 * size)
                data[at : at + size] = number.to_bytes(size, chance.choice(["little", "big"]))
            case 3:
                del data[at : None if chance.random() < 0.5 else at + length]
            case 4:
                data[at:at] = chance.randbytes(length)
            case 5:
                data[at:at] = data[at : at + length]
            case 6:
                data[at : at + length] = bytes(len(data[at : at + length]))
            case _:
                other = _place(data, chance)
                data[at : at + length] = data[other : other + length]
    return bytes(data)


def damage_text(text: str, chance: random.Random) -> bytes:
    """Lines or words lost, repeated, exchanged, replaced; or bytes damaged."""
    if chance.random() < 0.4:
        return damage(text.encode(), chance)
    lines = text.split("\n")
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(lines))
        words = lines[at].split(" ")
        match chance.randrange(5):
            case 0:
                lines[at : at + 1] = []
            case 1:
                lines.insert(at, chance.choice(lines))
            case 2:
                words[chance.randrange(len(words))] = word(chance)
                lines[at] = " ".join(words)
            case 3:
                chance.shuffle(words)
                lines[at] = " ".join(words)
            case _:
                lines[at] += " " + word(chance)
        lines = lines or [""]
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def damage_tree(value: Any, chance: random.Random) -> Any:
    """A JSON value with one to three changes: another type or size; a key removed, renamed or added."""
    tree = copy.deepcopy(value)
    for _ in range(chance.randint(1, 3)):
        node: Any = tree
        parent: Any = None
        key: Any = None
        while isinstance(node, dict | list) and node and (parent is None or chance.random() < 0.8):
            parent, key = node, chance.choice(list(node)) if isinstance(node, dict) else chance.randrange(len(node))
            node = parent[key]
        if parent is None:
            return chance.choice(_VALUES)
        match chance.randrange(4):
            case 0:
                del parent[key]
            case 1 if isinstance(parent, dict):
                parent[word(chance)] = parent.pop(key)
            case 2:
                parent[key] = word(chance)
            case _:
                parent[key] = chance.choice(_VALUES)
    return tree
