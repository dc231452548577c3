"""What is said on the terminal and in a recipe's head, in words that a newcomer knows."""

import shlex
from collections.abc import Iterator, Mapping, Sequence

from data.text import count
from scripts._recommend.choosing import MOST_EPOCHS, RUN, Recipe
from scripts._recommend.facts import Images, Labelled, Machine, Timing
from scripts._recommend.sizes import Size

FEW = 5_000  # images below which released weights come first
_LICENCES = (
    "DINOv2 (timm: vit_small_patch14_dinov2.lvd142m) and CAPI: Apache-2.0; DINOv3: its own "
    "licence, with conditions; MAE (timm: vit_base_patch16_224.mae): CC-BY-NC 4.0, not for "
    "commercial use"
)
_DARK = 64  # of 255: no value of the sample is brighter
_MANY_NEAR, _MANY_BAD = 0.2, 0.05
_UNEVEN = 10  # times as many labelled images of one class as of another
_WAITS = 0.2  # of the time, from which the loader is what is slow


def images_line(images: Images) -> str:
    """Say what was seen of the images."""
    kind = "grey" if images.is_grey else {3: "colour"}.get(images.channels)
    kind = kind or f"{images.channels} channels"
    sizes = f"{images.width} x {images.height} pixels (median)"
    return f"{count(images.num_images, 'image')}, {sizes}, {kind}; {_looked(images)}"


def _looked(images: Images) -> str:
    looked = f"{images.num_looked:,} looked at"
    if images.num_looked == images.num_images:
        looked = "all looked at"
    bad = "all readable"
    if images.num_bad:
        share = f"{images.bad_ratio:.1%}".replace(".0%", "%")
        bad = f"{images.num_bad} of them ({share}) cannot be used, such as {images.first_bad}"
    return f"{looked}, {bad}; {_duplicates(images)}"


def _duplicates(images: Images) -> str:
    near = f"{images.near_ratio:.0%} of these nearly equal another"
    if images.num_equal is None:
        return near
    if images.num_equal == 0:
        return f"{near}, no two files are equal"
    return f"{near}, {count(images.num_equal, 'file')} equal to the byte to another"


def machine_line(machine: Machine) -> str:
    """Say what there is to compute on."""
    memory = "" if machine.memory is None else f", {gib(machine.memory)} of memory free"
    if machine.num_gpus:
        return f"{machine.num_gpus} x {machine.name}{memory} each, {count(machine.cores, 'core')}"
    cores = f"{count(machine.cores, 'core')} ({machine.name}), {count(machine.threads, 'thread')}"
    return f"{cores}{memory}, {'no GPU' if machine.device == 'cpu' else machine.name}"


def timing_lines(
    sizes: Sequence[Size], measured: Mapping[str, Timing | None], batch: int
) -> Iterator[str]:
    """Say what each encoder that was timed costs."""
    for size in (size for size in sizes if size.name in measured):
        timing = measured[size.name]
        if timing is None:
            yield f"{size.told}: does not fit into memory"
            continue
        memory = f", {gib(timing.peak_bytes)} of memory" if timing.peak_bytes else ""
        yield f"{size.told}: {batch / timing.step_seconds:,.0f} images/s{memory}"


def length_line(recipe: Recipe) -> str:
    """Say how long it will take."""
    steps = f"{count(recipe.steps, 'step')} of {count(recipe.plan.batch, 'image')}"
    memory = f"; about {gib(recipe.peak_bytes)} of memory" if recipe.peak_bytes else ""
    epochs = count(float(recipe.epochs), "epoch", "epochs")
    return f"{steps} = {epochs}, about {duration(recipe.seconds)}{memory}"


def limit_line(recipe: Recipe) -> str:
    """Say what decided the length."""
    if recipe.limit == "hours":
        return "the hours decided; a longer run learns more"
    return (
        f"the number of images decided: beyond {MOST_EPOCHS:,} epochs nothing is reported to gain "
        "(MAE), so the hours are not used up"
    )


