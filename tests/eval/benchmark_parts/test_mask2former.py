"""GenEval's detector by transformers: post-processing by hand, tiny random networks from disk."""

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    SwinConfig,
)

from tarkit.errors import UserError
from tarkit.eval.benchmark_parts.mask2former import (
    ALIASES,
    ClipColours,
    Mask2FormerDetector,
    SegmentedObject,
    box_of,
    class_names,
    instances,
)
from tarkit.scoring.geneval_prompts import CLASSES, COLOURS


def save_detector(folder: Path, names: tuple[str, ...] = CLASSES) -> Path:
    """A Mask2Former of a few thousand weights with COCO's classes, and its image processor."""
    pytest.importorskip("scipy")  # transformers asks for it even where nothing is trained
    torch.manual_seed(0)
    swin = SwinConfig(
        image_size=64,
        patch_size=4,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 1, 1],
        window_size=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(
        backbone_config=swin,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        dim_feedforward=16,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        num_queries=5,
        id2label=dict(enumerate(names)),
        label2id={name: number for number, name in enumerate(names)},
    )
    Mask2FormerForUniversalSegmentation(config).save_pretrained(folder)
    transformers.Mask2FormerImageProcessor(
        size={"shortest_edge": 64, "longest_edge": 96}, size_divisor=32
    ).save_pretrained(folder)
    return folder


def save_clip(folder: Path) -> Path:
    """A CLIP of a few thousand weights that reads letters."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    torch.manual_seed(1)
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    letters = {letter: n for n, letter in enumerate("<>abcdefghijklmnopqrstuvwxyz -")}
    words = Tokenizer(models.WordLevel(letters, unk_token="<"))
    words.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    words.post_processor = processors.TemplateProcessing(single="$A >", special_tokens=[(">", 1)])
    config = CLIPConfig(
        text_config=CLIPTextConfig(
            **text,
            num_attention_heads=2,
            vocab_size=32,
            max_position_embeddings=77,
            eos_token_id=1,
            bos_token_id=0,
            pad_token_id=1,
        ).to_dict(),
        vision_config=CLIPVisionConfig(
            **text, num_attention_heads=2, image_size=32, patch_size=8
        ).to_dict(),
        projection_dim=8,
    )
    CLIPModel(config).save_pretrained(folder)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token=">", eos_token=">", model_max_length=77
    )
    fast.save_pretrained(folder)
    transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(
        folder
    )
    return folder


# ---- post-processing by hand --------------------------------------------------------------------


def test_scores_boxes_and_masks_by_hand() -> None:
    # Two queries of two classes; class probabilities .8 / .1 / .1 and .2 / .7 / .1 with no-object.
    classes = torch.tensor([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1]]).log()
    masks = torch.full((2, 4, 4), -5.0)
    masks[0, :, :2] = 5.0  # the left half
    masks[1, 2:, :] = 2.0  # the lower half
    found = instances(classes, masks, ("fox", "hen"), padded=(4, 4), inner=(4, 4), size=(4, 4))
    # sigmoid(5) = .993307, sigmoid(2) = .880797 within the masks.
    best, second = found[:2]
    assert (best.cls, best.box) == ("fox", (0, 0, 2, 4))
    assert best.score == pytest.approx(0.8 * 0.993307, abs=1e-5)
    assert (second.cls, second.box) == ("hen", (0, 2, 4, 4))
    assert second.score == pytest.approx(0.7 * 0.880797, abs=1e-5)
    assert [each.score for each in found] == sorted((e.score for e in found), reverse=True)
    assert len(found) == 4  # every query in every class, as published


def test_padding_is_cut_off_and_the_rest_grows_to_the_picture() -> None:
    classes = torch.tensor([[0.9, 0.1]]).log()
    masks = torch.full((1, 4, 4), -5.0)
    masks[0, :2, :2] = 5.0
    # The picture fills the upper left 2 x 2 of the padded 4 x 4, and is 8 x 8 itself.
    (found,) = instances(classes, masks, ("fox",), padded=(4, 4), inner=(2, 2), size=(8, 8))
    assert found.box == (0, 0, 8, 8) and found.mask.all()


def test_a_query_without_a_mask_is_no_object() -> None:
    classes = torch.tensor([[0.9, 0.1]]).log()
    masks = torch.full((1, 4, 4), -5.0)
    assert instances(classes, masks, ("fox",), padded=(4, 4), inner=(4, 4), size=(4, 4)) == []


def test_a_box_ends_past_the_last_pixel() -> None:
    mask = torch.zeros(5, 6, dtype=torch.bool)
    mask[1:3, 2:5] = True
    assert box_of(mask) == (2, 1, 5, 3)


# ---- names of classes ---------------------------------------------------------------------------


def test_other_names_of_the_same_classes_are_known() -> None:
    back = {ours: theirs for theirs, ours in ALIASES.items()}
    theirs = {number: back.get(name, name) for number, name in enumerate(CLASSES)}
    assert theirs[64] == "mouse" and class_names(theirs) == CLASSES


def test_classes_in_another_order_are_refused() -> None:
    swapped = dict(enumerate((CLASSES[1], CLASSES[0], *CLASSES[2:])))
    with pytest.raises(UserError, match="number 0 is 'bicycle'"):
        class_names(swapped)
    with pytest.raises(UserError, match="has 79 classes"):
        class_names(dict(enumerate(CLASSES[:79])))


# ---- networks from disk -------------------------------------------------------------------------


def test_tiny_networks_run_the_whole_path(tmp_path: Path) -> None:
    detector = Mask2FormerDetector(
        str(save_detector(tmp_path / "m2f")), str(save_clip(tmp_path / "clip"))
    )
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8))
    found = detector.find(picture)
    assert found and all(each.mask.shape == (40, 60) for each in found)
    assert all(0 <= each.score <= 1 and each.cls in CLASSES for each in found)
    again = detector.find(picture)
    assert [each.score for each in again] == [each.score for each in found]


def test_a_colour_is_of_the_object_alone(tmp_path: Path) -> None:
    colours = ClipColours(str(save_clip(tmp_path / "clip")))
    mask = np.zeros((20, 20), dtype=bool)
    mask[5:15, 5:15] = True
    found = SegmentedObject("bench", 0.9, (5, 5, 15, 15), mask)
    plain = Image.new("RGB", (20, 20), "red")
    marked = plain.copy()
    marked.paste((0, 0, 255), (0, 0, 20, 4))  # what lies outside the object
    (one,) = colours.name(plain, [found])
    assert one in COLOURS and colours.name(marked, [found]) == [one]
    assert colours.name(plain, []) == []
