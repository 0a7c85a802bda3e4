"""Batches: what an epoch draws, and that a seed draws it again."""

from __future__ import annotations

import pytest
import torch

from edgecls.train.data.augment import augmentation
from edgecls.train.data.batches import Batch, Batches, Drawing, in_order
from edgecls.train.data.mixing import Mixing


def batches(n: int = 50, size: int = 8, drawing: Drawing | None = None, **changes: object) -> Batches:
    return Batches(torch.arange(n).view(n, 1), torch.arange(n), size, drawing, **changes)  # type: ignore[arg-type]


def rows(drawn: Batches) -> list[int]:
    return [int(row) for batch in drawn for row in batch.inputs[:, 0]]


def test_batches_cover_every_image_once_an_epoch_in_a_new_order() -> None:
    drawn = batches(drawing=Drawing(0))
    first = rows(drawn)
    drawn.epoch = 1
    second = rows(drawn)
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second
    assert len(list(drawn)) == len(drawn) == 7


def test_an_epoch_is_drawn_again_whatever_was_drawn_before_it() -> None:
    through, directly = batches(drawing=Drawing(3)), batches(drawing=Drawing(3), epoch=2)
    for epoch in range(3):
        through.epoch = epoch
        last = rows(through)
    assert last == rows(directly)


def test_without_a_drawing_the_order_is_kept() -> None:
    assert rows(batches()) == list(range(50))


def test_one_image_too_many_is_joined_by_another_because_batch_norm_needs_two() -> None:
    sizes = [len(batch.targets) for batch in batches(9, 4, Drawing(0))]
    assert sizes == [4, 4, 2]


@pytest.mark.parametrize("n", [50, 51, 49])
def test_the_processes_share_every_batch_and_their_weights_make_one_mean(n: int) -> None:
    whole = list(batches(n, 8, Drawing(5)))
    parts = [list(batches(n, 8, Drawing(5), part=(rank, 2))) for rank in range(2)]
    for batch, *halves in zip(whole, *parts, strict=True):
        together = torch.cat([half.targets for half in halves])
        if len(batch.targets) >= 4:
            assert sorted(together.tolist()) == sorted(batch.targets.tolist())
            mean = sum(half.weight * half.targets.float().mean() for half in halves) / 2
            assert torch.isclose(mean, batch.targets.float().mean())


def test_balanced_sampling_draws_rare_classes_as_often_as_common_ones() -> None:
    targets = torch.cat([torch.zeros(900, dtype=torch.int64), torch.ones(100, dtype=torch.int64)])
    drawn = Batches(targets.view(-1, 1), targets, 100, Drawing(0, balanced=True))
    share = torch.cat([batch.targets for batch in drawn]).float().mean()
    assert 0.42 < share < 0.58


def test_the_second_epoch_mirrors_what_the_first_did_not() -> None:
    pixels = torch.randint(0, 256, (40, 6, 6, 3), dtype=torch.uint8)
    drawn = Batches(pixels, torch.arange(40), 40, Drawing(0, augmentation=augmentation(["flip"])))
    seen = []
    for epoch in range(2):
        drawn.epoch = epoch
        (batch,) = drawn
        views = torch.empty_like(pixels)
        views[batch.targets] = batch.inputs
        seen.append((views != pixels).flatten(1).any(1))
    assert bool((seen[0] ^ seen[1]).all())
    assert 8 < int(seen[0].sum()) < 32


def test_mixed_targets_stay_shares_of_one() -> None:
    pixels = torch.randint(0, 256, (16, 8, 8, 3), dtype=torch.uint8)
    drawing = Drawing(0, mixing=Mixing(16, mixup=0.4))
    batch: Batch = next(iter(Batches(pixels, torch.arange(16), 16, drawing)))
    assert batch.targets.shape == (16, 16)
    assert torch.allclose(batch.targets.sum(1), torch.ones(16))


def test_all_rows_come_in_order() -> None:
    assert [part.tolist() for part in in_order(torch.arange(5), 2)] == [[0, 1], [2, 3], [4]]


def test_inputs_and_targets_of_other_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="got 2 and 3"):
        Batches(torch.zeros(2, 1), torch.zeros(3, dtype=torch.int64), 2)


def test_epochs_of_a_few_images_go_through_all_before_one_is_seen_again() -> None:
    drawn = batches(n=50, size=8, drawing=Drawing(3), n_images=20)
    assert len(drawn) == 3
    seen: list[int] = []
    for epoch in range(5):  # 100 images: two passes
        drawn.epoch = epoch
        taken = rows(drawn)
        assert len(taken) == 20
        seen += taken
    assert sorted(seen[:50]) == sorted(seen[50:]) == list(range(50))
    assert seen[:50] != seen[50:]


def test_without_a_draw_an_epoch_of_a_few_images_takes_the_first_ones() -> None:
    assert rows(batches(n=50, size=8, n_images=20)) == list(range(20))
