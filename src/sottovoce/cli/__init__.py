"""The command line: one module a verb, which parses and prints; what the verb does is a function of `sottovoce`.

At its top a verb's module imports only what its parser needs, so that help and wrong usage are answered at once; the
rest, which loads PyTorch, is imported by its `run`.
"""
