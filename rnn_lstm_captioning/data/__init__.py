"""The data: the caption file that training reads, the images and text files from which it is built, the vocabulary, and
the built-in scenes. No module here knows the model.
"""
