"""The settings of a training: types, ranges, defaults and help texts. config.json records them.

`vaekit train` makes its options from these fields. This module imports neither PyTorch nor NumPy, so that the command
line starts fast.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from vaekit.errors import RunError
from vaekit.system.files import write_text

CONFIG = "config.json"
FORMAT_VERSION = 2

IWAE_SAMPLES = 8
"""The default of ``iwae_samples`` for the objective ``iwae``."""
HOLDOUT_IMAGES = 1000
"""The largest number of held-out images that are measured."""

PresetName = Literal["tiny", "small", "base"]
PosteriorKind = Literal["diagonal", "isotropic"]
PixelLikelihood = Literal["gaussian", "laplace", "bernoulli"]
ObjectiveName = Literal["elbo", "iwae", "autoencoder", "prior-only"]
Binarize = Literal["none", "fixed", "dynamic"]
Augment = Literal["none", "flip"]
PriorKind = Literal["mixture", "flow", "none"]
Device = Literal["cpu", "cuda", "mps"]
DeviceChoice = Literal["auto", Device]
TrainingPrecision = Literal["fp32", "bf16", "fp16"]
Knot = tuple[int, float]
"""A step, and the share of the training done before it."""
Tracker = Literal["tensorboard", "wandb", "mlflow"]


@dataclass(frozen=True)
class Setting:
    """The allowed values of a Config field, and its option's help texts."""

    help: str = ""
    """The option's help text. Without one, this field makes no option."""
    metavar: str | None = None
    shown: str = ""
    """The default in the help, where ``{}`` stands for the field's default. With this text, an option that is not given
    has no value."""
    objectives: tuple[ObjectiveName, ...] = ()
    """The objectives that allow the option; empty for all. With a list, an option that is not given has no value."""
    least: float | None = None
    most: int | None = None
    above_zero: bool = False
    share: bool = False
    """Whether the option is a share above 0 and up to 1. In the field, 0 means that the option is off."""

    @property
    def empty(self) -> bool:
        """Return whether the option has no value unless it is given."""
        return bool(self.shown or self.objectives)


def _setting(help: str = "", **details: Any) -> dict[str, Setting]:  # noqa: A002 — typer's name
    return {"setting": Setting(help, **details)}


