"""Seeds of random choices, computed from names, so that no choice depends on another.

A seed is the beginning of a hash of the names, the same on every machine and in every process. Only
`generator_seed` is no hash. Pictures, chats, training runs and results on disk depend on these
formulas, so none may change; a new verb uses one of them.
"""

import hashlib
from typing import Literal

MAX_SEED = (1 << 62) - 1
"""The largest seed of a command: those of its rows and samples count up from it, below 2^63."""


def row_seed(seed: int, key: str, number: int) -> int:
    """The seed of a row's random choice `number`.

    31 bits of SHA-256: the first 4 bytes, little-endian, halved. `curate` caption, synthesize,
    split and judge use it.
    """
    digest = hashlib.sha256(f"{seed}/{key}/{number}".encode()).digest()
    return int.from_bytes(digest[:4], "little") >> 1


def scene_seed(seed: int, split: str, key: str) -> int:
    """The seed of a scene and its picture, used by `curate render` and stored in the column `seed`.

    63 bits of SHA-256: the first 8 bytes, big-endian, halved; they fit into an int64.
    """
    digest = hashlib.sha256(f"{seed}/{split}/{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def chat_seed(seed: int, key: str) -> int:
    """The seed of the chats of a picture, used by `curate chats`.

    64 bits of SHA-256: the first 8 bytes, little-endian.
    """
    digest = hashlib.sha256(f"{seed}/{key}".encode()).digest()
    return int.from_bytes(digest[:8], "little")


def sample_seed(*parts: object) -> int:
    """The seed of a generated sample, which the parts identify.

    48 bits of BLAKE2b: 6 bytes, big-endian. `eval generate`, `eval shapes` and `eval reflect` use
    it, and self-reflect for the candidates of a picture.
    """
    digest = hashlib.blake2b("|".join(map(str, parts)).encode(), digest_size=6).digest()
    return int.from_bytes(digest, "big")


def training_seed(*parts: object) -> int:
    """The seed of a training's order, step or choice, which the parts identify.

    63 bits of BLAKE2b: 8 bytes, big-endian, halved. Everything under `train` uses it, so that a
    resumed run repeats the interrupted one.
    """
    digest = hashlib.blake2b("|".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator_seed(seed: int, use: Literal["words", "pixels"]) -> int:
    """The seed of one of a picture's two generators, so that neither disturbs the other.

    2 * seed for the language model (words), 2 * seed + 1 for the de-tokenizer (pixels). Every
    picture that a Tar draws depends on it.
    """
    return 2 * seed + {"words": 0, "pixels": 1}[use]
