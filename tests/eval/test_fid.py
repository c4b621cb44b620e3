"""`tarkit eval rfid` and `gfid`: a stand-in that sees mean colours, and the embedded tokenizer."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tarkit.artifacts.manifest import begin_directory
from tarkit.artifacts.samples import SAMPLE_SHEET, SAMPLES
from tarkit.errors import UserError
from tarkit.eval import fid
from tarkit.eval.metrics.features import Features
from tarkit.eval.metrics.frechet import frechet_distance, gaussian_of, precision_recall
from tarkit.shapes.render import render
from tarkit.shapes.scene_edits import scene_for
from tarkit.shapes.suites import geneval_suite
from tests.parts import write_pictures

SIDE_PX = 12
Colour = tuple[int, int, int]


class Colours:
    """A picture's features are its mean red, green and blue."""

    name = "colours"
    dim = 3
    logits: Callable[[Features], Features] | None = None

    def __init__(self) -> None:
        self.batches: list[int] = []

    def identity(self) -> dict[str, Any]:
        return {"name": self.name, "dim": self.dim}

    def extract(self, pictures: Sequence[Image.Image]) -> Features:
        self.batches.append(len(pictures))
        return np.stack([np.asarray(each).mean(axis=(0, 1)) for each in pictures]).astype("f4")


@pytest.fixture
def colours(monkeypatch: pytest.MonkeyPatch) -> Colours:
    stand_in = Colours()
    monkeypatch.setattr(fid, "load_extractor", lambda name, **_: stand_in)
    return stand_in


def folder(path: Path, colours: Sequence[Colour], *, size: tuple[int, int] | None = None) -> Path:
    """Plain pictures `00.png`, `01.png`, ... of these colours."""
    path.mkdir(parents=True)
    for number, colour in enumerate(colours):
        Image.new("RGB", size or (SIDE_PX, SIDE_PX), colour).save(path / f"{number:02}.png")
    return path


def spread(count: int, *, seed: int = 0) -> list[Colour]:
    rng = np.random.default_rng(seed)
    return [tuple(colour) for colour in rng.integers(20, 230, (count, 3)).tolist()]


def results(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "results.json").read_text())
    return found


def test_rfid_of_pictures_one_brighter_by_one(tmp_path: Path, colours: Colours) -> None:
    # Features are the colours, so both covariances are equal and the means differ by (1, 1, 1):
    # distance 3. Every error is 1: 48.1308 dB. Cosine and SSIM of nearly equal colours: nearly 1
    original = spread(12)
    brighter = [(r + 1, g + 1, b + 1) for r, g, b in original]
    reference = folder(tmp_path / "reference", original)
    samples = folder(tmp_path / "samples", brighter)
    out = fid.run(
        samples=samples, reference=reference, out=tmp_path / "out", metric="rfid", batch_size=5
    )
    assert out == tmp_path / "out"
    assert colours.batches == [5, 5, 5, 5, 2, 2]
    document = results(out)
    assert list(document["metrics"]) == ["rfid@colours"]
    found = document["metrics"]["rfid@colours"]
    assert found["frechet"] == pytest.approx(3, abs=1e-3)
    assert found["psnr"] == pytest.approx(48.1308, abs=5e-5)
    assert found["psnr_mean"] == pytest.approx(48.1308, abs=5e-5)
    assert found["num_identical"] == 0
    assert 0.999 < found["ssim"] < 1
    a, b = np.array(original, float), np.array(brighter, float)
    cosine = (a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))
    assert found["cosine"] == pytest.approx(cosine.mean(), abs=1e-9)
    assert cosine.mean() < 1
    assert (found["dim"], found["num_samples"], found["num_reference"]) == (3, 12, 12)
    assert found["singular"] is False
    assert found["notes"] == []
    assert "precision" not in found
    assert document["settings"]["features"] == {"name": "colours", "dim": 3}
    assert document["settings"]["samples"]["num_pictures"] == 12
    assert "numpy" in document["versions"]
    report = (out / "report.md").read_text()
    assert "## rfid@colours" in report
    assert "| PSNR of the mean squared error, dB | 48.1308 |" in report


