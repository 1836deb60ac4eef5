from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.ndimage import binary_dilation, binary_erosion
from tiny import draw

from medflow.augment import Augmenter, changes_anything
from medflow.config.sections import Augment

MOVES = ("rotate", "flip", "vertical_flip", "elastic")
CHANCES = (*MOVES, "brightness_contrast", "clahe", "noise", "blur", "coarse_dropout", "grid_dropout")
GEOMETRY = Augmenter(Augment(rotate=1.0, rotate_degrees=25, flip=0.5, vertical_flip=0.5, elastic=0.5))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31))
@example(seed=101021)
def test_the_mask_follows_the_image(seed):
    _, masks, _ = draw(1, seed=seed, size=64)
    mask = masks[0]
    # A picture of the mask itself: whatever happens to one must happen to the other.
    image, moved = GEOMETRY(mask[..., None] * np.uint8(200), mask, (seed,))
    pictured = image[..., 0] > 100
    assert set(np.unique(moved)) <= {0, 1}
    # Gray values are interpolated and labels are not, so that the two may part along the outline, and nowhere else.
    outline = binary_dilation(moved == 1, iterations=2) & ~binary_erosion(moved == 1, iterations=2, border_value=1)
    assert not ((pictured != (moved == 1)) & ~outline).any()
    assert (pictured == (moved == 1)).mean() > 0.98


def test_the_mask_moves():
    """Not for every seed: a turn by less than a pixel leaves a mask as it was."""
    _, masks, _ = draw(1, seed=0, size=64)
    seen = [GEOMETRY(masks[0][..., None], masks[0], (seed,))[1] for seed in range(10)]
    assert sum(not np.array_equal(moved, masks[0]) for moved in seen) > 5


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", CHANCES)
def test_each_transform_alone(name, channels):
    image = np.repeat(draw(1, seed=2, size=48)[0][0], channels, axis=2)
    mask = draw(1, seed=2, size=48)[1][0]
    augmenter = Augmenter(Augment(**(dict.fromkeys(CHANCES, 0.0) | {name: 1.0}), rotate_degrees=40))
    first, first_mask = augmenter(image, mask, (1, 2, 3))
    again, again_mask = augmenter(image, mask, (1, 2, 3))
    assert first.shape == image.shape and first.dtype == np.uint8
    assert first_mask.shape == mask.shape and first_mask.dtype == np.uint8
    assert np.array_equal(first, again) and np.array_equal(first_mask, again_mask)
    assert not np.array_equal(first, image)
    assert np.array_equal(first_mask, mask) != (name in MOVES)
    if name not in ("flip", "vertical_flip", "clahe"):  # a flip has no degree, and this image has little to clip
        others = [augmenter(image, mask, (seed,))[0] for seed in range(4)]
        assert any(not np.array_equal(other, first) for other in others)


def test_noise_is_in_gray_values():
    flat = np.full((128, 128, 1), 128, dtype=np.uint8)
    made, _ = Augmenter(Augment(rotate=0.0, noise=1.0, noise_std=5.0))(flat, None, (0,))
    # albumentations cuts each sum towards zero, which takes up to half a gray value off.
    assert made.astype(float).std() == pytest.approx(5.0, abs=0.5)


def test_an_image_without_a_mask():
    image, mask = GEOMETRY(draw(1, seed=0)[0][0], None, (0,))
    assert mask is None and image.dtype == np.uint8


def test_whether_anything_is_changed_is_known_beforehand():
    assert not changes_anything(Augment(rotate=0.0))
    for name in CHANCES:
        assert changes_anything(Augment(**({"rotate": 0.0} | {name: 0.1})))
