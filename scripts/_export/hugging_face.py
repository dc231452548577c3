"""Hugging Face's ViTModel or ViTForImageClassification, with an image processor.

The processor squeezes an image of another size to the encoder's own, as transformers' ViT does; in
this project such an image is resized until it covers that size, and its centre is cut out. On
images of the encoder's own size both change nothing.
"""

from pathlib import Path
from typing import Any, cast

import torch
from timm.layers import Attention, LayerNorm, Mlp, PatchEmbed, get_act_layer
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torchvision.transforms.functional import to_pil_image

from data.images.limits import MODES
from data.settings import require
from pretrain.encoder.facts import image_data, patch_size
from pretrain.encoder.huggingface import ACTIVATIONS, hf_names, to_hf
from scripts._export.format import HUB, Format, Outputs
from scripts._export.source import Source, refuse_other_heads


def _check(source: Source) -> None:
    refuse_other_heads(source, "transformers")
    require(
        source.classifier is None or source.classifier.pooling == "class",
        "--to transformers: ViTForImageClassification reads the class token alone, and the head of "
        f"{source.path} reads the patch average; give --no-head, or --to timm or onnx",
    )
    require(
        source.channels in MODES,
        f"--to transformers: its image processors take RGB or grey images, and those of "
        f"{source.path} have {source.channels} channels; give --to timm or onnx",
    )
    obstacles = find_obstacles(source.timm_encoder("transformers"))
    require(
        not obstacles,
        f"--to transformers: ViTModel cannot hold {', '.join(obstacles)} of {source.path}; "
        "give --to timm or onnx",
    )


# ---------------------------------------------------------------- what its ViT can hold


def find_obstacles(encoder: nn.Module) -> list[str]:
    """Name what Hugging Face's ViT cannot hold of a timm model; nothing: it computes the same."""
    if not isinstance(encoder, VisionTransformer):
        return [f"the architecture {image_data(cast(Any, encoder))['architecture']}"]
    oddities = _oddities(encoder) | _block_oddities(encoder)
    obstacles = [what for what, is_so in oddities.items() if is_so]
    unknown = [name for name in encoder.state_dict() if not hf_names(name)]
    return obstacles or [f"the parameter {name}" for name in unknown]


def _oddities(encoder: VisionTransformer) -> dict[str, bool]:
    embedding = cast(Any, encoder.patch_embed)
    return {
        "an encoder without a class token": encoder.cls_token is None,
        "register tokens (reg_tokens)": encoder.reg_token is not None,
        "an encoder without position embeddings": encoder.pos_embed is None,
        "a class token without a position (no_embed_class)": encoder.no_embed_class,
        "images of any size (dynamic_img_size)": encoder.dynamic_img_size,
        "another patch embedding": type(embedding) is not PatchEmbed or _is_there(embedding.norm),
        "a norm before the blocks (pre_norm)": _is_there(encoder.norm_pre),
        "no last norm (final_norm)": not _is_there(encoder.norm),
        "a norm after pooling (fc_norm)": _is_there(encoder.fc_norm),
    }


def _block_oddities(encoder: VisionTransformer) -> dict[str, bool]:
    blocks = cast(list[Any], list(encoder.blocks))
    if not all(map(_is_plain, blocks)):
        return {"other blocks than attention and a two-layer MLP": True}
    activation = blocks[0].mlp.act
    norms = [encoder.norm, *(norm for block in blocks for norm in (block.norm1, block.norm2))]
    return {
        "another norm than LayerNorm": any(
            type(norm) not in (LayerNorm, nn.Identity) for norm in norms
        ),
        "norms of several eps": len({norm.eps for norm in norms if hasattr(norm, "eps")}) > 1,
        "LayerScale (init_values)": any(_is_there(block.ls1) for block in blocks),
        "norms of queries and keys (qk_norm)": any(_is_there(b.attn.q_norm) for b in blocks),
        "norms inside the blocks (scale_attn_norm, scale_mlp_norm)": any(
            _is_there(block.attn.norm) or _is_there(block.mlp.norm) for block in blocks
        ),
        "layers without a bias (proj_bias)": any(
            layer.bias is None for b in blocks for layer in (b.attn.proj, b.mlp.fc1, b.mlp.fc2)
        ),
        f"the activation {type(activation).__name__}": _activation(activation) is None,
    }


def _is_plain(block: Any) -> bool:
    return type(block) is Block and (type(block.attn), type(block.mlp)) == (Attention, Mlp)


def _is_there(module: nn.Module) -> bool:
    return not isinstance(module, nn.Identity)


