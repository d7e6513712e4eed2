"""What a finished run leaves in its folder."""

import copy
import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from morphogen.data.dataset import Dataset
from morphogen.data.preparation import source as prepare_source
from morphogen.edit.structure import structure as network
from morphogen.fitting.fit import Fitted
from morphogen.formats.onnx import export_onnx
from morphogen.formats.source import source
from morphogen.record import Certificate, Report, write_atomic
from morphogen.report.html import html
from morphogen.report.text import format_shape
from morphogen.tracing.program import dtype_of


def export(fitted: Fitted, dataset: Dataset, report: Report, folder: Path) -> Certificate:
    """Write model.py, model.safetensors, model.onnx, structure.json, metrics.json, report.html, for
    a table preparation.json, for a compressed network certificate.json. Each file appears whole or
    not at all. Returns the certificate of the ONNX file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plain = fitted.plain.cpu()
    example = torch.as_tensor(dataset.x_train[:64])
    asked = plain if dtype_of(plain) is torch.float32 else LastInDouble(plain)
    write_atomic(
        folder / "model.safetensors",
        save({k: v.contiguous() for k, v in plain.state_dict().items()}),
    )
    write_atomic(folder / "model.py", page(plain, dataset, report))
    if dataset.prepare:
        write_atomic(folder / "preparation.json", dataset.prepare.to_json())
    certificate = export_onnx(asked, example, folder / "model.onnx", as_texts(trained_for(dataset)))
    if fitted.compression:
        write_atomic(folder / "certificate.json", json.dumps(asdict(fitted.compression), indent=1))
    write_atomic(
        folder / "structure.json", json.dumps(structure(fitted, dataset, report), indent=1)
    )
    write_atomic(
        folder / "metrics.json", json.dumps(metrics(fitted, report, certificate), indent=1)
    )
    write_atomic(folder / "report.html", html(report))
    return certificate


class LastInDouble(nn.Module):
    """A network in float64 as one that takes float32 and computes in it, but for its last layer,
    which moves the result far from 0: onnxruntime has no convolution in float64.
    """

    def __init__(self, plain: nn.Sequential) -> None:
        super().__init__()
        self.body = copy.deepcopy(plain[:-1]).float()
        self.last = plain[-1]

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last(self.body(x).double())
        return result


def page(plain: nn.Sequential, dataset: Dataset, report: Report) -> str:
    """The found network as Python source."""
    shape = "x".join(map(str, dataset.x_train.shape[1:]))
    if dataset.task == "classification":
        result = f"one logit for each of {len(dataset.classes)} classes"
    else:
        result = "the target in its own unit"
    reads = (
        "what `prepare(table)` returns"
        if dataset.prepare
        else f"pixels in 0..1, {shape}"
        if "x" in shape
        else ""
    )
    return source(
        plain,
        title=f"{format_shape(report.result.shape)}: a network for '{dataset.name}', found "
        f"by training",
        prepare=prepare_source(dataset.prepare) if dataset.prepare else "",
        input_hint=f"Input (batch, {shape.replace('x', ', ')}){f', {reads}' if reads else ''}; "
        f"output {result}.",
        targets=dataset.targets or (dataset.target,) * bool(dataset.target),
        classes=dataset.classes,
    )


def trained_for(dataset: Dataset) -> dict[str, object]:
    """What the network's inputs and outputs are: columns of a table (None where it was trained on
    arrays), and classes in the order of the logits (none for a regression).
    """
    return {
        "task": dataset.task,
        "targets": list(dataset.targets) or [dataset.target] * bool(dataset.target),
        "classes": list(dataset.classes),
        "columns": list(dataset.prepare.columns) if dataset.prepare else None,
    }


def as_texts(values: dict[str, object]) -> dict[str, str]:
    """Text as it is, everything else as JSON; all in letters that a file can hold."""
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in values.items()}
    return {k: v.encode(errors="backslashreplace").decode() for k, v in texts.items()}


def structure(fitted: Fitted, dataset: Dataset, report: Report) -> dict[str, object]:
    """The exported network and the ledger that led to it (see `morphogen.edit.structure`), what it
    was trained for, its bars, and every reason.
    """
    return {
        **network(fitted.plain, fitted.ledger),
        **trained_for(dataset),
        "shape": [asdict(layer) for layer in report.result.shape],
        "start": [asdict(layer) for layer in report.rounds[0].shape],
        "base": {"width": fitted.recipe.width, "dropout": fitted.recipe.dropout},
        "changes": [asdict(change) for change in report.changes],
    }


def metrics(fitted: Fitted, report: Report, onnx: Certificate) -> dict[str, object]:
    """The figures of the run. "seconds" are the only ones that differ between two equal runs."""
    learned = report.table[0]
    last = report.result
    return {
        "data": report.data,
        "task": report.task,
        "metric": report.metric,
        "loss": report.loss,
        "seed": report.seed,
        "test_score": learned.score,
        "test_loss": learned.loss,
        "validation_score": last.valid_score,
        "validation_loss": last.valid_loss,
        "parameters": learned.parameters,
        "rounds": report.rounds[-1].round,
        "kept_round": last.round,
        "steps": report.rounds[-1].step,
        "seconds": learned.seconds,
        "certificates": {"freeze": asdict(fitted.certificate), "onnx": asdict(onnx)},
        "table": [asdict(row) for row in report.table],
        "recipe": asdict(fitted.recipe),
        "settings": asdict(fitted.settings),
        "environment": report.environment,
    }
