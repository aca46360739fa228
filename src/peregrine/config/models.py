"""Configuration as typed models: unknown keys are refused, every field says what it is.

Nothing here imports torch: the Snakefile plans from these models. A field whose value equals its
default is left out of a run's identity (see `identity`), so defaults are frozen once published.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

MIXTURES = (10, 20, 50, 100, 200)
"""Numbers of components in the released code's figure of mixture entropies."""

LABEL_SHARES = (0.01, 0.1)
"""Shares of the labels of which a study may name the accuracy."""

PATCH = 16
"""Side in px of a patch of vit_small."""

Probability = Annotated[float, Field(ge=0, le=1)]
Strength = Annotated[float, Field(ge=0)]
Folder = Annotated[str, Field(pattern=r"^[A-Za-z0-9_./-]*[A-Za-z0-9_.-]$", max_length=200)]
"""A path that needs no quoting: it stands in file patterns and shell commands."""
Extra = Literal["robustness", "detection"]
"""Evaluations that only the rows have for which a study asks."""
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.+-]*$", max_length=80)]


class Model(BaseModel):
    """Base of all configuration: immutable, unknown keys refused, no NaN."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_value(cls, value: Any, info: ValidationInfo) -> Any:
        # YAML reads yes and on as true, which pydantic would take for the number 1.
        kind = cls.model_fields[info.field_name].annotation
        if kind is not bool and _has(value, lambda each: isinstance(each, bool)):
            raise ValueError("true, false, yes, no, on and off are no values here")
        # Python's integers have no end, those of numpy and torch have 64 bits.
        if _has(value, lambda each: isinstance(each, int) and abs(each) >= 2**63):
            raise ValueError("an integer of more than 64 bits is no value here")
        return value


def _has(value: Any, wrong: Callable[[Any], bool]) -> bool:
    inside = isinstance(value, (list, tuple)) and any(_has(each, wrong) for each in value)
    return wrong(value) or inside


def no_twins(what: str, names: Iterable[str]) -> None:
    twins = [name for name, count in Counter(names).items() if count > 1]
    if twins:
        raise ValueError(f"{what} '{twins[0]}' stands twice")


class MethodOptions(Model):
    """Base of every method's `Options`; its fields are what a study may write under `method:`."""


class DatasetSpec(Model):
    """A data set, whole by default; subsets are the same images for every run and seed."""

    name: Name = Field(description="A name of the registry in peregrine.data.sources.")
    train_per_class: int | None = Field(
        None, ge=1, description="Training images a class, a random subset; none: all."
    )
    validation_per_class: int | None = Field(
        None,
        ge=1,
        description="Training images a class that are held out and stand in for the test set.",
    )
    imbalance: float = Field(
        1.0,
        ge=1,
        le=1e6,
        description="Training images of the first class over those of the last; see class_sizes.",
    )

    def class_sizes(self, largest: int, classes: int) -> list[int]:
        """Training images of each class, n_k = largest * imbalance^(-k / (K - 1)), rounded down.

        Source: Cui et al. 2019, arXiv 1901.05555, section 4 (long-tailed CIFAR).
        """
        exponents = (k / max(classes - 1, 1) for k in range(classes))
        # A product that is whole but for rounding, 5000 / 100 say, is not to lose one.
        return [int(largest * self.imbalance**-each + 1e-6) for each in exponents]


class SourceSpec(Model):
    """Where the raw files of a data set are; nothing of it is part of a run's identity."""

    folder: str | None = Field(
        None, min_length=1, description="Has the raw files or their archive; nothing is fetched."
    )
    accept_unverified: bool = Field(
        False,
        strict=True,
        description="Use a file whose digest is not the official one; reports will say so.",
    )
    download: bool = Field(True, strict=True, description="Fetch what is missing.")


