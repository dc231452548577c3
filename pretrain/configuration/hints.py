"""Suggestions for unknown keys: other projects' names, other entry points'."""

import difflib
from collections.abc import Collection, Iterator, Sequence

from pretrain.configuration.layers import Entry

_PRECISION = "run.precision (fp32, bf16, fp16)"
_TRAIN, _VAL = ("data.shards", "data.train"), ("data.val_shards", "data.val")
_MICRO = "run.micro_batch_size (optim.batch_size is the whole batch of a step)"
# other projects' names, without their dots and dashes -> ours
_USUAL = {
    **dict.fromkeys(("learning_rate", "learningrate", "base_lr", "blr", "max_lr"), "optim.lr"),
    **dict.fromkeys(("epochs", "num_epochs", "max_epochs", "num_train_epochs"), "optim.epochs"),
    **dict.fromkeys(("max_steps", "num_steps", "iterations", "max_iters"), "optim.steps"),
    **dict.fromkeys(("wd", "weightdecay", "decay"), "optim.weight_decay"),
    **dict.fromkeys(("warmup", "warmup_epochs"), "optim.warmup_ratio"),
    **dict.fromkeys(("num_warmup_steps",), "optim.warmup_steps"),
    **dict.fromkeys(("max_time", "hours", "time_limit", "time_budget"), "run.minutes"),
    **dict.fromkeys(("optimizer", "opt", "optimiser"), "optim.algorithm"),
    **dict.fromkeys(("beta1", "beta2", "adam_beta1", "adam_beta2", "adam_betas"), "optim.betas"),
    **dict.fromkeys(("clip_grad", "max_grad_norm", "grad_norm", "clip"), "optim.grad_clip"),
    **dict.fromkeys(("ema_decay", "model_ema"), "optim.ema"),
    **dict.fromkeys(("bs", "batchsize", "total_batch_size", "global_batch_size"), "batch_size"),
    **dict.fromkeys(
        ("grad_accum", "accum_iter", "gradient_accumulation_steps", "accumulate_grad_batches"),
        _MICRO,
    ),
    **dict.fromkeys(("per_device_train_batch_size", "micro_batch", "batch_size_per_gpu"), _MICRO),
    **dict.fromkeys(("num_workers", "nworkers", "dataloader_num_workers", "j"), "data.workers"),
    **dict.fromkeys(("img_size", "input_size", "resolution", "imgsize"), "data.image_size"),
    **dict.fromkeys(("in_chans", "in_channels", "num_channels"), "data.channels"),
    **dict.fromkeys(("scale", "crop_scale", "min_scale", "crop"), "data.crop_area"),
    **dict.fromkeys(
        ("data_path", "data_dir", "dataset", "train_data"), ("data.shards", "data.train")
    ),
    **dict.fromkeys(("train", "train_dir", "train_path", "train_shards"), _TRAIN),
    **dict.fromkeys(("val", "val_dir", "val_path", "val_data"), ("data.val_shards", "data.val")),
    **dict.fromkeys(("val_split", "validation_split", "val_fraction"), "data.val_ratio"),
    **dict.fromkeys(("output_dir", "out", "outdir", "log_dir", "save_dir", "output"), "dir"),
    **dict.fromkeys(("model", "arch", "backbone", "model_name", "architecture"), "encoder.name"),
    **dict.fromkeys(("pretrained", "checkpoint", "weights", "finetune", "ckpt"), "encoder.init"),
    **dict.fromkeys(
        ("checkpoint_path", "init_from", "load_from", "initial_checkpoint"), "encoder.init"
    ),
    **dict.fromkeys(("dim", "hidden_size", "width"), "encoder.embed_dim"),
    **dict.fromkeys(("layers", "num_layers", "num_hidden_layers", "blocks"), "encoder.depth"),
    **dict.fromkeys(("heads", "num_attention_heads"), "encoder.num_heads"),
    **dict.fromkeys(("drop_path", "drop_path_rate", "mlp_ratio", "qkv_bias"), "encoder.args"),
    **dict.fromkeys(("mask_ratio", "masking_ratio", "mask"), "corruption.ratio"),
    **dict.fromkeys(("mask_type", "mask_kind", "masking"), "corruption.kind"),
    **dict.fromkeys(("fp16", "bf16", "amp", "mixed_precision", "dtype"), _PRECISION),
    **dict.fromkeys(("resume_from", "auto_resume", "resume_from_checkpoint"), "run.resume"),
    **dict.fromkeys(("save_every", "save_steps", "save_freq"), "run.checkpoint_every"),
    **dict.fromkeys(("log_steps", "logging_steps", "print_freq"), "run.log_every"),
    **dict.fromkeys(("eval_steps", "eval_freq", "eval_interval"), "run.eval_every"),
    **dict.fromkeys(("gradient_checkpointing", "checkpointing"), "run.grad_checkpointing"),
    **dict.fromkeys(("wandb", "tensorboard", "report_to", "logger"), "run.trackers"),
    **dict.fromkeys(("cpus", "num_threads"), "run.threads"),
    **dict.fromkeys(("fsdp", "ddp", "strategy", "distributed"), "run.parallel"),
    **dict.fromkeys(("torch_compile", "torchcompile"), "run.compile"),
    **dict.fromkeys(("mixup_alpha",), "mix.mixup"),
    **dict.fromkeys(("cutmix_alpha",), "mix.cutmix"),
    **dict.fromkeys(("smoothing",), "head.label_smoothing"),
    **dict.fromkeys(("max_text_len", "max_length", "max_seq_length"), "data.max_tokens"),
    **dict.fromkeys(("tokenizer", "vocab", "tokenizer_name", "vocab_file"), "data.vocabulary"),
    **dict.fromkeys(("caption", "caption_column", "text_key", "text_column"), "data.caption_key"),
    **dict.fromkeys(("vocab_size",), "data.vocabulary_size"),
    **dict.fromkeys(("max_image_len",), "data.max_patches"),
    **dict.fromkeys(("mlm_prob", "mlm_probability"), "text.ratio"),
    **dict.fromkeys(("aa", "auto_augment", "randaugment", "augmentation"), "data.augment"),
}
_LAUNCHER = {"gpus", "devices", "num_gpus", "num_processes", "nproc_per_node", "nnodes"}
# keys of one entry point -> what another one calls it
_NEIGHBOURS = {
    "data.train": "data.shards",
    "data.val": "data.val_shards",
    "data.shards": "data.train",
    "data.val_shards": "data.val",
    "probe.layer": "probe.layers",
    "probe.pooling": "probe.poolings",
}
_ELSEWHERE = {
    **dict.fromkeys(("head", "mix", "data.multi_label", "data.augment"), "finetune/run.py"),
    **dict.fromkeys(("corruption", "target", "decoder", "data.read"), "pretrain/run.py"),
    **dict.fromkeys(("text", "loss", "data.caption_key"), "pretrain/vilt/run.py"),
    **dict.fromkeys(
        ("data.vocabulary", "data.max_tokens", "data.long_side"), "pretrain/vilt/run.py"
    ),
    **dict.fromkeys(("alternative", "mae", "mpp", "simmim"), "scripts/benchmark.py pretrain"),
    **dict.fromkeys(("rows", "common", "measures", "budget"), "scripts/ablate.py"),
    "fewshot": "finetune/fewshot.py",
    **dict.fromkeys(("dense", "data.num_classes", "data.ignored"), "finetune/dense.py"),
    "probe.shots": "finetune/fewshot.py (fewshot.shots)",
    "probe.num_seeds": "finetune/fewshot.py (fewshot.num_seeds)",
}
_ACCELERATE = {"compute_environment", "distributed_type", "fsdp_config", "deepspeed_config"}


