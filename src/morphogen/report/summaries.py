"""The scalars of a reproduction as TensorBoard event files, one folder a run.

Needs the package `tensorboard` (`pip install morphogen[tensorboard]`), not TensorFlow and not
torch.
"""

from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any

from morphogen.errors import MorphogenError
from morphogen.record import Reproduction, Trace, write_atomic


def write_summaries(reproduction: Reproduction, folder: Path) -> list[Path]:
    """`folder`/summaries/RUN/events.out.tfevents.*, for every run that left a trace; where none
    did, for every curve.

    Errors: `MorphogenError` where TensorBoard is not installed.
    """
    traces = reproduction.traces or tuple(
        Trace(curve.name, curve.panel, tuple(map(int, curve.x)), curve.y)
        for curve in reproduction.curves
    )
    paths = []
    for number, trace in enumerate(traces):
        place = folder / "summaries" / trace.run
        place.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads the time of birth from the name; the number keeps several traces of a
        # run apart
        paths.append(
            place / f"events.out.tfevents.{int(trace.times[0]) if trace.times else 0}.{number}"
        )
        write_atomic(paths[-1], events(trace))
    return paths


def events(trace: Trace) -> bytes:
    """The content of an event file: a scalar under the trace's tag at each of its steps."""
    writer_of, event, summary = needed()
    times = trace.times or (0.0,) * len(trace.steps)
    content = BytesIO()
    writer = writer_of(content)
    writer.write(
        event(
            wall_time=times[0] if times else 0.0, file_version="brain.Event:2"
        ).SerializeToString()
    )
    for step, value, when in zip(trace.steps, trace.values, times, strict=True):
        scalar = summary(value=[summary.Value(tag=trace.tag, simple_value=value)])
        writer.write(event(wall_time=when, step=step, summary=scalar).SerializeToString())
    writer.flush()
    return content.getvalue()


def needed() -> tuple[Any, Any, Any]:
    """TensorBoard's record writer and its two messages, or an error that says how to get them."""
    try:
        return (
            import_module("tensorboard.summary.writer.record_writer").RecordWriter,
            import_module("tensorboard.compat.proto.event_pb2").Event,
            import_module("tensorboard.compat.proto.summary_pb2").Summary,
        )
    except ImportError as missing:
        raise MorphogenError(
            "summaries: the package tensorboard is not installed; pip install "
            "'morphogen[tensorboard]'"
        ) from missing
