"""MLflow: one Tracker that never costs a run."""
