"""Reports as tokens: a vocabulary that repeats bit for bit, and the same ids wherever a report is read."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medflow.errors import ArtifactError
from medflow.text import MAX_CHARACTERS, Tokenizer, learn_tokenizer
from medflow.wordpiece import SPECIAL, learn_vocabulary

REPORTS = (
    "PA chest radiograph. No pleural effusion.",
    "Patchy opacity in the left lung.",
    "Patchy opacity in the right lung. Pleural effusion with a fluid level.",
    None,
    "Heart size is normal. No focal consolidation.",
)
LEARN = """
from medflow.text import learn_tokenizer
print(learn_tokenizer({reports!r}, vocabulary=90, max_tokens=16).sha256())
"""


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return learn_tokenizer(REPORTS, vocabulary=200, max_tokens=16)


# -- learning ------------------------------------------------------------------------------------


def test_pieces_are_joined_by_frequency_and_ties_by_name():
    words = {"ab": 5, "cb": 3, "cd": 3}
    pieces = learn_vocabulary(words, 99)
    assert pieces == (*SPECIAL, "##b", "##d", "a", "c", "ab", "cb", "cd")
    assert learn_vocabulary(words, 10) == pieces[:10]
    assert learn_vocabulary(words, 99, at_least=4) == pieces[:10]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.text("abcde", min_size=1, max_size=6), min_size=1, max_size=30), st.integers(6, 60))
def test_any_order_of_the_words_gives_the_same_vocabulary(words, size):
    counts = Counter(words)
    shuffled = list(counts.items())
    random.Random(1).shuffle(shuffled)
    pieces = learn_vocabulary(counts, size)
    assert pieces == learn_vocabulary(dict(shuffled), size)
    assert len(pieces) == len(set(pieces))
    characters = {letter if place == 0 else f"##{letter}" for word in words for place, letter in enumerate(word)}
    assert characters <= set(pieces)
    assert len(pieces) <= max(size, len(SPECIAL) + len(characters))


def test_every_process_learns_the_same_file():
    here = learn_tokenizer(REPORTS, vocabulary=90, max_tokens=16).sha256()
    runs = [
        subprocess.run(
            [sys.executable, "-c", LEARN.format(reports=REPORTS)], capture_output=True, text=True, check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
        ).stdout.strip()
        for seed in ("1", "2")
    ]  # fmt: skip
    assert runs == [here, here]


def test_words_of_the_training_reports_are_known(tokenizer):
    unknown = 1
    assert unknown not in tokenizer(REPORTS).input_ids
    assert unknown in tokenizer(["xyz"]).input_ids


# -- reading -------------------------------------------------------------------------------------


def test_missing_and_blank_reports_are_rows_of_zeros(tokenizer):
    tokens = tokenizer([None, "", " \n\t", "heart"])
    assert not tokens.input_ids[:3].any()
    assert not tokens.attention_mask[:3].any()
    assert tokens.attention_mask[3].sum() >= 3
    assert tokens.input_ids.dtype == tokens.attention_mask.dtype == np.int64


def test_what_is_typed_is_never_a_special_token(tokenizer):
    start, end = 2, 3
    ids = tokenizer(["[SEP] heart [PAD] [CLS]"]).input_ids[0]
    assert list(ids).count(end) == 1
    assert list(ids).count(start) == 1


@settings(deadline=None, max_examples=200)
@given(st.lists(st.one_of(st.none(), st.text(max_size=200)), max_size=4))
def test_the_stored_file_reads_as_the_learned_one(reports):
    learned = learn_tokenizer(REPORTS, vocabulary=200, max_tokens=16)
    stored = Tokenizer(learned.document)
    first, second = learned(reports), stored(reports)
    assert np.array_equal(first.input_ids, second.input_ids)
    assert np.array_equal(first.attention_mask, second.attention_mask)
    # Alone or beside others: a batch changes nothing.
    for row, report in enumerate(reports):
        assert np.array_equal(stored([report]).input_ids[0], second.input_ids[row])
    assert first.input_ids.shape == (len(reports), 16)
    assert first.input_ids.max(initial=0) < learned.vocabulary


def test_what_lies_beyond_the_limit_is_not_read(tokenizer):
    long = " " * MAX_CHARACTERS + "heart"
    assert np.array_equal(tokenizer([long]).input_ids, tokenizer(["\u200b"]).input_ids)


@pytest.mark.parametrize("document", ["", "{}", "no json", '{"version": "1.0"}'])
def test_a_damaged_file_is_refused(document):
    with pytest.raises(ArtifactError, match="tokenizer"):
        Tokenizer(document)
