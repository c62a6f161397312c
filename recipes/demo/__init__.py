"""How the embedded demo model was trained; not part of the package."""
