"""What is said on the terminal and in a recipe's head, in words that a newcomer knows."""

from collections.abc import Iterator, Mapping, Sequence
from shlex import quote

from data.commands import file_from_here, how_to_type
from data.text import count, duration, percent
from scripts._recommend.choosing import MOST_PASSES, Recipe
from scripts._recommend.facts import Images, Labelled, Machine, Timing
from scripts._recommend.plan import Plan
from scripts._recommend.sizes import SIZES, Size
from scripts._recommend.values import RUN

_Value = str | list[str] | float | None

FEW = 5_000  # images below which released weights come first
LICENCES = (
    "DINOv2 (timm: vit_small_patch14_dinov2.lvd142m) and CAPI: Apache-2.0; DINOv3: its own "
    "licence, with conditions; MAE (timm: vit_base_patch16_224.mae): CC-BY-NC 4.0, not for "
    "commercial use"
)
_HARDLY_ANY = 100  # images
_DARK = 64  # of 255: no value of the sample is brighter
_MANY_NEAR, _MANY_BAD = 0.2, 0.05
_UNEVEN = 10  # times as many labelled images of one class as of another
_WAITS = 0.2  # of the time, from which the loader is what is slow
_GPU_PIXELS, _GPU_IMAGES = 224, SIZES[3].min_images  # from which a GPU gives more of each


# ---------------------------------------------------------------- what was seen


def images_line(images: Images) -> str:
    """Say what was seen of the images."""
    kind = "grey" if images.is_grey else {3: "colour"}.get(images.channels)
    kind = kind or f"{count(images.channels, 'channel')}"
    sizes = f"{images.width} x {images.height} pixels (median)"
    looked = "all" if images.num_looked == images.num_images else f"{images.num_looked:,}"
    bad = "all readable"
    if images.num_bad:
        bad = f"{images.num_bad} of them cannot be read ({percent(images.bad_ratio)}), such as "
        bad += images.first_bad
    seen = f"{looked} looked at, {bad}; {_duplicates(images)}"
    return f"{count(images.num_images, 'image')}, {sizes}, {kind}; {seen}"


def _duplicates(images: Images) -> str:
    near = f"{percent(images.near_ratio)} of these nearly equal another"
    near = near if images.num_near else "none of these nearly equals another"
    if images.num_equal is None:
        return near
    equal = count(images.num_equal, "file") if images.num_equal else "no file"
    return f"{near}, {equal} equal{'' if images.num_equal > 1 else 's'} another to the byte"


def labels_line(labels: Labelled) -> str:
    """Say what was seen of the labels."""
    sizes = f"{labels.smallest:,} to {count(labels.largest, 'image')} each"
    number = labels.num_train + labels.num_val
    return f"{count(number, 'labelled image')} of {count(labels.num_classes, 'class')}, {sizes}"


def machine_line(machine: Machine) -> str:
    """Say what there is to compute on."""
    memory = "" if machine.memory is None else f", {_gib(machine.memory)} of memory free"
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
        memory = f", {_gib(timing.peak_bytes)} of memory" if timing.peak_bytes else ""
        yield f"{size.told}: {batch / timing.step_seconds:,.0f} images/s{memory}"


# ---------------------------------------------------------------- what was chosen


def chosen_line(recipe: Recipe) -> str:
    """Say which encoder is trained, and on what."""
    grid = recipe.plan.grid
    height, width = grid.size
    return (
        f"{recipe.size.told}; images of {width} x {height} pixels in {grid.num_patches} patches; "
        "three quarters are hidden, and the encoder learns to say what was there"
    )


def length_line(recipe: Recipe) -> str:
    """Say how long it will take, and what decided that."""
    length, peak = recipe.length, recipe.timing.peak_bytes
    steps = f"{count(length.steps, 'step')} of {count(recipe.plan.batch, 'image')}"
    passes = f"{count(float(length.passes), 'pass')} over the images"
    memory = f"; about {_gib(peak)} of memory" if peak else ""
    why = "the hours decided; a longer run learns more"
    if not length.is_by_hours:
        why = f"beyond {MOST_PASSES:,} passes nothing is reported to gain (MAE), so the hours are "
        why += "not used up"
    return f"{steps} = {passes}, about {duration(length.seconds)}{memory}; {why}"


