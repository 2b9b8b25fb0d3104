"""WHAT is learned: the BaseClassifier protocol and the techniques under it."""
