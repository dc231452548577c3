"""What README shows works, and what README and the pages name is there.

Their commands: tests/test_commands.py. Their links: tests/test_docs.py.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from skimage import data as photographs
from skimage import io

from finetune.config import FewshotConfig, FinetuneConfig
from finetune.frozen.config import LinearConfig
from finetune.frozen.dense.config import SegmentationConfig
from finetune.vilt.config import ViltFinetuneConfig
from pretrain.config import PretrainConfig
from pretrain.configuration.load import keys
from pretrain.encoder import EncoderConfig, make_encoder, save_encoder
from pretrain.vilt.config import ViltConfig

ROOT = Path(__file__).resolve().parents[1]
BY_HAND = ("README.md", "docs/index.md", "docs/how-to/*.md", "docs/design/*.md")
PAGES = [path for pattern in BY_HAND for path in sorted(ROOT.glob(pattern))]
FOLDERS = "configs|data|docs|finetune|pretrain|scripts|tests"
PLACE = re.compile(rf"`((?:{FOLDERS})/[\w./-]*)")  # a file or folder of the project
KEY = re.compile(
    r"(?<![\w./-])((?:run|data|encoder|corruption|target|decoder|optim|probe|fewshot|head|mix|text|loss)"
    r"\.[a-z_]+)(?=[=`,\s\]])"
)
CONFIGS = (
    *(PretrainConfig, ViltConfig, FinetuneConfig, ViltFinetuneConfig),
    *(FewshotConfig, LinearConfig, SegmentationConfig),
)
KEYS = {key.name for config in CONFIGS for key in keys(config)}
MADE = {"encoder.args", "optim.stps"}  # any argument of timm's follows; a slip that is shown


def test_a_strangers_script_takes_dense_features_with_timm_alone(tmp_path: Path) -> None:
    [script] = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    imports = re.findall(r"^(?:import|from) .*", script, re.MULTILINE)
    assert imports == [
        "import timm, torch",
        "from PIL import Image",
        "from timm.data import create_transform",
    ]
    config = EncoderConfig("vit_base_patch16_224", "none", 16, 32, 2, 2)
    save_encoder(make_encoder(config), tmp_path / "mine-encoder")
    io.imsave(tmp_path / "photo.jpg", photographs.astronaut())
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "torch.Size([1, 32, 14, 14])",
        "torch.Size([1, 32, 28, 28])",
    ]
    assert done.stderr == ""


def test_readme_is_read_in_one_go() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_each_file_that_a_page_names_is_there(path: Path) -> None:
    places = PLACE.findall(path.read_text())
    assert [place for place in places if not (ROOT / place).exists()] == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_each_key_that_a_page_names_is_one(path: Path) -> None:
    named = set(KEY.findall(path.read_text()))
    assert named - KEYS - MADE == set()