class ViewSpec(Model):
    """How one group of views is drawn from each image; see peregrine.data.views."""

    role: Literal["source", "target", "local"] = "source"
    count: int = Field(1, ge=1, description="Views in the group.")
    size: int = Field(32, ge=4, description="Side of the view in pixels.")
    crop_scale: tuple[Probability, Probability] = Field(
        (0.08, 1.0), description="Share of the area."
    )
    crop_ratio: tuple[float, float] = Field((3 / 4, 4 / 3), description="Width over height.")
    flip: Probability = Field(0.5, description="Probability of a horizontal flip.")
    jitter: Probability = Field(0.8, description="Probability of the colour jitter.")
    brightness: Strength = 0.4
    contrast: Strength = 0.4
    saturation: Strength = 0.2
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    grey: Probability = Field(0.2, description="Probability of greyscale.")
    blur: Probability = Field(0.0, description="Probability of a Gaussian blur.")
    blur_sigma: tuple[float, float] = Field((0.1, 2.0), description="Pixels.")
    solarise: Probability = 0.0
    solarise_threshold: Probability = 0.5
    randaugment: int = Field(0, ge=0, description="Operations of RandAugment, the last step.")
    magnitude: int = Field(
        9, ge=0, le=30, description="Of RandAugment, in torchvision's bins: 30 is the whole range."
    )

    @model_validator(mode="after")
    def _ordered(self) -> "ViewSpec":
        for key in ("crop_scale", "crop_ratio", "blur_sigma"):
            low, high = getattr(self, key)
            if not 0 < low <= high:
                raise ValueError(f"{key} must be two positive numbers, the smaller one first")
        return self


class BackboneSpec(Model):
    name: Literal["resnet8", "resnet18", "resnet50", "vit_small"] = "resnet8"
    width: int = Field(128, ge=1, description="Features F of the last layer; resnet8 only.")
    stem: Literal["cifar", "imagenet"] = Field(
        "cifar", description="3x3 stride 1 without pooling, or 7x7 stride 2 with; not resnet8."
    )
    stem_padding: Literal[1, 2] = Field(
        1, description="Of the CIFAR stem; 2 as in the released code: maps 34, 17, 9, 5 at 32 px."
    )
    drop_path: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Chance that an image skips the last block, linear from 0; vit_small only.",
    )

    @model_validator(mode="after")
    def _of_this_net(self) -> "BackboneSpec":
        own = {"resnet8": {"width"}, "vit_small": {"drop_path"}}
        foreign = {"width", "stem", "stem_padding", "drop_path"}
        for key in sorted(foreign - own.get(self.name, {"stem", "stem_padding"})):
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} is no option of {self.name}; remove it")
        if self.stem == "imagenet" and self.stem_padding != 1:
            raise ValueError("stem_padding is the CIFAR stem's; remove it or set stem: cifar")
        return self


class OptimizerSpec(Model):
    name: Literal["adam", "adamw", "sgd", "lars"] = "adam"
    lr: float = Field(
        1e-3, gt=0, le=1e30, description="At batch 256; the effective rate is lr * batch/256."
    )
    weight_decay: Strength = Field(
        1e-4, description="In the gradient for adam, sgd and lars, decoupled from it for adamw."
    )
    weight_decay_end: Strength | None = Field(
        None, description="The decay goes there along a cosine, per step; none: it is constant."
    )
    exclude_bias_and_norm: bool = Field(
        False, description="Parameters of one dimension get no decay, and no adaptation by LARS."
    )
    momentum: Probability = Field(0.9, description="SGD and LARS only.")
    eta: float = Field(0.02, gt=0, description="Trust coefficient, LARS only.")
    clip: bool = Field(False, description="No layer's rate is above lr, LARS only.")
    warmup_epochs: float = Field(10, ge=0, description="Linear, per step.")
    warmup_start: float = Field(3e-5, ge=0, description="Learning rate of the first step.")
    lr_end: float = Field(0.0, ge=0, description="Effective rate at which the cosine ends.")
    clip_norm: float = Field(
        0.0, ge=0, description="Largest norm of a parameter's gradient, each by itself; 0: any."
    )


class ProbeSpec(Model):
    """The online linear probe on detached features (released reading of accuracy)."""

    lr: float = Field(0.1, gt=0, description="Adam, at batch 256, same schedule as the method.")


