"""Sweeps: a recipe run many times, with some of its fields varied, compared in MLflow."""
