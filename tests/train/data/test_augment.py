"""Augmentation and mixing: each does what its name says, repeats with its generator, and draws from nothing else."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from edgecls.errors import OptionError
from edgecls.train.augmentation_names import OPERATIONS, PRESETS
from edgecls.train.data import augment
from edgecls.train.data.augment import Augmentation, augmentation
from edgecls.train.data.mixing import Mixing

NAMES = sorted({*PRESETS, *OPERATIONS} - {"none"})


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(n: int = 40, height: int = 20, width: int = 30) -> Tensor:
    return torch.randint(0, 256, (n, height, width, 3), dtype=torch.uint8, generator=seeded(9))


def one_colour(value: tuple[int, int, int], n: int = 40) -> Tensor:
    return torch.tensor(value, dtype=torch.uint8).expand(n, 20, 20, 3).contiguous()


def is_each(one: Tensor, other: Tensor) -> Tensor:
    """(n,) bool: which images are the same."""
    return (one == other).flatten(1).all(1)


@pytest.mark.parametrize("name", NAMES)
def test_augmentation_keeps_shape_and_type_and_repeats_with_its_generator(name: str) -> None:
    pixels = noise()
    before = pixels.clone()
    view = pickle.loads(pickle.dumps(augmentation([name], erase=0.25)))
    one, again, other = (view(pixels, seeded(seed)) for seed in (3, 3, 4))
    assert one.shape == pixels.shape
    assert one.dtype == torch.uint8
    assert one.is_contiguous()
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert torch.equal(pixels, before)


@pytest.mark.parametrize("name", NAMES)
def test_augmentation_depends_on_no_global_generator_and_leaves_it_alone(name: str) -> None:
    views = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        views.append(augmentation([name], erase=0.25)(noise(), seeded()))
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(*views)


def test_none_gives_the_pixels_as_they_are() -> None:
    assert torch.equal(augmentation(["none"])(noise(), seeded()), noise())


COMBINED = [
    pytest.param(["standard"], ("crop", "flip"), id="a preset"),
    pytest.param(["flip", "rotate", "crop"], ("crop", "rotate", "flip"), id="operations, in the order of their use"),
    pytest.param(["light", "standard"], ("crop", "shift", "flip"), id="presets, each operation once"),
    pytest.param(["color", "gray"], ("colour", "grey"), id="American spelling"),
    pytest.param(["trivial"], ("crop", "flip", "trivial"), id="trivial alone, with crop and flip"),
    pytest.param(["shift", "trivial"], ("shift", "trivial"), id="trivial beside others, which mirrors nothing"),
    pytest.param(["none", "none"], (), id="none, twice"),
]


@pytest.mark.parametrize(("names", "operations"), COMBINED)
def test_names_are_combined(names: list[str], operations: tuple[str, ...]) -> None:
    assert augmentation(names, 0.5) == Augmentation(operations, erase=0.5)


BAD_NAMES = [
    pytest.param(["ligth"], r"--augment ligth: expected one of none, shift, light, .*: crop, rotate", id="misspelt"),
    pytest.param(["flip", ""], r"--augment : expected one of none", id="empty"),
    pytest.param(["none", "flip"], r"--augment none,flip: none goes with no other", id="none with another"),
]


@pytest.mark.parametrize(("names", "message"), BAD_NAMES)
def test_names_that_mean_nothing_are_refused(names: list[str], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        augmentation(names)


@pytest.mark.parametrize(("name", "axis"), [("flip", 2), ("vflip", 1)])
@pytest.mark.parametrize("size", [(5, 7), (6, 8)], ids=["odd sides", "even sides"])
def test_a_flip_mirrors_and_nothing_else(name: str, axis: int, size: tuple[int, int]) -> None:
    pixels = noise(40, *size)
    flipped = augmentation([name])(pixels, seeded())
    mirrored = is_each(flipped, pixels.flip(axis))
    assert bool((is_each(flipped, pixels) | mirrored).all())
    assert 5 < int(mirrored.sum()) < 35


@pytest.mark.parametrize("names", [["flip"], ["standard"], ["flip", "colour"]], ids="+".join)
def test_the_caller_may_say_what_is_mirrored(names: list[str]) -> None:
    pixels = noise()
    mirrored = torch.arange(40) % 3 == 0
    one, other = (augmentation(names)(pixels, seeded(), which) for which in (mirrored, ~mirrored))
    # bilinear weights may differ in their last bit, and with them the rounding
    assert int((one.int() - other.flip(2).int()).abs().max()) <= 1
    assert not is_each(one, other).any()
    assert torch.equal(is_each(augmentation(["flip"])(pixels, seeded(), mirrored), pixels), ~mirrored)


def test_a_shift_moves_and_mirrors_the_border(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(augment, "_SHIFT", 0.25)
    row = torch.arange(8, dtype=torch.uint8)
    pixels = row.view(1, 1, 8, 1).expand(50, 8, 8, 3).contiguous()
    moved = augmentation(["shift"])(pixels, seeded())
    allowed = {(*range(k, 8), *[6 - i for i in range(k)]) for k in range(3)}
    allowed |= {(*range(k, 0, -1), *range(8 - k)) for k in range(3)}
    assert {tuple(image[0, :, 0].tolist()) for image in moved} == allowed


def test_a_crop_is_a_rectangle_from_inside_enlarged() -> None:
    # red grows by 4 a column, green by 4 a row: what a view shows is where it was taken
    height, width, step = 48, 60, 4
    pixels = torch.zeros(200, height, width, 3, dtype=torch.uint8)
    pixels[..., 0] = step * torch.arange(width, dtype=torch.uint8)
    pixels[..., 1] = step * torch.arange(height, dtype=torch.uint8)[:, None]
    views = augmentation(["crop"])(pixels, seeded()).float()
    # away from the border, where half a pixel is mirrored, the ramps keep their direction: nothing is turned or folded
    across, down = views[:, 0, 2:-2, 0].diff(dim=1), views[:, 2:-2, 0, 1].diff(dim=1)
    assert float(across.min()) >= 0
    assert float(down.min()) >= 0
    shown_w, shown_h = across.sum(1) / step / (width - 5), down.sum(1) / step / (height - 5)
    area, aspect = shown_w * shown_h, shown_w / shown_h
    assert 0.33 < float(area.min()) < 0.45
    assert 0.9 < float(area.max()) < 1.02
    assert float(aspect.min()) > 3 / 4 - 0.03
    assert float(aspect.max()) < 4 / 3 + 0.03
    assert len(views[:, 0, 0, 0].unique()) > 20
    assert float(views[..., 2].max()) == 0


@pytest.mark.parametrize("name", ["crop", "rotate", "affine"])
def test_resampling_adds_no_border(name: str) -> None:
    pixels = one_colour((200, 100, 50))
    assert torch.equal(augmentation([name])(pixels, seeded()), pixels)


@pytest.mark.parametrize("size", [(33, 33), (24, 40)], ids=["a square", "a wide picture"])
@pytest.mark.parametrize("towards", [0, 40, 200])
def test_a_rotation_turns_about_the_middle_by_its_angle(
    size: tuple[int, int], towards: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(augment._Draws, "uniform", lambda draws, low, high: torch.full((draws.n,), high))
    height, width = size
    x, y = torch.arange(width) - (width - 1) / 2, torch.arange(height)[:, None] - (height - 1) / 2
    angle = np.radians(towards)
    ramp = (128 + 5 * (np.cos(angle) * x + np.sin(angle) * y)).round().to(torch.uint8)
    turned = augmentation(["rotate"])(ramp[None, :, :, None].expand(1, *size, 3), seeded())[0, ..., 0].float()
    inner = turned[height // 2 - 6 : height // 2 + 7, width // 2 - 6 : width // 2 + 7]
    across, down = inner.diff(dim=1).mean(), inner.diff(dim=0).mean()
    change = (float(torch.rad2deg(torch.atan2(down, across))) - towards) % 360
    assert change == pytest.approx(360 - augment._ROTATION, abs=1)  # against the clock, on a y axis that points down
    assert float(torch.hypot(across, down)) == pytest.approx(5, abs=0.1)


def test_a_radial_pattern_stays_under_rotation() -> None:
    at = torch.arange(64) - 31.5
    rings = (128 + 100 * torch.cos((at**2 + at[:, None] ** 2).sqrt() / 4)).round().to(torch.uint8)
    pixels = rings[None, :, :, None].expand(8, 64, 64, 3).contiguous()
    turned = augmentation(["rotate"])(pixels, seeded())
    assert not is_each(turned, pixels).any()
    inside = (at**2 + at[:, None] ** 2).sqrt() < 30
    assert int((turned.int() - pixels.int()).abs()[:, inside].max()) <= 3


def test_geometry_is_one_resampling_of_the_composed_move() -> None:
    draws = augment._Draws(6, 20, 30, seeded())
    turned, shifted = augment._rotate(draws), augment._shift(draws)
    at_once = augment._resampled(noise(6), shifted @ turned)
    # the shift is exact, so doing it first loses nothing; where neither mirrors the border, both ways are the same
    in_steps = augment._resampled(augment._gathered(noise(6), shifted), turned)
    assert torch.allclose(at_once[:, :, 8:-8, 8:-8], in_steps[:, :, 8:-8, 8:-8], atol=0.1)


def test_colour_keeps_grey_grey() -> None:
    pixels = noise()[..., :1].expand(-1, -1, -1, 3).contiguous()
    changed = augmentation(["colour"])(pixels, seeded()).int()
    assert int((changed.amax(3) - changed.amin(3)).max()) <= 1
    assert not is_each(changed, pixels).any()


def test_brightness_contrast_saturation_and_hue_each_change_what_they_name(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = torch.randint(80, 176, (1, 20, 20, 3), dtype=torch.uint8, generator=seeded())
    low, high = 1 - augment._JITTER, 1 + augment._JITTER

    def with_draws(*values: float) -> Tensor:
        rest = iter(values)
        monkeypatch.setattr(augment._Draws, "uniform", lambda draws, a, b: torch.full((draws.n,), next(rest)))
        return augmentation(["colour"])(pixels, seeded()).float()[0]

    def luma(image: Tensor) -> Tensor:
        return image @ augment._LUMA

    same = pixels[0].float()
    assert torch.equal(with_draws(1, 1, 1, 0), same)
    assert torch.allclose(with_draws(high, 1, 1, 0), same * high, atol=0.51)
    flat = with_draws(1, low, 1, 0)
    assert float(luma(flat).mean()) == pytest.approx(float(luma(same).mean()), abs=0.5)
    assert float(flat.std() / same.std()) == pytest.approx(low, abs=0.02)
    pale = with_draws(1, 1, low, 0)
    assert torch.allclose(luma(pale), luma(same), atol=1)
    assert torch.allclose(pale - luma(pale)[..., None], low * (same - luma(same)[..., None]), atol=1.1)
    turned = with_draws(1, 1, 1, augment._HUE)
    assert torch.allclose(luma(turned), luma(same), atol=1)
    assert float((turned - same).abs().mean()) > 2


def test_grey_takes_the_colour_from_a_fifth_of_the_pictures() -> None:
    pixels = one_colour((200, 100, 50), 200)
    changed = augmentation(["grey"])(pixels, seeded())
    same = is_each(changed, pixels)
    luma = round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)
    assert 130 < int(same.sum()) < 190
    assert changed[~same].unique().tolist() == [luma]


def test_blur_lowers_the_variance_of_noise_and_keeps_the_mean() -> None:
    pixels = noise(60)
    changed = augmentation(["blur"])(pixels, seeded())
    same = is_each(changed, pixels)
    assert 20 < int(same.sum()) < 50
    before, after = (images[~same].float() for images in (pixels, changed))
    assert bool((after.std((1, 2, 3)) <= before.std((1, 2, 3)) + 0.1).all())
    assert float(after.std((1, 2, 3)).min()) < 0.5 * float(before.std((1, 2, 3)).min())
    assert torch.allclose(after.mean((1, 2)), before.mean((1, 2)), atol=5)
    flat = one_colour((200, 100, 50))
    assert torch.equal(augmentation(["blur"])(flat, seeded()), flat)


def test_blur_of_no_picture_of_a_batch_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(augment, "_BLUR", 0.0)
    assert torch.equal(augmentation(["blur"])(noise(), seeded()), noise())


def test_a_batch_of_more_than_a_chunk_is_all_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = augmentation(["crop"])(noise(7), seeded())
    monkeypatch.setattr(augment, "_CHUNK", 2 * 20 * 30)
    assert torch.equal(augmentation(["crop"])(noise(7), seeded()), whole)
    assert not is_each(augmentation(["colour"])(noise(7), seeded()), noise(7)).any()


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_erasing_replaces_a_rectangle_in_its_share_of_the_pictures(share: float) -> None:
    pixels = torch.full((400, 24, 36, 3), 255, dtype=torch.uint8)
    pixels[..., 1] = 0  # noise seldom looks like this
    changed = (augmentation(["none"], erase=share)(pixels, seeded()) != pixels).any(3)
    erased = changed.flatten(1).any(1)
    assert float(erased.float().mean()) == pytest.approx(share, abs=0.07)
    for image in changed[erased]:
        rows, columns = image.any(1).nonzero()[:, 0], image.any(0).nonzero()[:, 0]
        box = image[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert bool(box.all())
        assert 0.01 < box.numel() / (24 * 36) < 0.37
    assert torch.equal(pixels[~erased], augmentation(["none"], erase=share)(pixels, seeded())[~erased])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_gpu_gives_the_cpus_views(name: str) -> None:
    view = Augmentation((name,), erase=0.25)
    gpu = view(noise().cuda(), seeded())
    assert gpu.is_cuda
    assert int((gpu.cpu().int() - view(noise(), seeded()).int()).abs().max()) <= 1


MIXINGS = [
    pytest.param(Mixing(5, mixup=1.0), id="mixup"),
    pytest.param(Mixing(5, cutmix=1.0), id="cutmix"),
    pytest.param(Mixing(5, mixup=0.2, cutmix=1.0), id="both"),
]


@pytest.mark.parametrize("mixing", MIXINGS)
def test_mixing_repeats_with_its_generator_and_its_targets_sum_to_one(mixing: Mixing) -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    pixels, targets = noise(10), torch.arange(10) % 5
    inputs, soft = mixing(pixels, targets, seeded(2))
    again, soft_again = pickle.loads(pickle.dumps(mixing))(pixels, targets, seeded(2))
    assert torch.equal(inputs, again)
    assert torch.equal(soft, soft_again)
    assert torch.equal(torch.get_rng_state(), state)
    assert inputs.shape == pixels.shape
    assert inputs.dtype == torch.uint8
    assert soft.shape == (10, 5)
    assert soft.dtype == torch.float32
    assert torch.allclose(soft.sum(1), torch.ones(10))
    assert torch.equal(pixels, noise(10))
    assert not torch.equal(inputs, pixels)


def test_mixing_by_nothing_changes_nothing() -> None:
    inputs, soft = Mixing(5)(noise(), torch.arange(40) % 5, seeded())
    assert torch.equal(inputs, noise())
    assert torch.equal(soft, torch.eye(5)[torch.arange(40) % 5])


def two_colours() -> tuple[Tensor, Tensor]:
    """A black and a white image, of classes 0 and 1."""
    return torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 16, 20, 3).contiguous(), torch.arange(2)


def test_mixup_blends_pixels_and_targets_by_the_same_share() -> None:
    shares = set()
    for seed in range(20):
        inputs, soft = Mixing(2, mixup=1.0)(*two_colours(), seeded(seed))
        share = float(soft[1, 1])
        assert inputs[1].unique().tolist() == [round(255 * share)]
        assert float(inputs[0, 0, 0, 0]) == pytest.approx(255 * (1 - share), abs=0.51)
        shares.add(round(share, 2))
    assert len(shares) > 10


def test_cutmix_targets_are_the_share_of_the_pixels() -> None:
    boxes = set()
    for seed in range(30):
        inputs, soft = Mixing(2, cutmix=1.0)(*two_colours(), seeded(seed))
        kept = (inputs[1] == 255).all(2)
        assert set(inputs.unique().tolist()) <= {0, 255}
        assert float(soft[1, 1]) == pytest.approx(float(kept.float().mean()), abs=1e-6)
        assert float(soft[0, 0]) == pytest.approx(float(soft[1, 1]), abs=1e-6)
        rows, columns = (~kept).any(1), (~kept).any(0)
        assert torch.equal(~kept, rows[:, None] & columns)  # one rectangle
        boxes.add((int(rows.sum()), int(columns.sum())))
    assert len(boxes) > 10


def test_both_take_turns_with_equal_chance() -> None:
    mixing = Mixing(2, mixup=1.0, cutmix=1.0)
    cut = [set(mixing(*two_colours(), seeded(seed))[0].unique().tolist()) <= {0, 255} for seed in range(200)]
    assert 70 < sum(cut) < 130


def test_the_loss_of_unmixed_targets_is_that_of_label_indices() -> None:
    logits, targets = torch.randn(10, 5, generator=seeded()), torch.arange(10) % 5
    _, soft = Mixing(5)(noise(10), targets, seeded())
    smoothed = F.cross_entropy(logits, soft, label_smoothing=0.1)
    assert float(smoothed) == pytest.approx(float(F.cross_entropy(logits, targets, label_smoothing=0.1)), abs=1e-6)
