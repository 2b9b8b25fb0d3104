"""Ablations and searches: many settings of one recipe, one command."""

import warnings

warnings.filterwarnings("ignore", "IProgress not found")  # of tqdm, which Optuna imports: its bars are not shown
