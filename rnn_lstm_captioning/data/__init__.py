"""Caption files: reading, checking, downloading, building them, and the built-in scenes."""
