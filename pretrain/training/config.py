"""The configuration of a training run: `run.*` and `optim.*`."""

import math
from dataclasses import dataclass
from typing import Protocol

from data.config import ImageConfig
from data.settings import UserError, require, setting
from pretrain.machine.launcher import PRECISIONS

_PARALLEL = ("ddp", "fsdp")
_RESUME = ("auto", "must", "never")
RECOMPUTATIONS = ("none", "selective", "full")
_ALGORITHMS = ("adamw", "sgd")
EPOCHS = 100  # MAE's and timm's shortest usual runs; the paper's 10,000 steps on CIFAR are as many
WARMUP_RATIO = 0.05  # the paper's, of fine-tuning


@dataclass(frozen=True)
class RunConfig:
    """Where a run lives, how often it speaks and saves, and on what it runs."""

    dir: str = setting("runs/pretrain", "folder of the run", changes_result=False, is_path=True)
    seed: int = setting(0, "seed of the weights, the order, the crops and the corruption")
    resume: str = setting(
        "auto",
        "auto (continue if there is a checkpoint), must (or fail), never (fail if there is one)",
        changes_result=False,
    )
    minutes: float | None = setting(
        None,
        "wall time of the run, from which optim.steps follows before it begins",
        instead_of="optim.steps",
    )
    checkpoint_every: int = setting(
        1000, "steps between checkpoints; 0: only by minutes and at the end", changes_result=False
    )
    checkpoint_minutes: float = setting(
        30.0, "minutes between checkpoints; 0: only by steps", changes_result=False
    )
    keep_checkpoints: int = setting(2, "newest checkpoints to keep; 0: all", changes_result=False)
    log_every: int = setting(50, "steps between records in metrics.jsonl", changes_result=False)
    trackers: tuple[str, ...] = setting(
        (),
        "whom to tell the same records, such as [tensorboard, wandb]; those that accelerate knows",
        changes_result=False,
    )
    eval_every: int = setting(
        1000, "steps between validations; 0: only at the end", changes_result=False
    )
    deterministic: bool = setting(False, "deterministic GPU kernels, for bit-exact resume; slower")
    micro_batch_size: int = setting(
        0,
        "images a forward pass on each process; 0: its share of the batch, or what of it fits",
        changes_result=False,
    )
    parallel: str = setting(
        "ddp",
        "ddp (each process holds the model) or fsdp (each holds a piece of it, for large models)",
        changes_result=False,
    )
    compile: bool = setting(False, "compile the model with torch.compile: slow to start, then fast")
    cuda_graphs: bool = setting(
        False,
        "record the compiled step once and replay it, so that launches cost nothing; one GPU",
        changes_result=False,
    )
    grad_checkpointing: str = setting(
        "none",
        "what is computed again in backward: none, selective (all but products), full (blocks)",
        changes_result=False,
    )
    max_bad_steps: int = setting(
        10,
        "stop after so many steps in a row whose loss is not finite; each is skipped; 0: never",
        changes_result=False,
    )
    requeue_status: int = setting(
        75,
        "exit status after SIGTERM, SIGUSR1 or SIGHUP, when a checkpoint was committed",
        changes_result=False,
    )
    precision: str = setting("fp32", "fp32, bf16, or fp16 (GPUs only)")
    bf16_residual: bool = setting(
        False, "keep tokens between blocks in bf16 too: half their memory traffic; not in fp32"
    )
    threads: int = setting(
        0,
        "CPU threads a process when it trains on the CPU; 0: OMP_NUM_THREADS, else all, shared",
        changes_result=False,
    )

    def __post_init__(self) -> None:
        for key in (
            "checkpoint_every",
            "checkpoint_minutes",
            "keep_checkpoints",
            "eval_every",
            "max_bad_steps",
        ):
            value = getattr(self, key)
            require(value >= 0, f"run.{key}={value} is below 0; 0 turns it off")
        for key in ("micro_batch_size", "threads"):
            value = getattr(self, key)
            require(value >= 0, f"run.{key}={value} is below 0; 0 chooses for you")
        require(
            self.minutes is None or 0 < self.minutes < math.inf,
            f"run.minutes={self.minutes} is not a number above 0",
        )
        require(self.log_every > 0, f"run.log_every={self.log_every} must be above 0")
        require(self.dir != "", "run.dir is empty; name a folder, such as runs/mine")
        require(
            0 <= self.seed < 1 << 63,
            f"run.seed={self.seed} is not in 0..2^63-1, what torch takes; try 0",
        )
        if self.precision not in PRECISIONS:
            raise UserError(f"run.precision={self.precision} is not one of fp32, bf16, fp16")
        require(
            self.precision == "bf16" or not self.bf16_residual,
            f"run.bf16_residual=true goes with run.precision=bf16, and it is {self.precision}; "
            "leave one of them out",
        )
        self._check_recomputation()
        self._check_graphs()
        if self.parallel not in _PARALLEL:
            raise UserError(f"run.parallel={self.parallel} is not one of {', '.join(_PARALLEL)}")
        require(
            self.requeue_status in range(3, 126),
            f"run.requeue_status={self.requeue_status} is not in 3..125, the statuses that nothing "
            "else uses; try 75",
        )
        if self.trackers:
            from pretrain.records.trackers import check_names  # accelerate's names; takes seconds

            check_names(self.trackers)
        if self.resume not in _RESUME:
            raise UserError(f"run.resume={self.resume} is not one of {', '.join(_RESUME)}")

    def _check_recomputation(self) -> None:
        kind = self.grad_checkpointing
        was = {"true": "; true is now full", "false": "; false is now none"}.get(kind.lower(), "")
        require(
            kind in RECOMPUTATIONS,
            f"run.grad_checkpointing={kind} is not one of {', '.join(RECOMPUTATIONS)}{was}",
        )

    def _check_graphs(self) -> None:
        if not self.cuda_graphs:
            return
        require(
            self.compile,
            "run.cuda_graphs=true records what is compiled; set run.compile=true, or leave it out",
        )
        require(
            self.grad_checkpointing == "none",
            "run.cuda_graphs=true cannot be had with "
            f"run.grad_checkpointing={self.grad_checkpointing}; set one of them to its default",
        )


