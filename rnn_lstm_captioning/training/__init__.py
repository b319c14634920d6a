"""Training: batches of captions and features, the trainer, the files of a run, resuming, and several processes. For a
batch, ``batches`` selects rows, ``trainer`` asks the captioner for their loss, and the captioner runs the cell and the
loss. The settings are dataclasses; no module here parses arguments, and nothing is printed, except progress bars.
"""
