"""Pictures read ahead: in order, with reasons for those that cannot be read."""

import functools
from pathlib import Path

import pytest

from tarkit.artifacts.picture_reader import READ_AHEAD, picture_reader
from tarkit.images import ImageError, SizedPicture, squashed
from tests import parts


@pytest.mark.parametrize("num_workers", [0, 2])
def test_pictures_come_in_order_and_in_any_number(tmp_path: Path, num_workers: int) -> None:
    source = parts.write_pictures(tmp_path / "pictures", [["train"] * 5])
    places = [place for place in source.picture_places("00000") if place]
    blobs = [blob for _, blob in source.read_images("00000")]
    assert [place.read() for place in places] == blobs
    many = (places * READ_AHEAD)[: READ_AHEAD + 7]
    torn = places[2]._replace(size=places[2].size - 40)
    sizing = functools.partial(squashed, [4])
    with picture_reader(sizing, max_pixels=10**6, num_workers=num_workers) as read:
        expected = [
            made.squares[0].tobytes() for made in read(places) if isinstance(made, SizedPicture)
        ]
        assert [
            made.squares[0].tobytes() for made in read(many) if isinstance(made, SizedPicture)
        ] == [expected[number % 5] for number in range(len(many))]
        first, second, third = read([places[0], torn, places[1]])
        assert isinstance(second, ImageError) and "picture" in str(second)
        assert isinstance(third, SizedPicture) and isinstance(first, SizedPicture)
        assert third.squares[0].tobytes() == expected[1]
        assert next(iter(read(many))) is not None  # and the others are not waited for
        assert list(read([])) == []
