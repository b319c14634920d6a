"""The data: the caption file that training reads, the files of captions and images from which it is built, the
vocabulary, and the built-in scenes. Nothing here knows a model.
"""