def warnings(recipe: Recipe, labels: Labelled | None) -> Iterator[str]:
    """Yield what is doubtful."""
    images = recipe.plan.images
    if images.bad_ratio > _MANY_BAD:
        yield (
            f"{images.bad_ratio:.0%} cannot be used, and a run stops above "
            f"{_MANY_BAD:.0%} (data.max_bad_ratio): mend or remove them first"
        )
    if images.white < _DARK:
        yield (
            f"the brightest value is {images.white} of 255: of 16 bits the upper 8 are read; "
            "stretch the values to the whole range first"
        )
    if images.near_ratio > _MANY_NEAR:
        yield "nearly equal images count for fewer: take every 10th of a film, for instance"
    if images.widths_apart > 3:
        yield "the shapes differ much; squares are cut out of all"
    if labels is not None and labels.largest > _UNEVEN * labels.smallest:
        yield (
            f"a class has {labels.smallest:,} labelled images and another {labels.largest:,}: read "
            "the figures of each class, not the accuracy alone"
        )
    if recipe.wait_ratio > _WAITS:
        yield (
            f"training waits for images in {recipe.wait_ratio:.0%} of the time: smaller files "
            "(such as 512 pixels a side) would be faster"
        )
    if labels is not None and labels.train is None:
        yield (
            f"{labels.spec} cannot be split, so the run is not probed; split it: python "
            "scripts/make_shards.py FOLDER shards/labelled --val-ratio 0.2"
        )


def better(recipe: Recipe) -> str:
    """Say what would be better with more images, time, or a GPU."""
    plan, size = recipe.plan, recipe.size
    parts = ["more images" if recipe.limit == "epochs" else "more hours"]
    above = next((other for other in plan.sizes if other.parameters > size.parameters), size)
    if plan.images.num_images < above.min_images:
        parts.append(f"{above.min_images:,} images or more, for {above.name}")
    if plan.machine.device == "cpu":
        parts.append("a GPU: ViT-S and larger, images of 224 pixels")
    return "; ".join(dict.fromkeys(parts))


def then(labels: Labelled | None) -> str:
    """Return the command that follows on the run: what its encoder is worth."""
    if labels is None or labels.train is None or labels.val is None:
        return ""
    keys = {"data.train": labels.train, "data.val": labels.val}
    shown = {
        key: spec if isinstance(spec, str) else f"[{','.join(spec)}]" for key, spec in keys.items()
    }
    words = [shlex.quote(f"{key}={spec}") for key, spec in shown.items()]
    return f"python finetune/probe.py encoder.init={RUN} {' '.join(words)}"


def labels_line(labels: Labelled) -> str:
    """Say what was seen of the labels."""
    sizes = f"{labels.smallest:,} to {count(labels.largest, 'image')} each"
    number = labels.num_train + labels.num_val
    return f"{count(number, 'labelled image')} of {count(labels.num_classes, 'class')}, {sizes}"


def how_to_continue(images: Images) -> Iterator[str]:
    """Yield the command for a recipe that continues from released weights, of colour images."""
    if images.channels == 3:
        weights = "--init vit_small_patch14_dinov2.lvd142m"
        yield f"python scripts/recommend.py {shlex.quote(images.spec)} {weights}"


def instead(images: Images) -> str:
    """Say when to take released weights."""
    if images.channels != 3:
        return (
            "released weights are of colour photographs; for these images pretraining of your own "
            "is the way"
        )
    if images.num_images < FEW:
        return (
            f"with fewer than {FEW:,} images take released weights first, and continue from them "
            "if your images are unlike photographs"
        )
    return "for everyday photographs released weights are better than any run of hours"


def licences() -> str:
    """Return where released weights are, and their licences."""
    return _LICENCES


def watch() -> list[str]:
    """Say what to look at while the run goes on."""
    return [
        "the loss falls, and accuracy_mask rises above accuracy_neighbour (metrics.jsonl)",
        "val/loss, with data.val_shards: where it rises, more steps only learn by heart "
        "(arXiv:2206.04664)",
    ]


def run_command(path: str, machine: Machine) -> str:
    """Return the command that follows."""
    launcher = "accelerate launch -q" if machine.num_gpus > 1 else "python"
    return f"{launcher} pretrain/run.py {shlex.quote(path)}"


def gib(number: int) -> str:
    """Write bytes in GiB."""
    return f"{number / 2**30:.1f} GiB"


def duration(seconds: float) -> str:
    """Write a time in minutes or hours."""
    if seconds < 100 * 60:
        return count(float(f"{seconds / 60:.2g}"), "minute")
    return count(float(f"{seconds / 3600:.2g}"), "hour")
