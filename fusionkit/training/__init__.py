"""Training, evaluation and prediction; the only room that knows Lightning."""
