"""Makes the helpers beside this file importable for the tests below it."""
