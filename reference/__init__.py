"""Small, readable implementations of what the rules describe, each from its formula or procedure.

A reference never calls the function that it is compared with, and knows nothing of the specs.
"""
