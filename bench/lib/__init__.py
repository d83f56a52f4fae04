"""What the comparisons in this folder share, and what bench/run adds to them."""