class AccumulateSpec(Model):
    """One optimiser step from several micro-batches; see peregrine.pretrain.accumulate."""

    steps: int = Field(1, ge=1, description="Micro-batches a step.")
    mode: Literal["plain", "cached"] = Field(
        "plain",
        description="plain: the mean of the micro-batches' losses; cached: one loss of the batch.",
    )


class Run(Model):
    """One resolved pretraining configuration without its seed."""

    dataset: DatasetSpec
    backbone: BackboneSpec = BackboneSpec()
    method: dict[str, Any] = Field(description="`name` of the registry and that method's options.")
    views: tuple[ViewSpec, ...] = Field(min_length=1)
    batch_size: int = Field(256, ge=2, description="Images an optimiser step.")
    accumulate: AccumulateSpec = AccumulateSpec()
    epochs: int = Field(100, ge=0, le=10**6, description="0 keeps the untrained net.")
    precision: Literal["float32", "bfloat16"] = "float32"
    optimizer: OptimizerSpec = OptimizerSpec()
    probe: ProbeSpec = ProbeSpec()
    on_collapse: Literal["stop", "record"] = "stop"
    collapse_floor: Strength = Field(
        0.01, description="Smallest feature sd (1 = isotropic) that does not count as collapse."
    )

    @model_validator(mode="after")
    def _whole_patches(self) -> "Run":
        sizes = [view.size for view in self.views if view.size % PATCH]
        if self.backbone.name == "vit_small" and sizes:
            raise ValueError(
                f"views of {sizes[0]} px are not cut into whole patches by vit_small; choose a"
                f" multiple of {PATCH}"
            )
        return self

    @model_validator(mode="after")
    def _divisible(self) -> "Run":
        steps = self.accumulate.steps
        if self.batch_size % steps or self.batch_size < 2 * steps:
            raise ValueError(
                f"accumulate.steps: {steps} must cut batch_size {self.batch_size} into equal parts"
                " of at least 2 images"
            )
        return self


class StudyOverlay(Model):
    rows: tuple[str, ...] | None = Field(
        None, description="The rows run at this scale; absent: all; []: the study is left out."
    )
    run: dict[str, Any] = Field({}, description="Laid over every run of the study.")
    row: dict[str, dict[str, Any]] = Field({}, description="Laid over one row.")
    evaluations: dict[Extra, tuple[str, ...]] = Field(
        {}, description="Extra evaluation -> its rows at this scale, instead of the study's."
    )


class Scale(Model):
    """What stands in for paper scale: data set, widths, epochs, seeds, threads."""

    name: Name
    description: str
    like: Name | None = Field(
        None, description="A scale over which this one is laid: it says what differs from it."
    )
    seeds: tuple[int, ...] = Field(min_length=1)
    looks: int = Field(
        1,
        ge=1,
        description="How often verdicts were looked at while seeds came; corrected like tests.",
    )
    seeds_per_job: Literal["all", "one"] = "one"
    seeds_together: int = Field(
        1, ge=1, le=64, description="Trained at a time by a job that takes all seeds."
    )
    training_threads: int = Field(
        1, ge=1, le=1024, description="Set by torch; other counts, other bits."
    )
    processes_per_run: int = Field(
        1,
        ge=1,
        le=1024,
        description="Most that train one run together, one on each GPU.",
    )
    protocol: Name = "standard"
    run: dict[str, Any] = Field({}, description="Laid over every run.")
    times: dict[str, Annotated[float, Field(gt=0)]] = Field(
        {},
        description="Dotted option of every run -> factor, laid over all else: optimizer.lr: 2.",
    )
    studies: dict[str, StudyOverlay] = {}
    theory: dict[str, Any] = Field({}, description="Laid over the sizes of theory.yaml.")
    detection: Name | None = Field(None, description="A detection of config/detection.yaml.")

    @model_validator(mode="after")
    def _seeds(self) -> "Scale":
        if len(set(self.seeds)) != len(self.seeds) or min(self.seeds) < 0:
            raise ValueError("seeds must be different numbers of at least 0")
        if self.seeds_together > 1 and self.seeds_per_job == "one":
            raise ValueError("seeds_together is for jobs of several seeds; set seeds_per_job: all")
        if self.seeds_together > 1 and self.processes_per_run > 1:
            raise ValueError("seeds_together and processes_per_run are not for the same scale")
        return self


