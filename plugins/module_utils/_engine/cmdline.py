# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The kernel command line, read as the kernel reads it (kernel/params.c, lib/cmdline.c) and compared by key.

A comparison of strings reboots a host for nothing: a running 'intel_iommu=on,sm_on' satisfies a wished
'intel_iommu=on'.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

#: Keys whose value is a set of members, and which members exclude each other
#: (Documentation/admin-guide/kernel-parameters.txt).
SETS: Mapping[str, tuple[frozenset[str], ...]] = {
    "intel_iommu": (frozenset({"on", "off"}), frozenset({"sm_on", "sm_off"})),
    "amd_iommu": (frozenset({"on", "off"}), frozenset({"force_enable", "off"})),
    "iommu": (
        frozenset({"off", "force", "noforce", "soft"}),
        frozenset({"pt", "nopt"}),
        frozenset({"merge", "nomerge"}),
    ),
}

#: Keys that are meant to be repeated: each occurrence counts by itself.
REPEATED = frozenset({"console", "earlycon", "hugepages", "hugepagesz", "module_blacklist"})

#: A count of huge pages belongs to the size that stands before it, else to the default size (hugepages= and
#: hugepagesz= in kernel-parameters.txt): they are ordered pairs.
SIZE, COUNT = "hugepagesz", "hugepages"

#: Keys that loaders and their tools add by themselves: no difference that a boot could settle.
ADDED = frozenset({"BOOT_IMAGE", "initrd", "systemd.machine_id"})

#: Parameters that take no value (kernel-parameters.txt).
FLAGS = frozenset(
    {"quiet", "ro", "rw", "nosmp", "noapic", "nolapic", "nokaslr", "nosmt_force", "single", "noresume", "rootwait", "nomodule"}
)

#: Parameters that make devices look assignable when they are not, and the danger by whose name they are allowed. The
#: first is no kernel parameter at all but a patch of some distributions.
DANGEROUS: Mapping[str, str] = {
    "pcie_acs_override": "group",
    "vfio_iommu_type1.allow_unsafe_interrupts": "group",
}

#: What a wish may be: a value in quotes may hold single blanks and what shells and GRUB interpret outside of quotes. Tools
#: make one blank of several (90-loaderentry.install).
_PLAIN = r"[^\s\"'`$\\;{}|&<>]*"
_INSIDE = r"[^\s\"'`$\\]+"
_QUOTED = rf"(?:{_INSIDE}(?: {_INSIDE})*)?"
_KEY = r"[A-Za-z0-9_.:-]+"
_PARAMETER = re.compile(rf'{_KEY}(?:=(?:{_PLAIN}|"{_QUOTED}"))?|"{_KEY}(?:={_QUOTED})?"')


def split(line: str) -> list[str]:
    """The words of a command line. Blanks inside double quotes do not divide (next_arg in lib/cmdline.c)."""
    words: list[str] = []
    word, quoted = "", False
    for char in line:
        if char == '"':
            quoted = not quoted
        if char.isspace() and not quoted:
            words += [word] if word else []
            word = ""
        else:
            word += char
    return words + ([word] if word else [])


def parsed(word: str) -> tuple[str, str | None]:
    """Key and value as the kernel takes them out of a word (next_arg in lib/cmdline.c): quotes around the whole word or
    around the value are no part of them. The key as it is written."""
    whole = word.startswith('"')
    key, equals, value = word[whole:].partition("=")
    if equals and value.startswith('"'):
        value = value[1:]
        whole = True
    text = value if equals else key
    if whole and text.endswith('"'):
        text = text[:-1]
    return (key, text) if equals else (text, None)


def key_of(word: str) -> str:
    """The key of a word. The kernel takes '-' and '_' in a name for the same (parameq in kernel/params.c)."""
    return parsed(word)[0].replace("-", "_")


def value_of(word: str) -> str | None:
    return parsed(word)[1]


def spelled(word: str) -> str:
    """A word as we write it: quotes around the value alone, and only where it needs them. GRUB puts them around the whole
    word when it starts a kernel (grub-core/lib/cmdline.c), so words are compared in this spelling."""
    key, value = parsed(word)
    if value is None:
        return key
    return f"{key}={value}" if re.fullmatch(_PLAIN, value) else f'{key}="{value}"'


def for_kernel(words: Sequence[str]) -> list[str]:
    """The words up to '--'; what follows is for init (parse_args in kernel/params.c)."""
    return list(words[: words.index("--")]) if "--" in words else list(words)


def own(words: Iterable[str]) -> list[str]:
    """The words without those that loaders add."""
    return [word for word in words if key_of(word) not in ADDED]


def invalid(word: str) -> str | None:
    """Why a wished parameter cannot be written, or None."""
    if not word or word.startswith("="):
        return "has no key"
    if any(char in word for char in "\n\r\0"):
        return "has a line break"
    if word.count('"') % 2:
        return "has an unbalanced quote"
    if not _PARAMETER.fullmatch(word):
        return (
            "holds a character that the boot loader's configuration would interpret, or blanks that are not single ones "
            'within quotes around the value (key="a b")'
        )
    if parsed(word)[0] in FLAGS and value_of(word) is not None:
        return "has a value, and the kernel takes none for it"
    return None


