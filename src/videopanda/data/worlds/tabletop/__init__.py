"""Tabletop: solid things on a table, in perspective, with materials, falls, collisions and a camera. See `world.py`."""
