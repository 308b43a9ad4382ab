"""One module a data set: where its images come from, in which public forms they are read, its split and its counts."""
