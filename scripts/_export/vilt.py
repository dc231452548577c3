"""Hugging Face's ViltModel, ViltForMaskedLM or ViltForImageAndTextRetrieval, with a processor.

Images of one size are prepared by CLIP's image processor, which resizes the short side and cuts the
centre out, as validation does here. Images that keep their aspect are prepared by ViLT's own.
"""

from math import lcm
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.functional import to_pil_image

from data.images.limits import MODES
from data.settings import require
from pretrain.encoder.facts import grid_size, image_data
from pretrain.encoder.huggingface import hf_names, to_hf
from pretrain.vilt.huggingface import to_vilt
from scripts._export.format import HUB, Format, Outputs
from scripts._export.hugging_face import encoder_settings, find_obstacles, import_transformers
from scripts._export.pairs import Pairs, PairSource, other_heads

_BEYOND = ("mlm_score.", "rank_output.")  # of a ViltModel: heads
_MOST_ROWS = 128  # of a square table of positions: 50 MB in ViT-B
_LONG = 1333 / 800  # of ViLT's image processor: its longest side over the short one


def _check(source: PairSource) -> None:
    require(
        source.channels in MODES,
        f"--to transformers: its image processors take RGB or grey images, and those of "
        f"{source.path} have {source.channels} channels; give --to timm or onnx",
    )
    encoder = source.timm_encoder("transformers")
    obstacles = find_obstacles(encoder)
    patch = source.model.patch
    if patch[0] != patch[1]:
        obstacles.append(f"patches of {patch[0]}x{patch[1]}")
    if _square_side(source) > _MOST_ROWS:
        rows, columns = source.size
        obstacles.append(
            f"the positions of {rows}x{columns} images, as its own are those of a square"
        )
    if source.model_name == "ViltForMaskedLM" and encoder_settings(encoder)["hidden_act"] != "gelu":
        obstacles.append("a head of words with another activation than the layers")
    require(
        not obstacles,
        f"--to transformers: {source.model_name} cannot hold {', '.join(obstacles)} "
        f"({source.path}); give --to timm or onnx for the image half",
    )


# ---------------------------------------------------------------- positions


def _square_side(source: PairSource) -> int:
    """Return the rows of the smallest square of positions that has those of the grid in it.

    ViltModel keeps a square table and reads it at the places of an image's patches, corners on
    corners, linearly in between.
    """
    rows, columns = grid_size(source.encoder)
    return rows if rows == columns else 1 + lcm(max(1, rows - 1), max(1, columns - 1))


def _squared(table: Tensor, source: PairSource) -> Tensor:
    """Stretch a table (1, 1 + N, D), whose first row is the class token's, to that square."""
    side, grid = _square_side(source), grid_size(source.encoder)
    if grid == (side, side):
        return table
    cells = table[:, 1:].unflatten(1, grid).permute(0, 3, 1, 2)
    cells = F.interpolate(cells, (side, side), mode="bilinear", align_corners=True)
    return torch.cat([table[:, :1], cells.flatten(2).transpose(1, 2)], dim=1)


# ---------------------------------------------------------------- writing


def _write(source: PairSource, folder: Path) -> None:
    transformers = import_transformers()
    config = transformers.ViltConfig(**_settings(source))
    model, loading = getattr(transformers, source.model_name).from_pretrained(
        None, config=config, state_dict=_weights(source), output_loading_info=True
    )
    loading["missing_keys"] = {name for name in loading["missing_keys"] if "pooler" not in name}
    assert not any(loading.values()), loading  # missing, unexpected, mismatched names
    if source.model.pooler is None:
        getattr(model, "vilt", model).pooler = None  # else it would be written, at random
    model.save_pretrained(folder)
    _image_processor(source).save_pretrained(folder)
    _tokenizer(source, folder).save_pretrained(folder)


def _weights(source: PairSource) -> dict[str, Tensor]:
    tensors = to_hf(source.timm_encoder("transformers").state_dict())
    [positions] = hf_names("pos_embed")
    tensors[positions] = _squared(tensors[positions], source)
    tensors |= to_vilt(source.model.state_dict())
    if source.model_name == "ViltModel":
        return {name: value for name, value in tensors.items() if not name.startswith(_BEYOND)}
    head = "mlm_score." if source.model_name == "ViltForMaskedLM" else "rank_output."
    own = {name: value for name, value in tensors.items() if not name.startswith(_BEYOND)}
    heads = {name: value for name, value in tensors.items() if name.startswith(head)}
    return {f"vilt.{name}": value for name, value in own.items()} | heads


def _settings(source: PairSource) -> dict[str, Any]:
    """Return the arguments of transformers' ViltConfig."""
    model, patch = source.model, source.model.patch[0]
    return encoder_settings(source.timm_encoder("transformers")) | {
        "image_size": _square_side(source) * patch,
        "patch_size": patch,
        "vocab_size": model.pieces.size,
        "max_position_embeddings": model.max_tokens,
        "pad_token_id": model.pieces.pad,
    }


