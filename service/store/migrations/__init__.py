"""
One file for each revision, numbered. Each leaves the version before it able to go on beside the new one: it adds what
that one does not have to know of, and what nobody uses any more is taken out a version later.
"""
