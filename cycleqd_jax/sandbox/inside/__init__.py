"""What runs on the other side: the fork server, its supervisors and the programs they start.

This folder is mounted, alone, into the outer sandbox and imported there as the top-level package ``inside``; it uses the
standard library only, and relative imports only.
"""
