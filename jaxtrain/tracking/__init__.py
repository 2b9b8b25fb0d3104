"""MLflow, at arm's length: one Tracker that never costs a run."""

from jaxtrain.redact import redact
from jaxtrain.tracking.journal import Journal
from jaxtrain.tracking.sync import sync_run
from jaxtrain.tracking.tracker import Measures, Tracker, TrackerReport, stored_model, stored_run

__all__ = ["Journal", "Measures", "Tracker", "TrackerReport", "redact", "stored_model", "stored_run", "sync_run"]