@dataclass(frozen=True)
class Config:
    """The settings that reproduce a run."""

    source: str
    """The name of the images' source."""
    channels: int = field(metadata=_setting(least=1))
    """1 or 3."""
    height: int = field(metadata=_setting(least=8))
    """In pixels, after resizing."""
    width: int = field(metadata=_setting(least=8))
    """In pixels, after resizing."""
    latent: int = field(
        default=16, metadata=_setting("Dimensions of the latent; with --downscale, channels of its map.", least=1)
    )
    """d, or the channels of a map."""
    downscale: int | None = field(
        default=None,
        metadata=_setting(
            "Latents are maps, this many times smaller than the image: 2, 4, 8, 16 or 32.",
            shown="latents are vectors",
            least=2,
            most=32,
        ),
    )
    """How many times smaller than the image's sides those of the latent are, a power of two; None for vectors."""
    preset: PresetName = field(default="small", metadata=_setting("How large the network is."))
    """A key of ``vaekit.training.networks.PRESETS``."""
    posterior: PosteriorKind = field(
        default="diagonal", metadata=_setting("q(z|x): a variance for each dimension, or one for all.")
    )
    """q(z|x)."""
    init: str | None = field(
        default=None, metadata=_setting("Begin from the weights of this run, and with its network.", metavar="RUN")
    )
    """The run whose weights the network begins with; None for random weights."""
    likelihood: PixelLikelihood = field(default="gaussian", metadata=_setting("p(x|z)."))
    """p(x|z)."""
    prior: PriorKind = field(
        default="mixture",
        metadata=_setting(
            "What samples are drawn from: a mixture fitted to the codes, a flow learned from them, or N(0, I) alone."
        ),
    )
    """The prior that is fitted at the end; a flow is learned after the mixture."""
    sigma: float | None = field(default=None, metadata=_setting(above_zero=True))
    """Standard deviation of the Gaussian or Laplace likelihood; None if it is fitted (``--sigma optimal``)."""
    objective: ObjectiveName = field(
        default="elbo",
        metadata=_setting("elbo; iwae, its importance-weighted kin; the reconstruction alone; or the KL alone."),
    )
    """The objective that training maximises."""
    beta: float = field(
        default=1.0, metadata=_setting("Weight of the ELBO's KL.", shown="{:g}", objectives=("elbo",), least=0.0)
    )
    """Weight of the KL; 0 for the objective ``autoencoder``."""
    beta_warmup: float = field(
        default=0.0,
        metadata=_setting(
            "Share of the steps, to 1, over which the KL's weight rises from 0.",
            metavar="SHARE",
            objectives=("elbo",),
            least=0.0,
            share=True,
        ),
    )
    """Share of the steps over which the KL's weight rises from 0 to beta."""
    free_bits: float = field(
        default=0.0,
        metadata=_setting("A floor on each dimension's KL.", metavar="NATS", objectives=("elbo",), least=0.0),
    )
    """A floor in nats on each dimension's KL, averaged over a batch."""
    mc_samples: int = field(
        default=1,
        metadata=_setting(
            "Draws of z per image and step.", metavar="L", shown="{}", objectives=("elbo", "autoencoder"), least=1
        ),
    )
    """Draws of z per image, over which the reconstruction is averaged."""
    iwae_samples: int | None = field(
        default=None,
        metadata=_setting(
            "Draws of z in the IWAE bound.", metavar="K", shown=f"{IWAE_SAMPLES}", objectives=("iwae",), least=1
        ),
    )
    """Draws of z per image in the IWAE bound; None for the other objectives."""
    binarize: Binarize = field(
        default="none",
        metadata=_setting("Draw pixels 0 or 1 with their grey as probability: once, or each time seen."),
    )
    """Whether pixels are drawn as 0 or 1 with their grey values as probabilities.

    They are drawn once (``fixed``), or each time an image is seen (``dynamic``).
    """
    augment: Augment = field(default="none", metadata=_setting("flip: swap left and right in half of the images."))
    """With ``flip``, a random half of the images is mirrored, chosen anew each time they are seen."""
    crop: bool = field(
        default=False,
        metadata=_setting("Train on random crops of --size, at the images' own resolution, instead of resizing them."),
    )
    """Whether images are random crops, new ones each time, instead of whole images that are resized."""
    val: str | None = field(
        default=None,
        metadata=_setting("Images to measure.", metavar="SHARE|SOURCE", shown=f"a tenth, at most {HOLDOUT_IMAGES}"),
    )
    """The share of the source that is held out, or another source to measure; None for the default share."""
    steps: int = field(default=2400, metadata=_setting("Length in batches.", shown="{}", least=1))
    """Length in batches. Under a time limit it is only valid when the training has ended."""
    max_minutes: float | None = field(default=None, metadata=_setting("Length of the whole command.", above_zero=True))
    """The time limit. When the training has ended, it is None, and ``steps`` and ``schedule`` record the result."""
    schedule: tuple[Knot, ...] | None = None
    """The share of the time that a training with a time limit had used at each step, as knots of a piecewise linear
    function. It replaces the share of the steps in the learning rate and in ``beta_warmup``, and ends at ``steps``."""
    batch_size: int = field(
        default=128, metadata=_setting("Images a step.", shown="{}, or all if fewer; maps: 32", least=2)
    )
    """Images a step, over all processes together."""
    accumulate: int = field(
        default=1,
        metadata=_setting(
            "Split each batch into this many parts, for batches that do not fit in memory.", metavar="N", least=1
        ),
    )
    """Parts in which a step computes its batch; batch normalisation sees each part alone."""
    lr: float = field(
        default=1e-2,
        metadata=_setting("Learning rate at its peak.", shown="{:g}; maps: 0.002", above_zero=True),
    )
    """Learning rate at its peak (``vaekit.training.schedule.learning_rate``)."""
    seed: int = field(default=0, metadata=_setting("The same seed gives the same model.", least=0, most=2**64 - 1))
    """Seed of all random numbers: initial weights, batches, noise and the held-out split."""
    device: Device = "cpu"
    """The device that PyTorch computed on."""
    precision: TrainingPrecision = field(
        default="fp32", metadata=_setting("What the networks compute in while training; figures are float32's.")
    )
    """The floating-point format of the networks' computations in training. The weights are float32."""
    track: Tracker | None = field(default=None, metadata=_setting("Also send the figures to an experiment tracker."))
    """The experiment tracker, if any."""
    checkpoint_every: int = field(
        default=200,
        metadata=_setting("Steps between two checkpoints, which --resume continues from.", metavar="STEPS", least=1),
    )
    """Steps between two checkpoints; results do not depend on it."""
    format_version: int = FORMAT_VERSION
    """The format version of config.json and the run."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Return (C, H, W)."""
        return self.channels, self.height, self.width

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Return (d,), or (c, h, w) for maps."""
        if self.downscale is None:
            return (self.latent,)
        return self.latent, self.height // self.downscale, self.width // self.downscale

    @property
    def latent_numbers(self) -> int:
        """Return the count of numbers in a latent."""
        return math.prod(self.latent_shape)

    @property
    def pixels(self) -> int:
        """Return D = C·H·W, the count of numbers in an image."""
        return math.prod(self.image_shape)


_LARGEST = 3e38  # about the largest float32

NETWORK_SETTINGS = ("latent", "downscale", "preset", "posterior")
"""The settings that, with the images' shape, determine the network."""
# Of config.json, if they are off: earlier versions do not know them.
_LEFT_OUT = frozenset(("crop", "downscale", "init", "schedule"))
_ALWAYS_WRITTEN = (
    *("source", "channels", "height", "width", "latent", "likelihood", "sigma", "beta", "steps", "batch_size"),
    *("lr", "seed"),
)
"""The settings that every config.json of format 2 has. Others were added later and may be missing from old files."""


