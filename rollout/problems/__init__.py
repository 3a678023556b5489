"""Problems: read from files, data sets and generators, and checked before anything is sampled."""
