"""GenEval's detector and colours by transformers: Mask2Former finds objects, CLIP names colours.

Source: djghosh13/geneval `evaluation/evaluate_images.py` and mmdet's Mask2Former head, restated.
The weights in transformers are not those of the published scorer (detectron2's training, not
mmdet's), so this is the variant `geneval@hf-m2f`, whose figures have a column of their own.

transformers' own post-processing is not used: it resizes mask logits to 384 x 384, cuts them, and
enlarges the cut masks by nearest neighbour. Here logits are resized bilinearly to the network's
input and then to the picture, and cut at 0 only then, as mmdet does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from tarkit.checkpoints.from_transformers import from_transformers
from tarkit.errors import UserError
from tarkit.scoring.geneval import OFFICIAL_RULES, Box, Detection
from tarkit.scoring.geneval_prompts import CLASSES, COLOURS

MAX_OBJECTS = 100  # in a picture, over all classes
GREY = "#999"  # the background of an object when its colour is named
TEMPLATES = ("a photo of a {} {}", "a photo of a {}-colored {}", "a photo of a {} object")
# Checkpoints' names of classes -> GenEval's.
ALIASES = {
    **{"mouse": "computer mouse", "remote": "tv remote", "keyboard": "computer keyboard"},
    **{"motorbike": "motorcycle", "aeroplane": "airplane", "sofa": "couch"},
    **{"pottedplant": "potted plant", "diningtable": "dining table", "tvmonitor": "tv"},
    **{"hair dryer": "hair drier", "hotdog": "hot dog", "doughnut": "donut"},
}


class SegmentedObject(NamedTuple):
    """One object: its class, score in [0, 1], box in pixels and mask (H, W) of the picture."""

    cls: str
    score: float
    box: Box
    mask: np.ndarray


class Mask2FormerDetector:
    """Mask2Former's objects with CLIP's colours; each model is a folder or a hub id."""

    def __init__(self, model: str, clip: str, device: str = "cpu") -> None:
        import transformers

        self._device = device
        family = transformers.Mask2FormerForUniversalSegmentation
        self._network = from_transformers(family, model).to(device).eval()
        self._processor = from_transformers(transformers.AutoImageProcessor, model, backend="pil")
        self._classes = class_names(self._network.config.id2label)
        self._colours = ClipColours(clip, device)

    def detect(self, picture: Image.Image, metadata: Mapping[str, Any]) -> list[Detection]:
        """Objects above GenEval's threshold; a colour only where the prompt names one."""
        coloured = {c["class"] for c in metadata.get("include", []) if "color" in c}
        objects = [each for each in self.find(picture) if each.score > OFFICIAL_RULES.threshold]
        to_colour = [each for each in objects if each.cls in coloured]
        colours = iter(self._colours.name(picture, to_colour))
        return [
            Detection(
                each.cls, each.box, each.score, next(colours) if each.cls in coloured else None
            )
            for each in objects
        ]

    @torch.inference_mode()
    def find(self, picture: Image.Image) -> list[SegmentedObject]:
        """The objects of a picture, most confident first, at most 100."""
        inputs = self._processor(images=[picture], return_tensors="pt")
        output = self._network(**{name: value.to(self._device) for name, value in inputs.items()})
        padded = tuple(inputs["pixel_values"].shape[-2:])
        mask = inputs.get("pixel_mask")
        inner = padded if mask is None else (int(mask[0, :, 0].sum()), int(mask[0, 0].sum()))
        size = (picture.height, picture.width)
        return instances(
            output.class_queries_logits[0],
            output.masks_queries_logits[0],
            self._classes,
            padded=(int(padded[0]), int(padded[1])),
            inner=(int(inner[0]), int(inner[1])),
            size=size,
        )


def class_names(id2label: Mapping[int, str]) -> tuple[str, ...]:
    """GenEval's names of a checkpoint's classes; UserError unless they are COCO's 80 in order."""
    names = [str(id2label[number]).lower().replace("_", " ") for number in sorted(id2label)]
    known = tuple(ALIASES.get(name, name) for name in names)
    if known != CLASSES:
        wrong = next((n for n, (a, b) in enumerate(zip(known, CLASSES, strict=False)) if a != b), 0)
        raise UserError(
            f"the detector has {len(names)} classes, of which number {wrong} is "
            f"{names[wrong] if wrong < len(names) else None!r}; GenEval needs COCO's 80 things in "
            f"their order, there {CLASSES[wrong]!r}",
            hint="--scorer-model facebook/mask2former-swin-small-coco-instance",
        )
    return known


