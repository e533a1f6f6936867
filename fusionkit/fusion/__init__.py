"""Fusion methods: how a main encoder and its complements become one feature. One a file."""
