"""Encoders: the two interfaces in :mod:`.base`, one file per library family beside it."""
