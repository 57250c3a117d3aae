"""Reading images: the grammar of sources, the one preprocessing rule, data sets by number and streams in order."""
