"""Finds the sampler and its settings for a model: a search by successive halving, judged again on other seeds."""