def _activation(module: nn.Module) -> str | None:
    """Return Hugging Face's name of an activation, or None."""
    if type(module) is nn.GELU and module.approximate == "none":
        return "gelu"  # what timm takes where none is named
    kinds = {hf: get_act_layer(timm) for hf, timm in ACTIVATIONS.items()}
    return next((hf for hf, kind in kinds.items() if type(module) is kind), None)


# ---------------------------------------------------------------- writing


def _settings(source: Source) -> dict[str, Any]:
    """Return the arguments of transformers' ViTConfig."""
    encoder: VisionTransformer = source.timm_encoder("transformers")
    settings = encoder_settings(encoder) | {
        "image_size": _one_or_two(source.size),
        "patch_size": _one_or_two(patch_size(encoder)),
        "encoder_stride": patch_size(encoder)[0],
    }
    if source.classifier is None:
        return settings
    names = dict(enumerate(source.class_names))
    is_multi_label = source.classifier.is_multi_label
    return settings | {
        "id2label": names,
        "label2id": {name: number for number, name in names.items()},
        "problem_type": f"{'multi' if is_multi_label else 'single'}_label_classification",
    }


def encoder_settings(encoder: VisionTransformer) -> dict[str, Any]:
    """Return the arguments that the configurations of transformers' ViT and ViLT have in common."""
    block = cast(Any, encoder.blocks[0])
    return {
        "hidden_size": encoder.embed_dim,
        "num_hidden_layers": len(encoder.blocks),
        "num_attention_heads": block.attn.num_heads,
        "intermediate_size": block.mlp.fc1.out_features,
        "hidden_act": _activation(block.mlp.act),
        "layer_norm_eps": block.norm1.eps,
        "num_channels": encoder.in_chans,
        "qkv_bias": block.attn.qkv.bias is not None,
    }


def _one_or_two(size: tuple[int, int]) -> int | list[int]:
    return size[0] if size[0] == size[1] else list(size)


def _write(source: Source, folder: Path) -> None:
    transformers = import_transformers()
    config = transformers.ViTConfig(**_settings(source))
    kind, options = transformers.ViTModel, {"add_pooling_layer": False}
    if source.classifier:
        kind, options = transformers.ViTForImageClassification, {}
    model, loading = kind.from_pretrained(
        None,
        config=config,
        state_dict=to_hf(source.timm_encoder("transformers").state_dict()),
        output_loading_info=True,
        **options,
    )
    assert not any(loading.values()), loading  # missing, unexpected, mismatched names
    model.save_pretrained(folder)
    rows, columns = source.size
    data = image_data(source.encoder)
    transformers.ViTImageProcessor(
        size={"height": rows, "width": columns},
        image_mean=list(data["mean"]),
        image_std=list(data["std"]),
        resample=2,  # bilinear
    ).save_pretrained(folder)


def import_transformers() -> Any:
    """Import transformers, which takes seconds, without its progress bars and reports."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


@torch.no_grad()
def _run(folder: Path, images: Tensor) -> Outputs:
    transformers = import_transformers()
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    pixels = processor([to_pil_image(image) for image in images], return_tensors="pt").pixel_values
    config = transformers.AutoConfig.from_pretrained(folder)
    if "ViTForImageClassification" in config.architectures:
        model = transformers.ViTForImageClassification.from_pretrained(folder)
        return {"logits": model(pixels).logits, "tokens": model.vit(pixels).last_hidden_state}
    model = transformers.ViTModel.from_pretrained(folder, add_pooling_layer=False)
    return {"tokens": model(pixels).last_hidden_state}


def _usage(source: Source, place: str) -> str:
    place = place.removeprefix(HUB)
    kind = "ViTForImageClassification" if source.classifier else "ViTModel"
    options = "" if source.classifier else ", add_pooling_layer=False"
    result = """    tokens = model(**inputs).last_hidden_state  # (1, T, D), the class token first
    features = tokens[:, 1:].mean(dim=1)  # patch average"""
    if source.classifier:
        result = """    logits = model(**inputs).logits  # (1, K)
label = model.config.id2label[int(logits.argmax())]"""
    return f'''import torch
from PIL import Image
from transformers import AutoImageProcessor, {kind}

processor = AutoImageProcessor.from_pretrained("{place}")
model = {kind}.from_pretrained("{place}"{options})
inputs = processor(Image.open("photo.jpg").convert("{MODES[source.channels]}"), return_tensors="pt")
with torch.inference_mode():
{result}'''


def _describe(source: Source) -> list[str]:
    rows, columns = source.size
    return [
        f"the image processor squeezes images to {rows}x{columns}; in validation they were resized "
        "to cover that size, and their centre was cut out"
    ]


FORMAT = Format(
    "transformers", "transformers", ("transformers",), _write, _run, _usage, _describe, _check
)
