"""The model: a captioner has an image encoder, a recurrent cell and a projection to the vocabulary. The searches write
captions with it, and a checkpoint stores it in a file.
"""
