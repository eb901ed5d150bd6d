"""One picture of all systems that make networks of other sizes."""
