"""Spike circuits: rate codes, exponentials, products, softmax, attention, universal compiler."""
