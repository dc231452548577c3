"""Which images features find alike: pairs, groups, and the answers of labelled sets."""
