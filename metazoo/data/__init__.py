"""Data sets on disk: where images come from, how they are read from any public form, and the packed store."""
