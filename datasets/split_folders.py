"""Split folders: recognise train, valid and test folders as people name them, at any level of a tree."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

_ROLE_WORDS = {
    "train": ("train", "training", "trn", "trainval"),
    "valid": ("valid", "val", "validation", "validate", "vali", "dev", "devel", "development", "eval", "evaluation"),
    "test": ("test", "testing", "tst", "holdout", "heldout"),
}
_ROLE_OF = {word: role for role, words in _ROLE_WORDS.items() for word in words}
# Words that say nothing about a folder's content: train_images, val2017 and test-set-32x32 are split folders.
_NEUTRAL = {
    *("set", "sets", "split", "data", "dataset", "image", "images", "imgs", "img", "files", "file"),
    *("photo", "photos", "picture", "pictures", "pics", "pic", "samples", "sample", "frames", "x", "px", "of", "the"),
    *("png", "pngs", "jpg", "jpgs", "jpeg", "jpegs"),
}
_TAIL = re.compile(r"(sets?|split|data|dataset|images?|imgs?|files|photos|pictures|samples|frames)$")
_WORD = re.compile(r"[^\W\d_]+")
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")


def role_of(folder: str) -> tuple[str, str] | None:
    """Return the role of a folder's name (train, valid or test) and the rest of the name; None for any other name.

    The rest is "" if the name says nothing else: `Train`, `val2017`, `test_images`. A name with two roles has none.
    """
    words = [w.casefold() for w in _WORD.findall(_CAMEL.sub(" ", unicodedata.normalize("NFKC", folder)))]
    roles, rest = list[str](), list[str]()
    for word in words:
        role = _ROLE_OF.get(word) or _ROLE_OF.get(_TAIL.sub("", word))
        if role:
            roles.append(role)
        elif word not in _NEUTRAL:
            rest.append(word)
    return (roles[0], " ".join(rest)) if len(set(roles)) == 1 else None


@dataclass
class _Folder:
    """A folder of the tree and its sub-folders."""

    path: str
    children: dict[str, _Folder] = field(default_factory=dict)
    has_pairs: bool = False
    """True if sibling folders, here or below, have two or more roles."""

    def roles(self) -> dict[str, str]:
        """Roles of sub-folders that have a sibling with another role and the same rest of the name."""
        found = {name: named for name in self.children if (named := role_of(name))}
        partners: dict[str, set[str]] = {}
        for role, rest in found.values():
            partners.setdefault(rest, set()).add(role)
        return {name: role for name, (role, rest) in found.items() if len(partners[rest]) > 1}

    def lone_roles(self) -> dict[str, str]:
        """Roles of the sub-folders whose names say nothing else."""
        return {name: named[0] for name in self.children if (named := role_of(name)) and not named[1]}


def _tree(names: Iterable[str]) -> _Folder:
    root = _Folder("")
    for name in names:
        *parents, _ = name.split("/")
        node = root
        for parent in parents:
            node = node.children.setdefault(parent, _Folder(f"{node.path}{parent}/"))
    nodes = [root]
    for node in nodes:
        nodes += node.children.values()
    for node in reversed(nodes):  # no recursion, because a path may have two thousand folders
        node.has_pairs = bool(node.roles()) or any(child.has_pairs for child in node.children.values())
    return root


def _find(root: _Folder) -> dict[str, str]:
    """Find split folders from the top down: role by path. Folders inside a split folder are not searched."""
    found: dict[str, str] = {}
    pending = [root]
    while pending:
        node = pending.pop()
        pairs = node.roles()
        alone = {name: role for name, role in node.lone_roles().items() if pairs or not node.children[name].has_pairs}
        roles = alone | pairs
        found |= {node.children[name].path: role for name, role in roles.items()}
        pending += [child for name, child in node.children.items() if name not in roles]
    return found


def split_folders(names: Iterable[str]) -> dict[str, str]:
    """Find the split folders among the paths of images: path of the folder, ending in "/", to train, valid or test.

    Those are folders with two roles or more beside each other (`train` beside `val`, `trainA` beside `testA`), at any
    level (`cats/train` beside `cats/test`), and single folders whose name says nothing but the role and that hold no
    such folders themselves.
    """
    return _find(_tree(names))


def roles_by_folder(names: Sequence[str], folders: dict[str, str]) -> list[str | None]:
    """Return the role of each image: that of the split folder that contains it, or None."""
    roles: list[str | None] = []
    for name in names:
        parts = name.split("/")
        heads = ("/".join(parts[:depth]) + "/" for depth in range(1, len(parts)))
        roles.append(next((folders[head] for head in heads if head in folders), None))
    return roles


def describe_unused(names: Sequence[str], roles: Sequence[str | None]) -> str:
    """Count the images without a role by top folder."""
    places = Counter(
        f"{name.split('/', 1)[0]}/" if "/" in name else "loose files"
        for name, role in zip(names, roles, strict=True)
        if role is None
    )
    shown = [f"{place} {count:,}" for place, count in places.most_common(6)]
    return ", ".join(shown) + (f" and {len(places) - 6} more folders" if len(places) > 6 else "")
