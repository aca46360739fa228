"""Detection transfer: a detector is fine-tuned from a run's backbone, and its boxes are scored.

The run with 0 epochs gives the detector from random initialisation, by the same recipe. Every
random number is keyed by (seed, stream, step), so a killed training goes on as if it had not been.
"""

import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from peregrine.config.detection import BoxData, Detection, Planned
from peregrine.config.fingerprint import fingerprint
from peregrine.config.identity import digest
from peregrine.config.models import Run
from peregrine.data.ahead import ahead
from peregrine.data.prepare import Prepared
from peregrine.errors import UserError
from peregrine.evaluation.average_precision import Found, Truth, average_precision
from peregrine.evaluation.detector import build_detector, detections, to_train
from peregrine.evaluation.features import load_method, load_run
from peregrine.evaluation.sheet import sheet
from peregrine.evaluation.voc import Example, Part, read
from peregrine.files import read_tensors, sha256, write_bytes, write_tensors
from peregrine.frozen import joined, weight_facts, write_result
from peregrine.pretrain.device import set_precision
from peregrine.streams import generator, seeded_init

CHECKPOINT = 100
"""Iterations between checkpoints."""
READERS = 2
"""Threads that decode images ahead of the training."""


def detect(
    folder: Path, data: Prepared, device: torch.device, planned: Planned | None, protocol: str
) -> Path:
    """Write corrected/detection-{protocol}.json and .png of a seed folder; returns the former.

    In the JSON: AP, AP50, AP75, AP07 and AP50 of each class (see average_precision), what was
    counted while reading, `shown` with the boxes of the picture. Of a run that ended in NaN no
    number; of a fine-tuning that did, the step `diverged_at`.

    Raises:
        UserError: nothing is planned, or weights or images are missing, changed or damaged.
    """
    if planned is None:
        raise UserError(
            "no detection data configured: name the folder of a data set of detection.yaml under"
            " detection_data in config.yaml, and a detection on it in the scale"
        )
    run, outcome = load_run(folder)
    if outcome["data"] != data.sums:
        raise UserError(
            f"{folder} was trained on other data than {run.dataset.name} holds now;"
            " run pretrain again"
        )
    chosen, spec = planned.chosen, planned.chosen.detection
    train, test = read(planned.folder, chosen.data)
    facts = weight_facts(outcome, run.method["name"])
    facts["images"] = joined(train.sum, test.sum)
    target = folder / "corrected" / f"detection-{protocol}.json"
    result: dict = {"detection": planned.name}
    picture = sheet([], [], [], chosen.data.classes)
    if outcome["status"] != "nan":
        set_precision(device, "float32")
        backbone = load_method(run, outcome, folder, data).backbone
        with seeded_init(outcome["seed"], "detection/init"):
            sizes = len(chosen.data.classes), data.mean, data.sd
            detector = build_detector(backbone, spec, *sizes).to(device)
        tuning = _Tuning(detector, spec, train, outcome["seed"], len(data.mean), device)
        key = joined(facts["weights"], facts["images"], digest(chosen), _code(run))
        diverged = tuning.run(folder / "resume" / "detection.safetensors", key)
        if diverged is None:
            scored, picture = _score(detector, test, chosen.data, spec, tuning.tensor)
            result |= scored | {"loss": tuning.loss}
        else:
            result["diverged_at"] = diverged
        result |= {"train": train.counts, "test": test.counts}
    write_bytes(target.with_suffix(".png"), picture)
    result["picture_sha256"] = sha256(target.with_suffix(".png"))
    write_result(folder, "corrected", "detection", (protocol, chosen), facts, result)
    (folder / "resume" / "detection.safetensors").unlink(missing_ok=True)
    return target


def _code(run: Run) -> str:
    return fingerprint("detect", run.method["name"])


