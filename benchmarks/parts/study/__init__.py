"""What study.py is made of: cells, clips, training side by side, measures, tables, pictures."""
