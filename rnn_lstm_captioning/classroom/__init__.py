"""For learners and teachers: the checker of a learner's own functions, the mistakes that it knows, training with a
learner's own cell, numeric gradients, a look inside a trained captioner, and the web page.
"""