def satisfied(words: Sequence[str], wish: str) -> bool:
    """Does a command line already say what is wished?"""
    key, value = key_of(wish), value_of(wish)
    values = [value_of(word) for word in words if key_of(word) == key]
    if key in REPEATED:
        return value in values
    if key in SETS and value is not None:
        return set(value.split(",")) <= set(effective_members(key, values))
    return bool(values) and values[-1] == value


def effective_members(key: str, values: Iterable[str | None]) -> list[str]:
    """The members in force of a key that is a set: a later one puts out those that it excludes."""
    members: list[str] = []
    for value in values:
        for member in (value or "").split(","):
            excluded = {m for group in SETS[key] if member in group for m in group}
            members = [m for m in members if m not in excluded and m != member]
            members += [member] if member else []
    return members


def merged(words: Sequence[str], wish: str, absent: Sequence[str] = ()) -> str:
    """The wish as it has to be written, so that members of the same key that it does not speak of stay, but for those
    that are wished away."""
    key, value = key_of(wish), value_of(wish)
    if key not in SETS or value is None:
        return wish
    present = [value_of(word) for word in words if key_of(word) == key]
    members = without(key, effective_members(key, [*present, value]), absent)
    return f"{parsed(wish)[0]}={','.join(members)}"


def without(key: str, members: Iterable[str], absent: Sequence[str]) -> list[str]:
    """The members of a key that are not wished away."""
    unwished = {m for pattern in absent if key_of(pattern) == key for m in (value_of(pattern) or "").split(",")}
    return [member for member in members if member not in unwished]


def remaining(words: Sequence[str], pattern: str, absent: Sequence[str]) -> str | None:
    """For a member wished away that shares its key with others: the word that is left to be written."""
    key = key_of(pattern)
    if key not in SETS or value_of(pattern) is None:
        return None
    members = without(key, effective_members(key, [value_of(word) for word in words if key_of(word) == key]), absent)
    return f"{parsed(pattern)[0]}={','.join(members)}" if members else None


def says(words: Sequence[str], pattern: str) -> bool:
    """Does a command line hold what is wished away? Of a key that is a set, its members in force count."""
    key, value = key_of(pattern), value_of(pattern)
    if key in SETS and value is not None:
        in_force = effective_members(key, [value_of(word) for word in words if key_of(word) == key])
        return any(member in in_force for member in value.split(","))
    return any(matches(word, pattern) for word in words)


def matches(word: str, pattern: str) -> bool:
    """Is this the parameter that is wished away? 'key' means whatever value it has, 'key=value' that value alone."""
    if key_of(word) != key_of(pattern):
        return False
    return value_of(pattern) is None or value_of(word) == value_of(pattern)


def unmet(
    words: Sequence[str], present: Sequence[str], absent: Sequence[str], exact: Sequence[str] = ()
) -> list[str]:
    """What a command line lacks of the wished parameters or has of the unwished ones."""
    words = for_kernel(words)
    lacking = []
    size: str | None = None
    for wish in present:
        if key_of(wish) == SIZE:
            size = value_of(wish)
        if key_of(wish) == COUNT:
            if huge_pages(words).get(size) != value_of(wish):
                lacking.append(wish if size is None else f"{SIZE}={size} {wish}")
        elif not satisfied(words, wish):
            lacking.append(wish)
    lacking += [f"not {p}" for p in absent if says(words, p)]
    for key in dict.fromkeys(map(key_of, exact)):
        wanted = [word for word in exact if key_of(word) == key]
        if [value_of(w) for w in words if key_of(w) == key] != [value_of(w) for w in wanted]:
            lacking.append(f"exactly {' '.join(wanted)}")
    return lacking


def huge_pages(words: Iterable[str]) -> dict[str | None, str | None]:
    """Size (None: the default size) -> count, as the pairs of a command line come to."""
    found: dict[str | None, str | None] = {}
    size: str | None = None
    for word in words:
        if key_of(word) == SIZE:
            size = value_of(word)
        if key_of(word) == COUNT:
            found[size] = value_of(word)
    return found


def pairs_with(words: Sequence[str], wishes: Sequence[str]) -> list[str]:
    """The pairs of a command line with those that are wished, in the order in which they have to be written: a count
    without a size comes first, as behind a size it would be that one's."""
    pairs = {**huge_pages(words), **huge_pages(wishes)}
    sizes = [value_of(w) for w in wishes if key_of(w) == SIZE and value_of(w) not in pairs]
    result = [f"{COUNT}={pairs[None]}"] if None in pairs else []
    for size, count in pairs.items():
        if size is not None:
            result += [f"{SIZE}={size}", f"{COUNT}={count}"]
    return result + [f"{SIZE}={size}" for size in sizes]


def differing(now: Sequence[str], then: Sequence[str]) -> list[dict[str, Any]]:
    """The parameters in which two command lines differ, but for what loaders add: key, its words now, its words then."""
    keys = dict.fromkeys(key_of(word) for word in [*own(now), *own(then)])
    found = []
    for key in keys:
        sides = [[word for word in words if key_of(word) == key] for words in (now, then)]
        if [spelled(word) for word in sides[0]] != [spelled(word) for word in sides[1]]:
            found.append({"key": key, "running": sides[0], "next_boot": sides[1]})
    return found
