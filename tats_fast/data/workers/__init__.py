"""Worker processes that outlive bad files, and long jobs over many files with a record of them.

Not here: what a worker does with a file, such as decoding it.
"""