def test_rfid_of_a_set_with_itself_says_that_no_pair_differs(
    tmp_path: Path, colours: Colours
) -> None:
    # three pictures of three features: also too few, which the report says
    reference = folder(tmp_path / "reference", spread(3))
    out = fid.run(samples=reference, reference=reference, out=tmp_path / "out", metric="rfid")
    found = results(out)["metrics"]["rfid@colours"]
    assert found["psnr"] is None
    assert found["psnr_mean"] is None
    assert found["num_identical"] == 3
    assert found["ssim"] == pytest.approx(1)
    assert found["cosine"] == pytest.approx(1)
    assert abs(found["frechet"]) < 0.01
    assert found["singular"] is True
    assert "singular" in (out / "report.md").read_text()


def test_pairs_are_in_sorted_order_through_folders_and_formats(
    tmp_path: Path, colours: Colours
) -> None:
    # a/1.webp, a/2.PNG, b.png against 00 01 02: made in another order, and lossless
    palette: list[Colour] = [(200, 10, 10), (10, 200, 10), (10, 10, 200)]
    reference = folder(tmp_path / "reference", palette)
    samples = tmp_path / "samples"
    (samples / "a").mkdir(parents=True)
    plain = [Image.new("RGB", (SIDE_PX, SIDE_PX), colour) for colour in palette]
    plain[2].save(samples / "b.png")
    plain[1].save(samples / "a" / "2.PNG")
    plain[0].save(samples / "a" / "1.webp", lossless=True)
    (samples / "metadata.jsonl").write_text("{}\n")
    out = fid.run(samples=samples, reference=reference, out=tmp_path / "out", metric="rfid")
    assert results(out)["metrics"]["rfid@colours"]["num_identical"] == 3


def test_gfid_has_the_figures_of_the_features(tmp_path: Path, colours: Colours) -> None:
    # other numbers of other pictures: plain ones, so their features are the colours themselves
    real, made = spread(14, seed=3), spread(11, seed=13)
    out = fid.run(
        samples=folder(tmp_path / "samples", made),
        reference=folder(tmp_path / "reference", real, size=(9, 30)),
        out=tmp_path / "out",
        metric="gfid",
    )
    document = results(out)
    assert list(document["metrics"]) == ["gfid@colours"]
    found = document["metrics"]["gfid@colours"]
    a, b = np.array(real, np.float32), np.array(made, np.float32)
    expected = frechet_distance(gaussian_of(a), gaussian_of(b)).value
    assert expected > 1
    assert found["frechet"] == pytest.approx(expected, rel=1e-6)
    manifolds = precision_recall(a, b)
    assert manifolds.precision > manifolds.recall
    assert (found["precision"], found["recall"]) == manifolds[:2]
    assert (found["neighbours"], found["num_reference"], found["num_samples"]) == (3, 14, 11)
    assert "psnr" not in found
    assert "inception_score" not in found


def test_gfid_has_an_inception_score_where_features_have_a_classifier(
    tmp_path: Path, colours: Colours
) -> None:
    # 20 pictures, red and blue by turns, logits so large that each is sure of its class: 10 splits
    # of one red and one blue, each of score 2 (test_frechet.py)
    colours.logits = lambda features: features * 100
    samples = folder(tmp_path / "samples", [(200, 0, 0), (0, 0, 200)] * 10)
    out = fid.run(samples=samples, reference=samples, out=tmp_path / "out", metric="gfid")
    found = results(out)["metrics"]["gfid@colours"]
    assert found["inception_score"] == pytest.approx(2)
    assert found["inception_score_std"] == pytest.approx(0, abs=1e-9)
    assert found["splits"] == 10


def test_gfid_against_a_file_of_mean_and_covariance(tmp_path: Path, colours: Colours) -> None:
    real, made = spread(14, seed=1), spread(11, seed=2)
    reference = tmp_path / "reference.npz"
    np.savez(reference, mu=np.mean(real, axis=0), sigma=np.cov(real, rowvar=False))
    samples = folder(tmp_path / "samples", made)
    out = fid.run(samples=samples, reference=reference, out=tmp_path / "out", metric="gfid")
    found = results(out)["metrics"]["gfid@colours"]
    expected = frechet_distance(gaussian_of(np.array(real)), gaussian_of(np.array(made))).value
    assert found["frechet"] == pytest.approx(expected, rel=1e-6)
    assert found["num_reference"] is None
    assert "recall" not in found
    assert "No precision and recall" in (out / "report.md").read_text()

    np.savez(reference, mu=np.zeros(2), sigma=np.eye(2))
    with pytest.raises(UserError, match="has 2 features, colours has 3"):
        fid.run(samples=samples, reference=reference, out=tmp_path / "two", metric="gfid")
    with pytest.raises(UserError, match="rfid compares pairs"):
        fid.run(samples=samples, reference=reference, out=tmp_path / "two", metric="rfid")
    assert colours.batches == [11]


