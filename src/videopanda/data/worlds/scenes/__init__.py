"""Scenes: a generated world of moving shapes, with real video files and exact answers. See `world.py`."""
