"""Examine the data of an experiment before training."""
