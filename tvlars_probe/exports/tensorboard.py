"""Exports to TensorBoard: an event file, by the tensorboard package's own writer. TensorBoard holds float32."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from tvlars_probe.exports.exporter import refuse_folder

if TYPE_CHECKING:
    from tvlars_probe.exports.exporter import Alert, ExportedRun, StepScalars


class TensorBoardExporter:
    """Writes scalars, and findings as texts."""

    def refuse_existing(self, run: ExportedRun) -> None:
        refuse_folder(run.folder)

    def begin(self, run: ExportedRun) -> None:
        self._writer = EventFileWriter(str(run.folder))
        if run.first_step:
            # TensorBoard then drops what it has read of this step and later ones.
            self._add(run.first_step, None, session_log=SessionLog(status=SessionLog.START))

    def scalars(self, point: StepScalars) -> None:
        values = [Summary.Value(tag=name, simple_value=value) for name, value in point.values.items()]
        self._add(point.step, point.time, summary=Summary(value=values))

    def alert(self, alert: Alert) -> None:
        self._text(f"findings/{alert.rule}", alert.text, alert.step, alert.time)

    def flush(self) -> None:
        self._writer.flush()

    def note(self, text: str) -> None:
        self._text("export", text, 0, None)

    def end(self, status: str) -> None:
        self._writer.close()

    def _text(self, tag: str, text: str, step: int, seconds: float | None) -> None:
        about = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
        shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)])
        tensor = TensorProto(dtype=DT_STRING, string_val=[text.encode()], tensor_shape=shape)
        value = Summary.Value(tag=f"{tag}/text_summary", metadata=about, tensor=tensor)
        self._add(step, seconds, summary=Summary(value=[value]))

    def _add(self, step: int, seconds: float | None, **content: Any) -> None:
        self._writer.add_event(Event(wall_time=time.time() if seconds is None else seconds, step=step, **content))