def name_unknown(entries: Sequence[Entry], known: Collection[str]) -> Iterator[str]:
    """Name the keys that are unknown, each with what was probably meant."""
    unknown = [entry for entry in entries if entry.name not in known]
    files = {entry.place.rpartition(", ")[0] for entry in unknown if entry.name in _ACCELERATE}
    for file in filter(None, files):
        yield (
            f"{file} is a configuration of accelerate; give it to the launcher: accelerate launch "
            f"--config_file {file} ..."
        )
    elsewhere: dict[tuple[str, str], list[str]] = {}
    for entry in unknown:
        file = entry.place.rpartition(", ")[0]
        script = _script_of(entry.name, known)
        if file in files and file:
            continue
        if script is None:
            yield f"{entry.name} is no key; {_hint(entry.name, known)}{in_file(entry.place)}"
        else:
            elsewhere.setdefault((script, file), []).append(entry.name)
    for (script, file), names in elsewhere.items():
        are = "are keys" if len(names) > 1 else "is a key"
        yield f"{', '.join(names)} {are} of {script}, not of this command{in_file(file)}"


def in_file(place: str) -> str:
    """Return where a key is set, as a message ends with it."""
    return f" ({place})" if place else ""


def _script_of(name: str, known: Collection[str]) -> str | None:
    group = name.split(".")[0]
    is_group = any(key.startswith(f"{group}.") for key in known)
    return _ELSEWHERE.get(name if is_group else group)


def _hint(name: str, known: Collection[str]) -> str:
    if _leaf(name) in _LAUNCHER:
        return "the launcher is told, as in torchrun --nproc-per-node 8"
    candidates = list(dict.fromkeys(_candidates(name, known)))
    candidates = candidates or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {' or '.join(candidates[:4])}?" if candidates else "see --help"


def _leaf(name: str) -> str:
    return name.strip("-+").split(".")[-1].replace("-", "_").lower()


def _candidates(name: str, known: Collection[str]) -> Iterator[str]:
    if _NEIGHBOURS.get(name) in known:
        yield _NEIGHBOURS[name]
        return
    leaf = _leaf(name)
    usual = _USUAL.get(leaf, ())
    for target in (usual,) if isinstance(usual, str) else usual:
        key = target.split(" ")[0]
        if key in known:
            yield target
        yield from (full for full in known if full.split(".")[-1] == key)
    yield from (full for full in known if full.split(".")[-1] == leaf)