@dataclass(frozen=True)
class OptimConfig:
    """How long, how fast and by which rule the weights move.

    The defaults are the paper's for pretraining, but for the length, the warm-up and the batch,
    which follow from the number of images (`pretrain.training.length.settle`).
    Source: Dosovitskiy et al. 2021, sections 4.1 and B.1.2.
    """

    steps: int | None = setting(
        None, "optimizer steps of the run; or give optim.epochs or run.minutes in their place"
    )
    epochs: float | None = setting(
        None,
        f"passes over the images; default, where no length is given: {EPOCHS}",
        instead_of="optim.steps",
    )
    batch_size: int | None = setting(
        None,
        "images a step, over all processes and accumulation; default: by their number",
    )
    algorithm: str = setting("adamw", "adamw (weight decay decoupled) or sgd (Nesterov off)")
    lr: float = setting(2e-4, "peak learning rate")
    weight_decay: float = setting(0.1, "not applied to biases, norms, positions and tokens")
    betas: tuple[float, float] = setting((0.9, 0.999), "adamw's decay rates")
    momentum: float = setting(0.9, "sgd's momentum")
    warmup_ratio: float | None = setting(
        None, f"part of the steps that warms up; then a cosine down to 0; default: {WARMUP_RATIO}"
    )
    warmup_steps: int | None = setting(
        None, "steps of linear warm-up", instead_of="optim.warmup_ratio"
    )
    layer_decay: float = setting(1.0, "factor on the learning rate for each block further down")
    grad_clip: float = setting(1.0, "largest norm of the gradient; 0 does not clip")
    ema: float = setting(0.0, "decay of the averaged weights that encoder/ then holds; 0 is off")

    def __post_init__(self) -> None:
        for key in ("steps", "epochs", "batch_size"):
            value = getattr(self, key)
            require(value is None or 0 < value < math.inf, f"optim.{key}={value} must be above 0")
        for key in ("lr", "weight_decay", "warmup_steps", "grad_clip"):
            value = getattr(self, key)
            require(
                value is None or 0 <= value < math.inf,
                f"optim.{key}={value} is not a number from 0",
            )
        for key in ("ema", "momentum"):
            value = getattr(self, key)
            require(0 <= value < 1, f"optim.{key}={value} is not in [0, 1)")
        require(
            all(0 <= beta < 1 for beta in self.betas),
            f"optim.betas={list(self.betas)} are not in [0, 1); the paper has [0.9, 0.999]",
        )
        require(
            0 < self.layer_decay <= 1,
            f"optim.layer_decay={self.layer_decay} is not in (0, 1]; 1 is off",
        )
        require(
            self.warmup_ratio is None or 0 <= self.warmup_ratio <= 1,
            f"optim.warmup_ratio={self.warmup_ratio} is not in [0, 1]; 0 has no warm-up",
        )
        require(
            None in (self.steps, self.warmup_steps) or self.num_warmup_steps <= self.num_steps,
            f"optim.warmup_steps={self.warmup_steps} is over optim.steps={self.steps}; "
            f"give optim.warmup_ratio={WARMUP_RATIO} in its place",
        )
        if self.algorithm not in _ALGORITHMS:
            raise UserError(
                f"optim.algorithm={self.algorithm} is not one of {', '.join(_ALGORITHMS)}"
            )

    @property
    def num_steps(self) -> int:
        """Steps of the run, once they are known."""
        assert self.steps is not None
        return self.steps

    @property
    def num_images(self) -> int:
        """Images a step, once they are known."""
        assert self.batch_size is not None
        return self.batch_size

    @property
    def num_warmup_steps(self) -> int:
        """Steps of linear warm-up, once the run's are known."""
        if self.warmup_steps is not None:
            return self.warmup_steps
        ratio = WARMUP_RATIO if self.warmup_ratio is None else self.warmup_ratio
        return round(ratio * self.num_steps)

    def lr_at(self, step: int) -> float:
        """Return the learning rate of step 0 <= `step` < `num_steps`.

        Linear from lr / num_warmup_steps to lr, then a cosine that would reach 0 at the end.
        """
        warmup = self.num_warmup_steps
        if step < warmup:
            return self.lr * (step + 1) / warmup
        progress = (step - warmup) / max(1, self.num_steps - warmup)
        return self.lr * 0.5 * (1 + math.cos(math.pi * progress))


class Configured(Protocol):
    """What every training run's configuration has."""

    @property
    def run(self) -> RunConfig:
        """Where, how long between saves, on what."""
        ...

    @property
    def data(self) -> ImageConfig:
        """The images."""
        ...

    @property
    def optim(self) -> OptimConfig:
        """The steps."""
        ...
