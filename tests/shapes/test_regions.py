"""The regions of a picture: phrases and boxes of its objects, by hand."""

from tarkit.shapes.regions import regions_of
from tarkit.shapes.scene import Background, Object, Scene, scene_to_json

GREY = Background("plain", (140, 140, 140))


def test_regions_are_phrases_and_boxes_in_shares_of_the_side() -> None:
    # A bar of r 8 is 16 px wide and 2 x .34 x 8 = 5.44 px high; a circle is its own square.
    scene = Scene((Object("bar", "red", 16, 32, 8), Object("circle", "blue", 48, 32, 16)), GREY)
    assert regions_of({"scene": scene_to_json(scene)}) == [
        ("red bar", (8 / 64, 29.28 / 64, 24 / 64, 34.72 / 64)),
        ("blue circle", (0.5, 0.25, 1.0, 0.75)),
    ]


def test_an_empty_scene_has_no_regions_and_an_unknown_one_none_that_are_known() -> None:
    assert regions_of({"scene": scene_to_json(Scene((), GREY))}) == []
    assert regions_of({"scene": None}) is None
