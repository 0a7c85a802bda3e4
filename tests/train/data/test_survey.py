"""What the pictures are: found out before the recipe is chosen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from edgecls.datasets import open_dataset
from edgecls.manifest import Preprocessing
from edgecls.train.data.survey import Survey, survey_of
from edgecls.train.fit.recipes import Recipe, chosen, recipe_of, repeating
from edgecls.train.networks.models import build
from edgecls.train.options import TrainOptions
from edgecls.train.recipe_options import GeometryOptions, NetworkOptions, RecipeOptions, TransferOptions
from tests.conftest import draw, write_image

EVEN = Survey(n_images=900, largest=450, smallest=450, side=300, aspect=1.0, is_grey=False)


def test_grey_pictures_are_recognised_whatever_their_files_say(tmp_path: Path) -> None:
    for kind in ("checks", "stripes"):
        for seed in range(5):
            grey = cv2.cvtColor(draw(kind, seed, 40), cv2.COLOR_RGB2GRAY)
            write_image(tmp_path / kind / f"{seed}.jpg", np.repeat(grey[..., None], 3, axis=2))
    found = survey_of(open_dataset(tmp_path), 0)
    assert found.is_grey
    assert (found.side, found.largest, found.smallest) == (40, 4, 4)


def test_colours_sizes_and_evenness_are_counted(tmp_path: Path) -> None:
    for seed in range(20):
        write_image(tmp_path / "checks" / f"{seed}.png", draw("checks", seed, 30))
    for seed in range(3):
        write_image(tmp_path / "stripes" / f"{seed}.png", np.tile(draw("stripes", seed, 30), (3, 1, 1)))
    found = survey_of(open_dataset(tmp_path), 0)
    assert not found.is_grey
    assert found.is_uneven
    assert (found.n_images, found.largest, found.smallest, found.side) == (18, 16, 2, 30)
    assert found.aspect == 1.0


def recipe(options: TrainOptions, survey: Survey = EVEN, size: int = 32) -> Recipe:
    backbone = build(replace(options.network, weights="none"), 3, (size, size))[0].backbone
    return recipe_of(options, survey, Preprocessing((size, size)), backbone)


ASKED = [
    pytest.param(TrainOptions(), id="nothing"),
    pytest.param(TrainOptions(network=NetworkOptions("resnet9")), id="from scratch"),
    pytest.param(TrainOptions(recipe=RecipeOptions(epochs=4), transfer=TransferOptions(freeze_epochs=4)), id="head"),
    pytest.param(TrainOptions(transfer=TransferOptions(unfreeze="last:2")), id="last stages"),
    pytest.param(TrainOptions(recipe=RecipeOptions(minutes=3.0)), id="a time"),
    pytest.param(TrainOptions(recipe=RecipeOptions(optimizer="sgd")), id="sgd"),
    pytest.param(TrainOptions(recipe=RecipeOptions(find_lr=True)), id="looking for the rate"),
    pytest.param(TrainOptions(geometry=GeometryOptions("pad", 0.9, "area")), id="geometry"),
]


@pytest.mark.parametrize("options", ASKED)
def test_a_recipe_made_of_its_own_choices_is_itself(options: TrainOptions) -> None:
    made = recipe(options)
    again = recipe(repeating(made, options))
    assert replace(again, are_views_open=made.are_views_open) == made


def test_the_head_alone_is_a_recipe_too() -> None:
    asked = TrainOptions(recipe=RecipeOptions(minutes=1.0))
    options = repeating(replace(recipe(asked), rest=None, rest_epochs=0, minutes=None), asked)
    assert options.is_head_alone
    again = recipe(options)
    assert (again.rest, again.head_epochs) == (None, 20)


def test_uneven_classes_are_judged_by_the_mean_over_the_classes() -> None:
    uneven = replace(EVEN, largest=500, smallest=20)
    one, other = recipe(TrainOptions()), recipe(TrainOptions(), uneven)
    assert (one.monitor, other.monitor) == ("accuracy", "balanced-accuracy")
    assert recipe(TrainOptions(recipe=RecipeOptions(monitor="loss")), uneven).monitor == "loss"


def test_what_was_chosen_is_one_line_of_words() -> None:
    line = chosen(recipe(TrainOptions()), EVEN)
    assert "20 epochs of the head" in line
    assert "all weights" in line
    assert "best epoch by accuracy" in line
    assert "\n" not in line
