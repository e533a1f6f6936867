"""Transfer modes: what of a pretrained encoder is trained. One mode a file."""