def _image_processor(source: PairSource) -> Any:
    transformers = import_transformers()
    data = image_data(source.encoder)
    told = {"image_mean": list(data["mean"]), "image_std": list(data["std"]), "resample": 2}
    if source.channels == 1:
        told["do_convert_rgb"] = False
    rows, columns = source.size
    if source.aspect is not None:
        size, divisor = {"shortest_edge": rows}, source.aspect.patch
        return transformers.ViltImageProcessor(size=size, size_divisor=divisor, **told)
    whole = {"height": rows, "width": columns}
    if rows != columns:
        return transformers.CLIPImageProcessor(size=whole, do_center_crop=False, **told)
    return transformers.CLIPImageProcessor(size={"shortest_edge": rows}, crop_size=whole, **told)


def _tokenizer(source: PairSource, folder: Path) -> Any:
    """Make the tokenizer of the run's vocabulary: [CLS], pieces, [SEP], whatever file it is of."""
    from tokenizers import Tokenizer
    from tokenizers.processors import BertProcessing

    words, path = source.vilt.vocabulary, folder / "tokenizer.json"
    words.save(path)
    tokenizer = Tokenizer.from_file(str(path))
    names = {
        f"{role}_token": words.piece(getattr(words, role)) for role in ("cls", "sep", "pad", "mask")
    }
    names["unk_token"] = words.piece(words.unknown)
    ends = (names["sep_token"], words.sep), (names["cls_token"], words.cls)
    tokenizer.post_processor = BertProcessing(*ends)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return import_transformers().PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=source.model.max_tokens,
        split_special_tokens=True,
        **names,
    )


# ---------------------------------------------------------------- reading


@torch.no_grad()
def _run(folder: Path, pairs: Pairs) -> Outputs:
    transformers = import_transformers()
    processor = transformers.AutoProcessor.from_pretrained(folder)
    [name] = transformers.AutoConfig.from_pretrained(folder).architectures
    model, loading = getattr(transformers, name).from_pretrained(folder, output_loading_info=True)
    inputs = processor(
        images=[to_pil_image(image) for image in pairs.images],
        text=pairs.captions,
        padding="max_length",
        truncation=True,
        do_resize=False,  # they are of the model's sizes
        return_tensors="pt",
    )
    base = getattr(model, "vilt", model)
    found = base(**inputs)
    length = inputs.input_ids.shape[1]
    tokens = found.last_hidden_state
    outputs = {
        "pieces": inputs.input_ids.float(),
        "text": tokens[:, :length],
        "image": tokens[:, length],  # its class token; the patches come in any order
    }
    if not loading["missing_keys"]:
        outputs["pooled"] = found.pooler_output
    if base is not model:
        logits = model(**inputs).logits
        outputs["words" if logits.ndim == 3 else "score"] = logits
    return outputs


def _usage(source: PairSource, place: str) -> str:
    place = place.removeprefix(HUB)
    name = source.model_name
    match = "score = float(model(**inputs).logits)  # over 0: they match"
    result = {
        "ViltModel": "tokens = model(**inputs).last_hidden_state  # (1, T, D), words first",
        "ViltForMaskedLM": "logits = model(**inputs).logits  # (1, T, V), of words",
        "ViltForImageAndTextRetrieval": match,
    }[name]
    return f'''import torch
from PIL import Image
from transformers import ViltProcessor, {name}

processor = ViltProcessor.from_pretrained("{place}")
model = {name}.from_pretrained("{place}")
image = Image.open("photo.jpg").convert("{MODES[source.channels]}")
inputs = processor(images=image, text="a red square", truncation=True, return_tensors="pt")
with torch.inference_mode():
    {result}'''


def _describe(source: PairSource) -> list[str]:
    lines = [_describe_images(source)]
    lines.append(f"captions: at most {source.model.max_tokens} pieces, by the run's own vocabulary")
    if source.model_name == "ViltForImageAndTextRetrieval":
        lines.append("the score is the log odds that a caption is the image's own")
    if source.model.pooler is None:
        lines.append("it has no pooler (loss.matching=0): transformers begins one at random")
    if others := other_heads(source):
        lines.append(f"left out: the head of {' and that of '.join(others)}; see --model")
    if source.model.patches is not None:
        lines.append("the head of masked patches is left out: transformers' ViLT has none")
    return lines


def _describe_images(source: PairSource) -> str:
    rows, columns = source.size
    if source.aspect is not None:
        longest = int(_LONG * rows) // source.aspect.patch * source.aspect.patch
        line = (
            f"the image processor keeps an image's aspect: short side {rows}, long side at most "
            f"{longest}"
        )
        own = source.aspect.long
        if longest == own:
            return line
        return f"{line}; in training {own}: for that, resize images first and give do_resize=False"
    if rows != columns:
        return (
            f"the image processor squeezes images to {rows}x{columns}; in validation they were "
            "resized to cover that size, and their centre was cut out; positions are stretched to "
            f"a square of {_square_side(source)} rows, of which ViltModel reads the same ones"
        )
    return (
        f"the image processor resizes images to cover {rows}x{columns} and cuts out their centre, "
        "as validation did"
    )


FORMAT = Format(
    "transformers", "transformers", ("transformers",), _write, _run, _usage, _describe, _check
)
