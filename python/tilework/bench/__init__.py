"""The bench: every op against its reference, the machine's peaks and other libraries, measured side by side.

``tilework bench --help`` is its face. Nothing here is imported by the rest of the library.
"""
