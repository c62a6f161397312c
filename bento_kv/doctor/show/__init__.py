"""A diagnosis for people: `text.render` and `page.render_html`.

Both read nothing but its records and the table of faults; what they have in common is in `shown`, and `pictures` places
what the page draws.
"""
