from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medflow.checkpoint import KEPT, Checkpoint, Checkpoints, Position, decode, encode
from medflow.records import EpochLog
from medflow.tracking import LocalFiles

TRAINING = "0123456789abcdef" * 4
ENTRY = EpochLog(stage=0, epoch=1, train_loss=0.1 + 0.2, val_loss=1 / 3, val_score=0.7, lr=3e-4, losses={"d": 1e-17})


def checkpoint(step: int) -> Checkpoint:
    generator = torch.Generator().manual_seed(step)
    weight = torch.randn(4, 3, 3, 3, generator=generator).to(memory_format=torch.channels_last)
    return Checkpoint(
        position=Position(epoch=1, step=step, loss_sum=0.1 * step, images=8 * step, log=(ENTRY,), best_score=0.7),
        model={"conv.weight": weight, "bn.num_batches_tracked": torch.tensor(step)},
        best={"conv.weight": weight + 1},
        optimizer={"0.exp_avg": weight * 2, "0.step": torch.tensor(float(step))},
    )


def same(first: Checkpoint, second: Checkpoint) -> bool:
    def equal(a, b):
        return a.keys() == b.keys() and all(
            torch.equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a
        )

    pairs = ((first.model, second.model), (first.best, second.best), (first.optimizer, second.optimizer))
    return first.position == second.position and all(equal(a, b) for a, b in pairs)


@settings(max_examples=40, deadline=None)
@given(
    loss=st.floats(allow_nan=False),
    score=st.floats(allow_nan=False),
    epoch=st.integers(0, 10**5),
    scale=st.floats(1, 2**24),
)
def test_a_position_survives_exactly(loss, score, epoch, scale):
    position = Position(
        epoch=epoch, loss_sum=loss, best_score=score, log=(ENTRY,), scaler={"scale": scale, "growth_interval": 2000}
    )
    found = decode(encode(Checkpoint(position=position, model={}, best={}, optimizer={}))).position
    assert found == position
    assert isinstance(found.scaler["growth_interval"], int)


def test_a_new_training_starts_with_no_best_score():
    found = decode(encode(Checkpoint(position=Position(), model={}, best={}, optimizer={})))
    assert found.position.best_score == float("-inf")


def test_the_newest_is_taken_and_two_are_kept(tmp_path):
    store = Checkpoints(LocalFiles(tmp_path), TRAINING)
    assert store.newest() is None
    for step in (1, 2, 9, 10, 11):
        store.save(checkpoint(step))
    assert same(store.newest(), checkpoint(11))
    assert len(list(tmp_path.iterdir())) == KEPT
    store.clear()
    assert not list(tmp_path.iterdir())


def test_truncation_at_any_byte_falls_back(tmp_path):
    files = LocalFiles(tmp_path)
    Checkpoints(files, TRAINING).save(checkpoint(1))
    Checkpoints(files, TRAINING).save(checkpoint(2))
    newest = files.names()[-1]
    whole = files.read(newest)
    for length in range(len(whole)):
        files.write(newest, whole[:length])
        assert same(Checkpoints(files, TRAINING).newest(), checkpoint(1)), length
        assert newest not in files.names()
    files.write(newest, whole)
    assert same(Checkpoints(files, TRAINING).newest(), checkpoint(2))


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_a_changed_byte_falls_back(tmp_path_factory, data):
    files = LocalFiles(tmp_path_factory.mktemp("checkpoints"))
    store = Checkpoints(files, TRAINING)
    store.save(checkpoint(1))
    store.save(checkpoint(2))
    newest = files.names()[-1]
    whole = bytearray(files.read(newest))
    place = data.draw(st.integers(0, len(whole) - 1))
    whole[place] ^= data.draw(st.integers(1, 255))
    files.write(newest, bytes(whole))
    assert same(store.newest(), checkpoint(1))


def test_with_all_damaged_training_starts_anew_and_says_so(tmp_path, capsys):
    files = LocalFiles(tmp_path)
    store = Checkpoints(files, TRAINING)
    for step in (1, 2):
        store.save(checkpoint(step))
    for name in files.names():
        files.write(name, b"")
    assert store.newest() is None
    assert capsys.readouterr().err.count("is damaged") == 2


def test_trainings_in_one_store_do_not_meet(tmp_path):
    files = LocalFiles(tmp_path)
    first, second = Checkpoints(files, TRAINING), Checkpoints(files, TRAINING[::-1])
    first.save(checkpoint(1))
    for step in (2, 3, 4):
        second.save(checkpoint(step))
    assert same(first.newest(), checkpoint(1))
    second.clear()
    assert same(first.newest(), checkpoint(1))


def test_after_a_fall_back_a_new_checkpoint_is_the_newest(tmp_path):
    files = LocalFiles(tmp_path)
    store = Checkpoints(files, TRAINING)
    for step in (5, 9):
        store.save(checkpoint(step))
    files.write(files.names()[-1], b"cut")
    assert same(store.newest(), checkpoint(5))
    store.save(checkpoint(6))
    assert same(store.newest(), checkpoint(6))


def test_equal_checkpoints_are_equal_bytes():
    assert encode(checkpoint(3)) == encode(checkpoint(3))
