"""A bundle as a page in a browser.

``index.html`` and ``page`` are the page. ``javascript`` is the library that it uses, which Node.js runs too.
"""
