"""For learners and teachers: the checker of one's own functions and the mistakes that it knows, one's own cell in a
training run, numeric gradients, a look inside a trained captioner, and the web page.
"""
