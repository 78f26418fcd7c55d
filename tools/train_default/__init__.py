"""Trains, quantises and writes the default model: `python -m tools.train_default FOLDER`."""
