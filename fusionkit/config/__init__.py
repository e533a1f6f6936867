"""Configs: what they may say, how files and overrides are merged, how they are checked."""