def setting_of(name: str) -> Setting:
    """Return the ``Setting`` of a field of Config."""
    (metadata,) = (known.metadata for known in dataclasses.fields(Config) if known.name == name)
    setting: Setting = metadata.get("setting", Setting())
    return setting


@functools.cache
def types_of_settings() -> Mapping[str, Any]:
    """Return the type of each field by name."""
    return get_type_hints(Config)


def objective_defaults(objective: ObjectiveName) -> dict[str, Any]:
    """Return the defaults that differ from the fields' own under an objective."""
    if objective == "iwae":
        return {"iwae_samples": IWAE_SAMPLES}
    return {"beta": 0.0} if objective == "autoencoder" else {}


def map_defaults(downscale: int | None) -> dict[str, Any]:
    """Return the defaults that differ from the fields' own for latents that are maps.

    Their networks take many times longer for an image, so batches are smaller (see benchmarks/photographs.py).
    """
    return {} if downscale is None else {"batch_size": 32, "lr": 2e-3}


def requirement(name: str, value: object) -> str | None:
    """Return the requirement, such as ``positive``, that a setting's value violates.

    Returns None for a valid value.
    """
    if name == "schedule":
        return _schedule_requirement(value)
    kind, setting = types_of_settings()[name], setting_of(name)
    if type(None) in get_args(kind):
        if value is None:
            return None
        kind = get_args(kind)[0]
    if get_origin(kind) is Literal:
        choices = get_args(kind)
        return None if value in choices else f"one of {', '.join(choices)}"
    if kind is int:
        return _whole_number_requirement(setting, value)
    if kind is float:
        return _number_requirement(setting, value)
    return None if isinstance(value, kind) else {str: "text", bool: "true or false"}[kind]


def _schedule_requirement(value: object) -> str | None:
    if value is None:
        return None
    if isinstance(value, list | tuple) and value and all(_is_knot(knot) for knot in value):
        steps = [knot[0] for knot in value]
        if all(before < after for before, after in itertools.pairwise(steps)):
            return None
    return "a list of pairs, a rising step and a share from 0 to 1"


