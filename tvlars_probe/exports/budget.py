"""What exports are by default, and the trackers that are known by name. Nothing heavy is imported for it."""

BUDGET = 200
"""Scalars of a flush."""

PROJECT = "tvlars-probe"
"""The tracker's project, or experiment."""

TRACKERS = {
    "tensorboard": "TensorBoardExporter",
    "wandb": "WandbExporter",
    "trackio": "TrackioExporter",
    "mlflow": "MlflowExporter",
}
"""By name, which is that of the package, of the extra and of the module here: the class."""
