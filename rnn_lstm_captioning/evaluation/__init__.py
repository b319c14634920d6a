"""Evaluation: captions for images from a checkpoint, the metrics that score them, and the figures that show them."""