class AttackSpec(Model):
    """How images are attacked, and what is measured; see peregrine.evaluation.robustness."""

    epsilon: float = Field(8 / 255, gt=0, le=1, description="Of a pixel in [0, 1], L-infinity.")
    steps: int = Field(10, ge=1, description="Gradient steps of 2.5 epsilon / steps each.")
    anchors: int = Field(1000, ge=2, description="Test images that are attacked, at most.")
    stored: int = Field(
        10_000, ge=1, description="Training images among which neighbours are searched, at most."
    )
    mask_ratio: float = Field(0.3, ge=0, lt=1, description="As for the methods, like the next two.")
    noise_sd: float = Field(0.1, gt=0)
    mix_alpha: float = Field(1.0, gt=0)


class Protocol(Model):
    """Every free knob of the evaluation, fixed before results."""

    linear_c_grid: tuple[Annotated[float, Field(gt=0)], ...] = Field(min_length=1)
    linear_validation_share: float = Field(gt=0, lt=1)
    linear_max_iter: int = Field(ge=1)
    few_labels_per_class: int = Field(ge=1)
    few_label_draws: int = Field(ge=1)
    label_shares: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        (), description="Shares of the labels that linear probes see, at least one label a class."
    )
    label_share_draws: int = Field(3, ge=1, description="Random subsets of each share.")
    streamed_above: int = Field(
        200_000,
        ge=1,
        description="Training images above which probes and neighbours read features in blocks.",
    )
    split_seed: int = Field(ge=0, lt=2**32)
    knn_k: int = Field(ge=1)
    knn_temperature: float = Field(gt=0)
    kmeans_restarts: int = Field(ge=1)
    chance_permutations: int = Field(ge=1)
    embedding_sample: int = Field(ge=2, description="Train embeddings kept for the diagnostics.")
    centre_share: float = Field(
        0.875,
        gt=0,
        le=1,
        description="Of the short side that is evaluated, 224 of 256 px; where image sizes differ.",
    )
    view_sample: int = Field(
        1000, ge=2, description="Test images whose views alignment and uniformity compare."
    )
    mixture_components: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        MIXTURES, min_length=1, description="Sizes of the Gaussian mixtures; n / 3 at most."
    )
    mixture_sample: int = Field(
        10_000, ge=3, description="Most test images that a Gaussian mixture is fitted to."
    )
    map_sample: int = Field(500, ge=2, description="Test images on a map, at most.")
    attack: AttackSpec = AttackSpec()

    def of_features(self, sizes_differ: bool) -> list[float]:
        """What features depend on: the cut only of images that differ in size."""
        cut = [self.centre_share] if sizes_differ else []
        return [self.embedding_sample, self.view_sample, *cut]


class Config(Model):
    """config/config.yaml: what `snakemake` runs when nothing else is said."""

    scale: Name = Field("demo", description="A file of config/scales/.")
    studies: tuple[Name, ...] = Field(
        ("falcon", "feature_augmentation"), min_length=1, description="Files of config/studies/."
    )
    theory: bool = Field(
        True, description="Whether FALCON's loss is minimised and reported without data too."
    )
    sources: dict[Name, SourceSpec] = Field(
        {}, description="Data set -> where its raw files are, if not in the common folder."
    )
    detection_data: dict[Name, Annotated[str, Field(min_length=1)]] = Field(
        {}, description="Data set of detection.yaml -> its folder; detection runs only with it."
    )
    results: Folder = Field("results", description="Folder of data, runs and tables.")
    reports: Folder = Field("reports", description="Folder of notebooks, pages and PDFs.")

    @model_validator(mode="after")
    def _distinct(self) -> "Config":
        if len(set(self.studies)) != len(self.studies):
            raise ValueError("studies names a study twice")
        return self
