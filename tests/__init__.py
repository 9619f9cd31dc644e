"""Tests; a package, so that the folder of the same name that qdax installs is never taken for it."""
