"""`semievol validate`: what a run would do with these files, without doing it. Nothing is started or written."""