class _Tuning:
    """Fine-tuning of all weights by SGD; `loss` is the mean over the last tenth of the steps."""

    def __init__(
        self,
        detector: nn.Module,
        spec: Detection,
        train: Part,
        seed: int,
        channels: int,
        device: torch.device,
    ) -> None:
        self.detector, self.spec, self.train = detector, spec, train
        self.seed, self.device = seed, device
        self.mode = "L" if channels == 1 else "RGB"
        self.parameters = list(detector.parameters())
        self.optimizer = torch.optim.SGD(
            self.parameters, lr=spec.lr, momentum=spec.momentum, weight_decay=spec.weight_decay
        )
        self.losses: list[float] = []

    @property
    def loss(self) -> float:
        return float(np.mean(self.losses[-max(1, self.spec.iterations // 10) :]))

    def tensor(self, example: Example) -> Tensor:
        """float32 [c, h, w] in 0..1, on the device."""
        pixels = torch.from_numpy(example.pixels(self.mode).copy()).to(self.device)
        return pixels.view(*pixels.shape[:2], -1).permute(2, 0, 1).float() / 255

    def run(self, checkpoint: Path, key: str) -> int | None:
        """Train to the end, from the checkpoint if it has the key; the step of a NaN, else None."""
        begin, started = self._resumed(checkpoint, key), time.monotonic()
        to_train(self.detector, self.spec.batch_norm)
        steps = range(begin, self.spec.iterations)
        for step, batch in zip(steps, ahead(self._batch, steps, READERS), strict=True):
            loss = self._step(step, *batch)
            if not math.isfinite(loss):
                return step
            self.losses.append(loss)
            if (step + 1) % CHECKPOINT == 0:
                self._save(checkpoint, key)
                rate = (step + 1 - begin) / (time.monotonic() - started)
                print(f"step {step + 1}: loss {loss:.3f}, {rate:.1f} steps a second", flush=True)
        return None

    def _batch(self, step: int) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
        """Images and targets of a step: each pass takes all images in an order of its own."""
        size = min(self.spec.batch_size, len(self.train.examples))
        whole = len(self.train.examples) // size
        draws = generator(self.seed, "detection/order", step // whole)
        order = torch.randperm(len(self.train.examples), generator=draws)
        start = step % whole * size
        flips = torch.rand(size, generator=generator(self.seed, "detection/flip", step=step)) < 0.5
        images, targets = [], []
        for index, flip in zip(order[start : start + size].tolist(), flips.tolist(), strict=True):
            example = self.train.examples[index]
            image, boxes = self.tensor(example), torch.from_numpy(example.boxes).clone()
            if flip:
                image = image.flip(-1)
                boxes[:, [0, 2]] = image.shape[-1] - boxes[:, [2, 0]]
            labels = torch.from_numpy(example.labels)
            images.append(image)
            targets.append({"boxes": boxes.to(self.device), "labels": labels.to(self.device)})
        return images, targets

    def _step(self, step: int, images: list[Tensor], targets: list[dict[str, Tensor]]) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = self.spec.lr * rate(step, self.spec)
        self.optimizer.zero_grad(set_to_none=True)
        # torchvision draws anchors, regions and sizes from the global generator.
        with seeded_init(self.seed, f"detection/step {step}"):
            loss = sum(self.detector(images, targets).values())
        loss.backward()
        if self.spec.clip is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.spec.clip)
        self.optimizer.step()
        return loss.item()

    def _save(self, path: Path, key: str) -> None:
        arrays = {f"net.{name}": value for name, value in self.detector.state_dict().items()}
        for number, parameter in enumerate(self.parameters):
            arrays[f"momentum.{number}"] = self.optimizer.state[parameter]["momentum_buffer"]
        host = {name: value.detach().cpu().numpy() for name, value in arrays.items()}
        write_tensors(path, host | {"losses": np.array(self.losses)}, key=key)

    def _resumed(self, path: Path, key: str) -> int:
        """Load a checkpoint of just this training; the number of its steps, or 0."""
        if not path.is_file():
            return 0
        arrays, facts = read_tensors(path)
        if facts.get("key") != key:
            return 0
        tensors = {name: torch.from_numpy(value.copy()) for name, value in arrays.items()}
        self.losses = tensors.pop("losses").tolist()
        net = {name[4:]: value for name, value in tensors.items() if name.startswith("net.")}
        self.detector.load_state_dict(net)
        for number, parameter in enumerate(self.parameters):
            momentum = tensors[f"momentum.{number}"].to(self.device)
            self.optimizer.state[parameter] = {"momentum_buffer": momentum}
        return len(self.losses)


def rate(step: int, spec: Detection) -> float:
    """Share of lr: linear warm-up from a thousandth, then a tenth after each milestone."""
    if step < spec.warmup:
        return 0.001 + 0.999 * step / spec.warmup
    return 0.1 ** sum(step >= milestone * spec.iterations for milestone in spec.milestones)


def _score(
    detector: nn.Module,
    test: Part,
    data: BoxData,
    spec: Detection,
    tensor: Callable[[Example], Tensor],
) -> tuple[dict, bytes]:
    """What the detector finds in the test images: (numbers and the boxes shown, PNG)."""
    truths = [Truth(each.boxes, each.labels, each.difficult) for each in test.examples]
    found = []
    for image in ahead(tensor, test.examples, READERS):
        seen = detections(detector, image)
        found.append(Found(*(seen[key].cpu().numpy() for key in Found._fields)))
    shown = min(spec.pictures, len(found))
    picks = np.linspace(0, len(found) - 1, shown).round().astype(int) if shown else []
    kept = [_above(found[pick], spec.shown_score) for pick in picks]
    picture = sheet(
        [test.examples[pick].pixels() for pick in picks],
        [truths[pick] for pick in picks],
        kept,
        data.classes,
    )
    boxes = [
        {
            "image": test.examples[pick].name,
            "objects": _listed(truths[pick].boxes, truths[pick].labels),
            "found": _listed(best.boxes, best.labels),
            "scores": [round(float(score), 4) for score in best.scores],
        }
        for pick, best in zip(picks, kept)
    ]
    return average_precision(truths, found, data.classes) | {"shown": boxes}, picture


def _above(found: Found, score: float) -> Found:
    return Found(*(each[found.scores >= score] for each in found))


def _listed(boxes: np.ndarray, labels: np.ndarray) -> list[list[float]]:
    """[label, x1, y1, x2, y2] of each box, to a tenth of a pixel."""
    return [
        [int(label), *(round(float(edge), 1) for edge in box)] for label, box in zip(labels, boxes)
    ]
