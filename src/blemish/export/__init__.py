"""A fitted detector as one file for another program: the whole decision, proven equal before it is written."""
