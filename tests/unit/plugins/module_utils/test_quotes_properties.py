# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Words of a command line: read as the kernel walks them, whatever they are."""

from __future__ import annotations

import pytest

pytest.importorskip("hypothesis", reason="hypothesis is not installed; tests/unit/requirements.txt names it")

from ansible_collections.iovirt.host.plugins.module_utils._engine import cmdline
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st


def kernel_words(line):
    """Keys and values as a walk by next_arg gives them, told step by step as its text in lib/cmdline.c (Linux 6.12) says:
    a word ends at a blank outside of quotes; the first '=' behind its first character divides it; a quote that begins the
    word or the value goes, and one at the word's end with it."""
    found, rest = [], line.lstrip(" ")
    while rest:
        whole = rest.startswith('"')
        rest = rest[whole:]
        inside, equals, end = whole, 0, 0
        while end < len(rest) and (inside or rest[end] != " "):
            equals = equals or (end if rest[end] == "=" else 0)
            inside ^= rest[end] == '"'
            end += 1
        word, rest = rest[:end], rest[end:].lstrip(" ")
        key, value = (word[:equals], word[equals + 1 :]) if equals else (word, None)
        if value is not None and value.startswith('"'):
            value = value[1:]
            value = value[:-1] if value.endswith('"') else value
        elif whole:
            key, value = (key, value[:-1]) if value and value.endswith('"') else (key[:-1] if value is None and key.endswith('"') else key, value)
        found.append((key, value))
    return found


#: The same examples in each run: a check that fails by chance is no check. Half of the lines that can be thought of are none that we split.
quick = settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.filter_too_much])


@quick
@given(st.text(alphabet='ab=" ', max_size=14))
def test_every_line_as_the_kernel_walks_it(line):
    """But for words that begin with '=' or hold a lone quote: those are refused as wishes, and stay untouched in what is
    inherited."""
    words = cmdline.split(line)
    assume(all(word.count('"') % 2 == 0 and word.strip('"')[:1] not in ("=", "") and '""' not in word for word in words))
    assert [cmdline.parsed(word) for word in words] == kernel_words(line)


VALUES = st.lists(st.text(alphabet="ab=", min_size=1, max_size=3), max_size=3).map(" ".join)


@quick
@given(st.sampled_from(["a", "a-b", "a.b_c"]), VALUES, st.sampled_from(["{}={}", '{}="{}"', '"{}={}"', "{}"]))
def test_a_word_says_the_same_in_our_spelling(key, value, style):
    word = style.format(key, value)
    assume(cmdline.invalid(word) is None)
    assert cmdline.parsed(cmdline.spelled(word)) == cmdline.parsed(word)
    assert kernel_words(cmdline.spelled(word)) == kernel_words(word) == [cmdline.parsed(word)]
    assert cmdline.spelled(cmdline.spelled(word)) == cmdline.spelled(word)
