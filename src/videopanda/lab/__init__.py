"""The laboratory: the papers' tables at nano scale. See `table.py`, `run.py` and `report.py`."""