def instances(
    class_logits: Tensor,
    mask_logits: Tensor,
    classes: Sequence[str],
    *,
    padded: tuple[int, int],
    inner: tuple[int, int],
    size: tuple[int, int],
) -> list[SegmentedObject]:
    """(Q, C+1) class logits and (Q, h, w) mask logits -> objects of a picture of `size` (H, W).

    `padded` is the size of the network's input, `inner` that of the picture in it. A score is a
    query's class probability times the mean probability within its mask; the best 100 of Q x C are
    taken.
    """
    scores = class_logits.float().softmax(-1)[:, :-1]
    best = scores.flatten().topk(min(MAX_OBJECTS, scores.numel()))
    queries, labels = best.indices // scores.shape[1], best.indices % scores.shape[1]
    logits = F.interpolate(mask_logits[None].float(), size=padded, mode="bilinear")
    logits = logits[..., : inner[0], : inner[1]]
    logits = F.interpolate(logits, size=size, mode="bilinear")[0]
    objects = []
    for query, label, score in zip(queries, labels, best.values, strict=True):
        mask = logits[query] > 0
        area = mask.sum()
        if area == 0:
            continue
        certain = (logits[query].sigmoid() * mask).sum() / area
        objects.append(
            SegmentedObject(
                classes[int(label)], float(score * certain), box_of(mask), mask.cpu().numpy()
            )
        )
    return sorted(objects, key=lambda each: -each.score)


def box_of(mask: Tensor) -> Box:
    """(H, W) bool -> (x0, y0, x1, y1), the last one past the last pixel."""
    rows, columns = (torch.nonzero(mask.any(dim)).flatten().tolist() for dim in (1, 0))
    return (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)


class ClipColours:
    """CLIP's zero-shot choice among GenEval's ten colours, three sentences for each."""

    def __init__(self, model: str, device: str = "cpu") -> None:
        import transformers

        self._device = device
        self._network = from_transformers(transformers.AutoModel, model).to(device).eval()
        self._tokenizer = from_transformers(transformers.AutoTokenizer, model)
        self._processor = from_transformers(transformers.AutoImageProcessor, model, backend="pil")
        self._of_class: dict[str, Tensor] = {}

    @torch.inference_mode()
    def name(self, picture: Image.Image, objects: Sequence[SegmentedObject]) -> list[str]:
        """The colour of each object, cut out and put on grey within its box."""
        if not objects:
            return []
        crops = [_cut_out(picture, each) for each in objects]
        pixels = self._processor(crops, return_tensors="pt")["pixel_values"].to(self._device)
        vectors = F.normalize(_vectors(self._network.get_image_features(pixels)), dim=-1)
        return [
            COLOURS[int((row @ self._texts(each.cls).T).argmax())]
            for row, each in zip(vectors, objects, strict=True)
        ]

    def _texts(self, name: str) -> Tensor:
        """(10, D): each colour's mean of three normalised sentences, normalised again."""
        if name not in self._of_class:
            texts = [template.format(c, name) for c in COLOURS for template in TEMPLATES]
            tokens = self._tokenizer(texts, padding=True, return_tensors="pt").to(self._device)
            rows = F.normalize(_vectors(self._network.get_text_features(**tokens)), dim=-1)
            means = rows.view(len(COLOURS), len(TEMPLATES), -1).mean(1)
            self._of_class[name] = F.normalize(means, dim=-1)
        return self._of_class[name]


def _cut_out(picture: Image.Image, one: SegmentedObject) -> Image.Image:
    blank = Image.new("RGB", picture.size, GREY)
    cut_out = Image.composite(picture.convert("RGB"), blank, Image.fromarray(one.mask))
    x0, y0, x1, y1 = (int(side) for side in one.box)
    return cut_out.crop((x0, y0, x1, y1))


def _vectors(output: Any) -> Tensor:
    vectors: Tensor = getattr(output, "pooler_output", output)
    return vectors.float()
