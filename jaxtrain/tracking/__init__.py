"""MLflow, at arm's length: one Tracker that never costs a run."""

from jaxtrain.redact import redact
from jaxtrain.tracking.journal import Journal
from jaxtrain.tracking.tracker import Tracker, TrackerReport, sync_run

__all__ = ["Journal", "Tracker", "TrackerReport", "redact", "sync_run"]
