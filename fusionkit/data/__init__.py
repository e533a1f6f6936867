"""Data: sources of samples, and how they become batches."""
