from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medflow.config.sections import Augment
from medflow.errors import TrainingError
from medflow.loader import Examples, Pass, batches, cut, in_order, plain_batches, repeats, sample
from medflow.pixels import open_store

HEADS = (tiny.LABELS, tiny.FINDINGS, tiny.REGION)
STRONG = Augment(rotate=0.8, flip=0.5, noise=0.5)


@pytest.fixture(scope="module")
def examples(tmp_path_factory) -> Examples:
    train, _, pixels, _ = tiny.make(tmp_path_factory.mktemp("pixels"))
    # Not the stored order, so that rows of the table and rows of the store are told apart.
    return Examples(train.take(np.arange(len(train))[::-1]), open_store(pixels, tiny.SIZE), HEADS)


def same(first, second) -> bool:
    tensors = [(first.images, second.images)]
    tensors += [(first.targets[name], second.targets[name]) for name in first.targets]
    tensors += [(first.known[name], second.known[name]) for name in first.known]
    return first.image_ids == second.image_ids and all(
        torch.equal(torch.nan_to_num(a, -1), torch.nan_to_num(b, -1)) for a, b in tensors
    )


def test_a_batch_holds_what_is_stored(examples):
    images, masks, classes = tiny.draw(24, seed=0)
    rows = np.array([3, 0, 15])
    batch = examples.batch(rows)
    stored = 15 - rows
    assert batch.image_ids == tuple(f"image_{row:04d}" for row in stored)
    assert np.array_equal(batch.images.numpy(), images[stored])
    assert np.array_equal(batch.targets["region"].numpy(), masks[stored])
    assert np.array_equal(batch.targets["diagnosis"].numpy(), np.eye(3)[classes[stored]])


def test_what_is_unknown_is_said(examples):
    batch = examples.batch(np.arange(16))
    unknown, unmasked = 15 - 2, 15 - 1
    assert batch.known["diagnosis"].shape == (16,) and batch.known["findings"].shape == (16, 2)
    assert [int(row) for row in (~batch.known["diagnosis"]).nonzero()] == [unknown]
    assert not batch.known["findings"][unknown].any() and batch.known["findings"].sum() == 30
    assert [int(row) for row in (~batch.known["region"]).nonzero()] == [unmasked]
    assert examples.terms(np.arange(16)) == {"diagnosis": 15, "findings": 30, "region": 15}
    assert examples.terms(np.array([unknown]))["diagnosis"] == 1  # a divisor is never 0


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(2, 200), size=st.integers(1, 40))
def test_every_row_comes_once_and_none_alone(rows, size):
    parts = cut(np.arange(rows), size)
    assert np.array_equal(np.concatenate(parts), np.arange(rows))
    if size > 1:
        assert min(len(part) for part in parts) > 1
        assert max(len(part) for part in parts) <= size + 1


def test_one_row_cannot_be_trained_on():
    with pytest.raises(TrainingError, match="1 training rows"):
        cut(np.arange(1), 4)


def test_order_is_a_permutation_of_its_own_in_each_epoch():
    orders = [tuple(Pass(seed, stage, epoch).order(50)) for seed in (0, 1) for stage in (0, 1) for epoch in (0, 1, 2)]
    assert len(set(orders)) == len(orders)
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert orders[0] == tuple(Pass(0, 0, 0).order(50))
    assert len({Pass(0, 0, 0).step(step) for step in range(100)}) == 100


@pytest.mark.parametrize("workers", [1, 3])
def test_threads_change_nothing(examples, workers):
    walk = Pass(0, 0, 1)
    parts = cut(walk.order(len(examples)), 3)
    alone = list(batches(examples, parts, augment=STRONG, walk=walk))
    ahead = list(batches(examples, parts, augment=STRONG, walk=walk, workers=workers))
    assert len(alone) == len(ahead) == 5
    assert all(same(first, second) for first, second in zip(alone, ahead, strict=True))


def test_a_walk_taken_up_again_gives_the_same_batches(examples):
    walk = Pass(0, 0, 1)
    parts = cut(walk.order(len(examples)), 4)
    whole = list(batches(examples, parts, augment=STRONG, walk=walk))
    rest = list(batches(examples, parts[2:], augment=STRONG, walk=walk))
    assert all(same(first, second) for first, second in zip(whole[2:], rest, strict=True))


def test_a_row_is_augmented_otherwise_in_the_next_epoch(examples):
    rows = [np.arange(len(examples))]
    first, second = (next(batches(examples, rows, augment=STRONG, walk=Pass(0, 0, epoch))) for epoch in (0, 1))
    assert not torch.equal(first.images, second.images)


@settings(max_examples=60, deadline=None)
@given(order=st.lists(st.integers(0, 9), max_size=40))
def test_repeats_count_what_came_before(order):
    assert repeats(np.array(order, np.int64)).tolist() == [order[:place].count(row) for place, row in enumerate(order)]


def test_a_row_drawn_once_has_the_seeds_it_always_had():
    walk = Pass(seed=7, stage=1, epoch=2)
    assert walk.row(5) == walk.row(5, 0) == (1, 7, 1, 2, 5)
    assert len({walk.row(row, repeat) for row in range(9) for repeat in range(9)}) == 81


def test_a_row_drawn_again_is_augmented_otherwise(examples):
    walk, order = Pass(0, 0, 0), np.array([4, 1, 4, 4, 2, 1])
    parts, again = cut(order, 2), cut(repeats(order), 2)
    made = [list(batches(examples, parts, again=again, augment=STRONG, walk=walk, workers=count)) for count in (0, 2)]
    assert all(same(first, second) for first, second in zip(*made, strict=True))
    drawn = torch.cat([batch.images for batch in made[0]])
    assert len({image.numpy().tobytes() for image in drawn}) == len(order)
    once = next(batches(examples, [np.array([4, 1, 2])], augment=STRONG, walk=walk))
    assert torch.equal(once.images, drawn[[0, 1, 4]])
    taken_up = next(batches(examples, parts[1:], again=again[1:], augment=STRONG, walk=walk))
    assert torch.equal(taken_up.images, drawn[2:4])


def test_a_sample_shows_what_the_sampler_draws(examples):
    chances = np.zeros(len(examples))
    chances[[3, 8]] = 0.5
    shown = sample(examples, STRONG, 0, chances=chances, count=6)
    assert set(shown.image_id) == {examples.image_ids[3], examples.image_ids[8]}
    assert len({image.tobytes() for image in shown.before}) == 2 and len({i.tobytes() for i in shown.after}) == 6


def test_validation_sees_the_stored_pixels_in_order(examples):
    parts = list(plain_batches(examples, in_order(examples, 5), workers=2))
    assert [len(part) for part in parts] == [5, 5, 5, 1]
    whole = examples.batch(np.arange(16))
    assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
    assert sum((part.image_ids for part in parts), ()) == whole.image_ids


def test_an_error_in_a_thread_reaches_the_loop(examples):
    with pytest.raises(IndexError):
        list(batches(examples, [np.array([99])], augment=STRONG, walk=Pass(0, 0, 0), workers=2))
