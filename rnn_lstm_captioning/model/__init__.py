"""The model: an image encoder, a recurrent cell and a projection to the vocabulary make a captioner; the searches
write captions with it; a checkpoint keeps it in a file.
"""
