"""`semievol jobs`: what the service can do, from a shell."""
