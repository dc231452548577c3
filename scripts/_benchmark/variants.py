"""Speed of a training step as a configuration has it, against the same with other keys."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import torch

from pretrain.config import PretrainConfig
from pretrain.configuration.load import load
from pretrain.encoder import make_encoder
from pretrain.encoder.facts import image_size
from pretrain.encoder.tokens import choose_attention
from pretrain.objective.model import MaskedPatchModel
from pretrain.training.launch import start
from pretrain.training.optim import make_optimizer
from scripts._benchmark.apart import Apart
from scripts._benchmark.rounds import Speeds, take_turn, warm_up

BASELINE = "as configured"


@dataclass(frozen=True)
class VariantOptions:
    """What is measured, and for how long.

    Attributes:
        config: A pretraining configuration.
        variant: Keys over it, apart by spaces; one text a variant.
        batch_size: Images a step.
        threads: CPU threads; 0: all.
        rounds: Turns of each variant.
        seconds: Of each turn.
    """

    config: str
    variant: list[str]
    batch_size: int
    threads: int
    rounds: int
    seconds: float


def measure_variants(options: VariantOptions) -> Speeds:
    """Measure forward, backward and the optimizer's step on a batch that is ready, in turns.

    Raises:
        UserError: A configuration is not right.
    """
    variants = {BASELINE: ""} | {text: text for text in options.variant}
    speeds = Speeds()
    with ExitStack() as running:
        steps = {
            name: running.enter_context(Apart(name, _make_step, options, text.split()))
            for name, text in variants.items()
        }
        for step in steps.values():
            step.call(warm_up)
        for _ in range(options.rounds):
            for name, step in steps.items():
                speeds.add(name, step.call(take_turn, options.batch_size, options.seconds))
    return speeds


def _make_step(options: VariantOptions, keys: list[str]) -> Callable[[], None]:
    config = load(PretrainConfig, [options.config, *keys, f"run.threads={options.threads}"])
    accelerator = start(config.run)
    data, device = config.data, accelerator.device
    encoder = make_encoder(config.encoder, data.size, data.mean, data.std, data.channels)
    model = MaskedPatchModel(encoder, config.corruption, config.target, config.light_decoder)
    choose_attention(model, device, accelerator.mixed_precision)
    model.to(device)
    if config.run.compile:
        model.compile()
    optimizer = make_optimizer(model, encoder, config.optim)
    shape = (options.batch_size, encoder.in_chans, *image_size(encoder))
    batch = {
        "image": torch.randint(0, 256, shape, dtype=torch.uint8, device=device),
        "weight": torch.ones(options.batch_size, device=device),
        "random_key": torch.arange(options.batch_size, device=device),
    }

    def step() -> None:
        with accelerator.autocast():
            loss = model(batch).loss
        (loss / options.batch_size).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step
