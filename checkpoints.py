"""The files of a training run: a checkpoint of the best epoch, a history for plotting, a state to resume from."""

from __future__ import annotations

import json
import math
import time
import zipfile
from dataclasses import asdict, fields
from pathlib import Path

import torch
from torch import nn

import ranks
from files import atomic, reason, temporary_of

SAVING_SHARE = 0.05  # of the time may go into saving the state: every epoch if that is quick, rarer if it is not


class Run:
    """The files of one training run: X.pt (the best epoch), X.jsonl (history), X.state.pt (to resume; gone at the end).

    Every epoch seeds its own random numbers, so weights and optimiser are all that resuming needs, and
    a run that was killed ends with the very numbers of one that was not.
    """

    def __init__(self, path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, settings: dict):
        self.path, self.model, self.optimizer, self.settings = path, model, optimizer, settings
        self.history, self.best_score, self.best_weights = [], -math.inf, None
        self.saved_at, self.saving_took = time.monotonic(), 0.0  # s
        self.state_path = path.with_suffix(".state.pt")
        if self.state_path.exists():
            state = load_file(self.state_path, next(model.parameters()).device)
            if state.get("settings") != settings:
                raise ValueError(f"{self.state_path}: an unfinished run with other settings or other data; "
                                 "delete it or choose another folder")
            try:
                self._restore(**state)
            except Exception as error:  # PyTorch raises a dozen kinds
                raise ValueError(f"{self.state_path}: not the state of this run ({reason(error)}); delete it to begin "
                                 "again") from None

    def _restore(self, settings: dict, weights: dict, optimizer: dict, history: list[dict], best_score: float,
                 best_weights: dict | None) -> None:
        if best_weights is not None:
            self.model.load_state_dict(best_weights)  # that they fit is known now, not after the last epoch
        self.model.load_state_dict(weights)
        options = self.optimizer.state_dict()["param_groups"]  # those of the settings, not of the file
        self.optimizer.load_state_dict(dict(optimizer, param_groups=options))
        for weight, moments in self.optimizer.state.items():
            x = [moments[k] for k in ("exp_avg", "exp_avg_sq")]
            wrong = any(m.shape != weight.shape or m.type() != weight.type() or not m.is_contiguous() for m in x)
            if wrong or not 0 < float(moments["step"]) < math.inf:
                raise ValueError("its optimizer is of another model")
        if [record["epoch"] for record in history] != list(range(1, len(history) + 1)):
            raise ValueError("its history has gaps")
        self.history, self.best_score, self.best_weights = history, float(best_score), best_weights

    @property
    def next_epoch(self) -> int:
        return len(self.history) + 1

    def end_epoch(self, record: dict, score: float) -> None:
        """Note the epoch; keep its weights if its validation score is the best so far; save the state now and then."""
        if not math.isfinite(record["loss"]):
            raise ValueError(f"{self.path}: the loss became {record['loss']} in epoch {record['epoch']}; "
                             "lower the learning rate (--set peak_lr=...)")
        self.history.append(record)
        if score > self.best_score:
            self.best_score = score
            self.best_weights = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        if ranks.RANK > 0:
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
        if self.best_weights is None:
            raise ValueError(f"{self.path}: no epoch was trained; epochs must be at least 1")
        self.model.load_state_dict(self.best_weights)
        if ranks.RANK == 0:
            checkpoint = dict(kind=type(self.model).__name__, config=asdict(self.model.config), settings=self.settings,
                              score=self.best_score, weights=self.best_weights)
            save_file(self.path, checkpoint)
            for path in (self.state_path, temporary_of(self.state_path)):  # the latter if a run was killed writing it
                path.unlink(missing_ok=True)
        return self.model.eval()


def save_file(path: Path, content: dict) -> None:
    with atomic(path) as temporary:
        try:
            torch.save(content, temporary)
        except RuntimeError as error:  # of its zip writer
            raise OSError(reason(error)) from None


def load_file(path: str | Path, device: str | torch.device = "cpu") -> dict:
    """A file written by torch.save; nothing in it is executed, and its checksums must agree, at which PyTorch does not
    look. Raises FileNotFoundError or ValueError."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        if zipfile.is_zipfile(path):  # PyTorch's older format has no checksums
            with zipfile.ZipFile(path) as archive:
                if (broken := archive.testzip()) is not None:
                    raise ValueError(f"the checksum of {broken} differs")
        content = torch.load(path, map_location=device, weights_only=True)
        if isinstance(content, dict):
            json.dumps(content.get("settings"))  # they are written into what is made from it
    except Exception as error:  # pickle, zip and torch raise a dozen kinds
        raise ValueError(f"{path}: not a readable checkpoint ({reason(error)})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}, expected a checkpoint")
    return content


def check_fields(config: object) -> None:
    """ValueError if a field of a config from a file is of another type than its default, below 0, or infinite."""
    for field in fields(config):
        value, kind = getattr(config, field.name), type(field.default)
        if not isinstance(value, (int, float) if kind is float else kind):
            raise ValueError(f"{field.name} = {value!r}")
        if kind is not str and not 0 <= value < math.inf:
            raise ValueError(f"{field.name} = {value!r}")
