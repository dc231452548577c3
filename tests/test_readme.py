"""What README shows works as it stands there."""

import re
import subprocess
import sys
from pathlib import Path

from skimage import data as photographs
from skimage import io

from pretrain.encoder import EncoderConfig, make_encoder, save_encoder

ROOT = Path(__file__).resolve().parents[1]


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
