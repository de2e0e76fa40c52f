"""Input files: what forms and packings are read, and how bytes become rows or problems with their lines.

`opening.read_rows` is the door. Nothing here knows what a row is for; `semievol.examples` does.
"""
