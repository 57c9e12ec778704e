"""This machine: what runs on it, what a call costs its host, how fast its memory is, which kernel it runs fastest."""
