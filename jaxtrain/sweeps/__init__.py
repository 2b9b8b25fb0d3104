"""Ablations and searches: many settings of one recipe, one command."""
