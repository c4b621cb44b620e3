"""The pictures that chats ask about, as pixels for a vision encoder (separate encoders, Sec. 4.3).

Chats of pixel codes name each picture by its key. A picture stands in the images artifact that its
tokens were made from, in the shard of the chat's name. Reading and decoding is the part of data
workers; the frozen encoder computes on the device of the training.

Letters: B pictures, S side of the encoder's input in pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tarkit.artifacts.artifact import Artifact
from tarkit.artifacts.digests import file_sha256
from tarkit.artifacts.manifest import MANIFEST
from tarkit.artifacts.picture_tar import PicturePlace
from tarkit.artifacts.remote import shown_path
from tarkit.errors import UserError
from tarkit.images import ImageError, decode, to_uint8
from tarkit.models.mllm import Packed
from tarkit.models.pixel_range import channels_first
from tarkit.train.chat_batches import (
    ChatBatchesConfig,
    ChatStreams,
    pictures_read,
    scale_of_slot,
)
from tarkit.train.streams import sized
from tarkit.vocab import Scale

SHARDS_KEPT = 64
"""Shards whose keys a process remembers: every task reads from four at one time."""


class ReadChats(NamedTuple):
    """Packed chats with the pictures that are read, in the order of their places in the rows."""

    packed: Packed
    pixels: Tensor  # (B, 3, S, S) uint8
    scales: tuple[Scale, ...]  # of each picture


class ChatPictures:
    """Finds the pixels of the pictures that chats read."""

    def __init__(
        self, chats: Sequence[Artifact], images: Sequence[Artifact], *, size_px: int
    ) -> None:
        """Raises UserError for chats whose pictures are in none of the images artifacts."""
        by_sha256 = {file_sha256(artifact.path / MANIFEST): artifact for artifact in images}
        self.size_px = size_px
        self._images: dict[str, Artifact] = {}
        for artifact in chats:
            made_from = artifact.settings.get("images_sha256")
            if made_from in by_sha256:
                self._images[shown_path(artifact.path)] = by_sha256[made_from]
            elif artifact.settings.get("tokenizer_sha256"):
                raise UserError(
                    f"{artifact.path} was made from pictures (manifest {str(made_from)[:12]}) that "
                    "are none of --images",
                    hint="name the images artifact whose tokens the chats were made from with "
                    "--images",
                )
        self._places = lru_cache(maxsize=SHARDS_KEPT)(self._read_places)

    def _read_places(self, chats: str, shard: str) -> Mapping[str, PicturePlace | None]:
        images = self._images[chats]
        keys = images.read(shard, ["key"])["key"].to_pylist()
        return dict(zip(keys, images.picture_places(shard), strict=True))

    def of_chat(self, chat: Mapping[str, Any]) -> list[Tensor]:
        """The pixels (3, S, S) uint8 of each picture that a chat reads, squashed to the square."""
        return [self._pixels(chat, picture["key"]) for picture in pictures_read(chat)]

    def _pixels(self, chat: Mapping[str, Any], key: str) -> Tensor:
        images = self._images[chat["chats"]]
        place = self._places(chat["chats"], chat["shard"]).get(key)
        if place is None:
            raise UserError(
                f"{images.path} has no picture {key} in shard {chat['shard']}, which chat "
                f"{chat['key']} asks about",
                hint=f"tarkit verify {images.path}",
            )
        try:
            picture = to_uint8(decode(place.read(), max_pixels=images.max_pixels))
        except ImageError as error:
            raise UserError(
                f"picture {key} of {images.path} cannot be read: {error}",
                hint=f"tarkit verify {images.path}",
            ) from None
        return channels_first([sized(picture, self.size_px)])[0]

    def with_pictures(
        self, packed: Packed, streams: ChatStreams, config: ChatBatchesConfig
    ) -> ReadChats:
        """Packed chats of these streams with the pictures that they read."""
        pixels: list[Tensor] = []
        scales: list[Scale] = []
        for row in packed.numbers:
            for slot in row.unique_consecutive().tolist():
                if slot >= 0:
                    chat = streams[slot]
                    own = self.of_chat(chat)
                    pixels += own
                    scales += [scale_of_slot(config, chat["task"], slot)] * len(own)
        none = torch.empty(0, 3, self.size_px, self.size_px, dtype=torch.uint8)
        return ReadChats(packed, torch.stack(pixels) if pixels else none, tuple(scales))