def _is_knot(knot: object) -> bool:
    if not isinstance(knot, list | tuple) or len(knot) != 2:
        return False
    step, share = knot
    is_number = isinstance(share, int | float) and not isinstance(share, bool)
    return type(step) is int and step >= 0 and is_number and 0 <= share <= 1


def _whole_number_requirement(setting: Setting, value: object) -> str | None:
    least, most = setting.least or 0, setting.most or math.inf
    if type(value) is int and least <= value <= most:
        return None
    return f"a whole number from {least}" + ("" if setting.most is None else f" to {most}")


def _number_requirement(setting: Setting, value: object) -> str | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf
    if is_number and (value or not setting.above_zero):
        return None if value <= _LARGEST else f"at most {_LARGEST:g}"  # type: ignore[operator]  # it is a number
    return "positive" if setting.above_zero else "0 or more"


def as_settings(config: Config) -> dict[str, Any]:
    """Return the settings by name, without those of _LEFT_OUT that are None or off."""
    settings = dataclasses.asdict(config)
    return {name: value for name, value in settings.items() if value or name not in _LEFT_OUT}


def save_config(run: Path, config: Config) -> None:
    """Write a run's config.json, with one setting per line."""
    lines = (f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in as_settings(config).items())
    write_text(run / CONFIG, "{\n" + ",\n".join(lines) + "\n}\n")


def load_config(run: Path) -> Config:
    """Read a run's config.json.

    Raises RunError for a folder that is not a run, and for a damaged or newer file.
    """
    if not run.exists():
        raise RunError(f"there is no run at {run}: `vaekit train -o {run}` makes one")
    if not (run / CONFIG).is_file():
        raise RunError(f"{run} is not a run: it has no {CONFIG}. `vaekit train -o RUN` makes one.")
    settings = read_settings(run / CONFIG)
    if missing := [name for name in _ALWAYS_WRITTEN if name not in settings]:
        raise RunError(f"{run / CONFIG} is damaged: it has no {', '.join(missing)}")
    return Config(**settings)


def read_settings(path: Path) -> dict[str, Any]:
    """Read settings from a file like config.json.

    Some may be missing. Raises RunError if the file cannot be read, was written by another version, or has unknown or
    impossible settings.
    """
    try:
        settings = json.loads(path.read_text(encoding="utf-8-sig"))
        if settings.get("format_version", FORMAT_VERSION) > FORMAT_VERSION:
            raise RunError(f"{path} was written by a newer vaekit: upgrade this one (pip install -U vaekit)")
        if settings.get("format_version", FORMAT_VERSION) < FORMAT_VERSION:
            raise RunError(f"{path} was written by an older vaekit with other networks: train again")
        _check_names(settings)
        _check_values(settings)
        if settings.get("schedule") is not None:
            settings["schedule"] = tuple((step, float(share)) for step, share in settings["schedule"])
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise RunError(f"{path} is damaged: {error}") from error
    return settings  # type: ignore[no-any-return]  # checked above


def _check_names(settings: Mapping[str, Any]) -> None:
    """Raise ValueError for an unknown setting."""
    known = [known.name for known in dataclasses.fields(Config)]
    for name in settings:
        if name not in known:
            import difflib

            (nearest,) = difflib.get_close_matches(name, known, 1, cutoff=0.0)
            raise ValueError(f"there is no setting {name!r}; the nearest is {nearest!r}")


def _check_values(settings: Mapping[str, Any]) -> None:
    """Raise ValueError for invalid values, since people edit config.json."""
    for name, value in settings.items():
        if needed := requirement(name, value):
            raise ValueError(f"{name} must be {needed}, not {value!r}")
    if settings.get("objective") == "iwae" and settings.get("iwae_samples", IWAE_SAMPLES) is None:
        raise ValueError("the objective 'iwae' needs iwae_samples, a whole number from 1, not None")
    schedule, steps = settings.get("schedule"), settings.get("steps", Config.steps)
    if schedule is not None and schedule[-1][0] != steps:
        raise ValueError(f"schedule ends at step {schedule[-1][0]}, steps is {steps}: remove schedule to change steps")
