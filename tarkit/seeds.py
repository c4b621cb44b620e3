"""Seeds from names: each draw has its own, so it outlives any change of the other draws.

A seed is the beginning of a hash of what it is for, the same on every machine and in every process.
Pictures, chats, training runs and results on disk depend on these formulas: none may change, and a
new stage takes one of them.
"""

import hashlib
from typing import Literal


def row_seed(seed: int, key: str, number: int) -> int:
    """31 bits of SHA-256, the first 4 bytes little-endian, halved: a row's draw of that number.

    `curate` caption, synthesize, split and judge depend on it.
    """
    digest = hashlib.sha256(f"{seed}/{key}/{number}".encode()).digest()
    return int.from_bytes(digest[:4], "little") >> 1


def scene_seed(seed: int, split: str, key: str) -> int:
    """63 bits of SHA-256, the first 8 bytes big-endian, halved: a drawn scene, and its picture.

    `curate render` depends on it, and keeps it in the column `seed`, an int64.
    """
    digest = hashlib.sha256(f"{seed}/{split}/{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def chat_seed(seed: int, key: str) -> int:
    """64 bits of SHA-256, the first 8 bytes little-endian: the chats of a picture.

    `curate chats` depends on it.
    """
    digest = hashlib.sha256(f"{seed}/{key}".encode()).digest()
    return int.from_bytes(digest[:8], "little")


def sample_seed(*parts: object) -> int:
    """48 bits of BLAKE2b, 6 bytes big-endian: a sample, where the parts say which one.

    `eval generate`, `eval shapes` and `eval reflect` depend on it, and the candidates that a judge
    chooses from.
    """
    digest = hashlib.blake2b("|".join(map(str, parts)).encode(), digest_size=6).digest()
    return int.from_bytes(digest, "big")


def training_seed(*parts: object) -> int:
    """63 bits of BLAKE2b, 8 bytes big-endian, halved: a training's order, step, or choice.

    Everything under `train` depends on it: a resumed run repeats the interrupted one.
    """
    digest = hashlib.blake2b("|".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator_seed(seed: int, use: Literal["words", "pixels"]) -> int:
    """2 * seed for the language model, one more for the de-tokenizer: neither disturbs the other.

    Every picture that a Tar draws depends on it. The only formula that is not a hash.
    """
    return 2 * seed + {"words": 0, "pixels": 1}[use]
