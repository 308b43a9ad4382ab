"""What is measured: data sets, suites, published numbers, and the records of real runs."""
