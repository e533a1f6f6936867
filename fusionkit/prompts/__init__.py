"""The prompt engine: features in, prompts for every layer out. It knows widths, not encoders."""
