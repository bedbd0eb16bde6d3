"""The files of a training run, and models from files: checkpoints of ours and of the authors' released code."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields
from pathlib import Path

import torch
from torch import Tensor, nn

import uwav
from common import devices
from common.command import progress
from common.files import atomic, plain, reading, reason, temporary_of
from common.released import read_checkpoint, weights_of, with_weights
from data.splits import by_windows
from field import coleaf, jomold, leap, mgn, mm_pyramid

SAVING_SHARE = 0.05  # of the time may go into saving the state: every epoch if that is quick, rarer if it is not


class Run(uwav.Run):
    """A training run with files: X.pt (the best epoch), X.jsonl (history), X.state.pt (to resume; gone at the end).

    Every epoch seeds its own random numbers, so weights and optimiser are all that resuming needs, and
    a run that was killed ends with the very numbers of one that was not."""

    def __init__(self, path: Path, name: str, settings: dict):
        self.path, self.name, self.settings, self.state_path = path, name, settings, path.with_suffix(".state.pt")

    def begin(self, model: nn.Module, config: uwav.PretrainConfig | uwav.TrainConfig,
              videos: int) -> torch.optim.Optimizer:
        optimizer = super().begin(model, config, videos)
        self.saved_at, self.saving_took = time.monotonic(), 0.0  # s
        numbers = sum(x.numel() for x in model.parameters())
        print(f"{self.name}: {numbers / 1e6:.2f} M parameters, {self.steps} steps an epoch", flush=True)
        if self.state_path.exists():
            with reading(self.state_path, "not the state of this run ({cause}); delete it to begin again, or choose "
                                          "another folder"):
                state = load_file(self.state_path, next(model.parameters()).device)
                if state["settings"] != self.settings:
                    raise ValueError("an unfinished run with other settings or other data")
                model.load_state_dict(state["weights"])
                optimizer.load_state_dict(state["optimizer"])
                self.history, self.best_score = state["history"], state["best_score"]
                self.best_weights = state["best_weights"]
        if len({*devices.gathered(len(self.history))}) > 1:  # on a shared folder that is slow to tell of changes
            raise ValueError(f"{self.state_path}: not the same on all machines yet; start again")
        return optimizer

    def fast(self, function: Callable, one_shape: bool) -> Callable:
        device = next(self.model.parameters()).device
        return devices.accelerate(devices.together(function), self.config.fast, device, one_shape)

    def epochs(self) -> Iterator[tuple[int, float]]:
        total = self.config.epochs * self.steps
        with progress(total=total, initial=len(self.history) * self.steps, desc=self.name, unit="step") as self.bar:
            for epoch in super().epochs():
                torch.manual_seed(torch.initial_seed() + (devices.RANK << 40))  # no two ranks share their dropout
                yield epoch

    def mean(self, steps: Callable[..., Iterator[Tensor]], *inputs) -> list[float]:
        def watched(*inputs) -> Iterator[Tensor]:
            for loss in by_windows(steps, *inputs):
                yield loss
                self.bar.update()

        return super().mean(watched, *inputs)

    def end_epoch(self, record: dict, score: float, last_of_equals: bool = False) -> None:
        """Note the epoch and keep the best; save the state now and then."""
        if not math.isfinite(record["loss"]):
            raise ValueError(f"{self.path}: the loss became {record['loss']} in epoch {record['epoch']}; "
                             "lower the learning rate (--set peak_lr=...)")
        super().end_epoch(record, score, last_of_equals)
        validation = f", validation {score:.1f}" if record["val"] else ""
        self.bar.set_postfix_str(f"epoch {record['epoch']}/{self.config.epochs}, loss {record['loss']:.4f}{validation}",
                                 refresh=sys.stderr.isatty())
        if devices.RANK:
            return
        with atomic(self.path.with_suffix(".jsonl")) as temporary:
            temporary.write_text("".join(json.dumps(r) + "\n" for r in self.history))
        started = time.monotonic()
        if self.saving_took <= SAVING_SHARE * (started - self.saved_at):
            state = dict(settings=self.settings, weights=self.model.state_dict(), optimizer=self.optimizer.state_dict(),
                         history=self.history, best_score=self.best_score, best_weights=self.best_weights)
            save_file(self.state_path, state)
            self.saved_at = time.monotonic()
            self.saving_took = self.saved_at - started

    def finish(self) -> nn.Module:
        """Write the checkpoint of the best epoch and return that model, ready for inference."""
        model = super().finish()
        if devices.RANK:
            return model
        # As new objects, which pickle tells from those it knows: so that the bytes are those of a resumed run, too.
        history = json.loads(json.dumps(self.history))
        save_file(self.path, dict(kind=type(model).__name__, config=asdict(model.config), settings=self.settings,
                                  history=history, score=self.best_score, weights=self.best_weights))
        for path in (self.state_path, temporary_of(self.state_path)):  # the latter if a run was killed writing it
            path.unlink(missing_ok=True)
        return model


def save_file(path: Path, content: dict) -> None:
    with atomic(path) as temporary:
        try:
            torch.save(content, temporary)
        except RuntimeError as error:  # of its zip writer
            raise OSError(reason(error)) from None


def load_file(path: str | Path, device: str | torch.device = "cpu") -> dict:
    """A file written by torch.save; nothing in it is executed, and its checksums must agree; errors name the file."""
    with reading(path, "not a readable checkpoint ({cause})"):
        content = read_checkpoint(path, device)
        json.dumps(plain(dict(content.get("settings") or {})))  # they are written into what is made from it
        return content


def settings_of(path: str | Path) -> dict:
    """What a checkpoint was made with and from; nothing is known of one of the released code."""
    return load_file(path).get("settings") or {}


# Every model that a checkpoint of ours can hold, with its config.
MODELS = {"Teacher": (uwav.Teacher, uwav.TeacherConfig), "HAN": (uwav.HAN, uwav.HANConfig),
          "JoMoLD": (jomold.JoMoLD, jomold.JoMoLDConfig), "CoLeaF": (coleaf.CoLeaF, coleaf.CoLeaFConfig),
          "LEAP": (leap.LEAP, leap.LEAPConfig), "MGN": (mgn.MGN, mgn.MGNConfig),
          "MMPyramid": (mm_pyramid.MMPyramid, mm_pyramid.MMPyramidConfig)}
PARSERS = (uwav.HAN, coleaf.CoLeaF)  # JoMoLD, LEAP, MGN and MM-Pyramid are HANs with another part


def load_model(path: str | Path, device: str | torch.device = "cpu", heads: int | None = None,
               visual_3d_dim: int | None = None, kind: type | tuple[type, ...] = nn.Module) -> uwav.Teacher | uwav.HAN:
    """A trained model, of `kind`, from its checkpoint alone: one of ours, or a state dict of the authors' released
    code, of which `heads` and `visual_3d_dim` tell what it does not; heads not told are guessed, which is said."""
    content = load_file(path, device)
    with reading(path, "not a checkpoint of a teacher or a HAN ({cause})"):
        weights = content["weights"] if "kind" in content else weights_of(content)
        _check_tensors(weights)
        if "kind" in content:
            model_class, config_class = MODELS[content["kind"]]
            config = config_class(**content["config"])
            check_fields(config)
            for name, value in content["config"].items():
                if name.endswith("layers") and value > len(weights):  # would be built before weights are missed
                    raise ValueError(f"{name} = {value}")
            model = with_weights(lambda: model_class(config), weights)
        elif "fc_prob.weight" in weights:
            model = uwav.load_released_han(weights, heads, visual_3d_dim)
        else:
            model = uwav.load_released_teacher(weights, heads or uwav.TeacherConfig.heads)
    if not isinstance(model, kind):
        raise ValueError(f"{path}: holds a {type(model).__name__}, expected a {getattr(kind, '__name__', 'HAN')}")
    if "kind" not in content and heads is None:
        print(f"{path}: does not say how many attention heads it has; {model.config.heads} are assumed, as published")
    return model.to(device).eval()


def _check_tensors(weights: dict[str, Tensor]) -> None:
    """Finite floats that take the memory they seem to take, or ValueError."""
    for name, x in weights.items():
        if not x.is_floating_point() or x.untyped_storage().nbytes() < x.numel() * x.element_size():
            raise ValueError(f"{name} is of {x.dtype}, or repeats its numbers")
        if not math.isfinite(x.sum(dtype=torch.float64)):
            raise ValueError(f"{name} holds NaN or infinite values")


ABOVE_ZERO = ("audio_dim", "visual_dim", "visual_2d_dim", "classes", "hidden", "heads", "feedforward", "epochs",
              "batch", "length_pool", "temperature", "alpha")
BELOW_ONE = ("dropout", "beta1", "beta2")


def check_fields(config: object) -> None:
    """ValueError if a field of a config from a file or option is of another type than its default or out of range."""
    for field in fields(config):
        value, kind = getattr(config, field.name), type(field.default)
        if not isinstance(value, (int, float) if kind is float else kind):
            raise ValueError(f"{field.name} = {value!r}")
        if field.name == "pseudo_label" and value not in ("none", "hard", "soft"):
            raise ValueError(f"pseudo_label = {value!r}: one of none, hard, soft")
        if kind is not str and not 0 <= value < 1 << 31:
            raise ValueError(f"{field.name} = {value!r}: a number from 0 to 2^31")
        if field.name in ABOVE_ZERO and not value > 0:
            raise ValueError(f"{field.name} = {value!r}: must be above 0")
        if field.name in BELOW_ONE and not value < 1:
            raise ValueError(f"{field.name} = {value!r}: must be below 1")
