"""Reading images: the kinds of sources, the preprocessing rule, data sets for training and streams for the edge."""
