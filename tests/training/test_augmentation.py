"""Which role is augmented how."""

import re
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from fusionkit.cli import main
from fusionkit.config.validate import experiment_from_mapping, load_config
from fusionkit.data.base import Dataset
from fusionkit.data.digit_claims import DigitClaims
from fusionkit.data.snli_ve import SnliVe
from fusionkit.data.table import Table
from fusionkit.errors import ConfigError
from fusionkit.training.assemble import dry_build
from fusionkit.training.augmentation import augmentation_of, augmentation_text, with_augmentation
from fusionkit.training.run import prepare

CNN = {"name": "timm_cnn", "model": "resnet10t", "weights": "random", "image_size": 32}


class Careful(DigitClaims):
    augment: ClassVar = "crop"


def experiment(main=None, complement=None, **more):
    return experiment_from_mapping(
        {
            "main": main or {"name": "timm_vit", "model": "fusionkit/digits-vit"},
            "complement": complement or CNN,
            "complement_transfer": "frozen",
            "data": {"name": "digit_claims", "claims_per_image": 2},
            **more,
        }
    )


def test_null_is_what_the_data_set_recommends_and_a_stated_value_holds():
    made = experiment(complement={**CNN, "augment": "randaugment"})
    for dataset, expected in ((DigitClaims(2), "none"), (Careful(2), "crop")):
        assert augmentation_of(made, dataset, "main") == expected
        assert augmentation_of(made, dataset, "complement") == "randaugment"
        settled = with_augmentation(made, dataset)
        assert settled.main.init["augment"] == expected
        assert settled.complements[0].encoder.init["augment"] == "randaugment"
    assert made.main.init["augment"] is None
    assert made.resolved["main"]["augment"] is None  # a saved config means the same elsewhere
    assert augmentation_text(made, Careful(2)) == (
        "main crop (as the data set recommends); complement randaugment"
    )


def test_what_data_sets_recommend():
    assert Dataset.augment == Table.augment == "randaugment"
    assert DigitClaims.augment == SnliVe.augment == "none"


@pytest.mark.parametrize("inner", ["timm_cnn", CNN, {**CNN, "augment": "none"}])
def test_the_encoder_that_a_video_encoder_holds_is_augmented(inner):
    made = experiment(complement={"name": "video", "encoder": inner})
    expected = "none" if "augment" in inner else "crop"
    assert augmentation_of(made, Careful(2), "complement") == expected
    settled = with_augmentation(made, Careful(2)).complements[0].encoder.init["encoder"]
    assert settled["augment"] == expected
    assert settled["name"] == "timm_cnn"


def test_what_the_data_set_recommends_does_not_go_with_a_cache(monkeypatch):
    monkeypatch.setattr(DigitClaims, "augment", "crop")
    message = r"cache: complement \(TimmCNN\) is augmented in training \(crop\).* Set augment: none"
    with pytest.raises(ConfigError, match=message):
        dry_build(experiment(cache=True))
    model = dry_build(experiment(cache="auto"))[0]
    assert model.fusion.complements["complement"].encoder.augment == "crop"
    dry_build(experiment(cache=True, complement={**CNN, "augment": "none"}))


def test_encoders_without_images_are_left_alone():
    made = experiment(complement={"name": "bow", "tokenizer": "fusionkit/claims-transformer"})
    assert augmentation_of(made, Careful(2), "complement") == "none"
    assert with_augmentation(made, Careful(2)).complements == made.complements


def test_models_are_built_with_what_was_settled(monkeypatch):
    made = experiment(complement={"name": "bert", "model": "fusionkit/claims-transformer"})
    monkeypatch.setattr(DigitClaims, "augment", "crop")
    assert dry_build(made)[0].fusion.main.encoder.augment == "crop"
    encoder = prepare(made, {})[2].fusion.main.encoder
    image = DigitClaims(2).split("train")[0].fields["image"]
    for train in (True, False):
        rows = [encoder.preprocessor(train)(image)["pixels"] for _ in range(8)]
        assert all(torch.equal(row, rows[0]) for row in rows) != train


def test_check_and_the_head_of_a_run_say_it(tmp_path, root, capsys):
    config = root / "configs/quickstart.yaml"
    assert main(["check", "--config", str(config)]) == 0
    line = r"augmentation +complement none \(as the data set recommends\)"
    assert re.search(line, capsys.readouterr().out)
    run = ["fit", "--config", str(config), "--output", str(tmp_path), "--baselines=null"]
    run += ["--data.claims_per_image=2", "--trainer.max_epochs=1", "--trainer.progress_bar=false"]
    run += ["--trainer.limit_train_batches=1", "--complement.augment", "[RandomRotation]"]
    assert main(run) == 2
    assert "augment: RandomRotation cannot be made with {}" in capsys.readouterr().err
    run[-1] = "[{name: RandomRotation, degrees: 5}]"
    assert main(run) == 0
    assert "Augmentation: complement RandomRotation." in capsys.readouterr().out
    saved = yaml.safe_load((tmp_path / "quickstart/000/config.yaml").read_text())
    assert saved["complement"]["augment"] == [{"name": "RandomRotation", "degrees": 5}]
    again = load_config([tmp_path / "quickstart/000/config.yaml"])
    assert again.complements[0].encoder.init["augment"] == saved["complement"]["augment"]


def test_digits_are_never_mirrored_by_a_config_of_ours(root):
    for name in ("quickstart", "three_modalities", "compare/digits", "compare/spoken_digits"):
        made = load_config([root / f"configs/{name}.yaml"])
        for one in (made, *made.baselines.values(), *made.systems.values()):
            assert "randaugment" not in augmentation_text(one, one.data.build()), name


def test_the_pages_picture_can_be_made(tmp_path, monkeypatch, root: Path):
    monkeypatch.chdir(tmp_path)
    page = (root / "docs/augmentation.md").read_text()
    (block,) = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    exec(compile(block, "augmentation.md", "exec"), {})
    pixels = np.asarray(Image.open(tmp_path / "augmented.png").convert("L"))
    tiles = {
        pixels[2 + 10 * i : 10 + 10 * i, 2 + 10 * j : 10 + 10 * j].tobytes()
        for i in range(4)
        for j in range(4)
    }
    assert len(tiles) > 8