def test_an_artifact_is_compared_as_its_folder_is(tmp_path: Path, colours: Colours) -> None:
    # the artifact's pictures, 16 px of noise, saved to a folder under their keys: identical pairs
    artifact = write_pictures(tmp_path / "artifact", [["train"] * 3, ["train"] * 2])
    samples = tmp_path / "samples"
    samples.mkdir()
    for shard in artifact.shards:
        for row, blob in artifact.read_images(shard):
            assert blob is not None
            (samples / f"{row['key']}.png").write_bytes(blob)
    out = fid.run(samples=samples, reference=artifact.path, out=tmp_path / "out", metric="rfid")
    document = results(out)
    assert document["metrics"]["rfid@colours"]["num_identical"] == 5
    assert document["settings"]["samples"] == document["settings"]["reference"]


def test_the_figures_are_those_of_any_number_of_workers(tmp_path: Path, colours: Colours) -> None:
    artifact = write_pictures(tmp_path / "artifact", [["train"] * 3, ["train"] * 2])
    samples = folder(tmp_path / "samples", spread(5), size=(16, 16))

    def compared(samples: Path, metric: fid.Metric, num_workers: int) -> bytes:
        out = tmp_path / f"{metric} {num_workers}"
        known: dict[str, Any] = {"batch_size": 2, "num_workers": num_workers}
        known["reference"] = artifact.path
        fid.run(samples=samples, out=out, metric=metric, **known)
        return (out / "results.json").read_bytes()

    assert compared(samples, "rfid", 0) == compared(samples, "rfid", 2)
    assert compared(samples, "gfid", 0) == compared(samples, "gfid", 1)
    (samples / "02.png").write_bytes((samples / "02.png").read_bytes()[:60])
    with pytest.raises(UserError, match="samples/02.png cannot be read"):
        compared(samples, "rfid", 1)


def test_a_folder_that_generate_made_is_compared_without_its_sheet(
    tmp_path: Path, colours: Colours
) -> None:
    drawn = tmp_path / "drawn"
    begin_directory(drawn, SAMPLES, settings={})
    for prompt in range(2):
        folder(drawn / f"{prompt:05}", spread(3, seed=prompt))
    Image.new("RGB", (90, 20)).save(drawn / SAMPLE_SHEET)
    pictures = folder(tmp_path / "pictures", [*spread(3, seed=0), *spread(3, seed=1)])
    out = fid.run(samples=drawn, reference=pictures, out=tmp_path / "out", metric="rfid")
    assert results(out)["metrics"]["rfid@colours"]["num_identical"] == 6


