"""What a recipe is chosen from: facts of images, labels and machine, and timed steps."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Images:
    """What is known of the images; most of it from a sample.

    Attributes:
        spec: As a configuration names them.
        num_images: In all.
        num_looked: Images of the sample.
        num_bad: Of those, what cannot be used.
        first_bad: The first of them, with the reason; empty where all are good.
        height: The median, in pixels.
        width: The median.
        widths_apart: The widest tenth over the narrowest tenth, by width / height.
        channels: C that a run should read.
        is_grey: Grey, though some may be stored as colour.
        mean: Of pixels in 0..1, one a channel.
        std: Likewise.
        white: The brightest value of 0..255 in the sample.
        num_near: Images of the sample that nearly equal another one of it.
        num_equal: Images whose bytes another image has, too; None: not counted.
        decode_seconds: Reading and cropping one image, on one core.
        num_val: Validation images that the same name holds; 0: none.
    """

    spec: str
    num_images: int
    num_looked: int
    num_bad: int
    first_bad: str
    height: int
    width: int
    widths_apart: float
    channels: int
    is_grey: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    white: int
    num_near: int
    num_equal: int | None
    decode_seconds: float
    num_val: int

    @property
    def is_colour(self) -> bool:
        """Whether they have the channels of a photograph, as released weights want them."""
        return self.channels == 3

    @property
    def bad_ratio(self) -> float:
        """The share of the sample that cannot be used."""
        return self.num_bad / self.num_looked

    @property
    def near_ratio(self) -> float:
        """The share of the good images of the sample that nearly equal another."""
        return self.num_near / max(1, self.num_looked - self.num_bad)


@dataclass(frozen=True)
class Labelled:
    """What is known of labelled images.

    Attributes:
        spec: As it was named.
        train: What `probe.train` should name; None: they cannot be split.
        val: What `probe.val` should name.
        num_train: Images to learn from.
        num_val: Images to be judged on.
        num_classes: K.
        smallest: Images of the rarest class to learn from.
        largest: Of the most frequent one.
    """

    spec: str
    train: str | list[str] | None
    val: str | list[str] | None
    num_train: int
    num_val: int
    num_classes: int
    smallest: int
    largest: int


@dataclass(frozen=True)
class Machine:
    """What there is to compute on.

    Attributes:
        device: cpu, cuda or mps.
        name: Of the processor.
        num_gpus: 0 on a CPU.
        cores: That this process may use.
        threads: That torch computes with on the CPU.
        memory: Bytes free, of the GPU where there is one, of each; None: nobody can tell.
        has_bf16: Whether it computes in bf16 faster than in fp32.
    """

    device: str
    name: str
    num_gpus: int
    cores: int
    threads: int
    memory: int | None
    has_bf16: bool

    @property
    def num_ranks(self) -> int:
        """Processes of a run."""
        return max(1, self.num_gpus)


@dataclass(frozen=True)
class Timing:
    """A few seconds of training, as a run would go.

    Attributes:
        step_seconds: From one step to the next, its images' loading included.
        wait_ratio: The share of it that training waited for images.
        start_seconds: Until the first step, with the visual words that are learnt; and of the end.
        peak_bytes: The most memory that the process held, or of the GPU.
        micro_batch: Images of a forward pass.
    """

    step_seconds: float
    wait_ratio: float
    start_seconds: float
    peak_bytes: int
    micro_batch: int
