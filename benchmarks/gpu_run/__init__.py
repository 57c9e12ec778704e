"""`epilogue gpu-run`: its steps, their processes, the folder that they fill, and pytest's plugin for the failures."""