def test_nothing_is_skipped(tmp_path: Path, colours: Colours) -> None:
    good = folder(tmp_path / "good", spread(4))

    def compare(samples: Path, metric: fid.Metric = "gfid") -> None:
        fid.run(samples=samples, reference=good, out=tmp_path / "out", metric=metric)

    torn = folder(tmp_path / "torn", spread(4))
    whole = (torn / "02.png").read_bytes()
    (torn / "02.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="torn/02.png cannot be read"):
        compare(torn)
    failed = folder(tmp_path / "failed", spread(4))
    (failed / "04.error").write_text("out of memory")
    with pytest.raises(UserError, match="failed/04.error stands for a picture"):
        compare(failed)
    artifact = write_pictures(tmp_path / "artifact", [["train", "failed"]])
    with pytest.raises(UserError, match="00000-000001 of .*truncated"):
        compare(artifact.path)
    with pytest.raises(UserError, match="holds no picture"):
        compare(folder(tmp_path / "empty", []))
    with pytest.raises(UserError, match="is a file"):
        compare(good / "00.png")
    with pytest.raises(UserError, match="does not exist"):
        compare(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds 3 pictures and .* 4"):
        compare(folder(tmp_path / "three", spread(3)), "rfid")
    with pytest.raises(UserError, match=r"00.png is 13 x 12 and its original .* 12 x 12"):
        compare(folder(tmp_path / "wide", spread(4), size=(13, 12)), "rfid")
    assert not (tmp_path / "out").exists()
    assert colours.batches == []


def test_pictures_too_small_for_a_window_are_refused(tmp_path: Path, colours: Colours) -> None:
    small = folder(tmp_path / "small", spread(4), size=(20, 10))
    with pytest.raises(UserError, match="SSIM needs sides of 11 px"):
        fid.run(samples=small, reference=small, out=tmp_path / "out", metric="rfid")


def test_one_directory_holds_one_comparison(tmp_path: Path, colours: Colours) -> None:
    samples = folder(tmp_path / "samples", spread(6, seed=1))
    reference = folder(tmp_path / "reference", spread(6, seed=2))
    out = tmp_path / "out"
    fid.run(samples=samples, reference=reference, out=out, metric="rfid")
    first = (out / "results.json").read_bytes()
    fid.run(samples=samples, reference=reference, out=out, metric="rfid")
    assert (out / "results.json").read_bytes() == first
    with pytest.raises(UserError, match="metric: rfid there, gfid now"):
        fid.run(samples=samples, reference=reference, out=out, metric="gfid")
    Image.new("RGB", (SIDE_PX, SIDE_PX), (1, 2, 3)).save(samples / "00.png")
    with pytest.raises(UserError, match="samples.pixels_sha256"):
        fid.run(samples=samples, reference=reference, out=out, metric="rfid")
    assert (out / "results.json").read_bytes() == first


def test_unknown_words_are_refused(tmp_path: Path) -> None:
    samples = folder(tmp_path / "samples", spread(4))

    def compare(**changed: Any) -> None:
        given = {"metric": "gfid", **changed}
        fid.run(samples=samples, reference=samples, out=tmp_path / "out", **given)

    with pytest.raises(UserError, match="metric 'fid' is unknown"):
        compare(metric="fid")
    with pytest.raises(UserError, match="features 'clip' are unknown"):
        compare(features="clip")
    with pytest.raises(UserError, match="batch_size 0"):
        compare(batch_size=0)


def test_the_embedded_tokenizer_sees_what_noise_does_to_drawn_pictures(tmp_path: Path) -> None:
    # Twelve scenes of the drawn world, and the same with noise of 8 and of 60 grey levels on them:
    # more noise is further away by every figure. Noise of 8 alone is 20 log10(255 / 8) = 30.07 dB,
    # a little more where bytes end at 0 and 255.
    rng = np.random.default_rng(0)
    sets = {name: tmp_path / name for name in ("clean", "slight", "heavy")}
    for path in sets.values():
        path.mkdir()
    for number, item in enumerate(geneval_suite()[:120:10]):
        pixels = render(scene_for(item.metadata, rng), rng)
        noise = rng.normal(size=pixels.shape)
        for (_, path), level in zip(sets.items(), (0, 8, 60), strict=True):
            noisy = np.clip(np.rint(pixels + level * noise), 0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(path / f"{number:02}.png")
    found = {}
    for name in ("slight", "heavy"):
        out = fid.run(
            samples=sets[name], reference=sets["clean"], out=tmp_path / f"r_{name}", metric="rfid"
        )
        found[name] = results(out)["metrics"]["rfid@tatok"]
        assert found[name]["dim"] == 128
        assert found[name]["singular"] is True
    slight, heavy = found["slight"], found["heavy"]
    assert 30 < slight["psnr"] < 33
    assert slight["psnr"] > heavy["psnr"] + 10
    assert 1 > slight["ssim"] > heavy["ssim"] > 0
    assert 1 > slight["cosine"] > heavy["cosine"]
    assert 0 < 2 * slight["frechet"] < heavy["frechet"]
    out = fid.run(samples=sets["clean"], reference=sets["clean"], out=tmp_path / "g", metric="gfid")
    crowd = results(out)["metrics"]["gfid@tatok"]
    assert (crowd["precision"], crowd["recall"]) == (1, 1)
    assert abs(crowd["frechet"]) < 1e-3 * slight["frechet"]
    assert "inception_score" not in crowd
    assert len(results(out)["settings"]["features"]["tokenizer_sha256"]) == 64
