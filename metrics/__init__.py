"""Scores of representations and the meaning both models share: beliefs, likelihoods, the ELBO.

Arrays in, plain values out. Nothing here knows a model, a data set or a file.
"""
