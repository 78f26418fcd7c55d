"""This machine: the TFLite runtime in its own thread, trials of unknown files, what the device can do, its disk."""
