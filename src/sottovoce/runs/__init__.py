"""A run directory: every file that training, evaluation and reports leave in it, with its writer and its reader.

Nothing here needs the data set, the losses or the code that trained the run.
"""
