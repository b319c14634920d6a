"""Training: batches of captions and features, the trainer, what a run writes, how it resumes, and several processes.

The way of a batch: ``batches`` selects rows, ``trainer`` asks the captioner for their loss, the captioner runs the cell
and the loss. The settings are dataclasses; no argument is parsed and nothing is printed here, except progress bars.
"""