def warnings(recipe: Recipe, labels: Labelled | None) -> Iterator[str]:
    """Yield what is doubtful."""
    images, wait = recipe.plan.images, recipe.timing.wait_ratio
    if images.num_images < _HARDLY_ANY:
        yield f"{count(images.num_images, 'image')}: an encoder hardly learns from so few"
    if images.bad_ratio > _MANY_BAD:
        yield (
            f"{percent(images.bad_ratio)} cannot be read, and a run stops above "
            f"{percent(_MANY_BAD)} (data.max_bad_ratio): mend or remove them first"
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
            f"a class has {count(labels.smallest, 'labelled image')} and another "
            f"{labels.largest:,}: read the figures of each class, not the accuracy alone"
        )
    if wait > _WAITS:
        yield (
            f"training waits for images in {wait:.0%} of the time: smaller files (such as 512 "
            "pixels a side) would be faster"
        )
    if labels is not None and labels.train is None:
        yield f"{labels.spec} has no validation images of its own, so the run is not probed"


def better(recipe: Recipe) -> str:
    """Say what would be better with more images, time, or a GPU."""
    plan, images = recipe.plan, recipe.plan.images
    parts = ["more hours" if recipe.length.is_by_hours else "more images"]
    larger = (size for size in plan.sizes if size.parameters > recipe.size.parameters)
    above = next(larger, recipe.size)
    if images.num_images < above.min_images:
        parts.append(f"{above.min_images:,} images or more, for {above.name}")
    if plan.machine.device == "cpu":
        gains = ["more steps in the time"] if recipe.length.is_by_hours else []
        gains += ["larger encoders"] if images.num_images >= _GPU_IMAGES else []
        is_large = min(images.height, images.width) >= _GPU_PIXELS
        gains += [f"images of {_GPU_PIXELS} pixels"] if is_large else []
        parts += [f"a GPU: {', '.join(gains)}"] if gains else []
    return "; ".join(parts)


def instead(images: Images) -> str:
    """Say when to take released weights."""
    if not images.is_colour:
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


def watch(plan: Plan) -> Iterator[str]:
    """Say what to look at while the run goes on."""
    yield "the loss should fall below the baseline that stands beside it"
    if plan.num_val:
        yield "where val/loss rises, more steps only learn by heart (arXiv:2206.04664)"


# ---------------------------------------------------------------- what to type


def run_command(path: str, machine: Machine) -> str:
    """Return the command that follows."""
    command = f"{how_to_type('pretrain')} {quote(path)}"
    is_plain = machine.num_gpus > 1 and command.startswith("python ")
    return command.replace("python", "accelerate launch -q", 1) if is_plain else command


def then(labels: Labelled | None) -> str:
    """Return the command that follows on the run: a classifier from its encoder."""
    if labels is None:
        return ""
    keys: dict[str, _Value] = {"data.train": labels.train, "data.val": labels.val}
    if labels.train is None:
        keys = {"data.train": labels.spec, "data.val_ratio": 0.2}
    words = [f"{key}={_typed(value)}" for key, value in keys.items()]
    config = file_from_here("configs/finetune/small.yaml")
    words = [config, f"encoder.init={RUN}", *words]
    return f"{how_to_type('finetune')} {' '.join(map(quote, words))}"


def _typed(value: _Value) -> str:
    return f"[{','.join(value)}]" if isinstance(value, list) else str(value)


def recommend_command(spec: str, **options: object) -> str:
    """Return the command that makes a recipe, with those options that are given."""
    words = [quote(spec)]
    words += [f"--{name} {quote(str(value))}" for name, value in options.items() if value]
    return f"{how_to_type('recommend')} {' '.join(words)}"


def _gib(number: int) -> str:
    return f"{number / 2**30:.1f} GiB"
