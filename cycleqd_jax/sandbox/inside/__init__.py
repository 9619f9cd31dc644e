"""The code inside the outer sandbox: the fork server, its supervisors, and the programs that they start.

Only this folder of the package is mounted into the outer sandbox, where it is imported as the top-level package ``inside``. It
uses only the standard library and relative imports.
"""
